"""Readers of the splits that are JSON documents: STAMP and the log of slideflow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from splits.errors import InputError
from splits.formats.source import Found, Source

__all__ = ["slideflow", "stamp"]


def stamp(source: Source) -> Found | None:
    """STAMP: ``{"splits": [{"train_patients": [...], "test_patients": [...]}]}``."""
    document = source.document
    splits = document.get("splits") if isinstance(document, dict) else None
    if not isinstance(splits, list) or not splits:
        return None
    rows: list[tuple[str, str, int]] = []
    for fold, split in enumerate(splits):
        if not isinstance(split, dict) or not {"train_patients", "test_patients"} <= set(split):
            return None
        for key, patients in split.items():
            part, _, suffix = key.partition("_")
            if suffix == "patients":
                rows.extend((name, part, fold) for name in _texts(source, patients))
    return Found("STAMP", pd.DataFrame(rows, columns=["patient_id", "part", "fold"]))


def _texts(source: Source, names: Any) -> Iterator[str]:
    """Ids of a JSON list: text, or whole numbers that were written without quotes."""
    if not isinstance(names, list):
        message = f"{source.path}: a list of ids is needed, not {str(names)[:40]!r}"
        raise InputError(message)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            message = f"{source.path}: an id must be text, not {str(name)[:40]!r}"
            raise InputError(message)
        yield str(name)


def slideflow(source: Source) -> list[Found] | None:
    """The log of splits of slideflow: a list of ``strategy``, ``patients`` and ``tfrecords``.

    ``tfrecords`` has the slides of ``training`` and ``validation``, or of ``k-fold-1`` to
    ``k-fold-<k>``; each of those is held out once (`Dataset.split`, strategy ``k-fold``).
    """
    document = source.document
    if not isinstance(document, list) or not document:
        return None
    if not all(_is_slideflow_entry(entry) for entry in document):
        return None
    return [_slideflow_entry(source, number, entry) for number, entry in enumerate(document)]


def _is_slideflow_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or "strategy" not in entry:
        return False
    patients, slides = entry.get("patients"), entry.get("tfrecords")
    if not isinstance(patients, dict) or not isinstance(slides, dict):
        return False
    return all(isinstance(known, dict) for known in patients.values())


def _slideflow_entry(source: Source, number: int, entry: dict[str, Any]) -> Found:
    said: dict[str, tuple[str, str | None, str | None]] = {}
    for patient, known in entry["patients"].items():
        label = known.get("outcome_label", known.get("outcome"))
        site = known.get("site")
        for slide in _texts(source, known.get("slides", [])):
            said[slide] = (patient, *(None if v is None else str(v) for v in (label, site)))
    listed = {key: [*_texts(source, slides)] for key, slides in entry["tfrecords"].items()}
    held_out = {key: match for key in listed if (match := re.fullmatch(r"k-fold-(\d+)", key))}
    rows: list[tuple[str, str, int]] = []
    for key, slides in listed.items():
        if key not in held_out:
            rows.extend((slide, key, 0) for slide in slides)
            continue
        for other, match in held_out.items():
            part = "test" if other == key else "train"
            rows.extend((slide, part, int(match[1])) for slide in slides)
    table = pd.DataFrame(rows, columns=["slide_id", "part", "fold"])
    for position, column in enumerate(("patient_id", "label", "site_id")):
        values = [said.get(slide, (None, None, None))[position] for slide in table["slide_id"]]
        if any(value is not None for value in values):
            table[column] = values
    note = "slideflow calls the fold that is held out validation; it is read as the test part"
    return Found(
        "slideflow",
        table,
        name=f"{number} {entry['strategy']}",
        unit="site" if "preserved-site" in str(entry["strategy"]) else None,
        notes=(note,) if held_out else (),
    )
