"""Findings on any split, ours or foreign: what is on both sides, and what cannot be trusted.

Each finding is a ``leak`` (the claim of the split is false), a ``warning`` (a result made with it
needs a word of caution) or a ``note``. What identity the findings rest on is said in ``had``: a
verdict of ``clean`` says that nothing was found in that, and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import pandas as pd

from splits.errors import unknown
from splits.groups import PARTS, UNITS, slide_rows, text
from splits.placement import place

__all__ = ["CLAIMS", "audit", "summarise"]

CLAIMS: Final = ("kfold", "holdout", "monte-carlo")
_COPIES: Final = 2  # slides that may share one image before it is taken for a blank tile

Finding = dict[str, Any]


def audit(
    split_table: pd.DataFrame,
    slides: pd.DataFrame | None = None,
    tiles: pd.DataFrame | None = None,
    *,
    unit: str = "patient",
    claims: str | None = None,
    blank: Collection[str] = frozenset(),
) -> dict[str, Any]:
    """Look for leaks and for what makes a split doubtful.

    Args:
        split_table: ``part`` (train, val, test), ``fold`` (0 where absent) and at least one of
            ``slide_id``, ``patient_id``, ``tile_id``; ``group_id``, ``site_id`` and ``label`` are
            used where present. A table of tiles is audited as such.
        slides: The slide table; its ids and labels go before those of the split.
        tiles: The tile table (``tile_id, slide_id``, and ``sha256`` for identical pixels).
        unit: What the split claims to keep whole. A shared patient is a leak for ``patient`` and
            ``site``, a shared site for ``site`` alone; a shared slide, group or tile always is.
        claims: ``kfold``, ``holdout`` or ``monte-carlo``; by default several folds claim k-fold.
        blank: ``sha256`` of tiles that show no tissue, which all look alike and link nothing.
            Without it, an image that more than two slides share counts as blank: a warning.

    Returns:
        ``verdict`` (``leak`` or ``clean``), ``findings`` and ``had``. A finding has ``kind``,
        ``severity``, ``level``, ``fold`` (or null), ``ids`` (all, sorted), ``parts``, ``message``,
        and ``evidence`` (one line an id).

    Raises:
        InputError: The table names no part or no ids, or a name is unknown.
    """
    if unit not in UNITS:
        raise unknown(kind="unit", given=unit, allowed=UNITS)
    if claims is not None and claims not in CLAIMS:
        raise unknown(kind="claim", given=claims, allowed=CLAIMS)
    known = None if slides is None else slide_rows(slides)
    rows, had = place(split_table, known, tiles)
    findings: list[Finding] = []
    for level, severity in _severities(unit).items():
        findings += _shared(rows, level, severity)
    if tiles is not None:
        findings += _identical_pixels(rows, tiles, frozenset(blank))
    findings += _missing_classes(rows)
    findings += _label_conflicts(rows, tiles)
    findings += _tested(rows, claims)
    if known is not None:
        findings += _strangers(rows, known)
    order = {"leak": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding["severity"]])  # stable
    leak = any(finding["severity"] == "leak" for finding in findings)
    return {"verdict": "leak" if leak else "clean", "findings": findings, "had": had}


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
    counts = [
        f"{sum(finding['severity'] == severity for finding in findings)} {severity}(s)"
        for severity in ("warning", "note")
        if any(finding["severity"] == severity for finding in findings)
    ]
    return "; ".join([head, *counts])


def _severities(unit: str) -> dict[str, str]:
    return {
        "tile": "leak",
        "slide": "leak",
        "patient": "warning" if unit == "slide" else "leak",
        "group": "leak",
        "site": "leak" if unit == "site" else "note",
    }


def _finding(
    kind: str,
    severity: str,
    level: str,
    evidence: dict[str, str],
    *,
    parts: Collection[str] = (),
    fold: int | None = None,
    what: str,
) -> Finding:
    """One finding; ``evidence`` says per id where it was seen."""
    ids = sorted(evidence)
    where = "" if fold is None else f"fold {fold}: "
    return {
        "kind": kind,
        "severity": severity,
        "level": level,
        "fold": fold,
        "ids": ids,
        "parts": sorted(parts, key=PARTS.index),
        "message": f"{where}{len(ids)} {level}(s) {what}",
        "evidence": [evidence[name] for name in ids],
    }


def _shared(rows: pd.DataFrame, level: str, severity: str) -> Iterator[Finding]:
    """Ids of one level that lie in more than one part of a fold."""
    column = f"{level}_id"
    for fold, table in rows.dropna(subset=column).groupby("fold"):
        pairs = table[[column, "part"]].drop_duplicates()
        twice = pairs.loc[pairs[column].duplicated(), column].unique()
        if len(twice):
            inside = table[table[column].isin(twice)]
            yield _finding(
                f"shared_{level}",
                severity,
                level,
                _places(inside, column),
                parts=inside["part"].unique(),
                fold=int(fold),
                what="in more than one part",
            )


def _places(table: pd.DataFrame, column: str) -> dict[str, str]:
    """For each id of ``column``: its parts, with the first slides (or other ids) in each."""
    lower = next(
        (
            name
            for name in ("tile_id", "slide_id", "patient_id")
            if name != column and table[name].notna().any()
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
    return {name: f"{name}: {', '.join(places)}" for name, places in evidence.items()}


def _identical_pixels(
    rows: pd.DataFrame, tiles: pd.DataFrame, blank: frozenset[str]
) -> Iterator[Finding]:
    """Different tiles with the same decoded pixels in different parts of a fold."""
    if "sha256" not in tiles.columns:
        return
    images = pd.DataFrame(
        {name: text(tiles, name) for name in ("tile_id", "slide_id", "sha256")}
    ).dropna(subset="sha256")
    images = images[~images["sha256"].isin(blank)]
    images = images[images["sha256"].duplicated(keep=False)]
    n_slides = images.groupby("sha256")["slide_id"].nunique()
    on = "tile_id" if rows["tile_id"].notna().any() else "slide_id"
    placed = images.merge(rows[[on, "fold", "part"]].drop_duplicates(), on=on)
    for fold, table in placed.groupby("fold"):
        # One tile that is itself on both sides is a shared tile or slide, which is said elsewhere.
        counts = table.groupby("sha256")[["part", "tile_id"]].nunique()
        across = counts.index[(counts > 1).all(axis=1)]
        copies = n_slides.reindex(across)
        for severity, hashes, what in (
            ("leak", across[copies <= _COPIES], "in more than one part"),
            ("warning", across[copies > _COPIES], "in many slides of several parts: blank tiles?"),
        ):
            if len(hashes):
                inside = table[table["sha256"].isin(hashes)].assign(patient_id=pd.NA)
                yield _finding(
                    "identical_pixels",
                    severity,
                    "image",
                    _places(inside, "sha256"),
                    parts=inside["part"].unique(),
                    fold=int(fold),
                    what=what,
                )


def _missing_classes(rows: pd.DataFrame) -> Iterator[Finding]:
    """Classes that a part of a fold has nothing of."""
    classes = sorted(rows["label"].dropna().unique())
    if not classes:
        return
    for (fold, part), table in rows.groupby(["fold", "part"]):
        absent = sorted(set(classes) - set(table["label"].dropna()))
        if absent:
            evidence = {name: f"{name}: none in {part} of fold {fold}" for name in absent}
            what = f"missing from {part}"
            yield _finding(
                "class_missing", "warning", "class", evidence, parts=[part], fold=int(fold),
                what=what,
            )  # fmt: skip


def _label_conflicts(rows: pd.DataFrame, tiles: pd.DataFrame | None) -> Iterator[Finding]:
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
            yield _finding(
                "label_conflict", "warning", level, evidence, what="with more than one label"
            )


def _tested(rows: pd.DataFrame, claims: str | None) -> Iterator[Finding]:
    """Slides that are not tested exactly once, where the folds claim that they are."""
    n_folds = rows["fold"].nunique()
    if claims == "holdout" or (claims is None and n_folds < 2):
        return
    severity = "note" if claims == "monte-carlo" else "warning"
    level = "slide" if rows["slide_id"].notna().any() else "patient"
    column = f"{level}_id"
    if rows[column].isna().all():
        return
    tests = rows.loc[rows["part"] == "test", [column, "fold"]].dropna().drop_duplicates()
    times = tests[column].value_counts()
    everyone = rows[column].dropna().unique()
    twice = {
        str(name): f"{name}: tested in {n} of {n_folds} folds"
        for name, n in times[times > 1].items()
    }
    never = {str(name): f"{name}: in no test part" for name in everyone if name not in times.index}
    ever = f"({len(times)} of {len(everyone)} are ever tested)"
    for kind, evidence, what in (
        ("tested_twice", twice, f"in the test part of several folds {ever}"),
        ("never_tested", never, f"in no test part {ever}"),
    ):
        if evidence:
            yield _finding(kind, severity, level, evidence, parts=["test"], what=what)


def _strangers(rows: pd.DataFrame, slides: pd.DataFrame) -> Iterator[Finding]:
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
            yield _finding(kind, "warning", level, evidence, what=what)
