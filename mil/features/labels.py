"""The label of each slide with features: from a table of slides, or from the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mil.features.folder import FeatureFiles
from splits import slide_table
from splits.errors import InputError
from splits.groups import text
from splits.ids import reconcile

__all__ = ["Labelled", "label"]


@dataclass(frozen=True)
class Labelled:
    """Slides that have features and a label.

    Attributes:
        slides: As `splits.slide_table.read` gives it, ``slide_id`` as the feature files name it.
        without_label: Slides with features, in no row of the table or in one without label.
        without_features: Slides of the table, as it names them, without a feature file.
        notes: What was derived and how names were matched, in words.
    """

    slides: pd.DataFrame
    without_label: list[str]
    without_features: list[str]
    notes: list[str]


def label(
    found: FeatureFiles, table: Path | None, columns: Mapping[str, str] | None = None
) -> Labelled:
    """Match slides with the rows of a table.

    Args:
        found: The feature files.
        table: A row a slide, as `splits.slide_table.read` takes it; None where the files
            themselves bring the labels.
        columns: Our name -> the table's, for columns that are not recognised.

    Raises:
        InputError: Neither table nor files bring labels, no slide is in both, or as for
            `splits.slide_table.read`.
    """
    names = found.slide_ids
    if table is None:
        if columns:
            message = "columns belong to a table of labels, and none is given"
            raise InputError(message)
        if not found.labels:
            message = f"{found.root} brings no labels: give a table of slides and labels"
            raise InputError(message)
        own = pd.DataFrame({"slide_id": names, "label": [found.labels.get(n) for n in names]})
        own = own.assign(patient_id=own["slide_id"], site_id=None)
        missing = own.loc[own["label"].isna(), "slide_id"].tolist()
        return Labelled(own.dropna(subset="label").reset_index(drop=True), missing, [], [])
    slides, notes = slide_table.read(table, columns)
    matched = reconcile(slides["slide_id"], names)
    notes += [finding["message"] for finding in matched.findings]
    known = slides["slide_id"].map(matched.mapping)
    without = slides.loc[known.isna(), "slide_id"].tolist()
    # A slide that is its own patient stays it under the name of its file.
    alone = slides["patient_id"] == slides["slide_id"]
    patients = slides["patient_id"].mask(alone, known)
    own = slides.assign(slide_id=known, patient_id=patients).dropna(subset="slide_id")
    twice = own.loc[own["slide_id"].duplicated(), "slide_id"]
    if len(twice):
        message = f"{table} has two rows for the features of slide {twice.iloc[0]!r}"
        raise InputError(message)
    if own.empty:
        message = (
            f"no slide of {table} has features in {found.root}: the table names "
            f"{slides['slide_id'].iloc[0]!r}, the files {names[0]!r}"
        )
        raise InputError(message)
    own = own.assign(label=text(own, "label")).dropna(subset="label")
    own = own.sort_values("slide_id", kind="stable").reset_index(drop=True)
    missing = sorted(set(names) - set(own["slide_id"]))
    differing = [
        row.slide_id
        for row in own.itertuples()
        if found.labels.get(str(row.slide_id), row.label) != row.label
    ]
    if differing:
        notes.append(
            f"{len(differing)} slide(s) have another label in the table than in their file, the "
            f"first is {differing[0]!r}: the table counts"
        )
    return Labelled(own, missing, without, notes)
