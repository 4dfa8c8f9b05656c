"""Stain vectors of a slide: white point, optical density, hematoxylin and eosin directions.

Light through stained tissue obeys Beer and Lambert: optical density (OD) is the sum of each stain's
concentration times its vector. The vectors are a property of a slide (its dyes, its section, its
scanner), so they are estimated once from tissue pixels pooled over many tiles of the slide, never
from a single tile: a blank tile borrows the vectors of its slide.

Arrays of vectors are ``(2, 3)``: hematoxylin first, then eosin; columns red, green, blue as the
file stores them; every row has length 1. Natural logarithms throughout.

Sources: M. Macenko et al., "A method for normalizing histology slides for quantitative analysis",
ISBI 2009; A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical staining by color
deconvolution", Anal Quant Cytol Histol 23, 2001.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.errors import InputError, unknown

__all__ = [
    "EXCHANGED",
    "METHODS",
    "MIN_TISSUE_PX",
    "REFERENCE",
    "REFERENCE_P99",
    "RUIFROK",
    "TABLE_COLUMNS",
    "TOO_LITTLE",
    "StainFit",
    "concentrations",
    "density_table",
    "estimate",
    "fit_slide",
    "from_table",
    "implausible",
    "is_tissue",
    "optical_density",
    "sample_pixels",
    "to_table",
    "white_point",
]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def _unit(rows: object) -> Floats:
    vectors = np.asarray(rows, dtype=np.float64)
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


METHODS: Final = ("macenko", "ruifrok")
# The reference slide of Macenko's group, as published with their code and used by most tools since.
REFERENCE: Final[Floats] = _unit([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_P99: Final[Floats] = np.array([1.9705, 1.0308])
RUIFROK: Final[Floats] = _unit([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])

MIN_TISSUE_PX: Final = 2_000
_MIN_TISSUE_SHARE: Final = 0.01
_MIN_P99: Final[Floats] = REFERENCE_P99 / 4
_BETA: Final = 0.15  # Macenko 2009: below this OD a pixel says nothing about colour
_MAX_DENSITY: Final = 2.5  # about 20 grey levels: black padding, ink and dust, not stain
_ANGLE_PERCENTILES: Final = (1.0, 99.0)
_ANGLE_DEGREES: Final = (8.0, 60.0)  # between the two vectors; 15 to 46 over 118 real slides
_MAX_REFERENCE_DEGREES: Final = 35.0  # to the reference; at most 25 over them
_NEGATIVE: Final = -0.05  # a slightly negative component is noise and set to 0; more is not a stain
_EXCHANGED_DEGREES: Final = (22.0, 4.0)  # see _exchanged
_NEAR_WHITE: Final = (200, 24)  # darkest channel at least, brightest minus darkest at most
_MIN_BACKGROUND_SHARE: Final = 0.005
_DARKEST_WHITE: Final = 230.0
# How the notes of a fit begin that others look for.
TOO_LITTLE: Final = "too little tissue"
EXCHANGED: Final = "red and blue look exchanged"
TABLE_COLUMNS: Final = (
    "slide_id", "method", "source", "note", "n_tissue_px", "white_r", "white_g", "white_b",
    "h_r", "h_g", "h_b", "e_r", "e_g", "e_b", "h_p99", "e_p99",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class StainFit:
    """What is known of the stain of one slide.

    Attributes:
        method: ``"macenko"`` or ``"ruifrok"``.
        source: Where the vectors come from: ``"estimated"`` on this slide, ``"reference"`` where
            that failed (``note`` says why), ``"fixed"`` by the method.
        note: Everything unusual, in words; empty if all is well.
        n_tissue_px: Tissue pixels among the pooled ones.
        white: ``(3,)`` grey level of unstained glass.
        vectors: ``(2, 3)`` unit vectors, hematoxylin first.
        p99: ``(2,)`` 99th percentile of each concentration over tissue; always above zero.
    """

    method: str
    source: str
    note: str
    n_tissue_px: int
    white: Floats
    vectors: Floats
    p99: Floats


def sample_pixels(tile: Pixels, n: int, rng: np.random.Generator) -> Pixels:
    """``(n, 3)`` pixels drawn uniformly, with replacement, from a tile ``(height, width, 3)``.

    A tile of no more than ``n`` pixels is returned whole.
    """
    pixels = tile.reshape(-1, 3)
    return pixels if len(pixels) <= n else pixels[rng.integers(0, len(pixels), n)]


def white_point(pixels: Pixels) -> Floats:
    """``(3,)`` grey level of unstained glass in the pooled pixels ``(n, 3)`` of a slide.

    Rule: background is what is bright and colourless (every channel at least 200, channels within
    24 levels of each other). If it makes up 0.5 % of the pixels, the white point is its 75th
    percentile in each channel; the median would sink with the palest tissue. If the frame is all
    tissue, it is the 99th percentile of all pixels but at least 230, because nothing in such a
    frame shows the glass.
    """
    _check_pixels(pixels)
    floor, spread = _NEAR_WHITE
    # Three column operations: reductions over an axis of length 3 are ten times slower.
    red, green, blue = pixels.T
    darkest = np.minimum(np.minimum(red, green), blue)
    brightest = np.maximum(np.maximum(red, green), blue)
    background = (darkest >= floor) & (brightest - darkest <= spread)
    if background.sum() > _MIN_BACKGROUND_SHARE * len(pixels):
        return np.asarray(np.percentile(pixels[background], 75, axis=0), dtype=np.float64)
    if not len(pixels):
        return np.full(3, _DARKEST_WHITE)
    return np.maximum(np.percentile(pixels, 99, axis=0), _DARKEST_WHITE)


def density_table(white: Floats) -> Floats:
    """``(3, 256)`` optical density of every grey level in each channel.

    ``-log((level + 1) / (white + 1))``; the 1 keeps level 0 finite. Levels above the white point
    get 0: glass cannot emit light, so they are noise.
    """
    levels = np.arange(256, dtype=np.float64)
    table: Floats = np.maximum(0.0, np.log(white[:, None] + 1) - np.log(levels + 1))
    return table


def optical_density(pixels: Pixels, white: Floats) -> Floats:
    """Optical density, at least 0, of uint8 pixels ``(..., 3)``; see :func:`density_table`."""
    table = density_table(white)
    return np.stack([table[channel][pixels[..., channel]] for channel in range(3)], axis=-1)


def concentrations(rgb: Pixels, white: Floats, vectors: Floats) -> Floats:
    """``(..., 2)`` hematoxylin and eosin of uint8 pixels ``(..., 3)`` by least squares.

    Not clipped: a pixel outside the cone of the two vectors has a negative concentration.
    """
    product: Floats = optical_density(rgb, white) @ np.linalg.pinv(vectors)
    return product


def estimate(pixels: Pixels, white: Floats) -> Floats:
    """``(2, 3)`` stain vectors of pooled pixels ``(n, 3)`` (Macenko 2009), not judged.

    The plane of the two strongest eigenvectors of tissue OD, and in it the directions at the 1st
    and 99th percentile of the angle. Two departures from the common code. Tissue is where the
    *mean* OD reaches 0.15, as in the paper, not where every channel does: eosin hardly absorbs red,
    so the stricter test deletes exactly the pixels that show pure eosin. And the covariance is
    taken about the origin, because unstained glass has OD 0 and the plane of two stains passes
    through it.

    Hematoxylin is the vector that absorbs more red; if red and blue are plainly exchanged in the
    files (see :func:`fit_slide`), the one that absorbs more blue.

    Raises:
        InputError: Fewer than two tissue pixels. :func:`fit_slide` falls back instead, and also
            where :func:`implausible` objects to the result.
    """
    _check_pixels(pixels)
    density = optical_density(pixels, white)
    return _estimate(density[is_tissue(density)])


def is_tissue(density: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Which optical densities ``(..., 3)`` are stained tissue: neither glass nor black."""
    mean = (density[..., 0] + density[..., 1] + density[..., 2]) / 3
    return np.asarray((mean >= _BETA) & (mean <= _MAX_DENSITY))


def implausible(vectors: Floats) -> str:
    """Why ``vectors`` cannot be hematoxylin and eosin; empty if they can.

    Two vectors closer than 8 degrees are one stain and noise, further apart than 60 are not these
    stains; so is a component below -0.05, or a vector more than 35 degrees from the reference
    (Ruifrok's eosin is 29 from it).
    """
    low, high = _ANGLE_DEGREES
    between = _degrees(vectors[0], vectors[1])
    if not np.isfinite(vectors).all() or vectors.min() < 0:
        return "a stain vector has a negative component"
    if not low <= between <= high:
        return f"the stain vectors are {between:.0f} degrees apart, allowed {low:.0f} to {high:.0f}"
    ordered = vectors[:, ::-1] if _exchanged(vectors) else vectors
    for name, vector, reference in zip(("hematoxylin", "eosin"), ordered, REFERENCE, strict=True):
        if (away := _degrees(vector, reference)) > _MAX_REFERENCE_DEGREES:
            limit = f"allowed {_MAX_REFERENCE_DEGREES:.0f}"
            return f"{name} is {away:.0f} degrees from the reference, {limit}"
    return ""


def fit_slide(pixels: Pixels, method: str) -> StainFit:
    """Fit the stain of one slide to pixels ``(n, 3)`` pooled over its tiles; 100,000 are plenty.

    Never fails on an odd slide: with fewer than 2,000 tissue pixels, or less than 1 % tissue, the
    vectors (unless fixed) and the 99th percentiles are those of the reference; with implausible
    vectors only the vectors are. A 99th percentile below a quarter of the reference (a slide
    without hematoxylin) is raised to that, so that noise is not stretched to full scale. Each case
    is in ``note``.

    A slide whose red and blue are exchanged in the files (written by OpenCV without conversion, as
    the MoNuSAC test tiles seem to be) is recognised by vectors that fit the reference much better
    in reverse. Its vectors stay in the order of the file, so separation is right as it is.

    Args:
        pixels: uint8 RGB.
        method: ``"macenko"`` or ``"ruifrok"``.

    Raises:
        InputError: No such method.
    """
    if method not in METHODS:
        kind = "stain method"
        raise unknown(kind, method, METHODS)
    white = white_point(pixels)
    density = optical_density(pixels, white)
    tissue = density[is_tissue(density)]
    fixed = method == "ruifrok"
    source, vectors = ("fixed", RUIFROK) if fixed else ("reference", REFERENCE)
    if len(tissue) < max(MIN_TISSUE_PX, _MIN_TISSUE_SHARE * len(pixels)):
        note = (
            f"{TOO_LITTLE}: {len(tissue)} of {len(pixels)} pixels, "
            f"needed {MIN_TISSUE_PX} and {_MIN_TISSUE_SHARE:.0%}; reference values used"
        )
        return StainFit(method, source, note, len(tissue), white, vectors, REFERENCE_P99)
    notes = []
    if not fixed:
        candidate = _estimate(tissue)
        if reason := implausible(candidate):
            notes.append(f"{reason}; reference vectors used")
        else:
            source, vectors = "estimated", candidate
            if _exchanged(candidate):
                notes.append(f"{EXCHANGED} in the files; vectors in file order")
    p99 = np.percentile(tissue @ np.linalg.pinv(vectors), 99, axis=0)
    notes += [
        f"hardly any {name}: 99th percentile {value:.2f} raised to {least:.2f}"
        for name, value, least in zip(("hematoxylin", "eosin"), p99, _MIN_P99, strict=True)
        if value < least
    ]
    p99 = np.maximum(p99, _MIN_P99)
    return StainFit(method, source, "; ".join(notes), len(tissue), white, vectors, p99)


def to_table(fits: Mapping[str, StainFit]) -> pd.DataFrame:
    """The stain table, one row a slide, sorted by ``slide_id``; columns ``TABLE_COLUMNS``."""
    rows = []
    for slide, fit in sorted(fits.items()):
        numbers = (*fit.white, *fit.vectors.ravel(), *fit.p99)
        rows.append((slide, fit.method, fit.source, fit.note, fit.n_tissue_px, *numbers))
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    kinds = dict.fromkeys(TABLE_COLUMNS[:4], "string") | {"n_tissue_px": "int64"}
    return table.astype(kinds | dict.fromkeys(TABLE_COLUMNS[5:], "float64"))


def from_table(table: pd.DataFrame) -> dict[str, StainFit]:
    """The fits that :func:`to_table` wrote, by slide."""
    numbers = table[list(TABLE_COLUMNS[5:])].to_numpy(dtype=np.float64)
    words = table[list(TABLE_COLUMNS[:5])].itertuples(index=False, name=None)
    return {
        str(slide): StainFit(method, source, note, n, x[:3], x[3:9].reshape(2, 3), x[9:])
        for (slide, method, source, note, n), x in zip(words, numbers, strict=True)
    }


def _check_pixels(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3:
        message = f"pixels must be uint8 (n, 3), not {pixels.dtype} {pixels.shape}"
        raise ValueError(message)


def _degrees(a: Floats, b: Floats) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1.0, 1.0))))


def _by_red(vectors: Floats) -> Floats:
    return vectors if vectors[0, 0] >= vectors[1, 0] else vectors[::-1]


def _from_reference(vectors: Floats) -> float:
    return sum(_degrees(a, b) for a, b in zip(_by_red(vectors), REFERENCE, strict=True))


def _exchanged(vectors: Floats) -> bool:
    """Whether red and blue are exchanged: in reverse, near the reference and clearly nearer.

    Of 118 real slides those with exchanged files are 5 to 22 degrees nearer (sum of both vectors),
    the others that come near in reverse at all are 7 or more further away.
    """
    near, nearer_by = _EXCHANGED_DEGREES
    reverse = _from_reference(vectors[:, ::-1])
    return reverse <= near and _from_reference(vectors) - reverse >= nearer_by


def _estimate(tissue: Floats) -> Floats:
    if len(tissue) < 2:
        message = f"stain vectors need at least 2 tissue pixels, not {len(tissue)}"
        raise InputError(message)
    _, axes = np.linalg.eigh(tissue.T @ tissue)
    plane = axes[:, [2, 1]]
    # OD is positive, so the strongest axis points into the positive octant once its sign is fixed,
    # and all angles about it stay clear of the jump at 180 degrees.
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    angle = np.arctan2(tissue @ plane[:, 1], tissue @ plane[:, 0])
    ends = np.percentile(angle, _ANGLE_PERCENTILES)
    vectors = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T
    vectors = _unit(np.where((vectors < 0) & (vectors > _NEGATIVE), 0.0, vectors))
    reverse = _by_red(vectors[:, ::-1])[:, ::-1]
    return reverse if _exchanged(vectors) else _by_red(vectors)
