"""Colour of a slide's tissue brought to that of a reference (Reinhard).

E. Reinhard et al., "Color transfer between images", IEEE Computer Graphics and Applications 21,
2001: mean and deviation of each channel of a Lab space are those of the target. Here the space is
CIELab (D65), as in the field's tools, where the paper takes Ruderman's; and the statistics are
taken over the tissue of the slide, not over one picture, so tiles of a slide change alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from mil.stain.density import Floats, Pixels

__all__ = ["REFERENCE_LAB", "normalise", "statistics"]

# Median over the slides of TCGA (eight organs) whose red and blue are in order, as printed by
# benchmarks/stain_spread.py.
REFERENCE_LAB: Final[Floats] = np.array([[48.6, 29.8, -17.5], [15.1, 6.4, 6.3]])
_LEAST_DEVIATION: Final = 0.25  # of the reference: a slide of one colour is not stretched to noise


def statistics(pixels: Pixels) -> Floats:
    """``(2, 3)`` mean and deviation in CIELab of tissue pixels ``(n, 3)``.

    Those of the reference without pixels; no deviation is below a quarter of its.
    """
    if not len(pixels):
        return REFERENCE_LAB.copy()
    lab = _lab(pixels[None])[0].astype(np.float64)
    deviation = np.maximum(lab.std(axis=0), _LEAST_DEVIATION * REFERENCE_LAB[1])
    return np.stack([lab.mean(axis=0), deviation])


def normalise(rgb: Pixels, colours: Sequence[Floats]) -> Pixels:
    """Tiles with the colour of the reference.

    Args:
        rgb: ``(n_tiles, height, width, 3)``.
        colours: Of each tile's slide, see :func:`statistics`.

    Returns:
        uint8 of the same shape. Every pixel is shifted and scaled, glass too, and clipped to RGB.
    """
    out = np.empty_like(rgb)
    for tile, (mean, deviation), target in zip(rgb, colours, out, strict=True):
        gain = REFERENCE_LAB[1] / deviation
        lab = _lab(tile) * gain.astype(np.float32)
        lab += (REFERENCE_LAB[0] - gain * mean).astype(np.float32)
        np.rint(np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1) * 255, out=lab)
        target[...] = lab
    return out


def _lab(rgb: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    lab: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = cv2.cvtColor(
        rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB
    )
    return lab
