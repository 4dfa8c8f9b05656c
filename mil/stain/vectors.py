"""Stain vectors: the directions of hematoxylin and eosin in optical density.

The vectors are a property of a slide (its dyes, its section, its scanner), so they are estimated
from tissue pooled over many tiles of it. Arrays of vectors are ``(2, 3)``: hematoxylin first, then
eosin; columns red, green, blue as the file stores them; every row has length 1.

Sources: M. Macenko et al., "A method for normalizing histology slides for quantitative analysis",
ISBI 2009; A. Vahadane et al., "Structure-preserving color normalization and sparse stain separation
for histological images", IEEE TMI 35, 2016; A. C. Ruifrok and D. A. Johnston, "Quantification of
histochemical staining by color deconvolution", Anal Quant Cytol Histol 23, 2001.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mil.stain.density import Floats, Pixels, optical_density
from splits.errors import InputError

__all__ = [
    "REFERENCE",
    "REFERENCE_P99",
    "RUIFROK",
    "concentrations",
    "degrees",
    "from_reference",
    "implausible",
    "is_exchanged",
    "macenko",
    "unit",
    "vahadane",
]


def unit(rows: object) -> Floats:
    """Rows scaled to length 1."""
    vectors = np.asarray(rows, dtype=np.float64)
    result: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


# The reference slide of Macenko's group, as published with their code and used by most tools since.
REFERENCE: Final[Floats] = unit([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_P99: Final[Floats] = np.array([1.9705, 1.0308])
RUIFROK: Final[Floats] = unit([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])

_ANGLE_PERCENTILES: Final = (1.0, 99.0)
_ANGLE_DEGREES: Final = (8.0, 60.0)  # between the two vectors; 15 to 46 over 118 real slides
_MAX_REFERENCE_DEGREES: Final = 35.0  # to the reference; at most 25 over them
_NEGATIVE: Final = -0.05  # a slightly negative component is noise and set to 0; more is not a stain
_EXCHANGED_DEGREES: Final = (22.0, 4.0)  # see is_exchanged
_SPARSITY: Final = 0.01
_SPARSE_PIXELS: Final = 10_000
_SPARSE_STEPS: Final = 200


def degrees(a: Floats, b: Floats) -> float:
    """Angle between two unit vectors."""
    return float(np.degrees(np.arccos(np.clip(a @ b, -1.0, 1.0))))


def concentrations(rgb: Pixels, white: Floats, vectors: Floats) -> Floats:
    """``(..., 2)`` hematoxylin and eosin of uint8 pixels ``(..., 3)`` by least squares.

    Not clipped: a pixel outside the cone of the two vectors has a negative concentration.
    """
    product: Floats = optical_density(rgb, white) @ np.linalg.pinv(vectors)
    return product


def macenko(tissue: Floats) -> Floats:
    """``(2, 3)`` stain vectors of tissue densities ``(n, 3)`` (Macenko 2009), not judged.

    The plane of the two strongest eigenvectors of tissue OD, and in it the directions at the 1st
    and 99th percentile of the angle: what lies further out is noise. Two departures from the common
    code. Tissue is where the *mean* OD reaches 0.15, as in the paper, not where every channel does:
    eosin hardly absorbs red, so the stricter test deletes exactly the pixels that show pure eosin.
    And the covariance is taken about the origin, because unstained glass has OD 0 and the plane of
    two stains passes through it.

    Hematoxylin is the vector that absorbs more red; if red and blue are plainly exchanged in the
    files (:func:`is_exchanged`), the one that absorbs more blue.

    Raises:
        InputError: Fewer than two densities.
    """
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
    vectors = unit(np.where((vectors < 0) & (vectors > _NEGATIVE), 0.0, vectors))
    return _ordered(vectors)


def vahadane(tissue: Floats) -> Floats:
    """``(2, 3)`` stain vectors of tissue densities ``(n, 3)`` (Vahadane 2016), not judged.

    The non-negative unit vectors ``V`` and concentrations ``C`` that minimise

        |X - C V|^2 / 2 + 0.01 * sum(C)

    over tissue OD ``X``: few pixels need both stains. (With 0.1, as in common code, the vectors
    move inwards: 3 degrees off on phantoms instead of 2, and 10 % of the OD of real tissue left
    over instead of 5 %.) Concentrations given vectors have a closed form, for there are two;
    vectors given concentrations are updated one after the other (Mairal et al., ICML 2009). It
    starts from Macenko's vectors, so nothing is random, and takes at most 10,000 pixels, spread
    evenly over those given.

    Raises:
        InputError: Fewer than two densities.
    """
    vectors = np.maximum(macenko(tissue), 0.0)
    tissue = tissue[:: -(-len(tissue) // _SPARSE_PIXELS)]
    for _ in range(_SPARSE_STEPS):
        amount = _sparse(tissue, vectors)
        weight, target = amount.T @ amount, amount.T @ tissue
        before = vectors.copy()
        for row in range(2):
            if weight[row, row] > 0:
                step = vectors[row] + (target[row] - weight[row] @ vectors) / weight[row, row]
                vectors[row] = unit(np.maximum(step, 1e-9))
        if np.abs(vectors - before).max() < 1e-5:
            break
    return vectors


def _sparse(tissue: Floats, vectors: Floats) -> Floats:
    """The ``(n, 2)`` concentrations of :func:`vahadane`, exactly.

    If one of the two is negative without the constraint, it is 0 and the other stands alone.
    """
    overlap = min(float(vectors[0] @ vectors[1]), 1 - 1e-9)
    first, second = (tissue @ vectors.T - _SPARSITY).T
    both = np.stack([first - overlap * second, second - overlap * first], axis=1)
    alone = np.stack([first, second], axis=1)
    amount = np.where(both[:, ::-1] < 0, alone, both / (1 - overlap**2))
    result: Floats = np.maximum(np.where(both < 0, 0.0, amount), 0.0)
    return result


def implausible(vectors: Floats) -> str:
    """Why ``vectors`` cannot be hematoxylin and eosin; empty if they can.

    Two vectors closer than 8 degrees are one stain and noise, further apart than 60 are not these
    stains; so is a component below -0.05, or a vector more than 35 degrees from the reference
    (Ruifrok's eosin is 29 from it).
    """
    low, high = _ANGLE_DEGREES
    between = degrees(vectors[0], vectors[1])
    if not np.isfinite(vectors).all() or vectors.min() < 0:
        return "a stain vector has a negative component"
    if not low <= between <= high:
        return f"the stain vectors are {between:.0f} degrees apart, allowed {low:.0f} to {high:.0f}"
    distances = from_reference(vectors, exchanged=is_exchanged(vectors))
    for name, away in zip(("hematoxylin", "eosin"), distances, strict=True):
        if away > _MAX_REFERENCE_DEGREES:
            limit = f"allowed {_MAX_REFERENCE_DEGREES:.0f}"
            return f"{name} is {away:.0f} degrees from the reference, {limit}"
    return ""


def from_reference(vectors: Floats, *, exchanged: bool) -> tuple[float, float]:
    """Degrees of hematoxylin and of eosin to the reference, whose order is that of the file."""
    reference = REFERENCE[:, ::-1] if exchanged else REFERENCE
    return degrees(vectors[0], reference[0]), degrees(vectors[1], reference[1])


def is_exchanged(vectors: Floats) -> bool:
    """Whether red and blue are exchanged: in reverse, near the reference and clearly nearer.

    Files written by OpenCV without conversion are, as the MoNuSAC test tiles seem to be. Of 119
    real slides those are 5 to 22 degrees nearer (sum of both vectors), the others that come near in
    reverse at all are 7 or more further away.
    """
    near, nearer_by = _EXCHANGED_DEGREES
    reverse = _away(vectors[:, ::-1])
    return reverse <= near and _away(vectors) - reverse >= nearer_by


def _by_red(vectors: Floats) -> Floats:
    return vectors if vectors[0, 0] >= vectors[1, 0] else vectors[::-1]


def _away(vectors: Floats) -> float:
    return sum(degrees(a, b) for a, b in zip(_by_red(vectors), REFERENCE, strict=True))


def _ordered(vectors: Floats) -> Floats:
    reverse = _by_red(vectors[:, ::-1])[:, ::-1]
    return reverse if is_exchanged(vectors) else _by_red(vectors)
