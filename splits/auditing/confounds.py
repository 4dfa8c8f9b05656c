"""What goes along with the class besides tissue: the site, and how the section was prepared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from splits.auditing.battery import Entry, association, not_run

__all__ = ["confounds", "preparation"]

_TCGA_SECTION: Final = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}-\d\d[A-Z]-[0-9A-Z]+-([BDMT])[SX]")
_SECTIONS: Final = {"D": "FFPE", "B": "frozen", "M": "frozen", "T": "frozen"}
_MEANING: Final = (
    "Cramér's V of the {what} and the class, a row a slide. Above permuted labels of whole "
    "patients, a model may learn the {what} in place of the disease."
)


def preparation(slide_id: str) -> str | None:
    """``FFPE`` or ``frozen``, where a TCGA barcode says so (``DX``; ``TS``, ``MS``, ``BS``)."""
    found = _TCGA_SECTION.match(slide_id.upper())
    return _SECTIONS[found[1]] if found else None


def confounds(rows: pd.DataFrame, seed: int) -> Iterator[Entry]:
    """Association of site and preparation with the class, over patients.

    Args:
        rows: As `splits.placement.place` gives them.
        seed: Seed of the permutations.
    """
    slides = rows.dropna(subset=["slide_id", "label"]).drop_duplicates("slide_id")
    slides = slides.sort_values("slide_id")
    prepared = slides["slide_id"].map(preparation)
    for name, what, values in (
        ("site_class", "site", slides["site_id"]),
        ("preparation_class", "preparation", prepared),
    ):
        known = values.notna().to_numpy()
        if not known.any():
            yield not_run(name, f"no {what} or no class is known")
            continue
        table = slides[known]
        patient = table["patient_id"].fillna("slide " + table["slide_id"])
        yield association(
            name,
            pd.factorize(values[known], sort=True)[0].astype(np.int64),
            table["label"],
            pd.factorize(patient)[0].astype(np.int64),
            np.random.default_rng([seed, len(table)]),
            _MEANING.format(what=what),
        )
