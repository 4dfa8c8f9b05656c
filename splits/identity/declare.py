"""What a manifest and the names declare about every tile, before any pixel is looked at.

The manifest wins where both speak; gaps within a slide are filled and contradictions refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from splits import tiles as tile_table
from splits.errors import InputError
from splits.identity import manifest as manifests
from splits.identity.folder import FolderNames, parse_folder
from splits.identity.grammar import WEAK

__all__ = ["complete", "declare"]


def declare(
    table: pd.DataFrame, given: pd.DataFrame | None, rule: str, notes: list[str]
) -> tuple[pd.DataFrame, FolderNames, dict[str, Any]]:
    """Fill in what the manifest and the names declare; the manifest wins where both speak."""
    ids = table["tile_id"].tolist()
    rows, report = None, {}
    by_tile = given is not None and "path" in given.columns
    if given is not None and by_tile:
        rows, report["manifest"] = manifests.match(given, ids)
        _override(table, rows, ["slide_label", "tile_label"])
        if report["manifest"]["unmatched"]:
            notes.append(f"the manifest says nothing about {report['manifest']['unmatched']} tiles")
    # A table of slides brings the labels after the names: the folder's are then no labels yet.
    replaced = given is not None and not by_tile and "slide_label" in given.columns
    labels = [_text(table["slide_label"]), _text(table["tile_label"])]
    if replaced:
        labels[0] = [None] * len(table)
    names = parse_folder(ids, rule, labels)
    notes += names.notes
    read = _name_columns(names, table.index)
    for column in read.columns:
        table[column] = read[column]
    has_ids = rows is not None and bool({"slide_id", "patient_id"} & set(rows.columns))
    if rows is not None and has_ids:
        _from_manifest(table, rows, names, notes)
    if given is not None and not by_tile:
        if names.rule is None:
            message = (
                "the manifest has one row a slide, and the names do not say which slide a tile "
                "comes from: give a column path, or identity.rule"
            )
            raise InputError(message)
        rows, report["manifest"] = manifests.match_slides(given, _text(table["slide_id"]))
    if rows is not None:
        _override(
            table, rows, [name for name in rows.columns if name not in {"slide_id"} or has_ids]
        )
    return table, names, report


def _from_manifest(
    table: pd.DataFrame, rows: pd.DataFrame, names: FolderNames, notes: list[str]
) -> None:
    """Settle what a manifest of tiles leaves open about slide and patient."""
    believed = names.rule is not None and names.confidence > WEAK
    if "slide_id" not in rows.columns:
        notes.append("the manifest gives patients and no slides")
        table["slide_id"] = table["slide_id"] if believed else rows["patient_id"]
        table["slide_id"] = table["slide_id"].fillna(rows["patient_id"])
    else:
        # Names may add the patient and site of a slide where they agree with themselves about it.
        informative = believed & (table["patient_id"] != table["slide_id"]).fillna(value=False)
        for column in ("patient_id", "site_id"):
            known = table[column].where(informative)
            one_value = known.groupby(rows["slide_id"]).transform("nunique") == 1
            complete = known.notna().groupby(rows["slide_id"]).transform("all")
            table[column] = known.where(one_value & complete)
        if "patient_id" not in rows.columns and table["patient_id"].notna().any():
            notes.append(f"the manifest gives no patients: taken from the names ({names.rule})")
    table["id_source"] = "manifest"
    table["id_confidence"] = 1.0


def _name_columns(names: FolderNames, index: pd.Index) -> pd.DataFrame:
    found = [
        (None,) * 7
        if name is None
        else (
            name.slide,
            name.patient,
            name.site or name.batch,
            name.region,
            name.x,
            name.y,
            name.mpp,
        )
        for name in names.names
    ]
    columns = ["slide_id", "patient_id", "site_id", "region", "x_px", "y_px", "mpp"]
    read = pd.DataFrame(found, columns=columns, index=index, dtype=object)
    for column in columns:
        read[column] = read[column].astype(tile_table.COLUMNS[column])
    known = read["slide_id"].notna()
    read["id_source"] = np.where(known, "name", "none")
    read["id_confidence"] = np.where(known, names.confidence, 0.0)
    # Some archives number slides within a patient: the patient then is part of the slide's id.
    patients = read.groupby("slide_id")["patient_id"].transform("nunique")
    shared = (patients > 1).fillna(value=False)
    qualified = read["patient_id"] + "/" + read["slide_id"]
    read["slide_id"] = read["slide_id"].mask(shared, qualified)
    return read


def _override(table: pd.DataFrame, rows: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column in rows.columns:
            table[column] = rows[column].where(rows[column].notna(), table[column])


def complete(table: pd.DataFrame, notes: list[str]) -> None:
    """Fill gaps within a slide and refuse a slide that contradicts itself."""
    table["patient_id"] = table["patient_id"].fillna(table["slide_id"])
    by_slide = table.groupby("slide_id")
    for column in ("slide_label", "patient_id", "site_id"):
        counts = by_slide[column].nunique()
        bad = sorted(counts.index[counts > 1])
        if bad:
            of_bad = table[table["slide_id"].isin(bad[:3])].groupby("slide_id")[column]
            values = of_bad.agg(lambda column: sorted(column.dropna().unique()))
            listed = "; ".join(f"{slide}: {' and '.join(values[slide])}" for slide in bad[:3])
            message = f"{len(bad)} slide(s) with more than one {column}: {listed}"
            if column == "slide_label":
                message += " (a tissue class of single tiles belongs into tile_label)"
            raise InputError(message)
        filled = table[column].fillna(by_slide[column].transform("first"))
        n_filled = int((table[column].isna() & filled.notna()).sum())
        if n_filled:
            notes.append(f"{n_filled} tiles took their {column} from other tiles of the slide")
        table[column] = filled


def _text(column: pd.Series) -> list[str | None]:
    return [None if value is pd.NA else str(value) for value in column]
