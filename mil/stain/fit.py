"""The stain of one slide: white point, vectors with a prior, strength, colour, quality; the table.

A prior keeps slides with little tissue near the reference. It counts as 300 tissue pixels: with
``n`` of the slide's own and ``w = n / (n + 300)``,

    vectors = unit(w * estimated + (1 - w) * reference)
    p99     =      w * measured  + (1 - w) * reference

and the same for the Lab colour. So a blank slide is the reference, nothing jumps on the way, and at
the usual 50,000 pixels the reference weighs 0.6 %. Of 0 to 10,000, the counts 100 and 300 err least
when a slide is known from one window of 8 to 128 px (``benchmarks/stain_prior.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, fields
from typing import Final

import numpy as np
import pandas as pd

from mil.stain import reinhard
from mil.stain.density import (
    Floats,
    Pixels,
    is_dark,
    is_ink,
    is_tissue,
    optical_density,
    white_point,
)
from mil.stain.quality import MIN_P99, Quality, judge
from mil.stain.vectors import (
    REFERENCE,
    REFERENCE_P99,
    RUIFROK,
    implausible,
    is_exchanged,
    macenko,
    unit,
    vahadane,
)
from splits.errors import unknown

__all__ = [
    "EXCHANGED",
    "METHODS",
    "PRIOR_PX",
    "SEPARATION",
    "TABLE_COLUMNS",
    "TOO_LITTLE",
    "StainFit",
    "fit_slide",
    "fit_tile",
    "from_table",
    "to_table",
]

METHODS: Final[Mapping[str, Callable[[Floats], Floats] | None]] = {
    "macenko": macenko,
    "vahadane": vahadane,
    "ruifrok": None,
    "reinhard": macenko,
    "macenko_tile": macenko,
}
"""What estimates the vectors of a slide from tissue OD; None where they are fixed. For ``reinhard``
and ``macenko_tile`` they serve the report and the tissue types, not the encoder."""
PRIOR_PX: Final = 300
# How the notes of a fit begin that others look for.
TOO_LITTLE: Final = "too little tissue"
EXCHANGED: Final = "red and blue look exchanged"

_WORDS: Final = ("slide_id", "method", "source", "note", "flag", "n_tissue_px")
SEPARATION: Final = (
    "white_r", "white_g", "white_b", "h_r", "h_g", "h_b", "e_r", "e_g", "e_b", "h_p99", "e_p99",
)  # fmt: skip
"""Columns of the stain table that hematoxylin and eosin follow from."""
_NUMBERS: Final = (*SEPARATION, "lab_l", "lab_a", "lab_b", "lab_sd_l", "lab_sd_a", "lab_sd_b")
_QUALITY: Final = tuple(part.name for part in fields(Quality) if part.name != "flag")
TABLE_COLUMNS: Final = (*_WORDS, *_NUMBERS, *_QUALITY)


@dataclass(frozen=True, eq=False)
class StainFit:
    """What is known of the stain of one slide.

    Attributes:
        method: A key of ``METHODS``.
        source: Where the vectors come from: ``"estimated"`` on this slide, ``"reference"`` where
            that failed (``note`` says why), ``"fixed"`` by the method.
        note: What was done about anything unusual, in words; empty if nothing had to be.
        n_tissue_px: Tissue pixels among the pooled ones.
        white: ``(3,)`` grey level of unstained glass.
        vectors: ``(2, 3)`` unit vectors, hematoxylin first.
        p99: ``(2,)`` 99th percentile of each concentration over tissue; always above zero.
        colour: ``(2, 3)`` mean and deviation of tissue in CIELab.
        quality: How far to trust all this.
    """

    method: str
    source: str
    note: str
    n_tissue_px: int
    white: Floats
    vectors: Floats
    p99: Floats
    colour: Floats = field(default_factory=reinhard.REFERENCE_LAB.copy)
    quality: Quality = field(default_factory=Quality)


def fit_slide(pixels: Pixels, method: str, sharpness: float = float("nan")) -> StainFit:
    """Fit the stain of one slide to pixels ``(n, 3)`` pooled over its tiles; 100,000 are plenty.

    Never fails on an odd slide. Glass, black and ink are left out (:mod:`mil.stain.density`);
    little tissue leans on the reference (see the module); implausible vectors are the reference's.
    A 99th percentile below a quarter of the reference (a slide without hematoxylin) is raised to
    that, so that noise is not stretched to full scale. Each case is in ``note``.

    A slide whose red and blue are exchanged in the files is recognised
    (:func:`mil.stain.vectors.is_exchanged`). Its vectors stay in the order of the file, so
    separation is right as it is.

    Args:
        pixels: uint8 RGB.
        method: A key of ``METHODS``.
        sharpness: Measured elsewhere, for the flag.

    Raises:
        InputError: No such method.
    """
    if method not in METHODS:
        kind = "stain method"
        raise unknown(kind, method, list(METHODS))
    white = white_point(pixels)
    density = optical_density(pixels, white)
    coloured = is_tissue(density)
    kept = coloured.copy()
    kept[coloured] = ~is_ink(density[coloured])
    tissue = density[kept]
    n, n_coloured = len(tissue), int(coloured.sum())
    own = n / (n + PRIOR_PX) if n > 1 else 0.0
    source, vectors, exchanged, rejected = _vectors(tissue, METHODS[method], own)
    notes = []
    if own < 0.5:
        notes.append(f"{TOO_LITTLE}: {n} of {len(pixels)} pixels; {1 - own:.0%} reference")
    if rejected:
        notes.append(f"{rejected}; reference vectors used")
    if exchanged:
        notes.append(f"{EXCHANGED} in the files; vectors in file order")
    measured = REFERENCE_P99
    if n:
        measured = np.percentile(tissue @ np.linalg.pinv(vectors), 99, axis=0)
    p99 = own * measured + (1 - own) * REFERENCE_P99
    notes += [
        f"hardly any {name}: 99th percentile {value:.2f} raised to {least:.2f}"
        for name, value, least in zip(("hematoxylin", "eosin"), p99, MIN_P99, strict=True)
        if value < least
    ]
    seen = pixels[kept][:, ::-1] if exchanged else pixels[kept]
    colour = own * reinhard.statistics(seen) + (1 - own) * reinhard.REFERENCE_LAB
    quality = judge(
        tissue,
        vectors,
        measured,
        exchanged=exchanged,
        n_pixels=len(pixels),
        ink_share=(n_coloured - n) / n_coloured if n_coloured else 0.0,
        dark_share=float(is_dark(density).mean()) if len(pixels) else 0.0,
        sharpness=sharpness,
        rejected=rejected,
    )
    p99 = np.maximum(p99, MIN_P99)
    note = "; ".join(notes)
    return StainFit(method, source, note, n, white, vectors, p99, colour, quality)


def _vectors(
    tissue: Floats, estimator: Callable[[Floats], Floats] | None, own: float
) -> tuple[str, Floats, bool, str]:
    """Source, vectors, whether red and blue are exchanged, and why the slide's own were rejected.

    ``own`` is the weight of the slide against the reference.
    """
    # Macenko's vectors tell for every method, so that all read the same file alike. A few pixels
    # do not turn the reference round.
    usual = macenko(tissue) if own else REFERENCE
    exchanged = own >= 0.5 and not implausible(usual) and is_exchanged(usual)
    reference = REFERENCE[:, ::-1] if exchanged else REFERENCE
    if estimator is None:
        return "fixed", RUIFROK[:, ::-1] if exchanged else RUIFROK, exchanged, ""
    if not own:
        return "reference", reference, exchanged, ""
    candidate = usual if estimator is macenko else estimator(tissue)
    if rejected := implausible(candidate):
        return "reference", reference, exchanged, rejected
    return "estimated", unit(own * candidate + (1 - own) * reference), exchanged, ""


def fit_tile(pixels: Pixels, white: Floats, fallback: Floats) -> tuple[Floats, Floats, bool]:
    """Vectors and 99th percentiles of one tile by itself, as the field does it: no prior.

    Args:
        pixels: uint8 ``(n, 3)``, all of the tile.
        white: White point of its slide.
        fallback: ``(2, 3)`` vectors for a tile without tissue or with implausible vectors.

    Returns:
        Vectors ``(2, 3)``, 99th percentiles ``(2,)``, and whether they are the tile's own.
    """
    density = optical_density(pixels, white)
    tissue = density[is_tissue(density)]
    if len(tissue) < 2:
        return fallback, REFERENCE_P99, False
    vectors = macenko(tissue)
    own = not implausible(vectors)
    vectors = vectors if own else fallback
    p99 = np.percentile(tissue @ np.linalg.pinv(vectors), 99, axis=0)
    return vectors, np.maximum(p99, MIN_P99), own


def to_table(fits: Mapping[str, StainFit]) -> pd.DataFrame:
    """The stain table, one row a slide, sorted by ``slide_id``; columns ``TABLE_COLUMNS``."""
    rows = []
    for slide, fit in sorted(fits.items()):
        *measures, flag = astuple(fit.quality)
        numbers = (*fit.white, *fit.vectors.ravel(), *fit.p99, *fit.colour.ravel(), *measures)
        words = (slide, fit.method, fit.source, fit.note, flag, fit.n_tissue_px)
        rows.append((*words, *numbers))
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    kinds = dict.fromkeys(_WORDS[:5], "string") | {"n_tissue_px": "int64"}
    return table.astype(kinds | dict.fromkeys((*_NUMBERS, *_QUALITY), "float64"))


def from_table(table: pd.DataFrame) -> dict[str, StainFit]:
    """The fits that :func:`to_table` wrote, by slide."""
    numbers = table[list(_NUMBERS)].to_numpy(dtype=np.float64)
    measures = table[list(_QUALITY)].to_numpy(dtype=np.float64)
    words = table[list(_WORDS)].itertuples(index=False, name=None)
    return {
        str(slide): StainFit(
            method, source, note, n, x[:3], x[3:9].reshape(2, 3), x[9:11], x[11:].reshape(2, 3),
            Quality(**dict(zip(_QUALITY, q.tolist(), strict=True)), flag=flag),
        )
        for (slide, method, source, note, flag, n), x, q in zip(
            words, numbers, measures, strict=True
        )
    }  # fmt: skip
