"""A table of slides that a user brings, without tiles: for splitting and for auditing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pandas as pd

from splits.artifacts import read_csv
from splits.errors import InputError, unknown
from splits.identity.grammar import parse

__all__ = ["COLUMNS", "read"]

COLUMNS: Final = ("slide_id", "patient_id", "site_id", "label", "n_tiles", "group_id")


def read(path: Path, columns: Mapping[str, str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Read slides with every id as text.

    Where the table gives no patient or site, the slide's name is asked; a name that says nothing
    makes each slide its own patient.

    Args:
        path: CSV with ``slide_id`` and any other of :data:`COLUMNS`.
        columns: Our name -> the table's name, where they differ.

    Returns:
        The table with ``slide_id, patient_id, site_id, label`` and the rest of what it had, and
        notes in words on what was derived.

    Raises:
        InputError: A column is missing or unknown, or a slide id is empty or repeated.
    """
    table = read_csv(path)
    for ours, theirs in (columns or {}).items():
        if ours not in COLUMNS:
            raise unknown(kind="column to map", given=ours, allowed=COLUMNS)
        if theirs not in table.columns:
            raise unknown(kind=f"column of {path}", given=theirs, allowed=table.columns)
    table = table.rename(columns={theirs: ours for ours, theirs in (columns or {}).items()})
    if "slide_id" not in table.columns:
        message = (
            f"{path} has no column slide_id (it has {', '.join(table.columns)}): "
            "map one with --columns slide_id=NAME"
        )
        raise InputError(message)
    table = table[[name for name in COLUMNS if name in table.columns]]
    wrong = (table["slide_id"] == "") | table["slide_id"].duplicated()
    if wrong.any():
        message = (
            f"{path}: slide_id must be given once each, line {int(wrong.argmax()) + 2} has "
            f"{table['slide_id'][wrong].iloc[0]!r}"
        )
        raise InputError(message)
    notes = []
    said = [parse(name) for name in table["slide_id"]]
    if "patient_id" not in table.columns:
        table = table.assign(
            patient_id=[
                name.patient if name is not None and name.patient else slide
                for name, slide in zip(said, table["slide_id"], strict=True)
            ]
        )
        n_known = sum(name is not None and bool(name.patient) for name in said)
        notes.append(
            f"no patient_id: {n_known} of {len(table)} taken from the slide's name, "
            "every other slide is its own patient"
        )
    if "site_id" not in table.columns:
        table = table.assign(site_id=[name.site if name is not None else None for name in said])
    table["site_id"] = table["site_id"].replace("", None)
    if "n_tiles" in table.columns:
        counts = pd.to_numeric(table["n_tiles"], errors="coerce")
        if counts.isna().any() or (counts < 1).any():
            message = f"{path}: n_tiles must be a number of 1 or more for every slide"
            raise InputError(message)
        table["n_tiles"] = counts.astype("int64")
    return table, notes
