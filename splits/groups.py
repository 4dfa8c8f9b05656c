"""Groups of slides: what may never be cut."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.content.links import components
from splits.errors import InputError, unknown

__all__ = ["AMOUNTS", "PARTS", "UNITS", "regroup", "slide_rows", "text"]

PARTS: Final = ("train", "val", "test")
UNITS: Final = ("patient", "slide", "site")
AMOUNTS: Final = {"tissue": "tissue:", "stain": "stain:"}
"""How the columns of a slide table begin that hold tiles per tissue type, and bins of stain."""

Ints = npt.NDArray[np.int64]


def text(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of ids as text, with null for what is null or empty; all null where it is absent."""
    if column not in table.columns:
        return pd.Series(pd.NA, index=table.index, dtype="string")
    values = table[column].astype("string")
    return values.mask(values == "")


def slide_rows(slides: pd.DataFrame) -> pd.DataFrame:
    """The slide table with text ids, sorted by ``slide_id``.

    Raises:
        InputError: No rows, no ``slide_id``, or a slide that is null or listed twice.
    """
    if "slide_id" not in slides.columns or slides.empty:
        message = f"a slide table needs a row a slide and slide_id; got {list(slides.columns)}"
        raise InputError(message)
    names = [name for name in slides.columns if name.endswith("_id") or name == "label"]
    table = slides.assign(**{name: text(slides, name) for name in names})
    twice = table["slide_id"].duplicated()
    if table["slide_id"].isna().any() or twice.any():
        what = table.loc[twice, "slide_id"].dropna().tolist()[:3]
        message = f"slide_id must be unique and never empty; repeated: {what}"
        raise InputError(message)
    return table.sort_values("slide_id", kind="stable").reset_index(drop=True)


def regroup(slides: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return the slide table with ``group_id`` set to the closure of ``unit``.

    A site holds its patients, and a patient its slides: where one patient has slides of two sites,
    these sites become one group. Groups that exist already are kept whole, except for unit
    ``slide``, where each slide is its own group.

    Raises:
        InputError: Unknown unit, or slides without the id that it needs.
    """
    if unit not in UNITS:
        raise unknown(kind="unit", given=unit, allowed=UNITS)
    table = slide_rows(slides)
    if unit == "slide":
        return table.assign(group_id=table["slide_id"])
    name = f"{unit}_id"
    ids = text(table, name)
    if ids.isna().any():
        message = (
            f"unit {unit!r} needs {name} for every slide; {int(ids.isna().sum())} of {len(table)} "
            f"have none, the first is {table.loc[ids.isna(), 'slide_id'].iloc[0]!r} "
            f"(give them, or choose another unit: {', '.join(UNITS)})"
        )
        raise InputError(message)
    links = [name, *(["patient_id"] if unit == "site" else []), "group_id"]
    component = _closure([text(table, link) for link in links])
    # A component is named by its first unit, and no unit lies in two components.
    return table.assign(group_id=ids.groupby(component).transform("min"))


def _closure(links: list[pd.Series]) -> Ints:
    """Component of each row, where rows that share a value of any column are linked."""
    n_rows, rows, nodes = len(links[0]), [], []
    n_nodes = n_rows
    for values in links:
        codes, names = pd.factorize(values)
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        nodes.append(codes[known] + n_nodes)
        n_nodes += len(names)
    i, j = np.concatenate(rows), np.concatenate(nodes)
    return components(n_nodes, np.stack([i, j], axis=1))[:n_rows]
