"""The tile table: one row a tile, its columns, checks, digests, and the view of slides.

Identity is never a file's base name: ``tile_id`` is the POSIX path relative to the data root. A
tile that is cut out of a larger image carries the W3C media fragment of its place, as in
``slide_3.tif#xywh=256,0,128,128``.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import pandas as pd

from splits.errors import InputError

__all__ = ["COLUMNS", "ID_SOURCES", "check", "empty", "identity_digest", "pixels_digest", "slides"]

COLUMNS: Final[dict[str, str]] = {
    "tile_id": "string",
    "tile_label": "string",
    "slide_label": "string",
    "width_px": "int32",
    "height_px": "int32",
    "sha256": "string",
    "slide_id": "string",
    "patient_id": "string",
    "site_id": "string",
    "group_id": "string",
    "id_source": "category",
    "id_confidence": "float32",
    "region": "string",
    "x_px": "Int64",
    "y_px": "Int64",
    "mpp": "Float64",
}
ID_SOURCES: Final = ("manifest", "name", "content", "none")
_IDENTITY: Final = ("slide_id", "patient_id", "site_id", "group_id", "slide_label")


def empty() -> pd.DataFrame:
    """A tile table without rows, with the exact columns and types."""
    return check(pd.DataFrame({name: [] for name in COLUMNS}))


def check(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table sorted by ``tile_id`` with exact columns and types.

    Missing columns are filled with nulls; ``tile_id`` must be there, unique and not null.

    Raises:
        InputError: Unknown columns, or ``tile_id`` missing, null or repeated.
    """
    extra = [name for name in table.columns if name not in COLUMNS]
    if extra or "tile_id" not in table.columns:
        message = f"not a tile table: unknown columns {extra}, allowed {list(COLUMNS)}"
        raise InputError(message)
    if table["tile_id"].isna().any() or table["tile_id"].duplicated().any():
        repeated = table.loc[table["tile_id"].duplicated(), "tile_id"].astype(str).tolist()
        message = f"tile_id must be unique and never null; repeated: {repeated[:3]}"
        raise InputError(message)
    columns = {}
    for name, kind in COLUMNS.items():
        values = table[name] if name in table.columns else pd.Series(pd.NA, index=table.index)
        if kind == "category":
            columns[name] = pd.Categorical(values, categories=list(ID_SOURCES))
        elif kind == "int32":
            columns[name] = values.fillna(0).astype("int32")
        elif kind == "float32":
            columns[name] = pd.to_numeric(values).astype("float32")
        else:
            columns[name] = values.astype(kind)
    result = pd.DataFrame(columns, index=table.index)
    return result.sort_values("tile_id", kind="stable").reset_index(drop=True)


def pixels_digest(table: pd.DataFrame) -> str:
    """Digest over (``tile_id``, ``sha256``), independent of row order."""
    return _digest(table, ["tile_id", "sha256"])


def identity_digest(table: pd.DataFrame) -> str:
    """Digest that adds the identity columns and the label, independent of row order."""
    return _digest(table, ["tile_id", "sha256", *_IDENTITY])


def slides(table: pd.DataFrame) -> pd.DataFrame:
    """One row a slide, sorted: ``slide_id, patient_id, site_id, group_id, label, n_tiles``.

    Raises:
        InputError: A slide has no id, or carries two values in one of these columns.
    """
    if table["slide_id"].isna().any():
        message = "the tile table has no slide identity yet: run `slidewise identify` first"
        raise InputError(message)
    columns = ["patient_id", "site_id", "group_id", "slide_label"]
    counts = table.groupby("slide_id", sort=True)[columns].nunique(dropna=False)
    for column in columns:
        bad = counts.index[counts[column] > 1]
        if len(bad):
            values = sorted(table.loc[table["slide_id"] == bad[0], column].astype(str).unique())
            message = (
                f"{len(bad)} slide(s) with more than one {column}, the first is {bad[0]!r} "
                f"with {values}: one value a slide is allowed"
            )
            raise InputError(message)
    grouped = table.groupby("slide_id", sort=True)
    view = grouped[columns].first()
    view["n_tiles"] = grouped.size().astype(np.int64)
    return view.rename(columns={"slide_label": "label"}).reset_index()


def _digest(table: pd.DataFrame, columns: list[str]) -> str:
    ordered = table.sort_values("tile_id", kind="stable")
    state = hashlib.sha256()
    for column in columns:
        values = ordered[column].astype("string").fillna("\x00")
        state.update("\x1f".join(values).encode())
        state.update(b"\x1e")
    return state.hexdigest()[:16]
