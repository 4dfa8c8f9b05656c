"""The stage that fills the identity columns: manifest before names before pixels.

Pixels may merge declared groups and never split them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits import tiles as tile_table
from splits.artifacts import read_csv
from splits.content.evidence import Evidence
from splits.content.links import KINDS, components
from splits.content.soft import Coarse, coarsen
from splits.errors import InputError, unknown
from splits.identity import manifest as manifests
from splits.identity import sites as site_maps
from splits.identity.declare import complete, declare
from splits.identity.grade import grade, is_hard_linked
from splits.identity.name import split_fragment
from splits.identity.score import score

__all__ = ["UNITS", "identify"]

UNITS: Final = ("slide", "patient", "site")
_CONTENT: Final = 0.9
"""Confidence of a slide that was put together from hard links."""
_WORDS: Final = {
    "identical": "identical pixels",
    "turned": "a turned or re-saved copy",
    "duplicate": "an altered copy (turned, cropped, re-saved)",
    "overlap": "overlapping areas",
    "seam": "edges that continue each other",
}


def identify(
    tiles: pd.DataFrame,
    *,
    rule: str = "auto",
    manifest: Path | None = None,
    columns: Mapping[str, str] | None = None,
    patients: Path | None = None,
    sites: Path | None = None,
    evidence: Evidence | None = None,
    embedding: npt.NDArray[np.floating] | None = None,
    unit: str = "patient",
    folds: int = 5,
    classes: Sequence[str] | None = None,
    truth: Path | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fill the identity columns of a tile table and say where every id comes from.

    Args:
        tiles: Tile table as `splits.scan` makes it.
        rule: ``auto``, a grammar, or a regular expression; see `splits.identity.folder`.
        manifest: Table of tiles, slides or patients; see `splits.identity.manifest`.
        columns: Our name -> the manifest's name, for its columns that are not recognised.
        patients: Table of patients that is joined to the manifest.
        sites: Table of site code and institution; see `splits.identity.sites`.
        evidence: What the pixels say; its rows are the tiles sorted by ``tile_id``.
        embedding: ``(n_tiles, d)`` features of an encoder, rows as in ``evidence``: more soft
            evidence.
        unit: What a group is before hard links are closed over: ``slide``, ``patient``, ``site``.
            A group never cuts a smaller unit either.
        folds: Number of folds that groups from soft evidence have to allow.
        classes: Labels to keep. What pixels tie together stays one group, even where the tiles
            between are of another class.
        truth: CSV with ``path, slide_id, patient_id``, for scoring only.

    Returns:
        The tile table, without the tiles that nothing ties to a slide, and the report
        (``identity.json``), which lists those under ``unidentified`` (the accepted rule says
        nothing about the name), ``blank`` (where content is the only evidence) and
        ``other_classes`` (pairs of tile and label). With grade ``D`` there is no slide-level
        identity: refuse to split on it.

    Raises:
        InputError: A wrong rule, unit, class, manifest or truth; a slide with two labels, patients
            or sites; ``unit="site"`` where nothing gives a site.
    """
    if unit not in UNITS:
        kind = "unit"
        raise unknown(kind, unit, UNITS)
    table = tile_table.check(tiles)
    if manifest is None and (columns or patients is not None):
        message = "columns and a table of patients belong to a manifest, and none is given"
        raise InputError(message)
    given = None if manifest is None else manifests.read(manifest, columns, patients)
    notes: list[str] = []
    table, names, report = declare(table, given, rule, notes)
    keep = table["slide_id"].notna().to_numpy()
    declared = bool(keep.any())
    coverage = float(keep.mean()) if len(table) else 0.0
    if not declared:
        # A blank tile has no slide. Where all tiles are blank they stay, and the grade is D.
        keep = np.ones(len(table), bool)
        if evidence is not None and not evidence.blank.all():
            keep = ~evidence.blank
    left = table.loc[~keep, "tile_id"].tolist()
    if evidence is not None:
        report |= evidence.summary(table["tile_id"].tolist())
        evidence = evidence.of(keep)
    embedding = None if embedding is None else embedding[keep]
    table = table[keep].reset_index(drop=True)
    confidence = float(table["id_confidence"].min()) if declared else 0.0
    if declared:
        complete(table, notes)
    else:
        _by_file(table)
    other = ~_of_classes(table, classes)
    left_out = table.loc[other, ["tile_id", "slide_label"]].astype(object).to_numpy().tolist()
    if left_out:
        table = table[~other].reset_index(drop=True)
        evidence = None if evidence is None else evidence.of(~other)
        embedding = None if embedding is None else embedding[~other]
    if sites is not None:
        table["site_id"], report["sites"] = site_maps.merge(table["site_id"], site_maps.read(sites))
    if unit == "site" and table["site_id"].isna().all():
        message = (
            "unit site: neither the manifest nor the names give a site (allowed: site_id there)"
        )
        raise InputError(message)
    hard = np.arange(len(table)) if evidence is None else evidence.assembly.component
    linked = _linked_share(table, hard, evidence)
    twins, gaps = (0.0, 1.0) if evidence is None else (evidence.twins_found, evidence.gaps)
    coarse = None
    groups = hard
    if not declared:
        _link_content(table, hard)
        if evidence is not None and not is_hard_linked(linked, twins, gaps):
            coarse = coarsen(hard, evidence.vectors, folds=folds, embedding=embedding)
            groups = coarse.group
    n_across, conflicts = _conflicts(table, evidence, unit)
    merges = _close(table, groups, unit)
    verdict, reason = grade(
        declared=declared,
        coverage=coverage,
        confidence=confidence,
        n_across=n_across,
        linked=linked,
        twins=twins,
        gaps=gaps,
        coarse=coarse,
    )
    result = tile_table.check(table)
    sources = result["id_source"].value_counts()
    report |= {
        "grade": verdict,
        "reason": reason,
        "rule": names.rule,
        "unit": unit,
        "coverage": coverage if declared else 0.0,
        "n": {
            "tiles": len(result),
            **{f"{name}s": int(result[f"{name}_id"].nunique()) for name in (*UNITS, "group")},
        },
        "sources": {name: int(sources.get(name, 0)) for name in tile_table.ID_SOURCES},
        "linked": linked,
        "leakage": None if coarse is None else _leakage(coarse),
        "merges": merges,
        "conflicts": conflicts,
        "notes": notes,
        "candidates": list(names.candidates),
        "unidentified": left if declared else [],
        "blank": [] if declared else left,
        "other_classes": left_out,
    }
    if truth is not None:
        report["scores"] = score(result, read_csv(truth), seed=0)
    return result, report


def _of_classes(table: pd.DataFrame, classes: Sequence[str] | None) -> npt.NDArray[np.bool_]:
    """Tiles whose label is one of the classes."""
    if classes is None:
        return np.ones(len(table), bool)
    found = set(table["slide_label"].dropna())
    kind = "class in data.classes:"
    for name in classes:
        if name not in found:
            raise unknown(kind, name, found)
    return np.asarray(table["slide_label"].isin(classes), bool)


def _leakage(coarse: Coarse) -> dict[str, Any]:
    """What soft evidence could do, as ``identity.json`` has it; null where nothing was learned."""
    summary = coarse.summary()
    return summary | {"predicted": None if np.isnan(summary["predicted"]) else summary["predicted"]}


def _by_file(table: pd.DataFrame) -> None:
    """Give each file an id of its own, so that tiles cut from one file stay together."""
    table["slide_id"] = _files(table)
    table["patient_id"] = table["slide_id"]
    table["id_source"] = "none"
    table["id_confidence"] = 0.0


def _files(table: pd.DataFrame) -> pd.Series:
    return pd.Series([split_fragment(name)[0] for name in table["tile_id"]], index=table.index)


def _linked_share(
    table: pd.DataFrame, component: npt.NDArray[np.int64], evidence: Evidence | None
) -> float:
    """Share of the tiles with tissue whose component holds tiles of another file."""
    if evidence is None or evidence.blank.all():
        return 0.0
    linked = _files(table).groupby(component).transform("nunique") > 1
    return float(linked[~evidence.blank].mean())


def _link_content(table: pd.DataFrame, hard: npt.NDArray[np.int64]) -> None:
    """Where nothing is declared, a component of hard links is one slide."""
    pairs = np.concatenate([_star(pd.Series(hard)), _star(table["slide_id"])])
    component = pd.Series(components(len(table), pairs), index=table.index)
    linked = table["slide_id"].groupby(component).transform("nunique") > 1
    # Tiles under two labels stay several slides in one group: the label is in doubt, not the link.
    agreed = table["slide_label"].groupby(component).transform("nunique") <= 1
    smallest = table["slide_id"].groupby(component).transform("min")
    table["slide_id"] = table["slide_id"].mask(linked & agreed, smallest)
    table["patient_id"] = table["slide_id"]
    table["id_source"] = np.where(linked, "content", "none")
    table["id_confidence"] = np.where(linked, _CONTENT, 0.0)


def _conflicts(
    table: pd.DataFrame, evidence: Evidence | None, unit: str
) -> tuple[int, list[dict[str, Any]]]:
    """Hard links between declared ids, one row a pair of ids: suspected errors in the ids.

    The tiles shown for a pair of ids are those of its surest link.
    """
    if evidence is None:
        return 0, []
    links = evidence.links[evidence.assembly.used]
    first, second = links.pairs.T
    levels = {name: table[f"{name}_id"].to_numpy(dtype=object, na_value=None) for name in UNITS}
    differ = {name: levels[name][first] != levels[name][second] for name in UNITS}
    tile = table["tile_id"].to_numpy(dtype=object)
    # The largest unit that differs says most; a site is no identity of a tissue.
    level = np.where(differ["patient"], "patient", np.where(differ["slide"], "slide", ""))
    found: dict[tuple[str, ...], list[int]] = {}
    for row in np.flatnonzero(level != ""):
        ids = sorted(str(levels[level[row]][tile_row]) for tile_row in links.pairs[row])
        found.setdefault((str(level[row]), *ids), []).append(int(row))
    conflicts = []
    for (name, *ids), rows in sorted(found.items()):
        best = min(rows, key=lambda row: (links.kind[row], -links.score[row], row))
        shown = sorted(
            links.pairs[best].tolist(), key=lambda row: (str(levels[name][row]), tile[row])
        )
        counts = np.bincount(links.kind[rows], minlength=len(KINDS))
        words = [f"{_WORDS[KINDS[kind]]} ({counts[kind]})" for kind in np.flatnonzero(counts)]
        conflicts.append(
            {
                "level": name,
                "ids": ids,
                "tiles": [str(tile[row]) for row in shown],
                "evidence": ", ".join(words),
                "n_links": len(rows),
            }
        )
    return int(differ[unit].sum()), conflicts


def _close(table: pd.DataFrame, groups: npt.NDArray[np.int64], unit: str) -> list[dict[str, Any]]:
    """Set ``group_id``: the closure of the unit, of every smaller unit and of what pixels join.

    Returns:
        The groups that hold several units: ``group_id`` and its ``members``.
    """
    own = table[f"{unit}_id"].fillna(table["patient_id"])
    smaller = [_star(table[f"{name}_id"]) for name in UNITS[: UNITS.index(unit)]]
    joined = np.concatenate([_star(pd.Series(groups)), _star(_files(table)), _star(own), *smaller])
    component = pd.Series(components(len(table), joined), index=table.index)
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
