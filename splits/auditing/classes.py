"""What makes labels doubtful: classes missing from a part, conflicts, classes of one site alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pandas as pd

from splits.auditing.findings import Finding, finding
from splits.groups import text

__all__ = ["conflicts", "missing", "one_sided"]

_CHANCE: Final = 0.05
"""A site of one class is named if fewer than one in twenty of its size would be so by chance."""


def missing(rows: pd.DataFrame) -> Iterator[Finding]:
    """Classes that a part of a fold has nothing of."""
    classes = sorted(rows["label"].dropna().unique())
    if not classes:
        return
    for (fold, part), table in rows.groupby(["fold", "part"]):
        absent = sorted(set(classes) - set(table["label"].dropna()))
        if absent:
            yield finding(
                "class_missing",
                "warning",
                "class",
                {name: f"{name}: none in {part} of fold {fold}" for name in absent},
                parts=[part],
                fold=int(fold),
                what=f"missing from {part}",
            )


def conflicts(rows: pd.DataFrame, tiles: pd.DataFrame | None) -> Iterator[Finding]:
    """Slides, and patients, that carry more than one label."""
    labelled = rows[["slide_id", "patient_id", "label"]]
    if tiles is not None and "slide_label" in tiles.columns:
        extra = pd.DataFrame(
            {"slide_id": text(tiles, "slide_id"), "label": text(tiles, "slide_label")}
        ).drop_duplicates()
        extra["patient_id"] = extra["slide_id"].map(
            rows.drop_duplicates("slide_id").set_index("slide_id")["patient_id"]
        )
        labelled = pd.concat([labelled, extra[extra["slide_id"].isin(rows["slide_id"])]])
    for level in ("slide", "patient"):
        column = f"{level}_id"
        pairs = labelled[[column, "label"]].dropna().drop_duplicates()
        pairs = pairs[pairs[column].duplicated(keep=False)]
        if len(pairs):
            evidence = {
                str(name): f"{name}: {', '.join(sorted(labels))}"
                for name, labels in pairs.groupby(column)["label"]
            }
            yield finding(
                "label_conflict", "warning", level, evidence, what="with more than one label"
            )


def one_sided(rows: pd.DataFrame) -> Iterator[Finding]:
    """Classes that come from one site alone, and sites that hold one class alone.

    In both, the site gives the class away. A site of few slides is of one class by chance, so that
    only the larger ones are named.
    """
    slides = rows.dropna(subset=["slide_id", "site_id", "label"]).drop_duplicates("slide_id")
    sites, classes = slides["site_id"].nunique(), slides["label"].nunique()
    if sites < 2 or classes < 2:
        return
    by_class = slides.groupby("label")["site_id"].agg(["nunique", "first", "size"])
    alone = by_class[(by_class["nunique"] == 1) & (by_class["size"] > 1)]
    if len(alone):
        evidence = {
            str(name): f"{name}: all {row['size']} slides are from site {row['first']}"
            for name, row in alone.iterrows()
        }
        what = "that come from one site alone: the site gives the class away"
        yield finding("class_of_one_site", "warning", "class", evidence, what=what)
    share = slides["label"].value_counts(normalize=True)
    by_site = slides.groupby("site_id")["label"].agg(["nunique", "first", "size"])
    by_chance = by_site["first"].map(share).astype(float) ** by_site["size"]
    pure = by_site[(by_site["nunique"] == 1) & (by_chance < _CHANCE)]
    if len(pure):
        evidence = {
            str(name): f"{name}: all {row['size']} slides are {row['first']} "
            f"({100 * share[row['first']]:.0f} % of all slides are)"
            for name, row in pure.iterrows()
        }
        what = "that hold one class alone, more than chance makes so"
        yield finding("site_of_one_class", "note", "site", evidence, what=what)
