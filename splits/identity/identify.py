"""The stage that fills the identity columns: manifest before names before pixels.

Pixels may merge declared groups and never split them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits import tiles as tile_table
from splits.artifacts import read_csv
from splits.errors import InputError, unknown
from splits.identity import content as pixels
from splits.identity import manifest as manifests
from splits.identity.folder import FolderNames, parse_folder
from splits.identity.grade import grade
from splits.identity.grammar import WEAK
from splits.identity.name import split_fragment
from splits.identity.score import score

__all__ = ["UNITS", "identify"]

UNITS: Final = ("slide", "patient", "site")
_CONTENT: Final = 0.9
"""Confidence of a slide that was put together from identical pixels."""


def identify(
    tiles: pd.DataFrame,
    *,
    rule: str = "auto",
    manifest: Path | None = None,
    content: bool = True,
    unit: str = "patient",
    read: pixels.Read | None = None,
    truth: Path | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fill the identity columns of a tile table and say where every id comes from.

    Args:
        tiles: Tile table as `splits.scan` makes it.
        rule: ``auto``, a grammar, or a regular expression; see `splits.identity.folder`.
        manifest: Table of tiles or of slides; see `splits.identity.manifest`.
        content: Whether identical pixels link tiles.
        unit: What a group is before hard links are closed over: ``slide``, ``patient``, ``site``.
            A group never cuts a smaller unit either.
        read: Gives the pixels of a tile as uint8, to tell blank glass from copies.
        truth: CSV with ``path, slide_id, patient_id``, for scoring only.

    Returns:
        The tile table, without the tiles that the accepted rule says nothing about, and the report
        (``identity.json``); its ``unidentified`` lists those tiles. With grade ``D`` each file is
        its own group, which is no slide-level identity: refuse to split on it.

    Raises:
        InputError: A wrong rule, unit, manifest or truth; a slide with two labels, patients or
            sites; ``unit="site"`` where nothing gives a site.
    """
    if unit not in UNITS:
        kind = "unit"
        raise unknown(kind, unit, UNITS)
    table = tile_table.check(tiles)
    given = manifests.read(manifest) if manifest is not None else None
    notes: list[str] = []
    table, names, report = _declare(table, given, rule, notes)
    unidentified = table.loc[table["slide_id"].isna(), "tile_id"].tolist()
    declared = len(unidentified) < len(table)
    if declared:
        n_tiles = len(table)
        table = table[table["slide_id"].notna()].reset_index(drop=True)
        coverage, confidence = len(table) / n_tiles, float(table["id_confidence"].min())
        _complete(table, notes)
    else:
        unidentified, coverage, confidence = [], 0.0, 0.0
        _by_file(table)
    if unit == "site" and table["site_id"].isna().all():
        message = (
            "unit site: neither the manifest nor the names give a site (allowed: site_id there)"
        )
        raise InputError(message)
    links = pixels.HardLinks(np.empty((0, 2), dtype=np.int64), 0)
    if content:
        unit_ids = table[f"{unit}_id"].fillna(table["patient_id"])
        links = pixels.identical_pixels(table["tile_id"], table["sha256"], unit_ids, read)
    if links.n_blank:
        notes.append(f"{links.n_blank} tiles share their pixels and are blank: they link nothing")
    linked = _link_content(table, links.pairs) if not declared else 0.0
    n_across, conflicts = _conflicts(table, links.pairs, unit)
    merges = _close(table, links.pairs, unit)
    verdict, reason = grade(
        declared=declared,
        coverage=coverage,
        confidence=confidence,
        n_across=n_across,
        linked=linked,
    )
    result = tile_table.check(table)
    sources = result["id_source"].value_counts()
    report |= {
        "grade": verdict,
        "reason": reason,
        "rule": names.rule,
        "unit": unit,
        "coverage": coverage,
        "n": {
            "tiles": len(result),
            **{f"{name}s": int(result[f"{name}_id"].nunique()) for name in (*UNITS, "group")},
        },
        "sources": {name: int(sources.get(name, 0)) for name in tile_table.ID_SOURCES},
        "n_hard_links": len(links.pairs),
        "merges": merges,
        "conflicts": conflicts,
        "notes": notes,
        "candidates": list(names.candidates),
        "unidentified": sorted(unidentified),
    }
    if truth is not None:
        report["scores"] = score(result, read_csv(truth), seed=0)
    return result, report


def _declare(
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


def _complete(table: pd.DataFrame, notes: list[str]) -> None:
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


def _by_file(table: pd.DataFrame) -> None:
    """Give each file an id of its own, so that tiles cut from one file stay together."""
    table["slide_id"] = [split_fragment(name)[0] for name in table["tile_id"]]
    table["patient_id"] = table["slide_id"]
    table["id_source"] = "none"
    table["id_confidence"] = 0.0


def _link_content(table: pd.DataFrame, pairs: npt.NDArray[np.int64]) -> float:
    """Where nothing is declared, copies of one image are one slide; returns the linked share."""
    joined = np.concatenate([pairs, _star(table["slide_id"])])
    component = pd.Series(pixels.components(len(table), joined), index=table.index)
    linked = table["slide_id"].groupby(component).transform("nunique") > 1
    # Copies under two labels stay two slides in one group: the label is in doubt, not the link.
    agreed = table["slide_label"].groupby(component).transform("nunique") <= 1
    smallest = table["slide_id"].groupby(component).transform("min")
    table["slide_id"] = table["slide_id"].mask(linked & agreed, smallest)
    table["patient_id"] = table["slide_id"]
    table["id_source"] = np.where(linked, "content", "none")
    table["id_confidence"] = np.where(linked, _CONTENT, 0.0)
    return float(linked.mean()) if len(table) else 0.0


def _conflicts(
    table: pd.DataFrame, pairs: npt.NDArray[np.int64], unit: str
) -> tuple[int, list[dict[str, Any]]]:
    """Hard links between declared ids, with both tiles: suspected errors in the ids."""
    levels = {name: table[f"{name}_id"].to_numpy(dtype=object, na_value=None) for name in UNITS}
    names = table["tile_id"].to_numpy(dtype=object)
    rows = []
    n_across = 0
    for first, second in pairs:
        n_across += levels[unit][first] != levels[unit][second]
        # The largest unit that differs says most; a site is no identity of a tissue.
        for level in ("patient", "slide"):
            ids = [levels[level][first], levels[level][second]]
            if ids[0] != ids[1]:
                rows.append(
                    {
                        "level": level,
                        "ids": ids,
                        "tiles": [names[first], names[second]],
                        "evidence": "identical pixels",
                    }
                )
                break
    return n_across, rows


def _close(table: pd.DataFrame, pairs: npt.NDArray[np.int64], unit: str) -> list[dict[str, Any]]:
    """Set ``group_id``: the closure of the unit, of every smaller unit and of the hard links.

    Returns:
        The groups that hold several units: ``group_id`` and its ``members``.
    """
    own = table[f"{unit}_id"].fillna(table["patient_id"])
    smaller = [_star(table[f"{name}_id"]) for name in UNITS[: UNITS.index(unit)]]
    files = _star(pd.Series([split_fragment(name)[0] for name in table["tile_id"]]))
    joined = np.concatenate([pairs, files, _star(own), *smaller])
    component = pd.Series(pixels.components(len(table), joined), index=table.index)
    table["group_id"] = own.groupby(component).transform("min")
    members = own.groupby(table["group_id"]).unique()
    return [
        {"group_id": str(group), "members": sorted(map(str, units))}
        for group, units in members.items()
        if len(units) > 1
    ]


def _star(keys: pd.Series) -> npt.NDArray[np.int64]:
    """Link every row to the first row of its key: ``(n_rows, 2)``."""
    codes, _ = pd.factorize(keys)
    _, first = np.unique(codes, return_index=True)
    return np.stack([first[codes], np.arange(len(codes))], axis=1).astype(np.int64)


def _text(column: pd.Series) -> list[str | None]:
    return [None if value is pd.NA else str(value) for value in column]
