"""Ids that lie on both sides, and encoders that saw what they are tested on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import pandas as pd

from splits.auditing.findings import Finding, finding, places

__all__ = ["encoder_saw", "shared"]


def shared(rows: pd.DataFrame, unit: str) -> Iterator[Finding]:
    """Ids of each level that lie in more than one part of a fold.

    A shared tile, slide or group is a leak whatever the split claims; a patient is one where the
    unit is the patient or the site, a site where the unit is the site.
    """
    severities = {
        "tile": "leak",
        "slide": "leak",
        "patient": "warning" if unit == "slide" else "leak",
        "group": "leak",
        "site": "leak" if unit == "site" else "note",
    }
    for level, severity in severities.items():
        column = f"{level}_id"
        for fold, table in rows.dropna(subset=column).groupby("fold"):
            pairs = table[[column, "part"]].drop_duplicates()
            twice = pairs.loc[pairs[column].duplicated(), column].unique()
            if len(twice):
                inside = table[table[column].isin(twice)]
                yield finding(
                    f"shared_{level}",
                    severity,
                    level,
                    places(inside, column),
                    parts=inside["part"].unique(),
                    fold=int(fold),
                    what="in more than one part",
                )


def encoder_saw(
    rows: pd.DataFrame, seen: Mapping[int, Collection[str]], unit: str
) -> Iterator[Finding]:
    """Test and validation slides that the encoder of their fold was trained on.

    Other slides of a patient that it was trained on count too, unless the unit is the slide. Seen
    test slides are a leak; seen validation slides are a warning, for they choose the model.
    """
    patients = rows.dropna(subset="slide_id").drop_duplicates("slide_id")
    of_slide = patients.set_index("slide_id")["patient_id"]
    for fold, slides in seen.items():
        known = set(of_slide.reindex(sorted(set(slides) & set(of_slide.index))).dropna())
        for part, severity in (("test", "leak"), ("val", "warning")):
            inside = rows[(rows["fold"] == fold) & (rows["part"] == part)]
            hit = inside["slide_id"].isin(set(slides))
            why = pd.Series("it was trained on this slide", index=inside.index)
            if unit != "slide":
                of_patient = inside["patient_id"].isin(known) & ~hit
                why = why.mask(of_patient, "it was trained on another slide of this patient")
                hit |= of_patient
            if hit.any():
                evidence = {
                    str(name): f"{name}: {part} of fold {fold}, patient {patient}: {reason}"
                    for name, patient, reason in zip(
                        inside.loc[hit, "slide_id"],
                        inside.loc[hit, "patient_id"].fillna("unknown"),
                        why[hit],
                        strict=True,
                    )
                }
                yield finding(
                    f"encoder_saw_{part}",
                    severity,
                    "slide",
                    evidence,
                    parts=[part],
                    fold=int(fold),
                    what=f"of the {part} part that the encoder of the fold was trained on",
                )
