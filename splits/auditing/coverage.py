"""What is tested how often, and what only one of split and table knows."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from splits.auditing.findings import Finding, finding

__all__ = ["empty_parts", "strangers", "times_tested"]


def times_tested(
    rows: pd.DataFrame,
    claims: str | None,
    slides: pd.DataFrame | None = None,
    repeats: int = 1,
) -> Iterator[Finding]:
    """Slides that are not tested exactly once a repeat, where the folds claim that they are.

    Several folds claim k-fold unless ``claims`` says otherwise; for ``monte-carlo`` this is a note.
    """
    n_folds = rows["fold"].nunique()
    if claims == "holdout" or (claims is None and n_folds < 2):
        return
    severity = "note" if claims == "monte-carlo" else "warning"
    level = next(
        (name for name in ("slide", "patient", "tile") if rows[f"{name}_id"].notna().any()), "tile"
    )
    column = f"{level}_id"
    tests = rows.loc[rows["part"] == "test", [column, "fold"]].dropna().drop_duplicates()
    times = tests[column].value_counts()
    everyone = set(rows[column].dropna())
    twice = {
        str(name): f"{name}: tested in {n} of {n_folds} folds"
        for name, n in times[times > repeats].items()
    }
    if slides is not None and level == "slide":
        everyone |= set(slides["slide_id"])
    never = {str(name): f"{name}: in no test part" for name in everyone - set(times.index)}
    ever = f"({len(times)} of {len(everyone)} are ever tested)"
    for kind, evidence, what in (
        ("tested_twice", twice, f"in the test part of several folds {ever}"),
        ("never_tested", never, f"in no test part {ever}"),
    ):
        if evidence:
            yield finding(kind, severity, level, evidence, parts=["test"], what=what)


def empty_parts(rows: pd.DataFrame) -> Iterator[Finding]:
    """Folds without a train or a test part: nothing can be shared with a part that is not there."""
    for part, so in (("train", "nothing is learned there"), ("test", "nothing is tested there")):
        without = sorted(set(rows["fold"]) - set(rows.loc[rows["part"] == part, "fold"]))
        if without:
            evidence = {str(fold): f"fold {fold}: no {part} part" for fold in without}
            what = f"without a {part} part: {so}"
            yield finding("empty_part", "warning", "fold", evidence, parts=[part], what=what)


def strangers(rows: pd.DataFrame, slides: pd.DataFrame) -> Iterator[Finding]:
    """Slides of the split that the table does not know, and the reverse."""
    dealt, known = set(rows["slide_id"].dropna()), set(slides["slide_id"])
    unmatched = rows.loc[rows["slide_id"].isna(), "patient_id"].dropna()
    for kind, level, names, what in (
        ("not_in_table", "slide", dealt - known, "of the split not in the slide table"),
        ("not_in_table", "patient", set(unmatched), "of the split not in the slide table"),
        ("not_in_split", "slide", known - dealt, "of the slide table not in the split"),
    ):
        if names:
            evidence = {str(name): f"{name}: {what.removeprefix('of the ')}" for name in names}
            yield finding(kind, "warning", level, evidence, what=what)
