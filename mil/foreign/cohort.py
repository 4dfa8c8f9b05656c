"""The slides that predictions are about: their labels, patients and sites."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mil.foreign import classes
from mil.foreign.answers import Answers, Remarks, few, whole
from splits import ids, slide_table
from splits.errors import InputError
from splits.identity.table import read_cells

__all__ = ["Cohort", "of_files", "of_table"]


@dataclass(frozen=True)
class Cohort:
    """Slides that a label belongs to.

    Attributes:
        slides: ``slide_id, patient_id, site_id, label``, a row a slide; site may be null.
        table: The label table; None where the files of predictions say it all.
    """

    slides: pd.DataFrame
    table: Path | None

    @property
    def labels(self) -> dict[str, str]:
        """Label of each slide."""
        return dict(zip(self.slides["slide_id"], self.slides["label"], strict=True))

    def matched(self, answers: Answers, remarks: Remarks) -> Answers:
        """A file with its ids as they are here, where they differ in a known way alone.

        Raises:
            InputError: A slide is not here.
        """
        known = set(self.slides["slide_id"])
        renamed = _renamed(answers, known, remarks)
        strangers = sorted(set(renamed.rows["slide_id"]) - known)
        if strangers:
            near = difflib.get_close_matches(strangers[0], sorted(known), n=1, cutoff=0.5)
            hint = f"; nearest to the first is {near[0]!r}" if near else ""
            where = self.table or "the label table"
            message = (
                f"{answers.path}: {len(strangers)} of {renamed.rows['slide_id'].nunique()} "
                f"{answers.shape.unit}(s) have no label in {where}: {few(strangers)}{hint}"
            )
            raise InputError(message)
        return renamed


def of_table(path: Path, columns: Mapping[str, str], unit: str, remarks: Remarks) -> Cohort:
    """The slides of a label table, or its patients where predictions are of patients.

    Args:
        path: A table as for :func:`splits.slide_table.read`.
        columns: Our name -> the name in some file; those that are in the table count.
        unit: ``slide`` or ``patient``.
        remarks: Gets what is to be said.

    Raises:
        InputError: As for that function, a slide has no label, or a patient has two.
    """
    header = read_cells(path).columns
    mapped = {
        ours: theirs
        for ours, theirs in columns.items()
        if ours in slide_table.COLUMNS and theirs in header
    }
    found, said = slide_table.read(path, mapped)
    _tell(said, remarks)
    table = found[["slide_id", "patient_id", "site_id", "label"]].astype(object)
    table = table.assign(label=whole(table["label"].str.strip()))
    empty = table["label"] == ""
    if empty.any():
        remarks.cautions.append(
            f"{int(empty.sum())} slide(s) of {path} have no label and are not scored: "
            f"{few(table.loc[empty, 'slide_id'])}"
        )
        table = table[~empty]
    nobody = table["patient_id"].fillna("") == ""
    if nobody.any():
        table["patient_id"] = table["patient_id"].where(~nobody, table["slide_id"])
        remarks.cautions.append(
            f"{int(nobody.sum())} slide(s) of {path} have no patient: each counts as one of its own"
        )
    return Cohort(table if unit == "slide" else _patients(table, path), path)


def of_files(files: Sequence[Answers], unit: str, remarks: Remarks) -> tuple[Cohort, list[Answers]]:
    """The slides that the files themselves give labels to.

    Returns:
        The cohort, and the files in their order with ids and classes as in the first that has
        labels.

    Raises:
        InputError: There is no label at all, or a slide has none; two files differ in the label
            or patient of a slide.
    """
    order = sorted(range(len(files)), key=lambda i: not (files[i].rows["label"] != "").any())
    known: set[str] = set()
    labels: dict[str, str] = {}
    said: dict[str, dict[str, str]] = {"patient_id": {}, "site_id": {}}
    read: dict[int, Answers] = {}
    for place in order:
        found = files[place]
        if known:
            found = _renamed(found, known, remarks)
        own = found.rows[found.rows["label"] != ""]
        truth = labels or dict(zip(own["slide_id"], own["label"], strict=True))
        if not truth:
            message = f"{found.path} has no labels: give a table of them with --slides CSV"
            raise InputError(message)
        found = read[place] = classes.named(found, truth, remarks)
        known |= set(found.rows["slide_id"])
        own = found.rows[found.rows["label"] != ""]
        labels = {**dict(zip(own["slide_id"], own["label"], strict=True)), **labels}
        for name, values in said.items():
            _add(values, found, name)
    without = known - set(labels)
    if without:
        message = f"{len(without)} predicted {unit}(s) have no label: {few(without)}"
        raise InputError(message)
    if unit == "slide":
        findings = ids.hygiene(known)
        remarks.cautions.extend(
            f"{item['message']}, such as {item['ids'][0]!r}"
            for item in findings
            if item["severity"] == "warning"
        )
    table = pd.DataFrame({"slide_id": sorted(known)}, dtype=object)
    if unit == "patient":
        table["patient_id"] = table["slide_id"]
    for name, values in said.items():
        if values:
            table[name] = table["slide_id"].map(values)
    table, told = slide_table.from_names(table)
    _tell(told, remarks)
    table["patient_id"] = table["patient_id"].fillna(table["slide_id"])
    table["label"] = table["slide_id"].map(labels)
    return Cohort(table, None), [read[place] for place in range(len(files))]


def _renamed(answers: Answers, known: set[str], remarks: Remarks) -> Answers:
    given = set(answers.rows["slide_id"])
    if given <= known:
        return answers
    matched = ids.reconcile(given, known, level=answers.shape.unit)
    for item in matched.findings:
        kind = remarks.cautions if item["severity"] == "warning" else remarks.notes
        kind.append(f"{answers.path}: {item['message']}, such as {item['ids'][0]!r}")
    new = answers.rows["slide_id"].map(lambda name: matched.mapping.get(name, name))
    return replace(answers, rows=answers.rows.assign(slide_id=new))


def _tell(said: Sequence[str], remarks: Remarks) -> None:
    """Unknown patients limit the intervals; the rest is how the table was read."""
    for note in said:
        if note.startswith("no patient_id"):
            remarks.cautions.append(f"{note}; if one has several, the intervals are too narrow")
        else:
            remarks.notes.append(note)


def _add(values: dict[str, str], answers: Answers, name: str) -> None:
    """What a file says of patients or sites, refused where another one contradicts."""
    if name not in answers.rows:
        return
    rows = answers.rows[answers.rows[name] != ""]
    for slide, value in zip(rows["slide_id"], rows[name], strict=True):
        if values.setdefault(slide, value) != value:
            message = (
                f"{answers.path}: {name} of slide {slide!r} is {value!r}, and {values[slide]!r} "
                "in another row or file"
            )
            raise InputError(message)


def _patients(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    counts = table.groupby("patient_id")["label"].nunique()
    mixed = counts.index[counts > 1]
    if len(mixed):
        message = (
            f"{path}: predictions are of patients, and {len(mixed)} patient(s) have slides of "
            f"several labels: {few(list(mixed))}"
        )
        raise InputError(message)
    sites = table.groupby("patient_id")["site_id"].agg(
        lambda values: values.iloc[0] if values.nunique(dropna=False) == 1 else np.nan
    )
    one = table.drop_duplicates("patient_id").set_index("patient_id")["label"]
    patients = pd.DataFrame({"slide_id": one.index, "patient_id": one.index, "label": one.values})
    site = patients["patient_id"].map(sites)
    return patients.astype(object).assign(site_id=site.astype(object).where(site.notna(), None))
