"""The shape of a finding, and where the tiles of a split lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from splits.groups import PARTS, text

__all__ = ["SEVERITIES", "Finding", "Pair", "finding", "places", "tile_places"]

SEVERITIES: Final = ("leak", "warning", "note")
Finding = dict[str, Any]
Pair = tuple[tuple[str, str], tuple[str, str]]
_IDENTITY: Final = ("slide_id", "patient_id", "site_id", "group_id", "label")


def finding(
    kind: str,
    severity: str,
    level: str,
    evidence: Mapping[str, str] | Sequence[str],
    *,
    what: str,
    ids: Collection[str] = (),
    parts: Collection[str] = (),
    fold: int | None = None,
    pairs: Sequence[Pair] = (),
) -> Finding:
    """One finding.

    Args:
        kind: Its name.
        severity: One of `SEVERITIES`.
        level: What its ids name: tile, slide, patient, ...
        evidence: By id, where it was seen; or one line a pair of tiles, with ``ids`` beside it.
        what: What is said of so many ids, in words.
        ids: All ids, where the evidence is not by id.
        parts: Parts that it is about.
        fold: Fold that it was found in; None for all.
        pairs: Two tiles that show one tissue, each with its part.
    """
    lines = evidence if isinstance(evidence, Mapping) else {}
    names = sorted(lines or set(ids))
    count = f"{len(names)} {level}(s)" if lines else f"{len(pairs)} pair(s) of tiles"
    where = "" if fold is None else f"fold {fold}: "
    return {
        "kind": kind,
        "severity": severity,
        "level": level,
        "fold": fold,
        "ids": names,
        "parts": sorted(set(parts), key=PARTS.index),
        "message": f"{where}{count} {what}",
        "evidence": [lines[name] for name in names] if lines else list(evidence),
        "pairs": [
            {"tiles": [one, other], "parts": [part, other_part]}
            for (one, part), (other, other_part) in pairs
        ],
    }


def places(table: pd.DataFrame, column: str) -> dict[str, str]:
    """For each id of ``column``: its parts, with the first slides (or other ids) in each."""
    lower = next(
        (
            name
            for name in ("tile_id", "slide_id", "patient_id")
            if name != column and name in table.columns and table[name].notna().any()
        ),
        column,
    )
    if column == "tile_id":
        lower = column
    evidence: dict[str, list[str]] = {}
    for (name, part), ids in table.groupby([column, "part"])[lower]:
        members = sorted(ids.dropna().unique())
        more = f" and {len(members) - 3} more" if len(members) > 3 else ""
        seen = "" if lower == column else f" ({', '.join(members[:3])}{more})"
        evidence.setdefault(str(name), []).append(f"{part}{seen}")
    return {name: f"{name}: {', '.join(found)}" for name, found in evidence.items()}


def tile_places(rows: pd.DataFrame, tiles: pd.DataFrame | None) -> pd.DataFrame:
    """Every tile of a split with its identity, one row a fold and part that it lies in.

    Args:
        rows: As `splits.placement.place` gives them: of tiles, or of slides.
        tiles: The tile table, which a split of slides needs; its other columns come along.
    """
    columns = ["tile_id", *_IDENTITY, "fold", "part"]
    if tiles is None:
        return rows.dropna(subset="tile_id")[columns].drop_duplicates()
    more = [name for name in tiles.columns if name not in {*columns, "slide_label"}]
    table = tiles[more].assign(tile_id=text(tiles, "tile_id"), slide_id=text(tiles, "slide_id"))
    if rows["tile_id"].notna().any():
        return table.drop(columns="slide_id").merge(rows[columns].drop_duplicates(), on="tile_id")
    known = rows.dropna(subset="slide_id")[columns[1:]].drop_duplicates()
    return table.dropna(subset="slide_id").merge(known, on="slide_id")
