"""One id in two spellings: between a split and its tables, and between two parts of a split."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd

from splits import ids
from splits.auditing.findings import Finding, finding
from splits.groups import text
from splits.identity.exporter import without_uuid

__all__ = ["reconciled", "spelled_twice"]


def reconciled(
    rows: pd.DataFrame, slides: pd.DataFrame | None, tiles: pd.DataFrame | None
) -> tuple[pd.DataFrame, list[Finding]]:
    """The split with the ids of the tables, and what was found in how its ids are written.

    Args:
        rows: As `splits.placement.split_rows` gives them.
        slides: The slide table.
        tiles: The tile table.
    """
    findings: list[Finding] = []
    for level in ("slide", "patient", "tile"):
        column = f"{level}_id"
        given = rows[column].dropna()
        if given.empty:
            continue
        if level != "tile":  # names of tiles are paths
            findings += ids.hygiene(given, level=level)
        known: set[str] = set()
        for table in (slides, tiles):
            known |= set() if table is None else set(text(table, column).dropna())
        if known:
            matched = ids.reconcile(given, known, level=level)
            findings += matched.findings
            changed = {name: other for name, other in matched.mapping.items() if name != other}
            if changed:
                values = rows[column].map(changed).astype("string").fillna(rows[column])
                rows = rows.assign(**{column: values})
    return rows, findings


def spelled_twice(rows: pd.DataFrame, known: Collection[str]) -> Iterator[Finding]:
    """Slides of different parts of a fold whose ids are one but for how they are written.

    White space, file extension and the UUID of a portal say nothing about a slide: a leak. Upper
    and lower case may be told apart: a warning. Ids that the slide table lists apart are apart.

    Args:
        rows: The split, with the ids of the tables where they were found there.
        known: Slides of the slide table.
    """
    table = rows.dropna(subset="slide_id")[["slide_id", "fold", "part"]].drop_duplicates()
    table = table.assign(plain=table["slide_id"].map(_plain).astype("string"))
    table = table.assign(folded=table["plain"].str.casefold())
    declared = set(known)
    for severity, key, less in (("leak", "plain", "slide_id"), ("warning", "folded", "plain")):
        for fold, inside in table.groupby("fold"):
            groups = inside.groupby(key)
            twice = (groups[less].nunique() > 1) & (groups["part"].nunique() > 1)
            found = inside[inside[key].isin(twice.index[twice])]
            if declared:
                stray = ~found["slide_id"].isin(declared)
                found = found[stray.groupby(found[key]).transform("any").astype(bool)]
            if len(found):
                yield finding(
                    "spelled_twice",
                    severity,
                    "slide",
                    {
                        str(row["slide_id"]): f"{row['slide_id']!r} in {row['part']}: {row[key]!r}"
                        for row in found.to_dict("records")
                    },
                    parts=found["part"].unique(),
                    fold=int(fold),
                    what="of different parts whose ids differ only in how they are written",
                )


def _plain(slide_id: str) -> str:
    """Without white space around, file extensions and the UUID of a portal."""
    return without_uuid(ids.bare(" ".join(slide_id.split())))
