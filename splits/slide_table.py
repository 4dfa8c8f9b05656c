"""A table of slides that a user brings, without tiles: for splitting and for auditing."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from splits.errors import InputError, unknown
from splits.groups import AMOUNTS
from splits.identity.grammar import parse
from splits.identity.manifest import SYNONYMS
from splits.identity.table import read_cells
from splits.ids import hygiene
from splits.images import SUFFIXES

__all__ = ["COLUMNS", "column_key", "from_names", "read", "the_one"]

COLUMNS: Final = ("slide_id", "patient_id", "site_id", "label", "n_tiles", "group_id")
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    **{name: (name, *SYNONYMS.get(name, ())) for name in COLUMNS},
    "label": SYNONYMS["slide_label"],
}


def read(
    path: Path, columns: Mapping[str, str] | None = None, *, labels: bool = True
) -> tuple[pd.DataFrame, list[str]]:
    """Read slides with every id as text.

    Columns are recognised by their usual names (`splits.identity.manifest.SYNONYMS`), so that the
    tables of CLAM, slideflow, STAMP and Patho-Bench are read as they are. Where the table gives no
    patient or site, the slide's name is asked; a name that says nothing makes each slide its own
    patient.

    Args:
        path: A table (comma, semicolon or tab separated, or parquet) with a row a slide.
        columns: Our name -> the table's name, where it is not recognised.
        labels: Whether a label is needed.

    Returns:
        The table with ``slide_id, patient_id, site_id``, ``label``, ``n_tiles`` and ``group_id``
        where it had them, and its columns of amounts (`splits.groups.AMOUNTS`) as numbers; and
        notes in words on what was derived and on ids that look damaged.

    Raises:
        InputError: A column is missing, unknown or ambiguous, a slide id is empty, two rows of a
            slide contradict each other, or a number is none.
    """
    cells = read_cells(path)
    found = _recognised(cells, columns or {}, path)
    _require(found, cells, path, labels=labels)
    amounts = [name for name in cells.columns if name.lower().startswith(tuple(AMOUNTS.values()))]
    table = pd.DataFrame({ours: cells[theirs] for ours, theirs in found.items()})
    table = table.join(cells[amounts].rename(columns=str.lower))
    notes = []
    empty = table["slide_id"].str.strip() == ""
    if empty.any():
        message = (
            f"{path}: {int(empty.sum())} row(s) have no slide_id, the first is row "
            f"{int(empty.argmax()) + 1}"
        )
        raise InputError(message)
    table, said = _once_each(table, path)
    notes += said
    table, said = from_names(table)
    notes += said
    table["site_id"] = table["site_id"].replace("", None)
    for name in [column for column in ("n_tiles", *map(str.lower, amounts)) if column in table]:
        table[name] = _numbers(table[name], path, at_least=1 if name == "n_tiles" else 0)
    for level in ("slide", "patient"):
        findings = hygiene(table[f"{level}_id"], level=level)
        # Where every slide is its own patient, one list says it all.
        if level == "slide" or (table["patient_id"] != table["slide_id"]).any():
            notes += [f"{item['message']}, such as {item['ids'][0]!r}" for item in findings]
    return table.reset_index(drop=True), notes


def _recognised(cells: pd.DataFrame, columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """Our name -> the table's, by the mapping, by the same name, or by a synonym."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise unknown(kind="column to map", given=ours, allowed=COLUMNS)
        if theirs.strip() not in cells.columns:
            raise unknown(kind=f"column of {path}", given=theirs, allowed=cells.columns)
    found = {ours: theirs.strip() for ours, theirs in columns.items()}
    taken = set(found.values())
    for ours in (name for name in COLUMNS if name not in found):
        fitting = _named(cells, _WORDS[ours], taken)
        if (one := the_one(fitting, ours, path)) is not None:
            found[ours] = one
    if "slide_id" not in found:
        # STAMP and the archives list files of slides; files of images would be tiles.
        files = _named(cells, SYNONYMS["path"], taken)
        if files and not cells[files[0]].str.lower().str.endswith(SUFFIXES).any():
            found["slide_id"] = files[0]
    return {ours: found[ours] for ours in COLUMNS if ours in found}


def _named(cells: pd.DataFrame, words: Collection[str], taken: Collection[str]) -> list[str]:
    keys = {column_key(word) for word in words}
    return [
        name
        for name in cells.columns
        if column_key(name) in keys and name not in taken and (cells[name] != "").any()
    ]


def the_one(fitting: Sequence[str], ours: str, path: Path) -> str | None:
    """The column that is meant: the one that is named like ours, or the only one that fits.

    Args:
        fitting: Columns of the file whose name or content fits.
        ours: Our name.
        path: The file, for the message.

    Raises:
        InputError: Several could be meant.
    """
    exact = [name for name in fitting if column_key(name) == column_key(ours)]
    if len(exact or fitting) > 1:
        message = (
            f"{path}: the columns {' and '.join(exact or fitting)} could all be {ours}: "
            f"say which with --columns {ours}={fitting[0]}"
        )
        raise InputError(message)
    return next(iter(exact or fitting), None)


def column_key(name: str) -> str:
    """A name of a column without case, spaces and punctuation."""
    return re.sub(r"[\W_]", "", name.lower())


def _require(found: Mapping[str, str], cells: pd.DataFrame, path: Path, *, labels: bool) -> None:
    for ours in ("slide_id", "label") if labels else ("slide_id",):
        if ours not in found:
            message = (
                f"{path} has no column that is known as {ours} (it has "
                f"{', '.join(cells.columns)}): map one with --columns {ours}=NAME"
            )
            classes = [
                name
                for name in cells.columns
                if name not in found.values() and 1 < cells[name].nunique() <= len(cells) / 2
            ]
            if ours == "label" and classes:
                message += f", such as --columns label={classes[0]}"
            raise InputError(message)


def _once_each(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row a slide: the same row again is said, another row of the slide is refused."""
    n_before = len(table)
    table = table.drop_duplicates()
    twice = table["slide_id"].duplicated()
    if twice.any():
        slide = table.loc[twice, "slide_id"].iloc[0]
        rows = table[table["slide_id"] == slide]
        differ = next(name for name in rows.columns if rows[name].nunique() > 1)
        message = (
            f"{path}: slide_id must be given once each; {slide!r} has {differ} "
            f"{' and '.join(map(repr, rows[differ].unique()[:2]))} "
            f"({int(twice.sum())} row(s) repeat a slide)"
        )
        raise InputError(message)
    n_again = n_before - len(table)
    return table, [f"{n_again} row(s) repeat another row and were left out"] if n_again else []


def from_names(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Patients and sites from the slides' names where the table has no column for them."""
    if {"patient_id", "site_id"} <= set(table.columns):
        return table, []
    said = [parse(name) for name in table["slide_id"]]
    notes = []
    if "patient_id" not in table.columns:
        patients = [None if name is None else name.patient for name in said]
        n_known = sum(bool(patient) for patient in patients)
        table = table.assign(
            patient_id=[
                patient or slide for patient, slide in zip(patients, table["slide_id"], strict=True)
            ]
        )
        notes.append(
            f"no patient_id: {n_known} of {len(table)} taken from the slide's name, "
            "every other slide is its own patient"
        )
    if "site_id" not in table.columns:
        table = table.assign(site_id=[name.site if name is not None else None for name in said])
    return table, notes


def _numbers(column: pd.Series, path: Path, at_least: int) -> pd.Series:
    values = pd.to_numeric(column, errors="coerce")
    wrong = ~(np.isfinite(values) & (values >= at_least))
    if wrong.any():
        message = (
            f"{path}: {column.name} must be a number of {at_least} or more for every slide, "
            f"got {column[wrong].iloc[0]!r}"
        )
        raise InputError(message)
    return values.astype("int64" if column.name == "n_tiles" else "float64")
