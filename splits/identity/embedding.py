"""A matrix of encoder features that the user brings: more soft evidence on which tiles go together.

A row is found by its tile, never by luck: files that name their tiles may be in any order.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from splits.artifacts import read_table
from splits.errors import InputError, unknown

__all__ = ["read", "tile_ids_of"]

_FORMS: Final = (".npy", ".npz", ".parquet")
_NAMES: Final = ("tile_id", "path")


def read(path: Path, tile_ids: Sequence[str]) -> npt.NDArray[np.float32]:
    """Read features of all tiles.

    Args:
        path: ``.parquet`` with a column ``tile_id`` (or ``path``) and one column a feature;
            ``.npz`` with the arrays ``tile_id`` ``(n,)`` and ``x`` ``(n, d)``; or ``.npy``,
            ``(n_tiles, d)``, in the order of the sorted tile ids.
        tile_ids: Tile ids, sorted.

    Returns:
        ``(n_tiles, d)``, rows as in ``tile_ids``.

    Raises:
        InputError: The file is missing, of another form or lacks a tile; it names a tile twice, has
            no features, or holds a value that is not finite.
    """
    names, features = _opened(path)
    if features.ndim != 2 or features.shape[1] == 0 or not np.issubdtype(features.dtype, np.number):
        message = f"{path}: {features.dtype} of shape {features.shape} given, numbers (n, d) needed"
        raise InputError(message)
    rows = _rows(path, names, len(features), tile_ids)
    result = features[rows].astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if len(bad):
        message = (
            f"{path}: features of {len(bad)} tile(s) are not finite, the first is "
            f"{tile_ids[bad[0]]!r}"
        )
        raise InputError(message)
    return np.asarray(result, np.float32)


def tile_ids_of(path: Path) -> list[str]:
    """The tiles that a file of features names, sorted.

    Raises:
        InputError: As in :func:`read`; or the file names none (``.npy``).
    """
    names, _ = _opened(path)
    if names is None:
        message = (
            f"{path} does not name its tiles: give .npz or .parquet, or the folder of the tiles"
        )
        raise InputError(message)
    return sorted(names)


def _opened(path: Path) -> tuple[list[str] | None, npt.NDArray[Any]]:
    if path.suffix.lower() not in _FORMS:
        kind = "form of an embedding"
        raise unknown(kind, path.suffix or path.name, _FORMS)
    if not path.is_file():
        message = f"{path} does not exist"
        raise InputError(message)
    try:
        return _load(path)
    except InputError:
        raise  # it names the file already
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        message = f"{path} is not a readable embedding ({error})"
        raise InputError(message) from error


def _load(path: Path) -> tuple[list[str] | None, npt.NDArray[Any]]:
    """The names of the tiles, where the file has them, and the matrix."""
    if path.suffix.lower() == ".parquet":
        table = read_table(path)
        name = next((name for name in _NAMES if name in table.columns), None)
        if name is None:
            message = f"no column tile_id among {', '.join(map(str, table.columns[:5]))}"
            raise ValueError(message)
        features = table.drop(columns=name)
        other = [c for c in features if not pd.api.types.is_numeric_dtype(features[c])]
        if other:
            message = f"column {other[0]!r} holds no numbers"
            raise ValueError(message)
        return table[name].astype(str).tolist(), features.to_numpy()
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return None, loaded
    with loaded:
        missing = {"tile_id", "x"} - set(loaded.files)
        if missing:
            message = f"arrays {', '.join(loaded.files)} given, tile_id and x needed"
            raise ValueError(message)
        return [str(name) for name in loaded["tile_id"]], loaded["x"]


def _rows(
    path: Path, names: list[str] | None, n_rows: int, tile_ids: Sequence[str]
) -> npt.NDArray[np.int64]:
    if names is None:
        if n_rows != len(tile_ids):
            message = (
                f"{path} has {n_rows} rows for {len(tile_ids)} tiles: one row a tile in the order "
                "of the sorted tile ids is needed (or .npz or .parquet, which name their tiles)"
            )
            raise InputError(message)
        return np.arange(n_rows)
    if len(names) != n_rows:
        message = f"{path} names {len(names)} tiles and has {n_rows} rows"
        raise InputError(message)
    row = {name: number for number, name in enumerate(names)}
    if len(row) < len(names):
        repeated = pd.Series(names)[pd.Series(names).duplicated()].iloc[0]
        message = f"{path} names a tile twice: {repeated!r}"
        raise InputError(message)
    missing = [name for name in tile_ids if name not in row]
    if missing:
        message = (
            f"{path} lacks {len(missing)} of {len(tile_ids)} tiles, the first is {missing[0]!r}; "
            f"its tiles look like {min(names, default='')!r}"
        )
        raise InputError(message)
    return np.array([row[name] for name in tile_ids], np.int64)
