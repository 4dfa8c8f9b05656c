"""Features on disk: one ``.npy`` matrix a fold, row-aligned to the tile table, memory-mapped.

One packed memory map is the fastest way to read bags of embeddings, faster than HDF5, parquet or
one file a slide. What the matrix was made from (encoder card, digests, the slides that the encoder
saw) stands in ``meta.json`` beside it, which the stage that encodes writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from splits.artifacts import atomic
from splits.errors import InputError

__all__ = ["Features", "open_features", "save_features", "start_features", "write_rows"]

Features = npt.NDArray[np.floating[Any]]
"""``(n_tiles, dim)``, float16 or float32, every value finite."""

_N_CHECKED_ROWS = 512


def save_features(path: Path, features: Features) -> None:
    """Write features under a temporary name and rename the file when it is whole.

    Args:
        path: Such as ``features/fold0.npy``; missing folders are made.
        features: ``(n_tiles, dim)``, float16 or float32, row-aligned to the tile table.

    Raises:
        InputError: Another shape or type, no rows, or a value that is not finite.
    """
    _check(f"features for {path}", features)
    # An open file, because numpy.save appends ".npy" to a name that ends otherwise.
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, features, allow_pickle=False)


def start_features(path: Path, shape: tuple[int, int]) -> None:
    """Start a float32 matrix ``(n_tiles, dim)`` that :func:`write_rows` fills."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


def write_rows(path: Path, first: int, blocks: Iterable[Features]) -> None:
    """Fill rows from ``first`` on; several processes may fill theirs at once.

    Written through the file, not through a map: a full disk is then an error and no crash.
    """
    with path.open("r+b") as file:
        np.lib.format.read_magic(file)
        (_, dim), _, _ = np.lib.format.read_array_header_1_0(file)
        file.seek(file.tell() + first * dim * 4)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)


def open_features(path: Path, n_tiles: int | None = None) -> Features:
    """Open features as a read-only memory map.

    The values are read through once, because one NaN turns the logits of its slide and then all
    weights of an aggregator into NaN, far from the cause.

    Args:
        path: A file that :func:`save_features` wrote.
        n_tiles: Number of rows of the tile table, where the caller has it.

    Returns:
        ``(n_tiles, dim)``, float16 or float32; writing to it raises ``ValueError``.

    Raises:
        InputError: The file is missing or damaged, has another shape or type or another number
            of rows than the tile table, or holds a value that is not finite.
    """
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        message = f"{path} does not exist"
        raise InputError(message) from error
    except (ValueError, EOFError, OSError) as error:
        message = f"{path} is not a readable .npy matrix ({error})"
        raise InputError(message) from error
    if not isinstance(features, np.ndarray):
        features.close()
        message = f"{path} is an .npz archive: allowed is one .npy matrix (n_tiles, dim)"
        raise InputError(message)
    _check(str(path), features)
    if n_tiles is not None and len(features) != n_tiles:
        message = (
            f"{path} has {len(features)} rows and the tile table {n_tiles}: "
            "the features belong to another tile table, encode again"
        )
        raise InputError(message)
    return features


def _check(what: str, features: Features) -> None:
    if features.dtype not in (np.float16, np.float32):
        message = f"{what}: type {features.dtype} given, allowed float16 or float32"
        raise InputError(message)
    if features.ndim != 2 or 0 in features.shape:
        message = f"{what}: shape {features.shape} given, allowed (n_tiles, dim), both at least 1"
        raise InputError(message)
    for start in range(0, len(features), _N_CHECKED_ROWS):
        finite = _is_finite(features[start : start + _N_CHECKED_ROWS])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            value = features[start + row, column]
            message = (
                f"{what}: row {start + row}, column {column} is {value}, allowed are finite values "
                "(float16 overflows beyond 65504)"
            )
            raise InputError(message)


def _is_finite(block: Features) -> npt.NDArray[np.bool_]:
    if block.dtype != np.float16:
        return np.isfinite(block)
    # NaN and infinity have all five exponent bits set. numpy converts every float16 to float32
    # to find that out, at a seventh of the speed.
    bits: npt.NDArray[np.bool_] = (block.view(np.uint16) & 0x7C00) != 0x7C00
    return bits
