"""Findings on any split, ours or foreign: what is on both sides, and what cannot be trusted.

Each finding is a ``leak`` (the claim of the split is false), a ``warning`` (a result made with it
needs a word of caution) or a ``note``. What identity the findings rest on is said in ``had``: a
verdict of ``clean`` says that nothing was found in that, and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import pandas as pd

from splits.auditing import classes, coverage, pixels, shared, spelling
from splits.auditing.battery import Entry, Features, ReadHeaders, battery, corrected
from splits.auditing.confounds import confounds
from splits.auditing.design import Design, design
from splits.auditing.findings import SEVERITIES, tile_places
from splits.auditing.pixels import Pixels
from splits.errors import unknown
from splits.groups import UNITS, slide_rows
from splits.placement import place, split_rows

__all__ = ["CLAIMS", "audit", "summarise"]

CLAIMS: Final = ("kfold", "holdout", "monte-carlo")


def audit(
    split_table: pd.DataFrame,
    slides: pd.DataFrame | None = None,
    tiles: pd.DataFrame | None = None,
    *,
    unit: str = "patient",
    claims: str | None = None,
    repeats: int = 1,
    blank: Collection[str] | None = None,
    found: Pixels | None = None,
    features: Features | None = None,
    headers: ReadHeaders | None = None,
    seen: Mapping[int, Collection[str]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Look for leaks and for what makes a split doubtful.

    Args:
        split_table: ``part`` (train, val, test), ``fold`` (0 where absent) and at least one of
            ``slide_id``, ``patient_id``, ``tile_id``; ``group_id``, ``site_id`` and ``label`` are
            used where present. A table of tiles is audited as such.
        slides: The slide table; its ids and labels go before those of the split.
        tiles: The tile table (``tile_id, slide_id``; ``sha256`` for identical pixels; ``x_px, y_px,
            width_px, height_px`` for overlapping coordinates).
        unit: What the split claims to keep whole. A shared patient is a leak for ``patient`` and
            ``site``, a shared site for ``site`` alone; a shared slide, group or tile always is.
        claims: ``kfold``, ``holdout`` or ``monte-carlo``; by default several folds claim k-fold.
        repeats: Times that k-fold was dealt anew, each of which tests every slide once.
        blank: ``sha256`` of tiles that show no tissue, which all look alike and link nothing. Where
            neither this nor ``found`` says it, an image that more than two slides share counts as
            blank: a warning.
        found: What the pixels of the tiles say, links between them above all.
        features: Of the tiles, for the battery; by default the vectors of ``found``.
        headers: Gives, for tile ids, how their files were written (`splits.auditing.headers`).
        seen: By fold, the slides that the encoder of its features was trained on.
        seed: Seed of the permutations of the battery.

    Returns:
        ``verdict`` (``leak`` or ``clean``), ``findings``, ``battery``, ``twins`` and ``had``. A
        finding has ``kind``, ``severity``, ``level``, ``fold`` (or null), ``ids`` (all, sorted),
        ``parts``, ``message``, ``evidence`` (one line an id, or a pair of tiles) and ``pairs``
        (of tiles that show one tissue). An entry of the battery has ``name``, ``value``,
        ``chance``, ``p`` (null where it was not run), ``meaning`` and ``severity`` (``warning``,
        ``note`` or null).

    Raises:
        InputError: The table names no part or no ids, or a name is unknown.
    """
    if unit not in UNITS:
        raise unknown(kind="unit", given=unit, allowed=UNITS)
    if claims is not None and claims not in CLAIMS:
        raise unknown(kind="claim", given=claims, allowed=CLAIMS)
    known = None if slides is None else slide_rows(slides)
    written, hygiene = spelling.reconciled(split_rows(split_table), known, tiles)
    rows, had = place(written, known, tiles)
    placed = tile_places(rows, tiles)
    if blank is None and found is not None and tiles is not None and "sha256" in tiles.columns:
        empty = [
            name for name, no_tissue in zip(found.tile_ids, found.blank, strict=True) if no_tissue
        ]
        blank = set(tiles.loc[tiles["tile_id"].isin(empty), "sha256"].dropna())
    findings = [
        *shared.shared(rows, unit),
        *spelling.spelled_twice(rows, () if known is None else known["slide_id"]),
        *shared.encoder_saw(rows, seen or {}, unit),
        *pixels.identical(placed, blank),
        *([] if found is None else pixels.linked(placed, found.links)),
        *pixels.coordinates(placed),
        *classes.missing(rows),
        *classes.conflicts(rows, tiles),
        *classes.one_sided(rows),
        *coverage.empty_parts(rows),
        *coverage.times_tested(rows, claims, known, repeats),
        *([] if known is None else coverage.strangers(rows, known)),
        *hygiene,
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding["severity"]))  # stable
    leak = any(finding["severity"] == "leak" for finding in findings)
    if features is None and found is not None:
        features = Features(found.tile_ids, found.vectors, "colour, stain and sharpness of pixels")
    entries = _battery(rows, placed, found, features, headers, unit, seed)
    return {
        "verdict": "leak" if leak else "clean",
        "findings": findings,
        "battery": entries,
        "twins": {} if found is None else {kind: dict(n) for kind, n in found.twins.items()},
        "had": [*had, *_had(placed, tiles, found, features, headers, seen)],
    }


def summarise(result: dict[str, Any]) -> str:
    """The verdict of an audit in one line."""
    findings = result["findings"]
    if result["verdict"] == "leak":
        # Folds repeat a finding, so ids are counted over all of them.
        ids: dict[str, set[str]] = {}
        for finding in findings:
            if finding["severity"] == "leak":
                ids.setdefault(finding["kind"].replace("_", " "), set()).update(finding["ids"])
        head = "leak: " + ", ".join(f"{kind} ({len(names)})" for kind, names in ids.items())
    else:
        head = "clean: nothing is shared across parts that may not be"
    said = [entry["severity"] for entry in [*findings, *result.get("battery", [])]]
    counts = [
        f"{said.count(severity)} {severity}(s)"
        for severity in ("warning", "note")
        if severity in said
    ]
    return "; ".join([head, *counts])


def _battery(
    rows: pd.DataFrame,
    placed: pd.DataFrame,
    found: Pixels | None,
    features: Features | None,
    headers: ReadHeaders | None,
    unit: str,
    seed: int,
) -> list[Entry]:
    tiles: Design | None = None
    if features is not None or headers is not None:
        tied = None if found is None else pd.Series(found.component, index=list(found.tile_ids))
        tiles = design(placed, tied, unit, seed)
    return corrected([*battery(features, headers, tiles, seed=seed), *confounds(rows, seed)])


def _had(
    placed: pd.DataFrame,
    tiles: pd.DataFrame | None,
    found: Pixels | None,
    features: Features | None,
    headers: ReadHeaders | None,
    seen: Mapping[int, Collection[str]] | None,
) -> Iterator[str]:
    """What there was to look at, and what was therefore not checked."""
    if tiles is not None:
        yield f"{placed['tile_id'].nunique()} of {len(tiles)} tiles lie in the split"
    if found is not None:
        yield found.told()
    elif "sha256" in placed.columns and placed["sha256"].notna().any():
        yield (
            "hashes of the tiles alone: copies that were turned or saved again, overlaps and "
            "seams were not looked for"
        )
    else:
        yield "no pixels: copies, overlaps and seams were not looked for"
    if "x_px" not in placed.columns or placed["x_px"].isna().all():
        yield "no coordinates: overlaps by coordinates were not looked for"
    if features is not None:
        yield f"features: {features.source}"
    else:
        yield "no features: probes, train against test and nearest neighbours were not run"
    if headers is None:
        yield "no image files: headers were not compared"
    if seen is None:
        yield "no word on the encoder: what it was trained on was not compared with the test slides"
