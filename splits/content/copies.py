"""Copies of whole tiles: turned by quarter turns, mirrored, saved again or resized.

Perceptual hashing (Zauner 2010) keeps the signs of the lowest cosine waves of a small grey image.
The eight turns of a tile need no second look: mirroring negates the waves that are odd along that
axis, and swapping rows for columns swaps the two frequencies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from splits.content.links import Links, turned
from splits.content.nearest import nearest

__all__ = ["FILL", "coefficients", "find_turned"]

_SIDE: Final = 32
_WAVES: Final = 8
_MAX_BITS: Final = 6
_MIN_NCC: Final = 0.9
_MIN_CONTRAST: Final = 3.0
"""Standard deviation in grey levels of the kept waves below which a tile is smooth glass."""
_MIN_SHOWN: Final = 128
"""Pixels of the 32 x 32 that are compared, at the least."""
FILL: Final = 12
"""Grey level up to which a pixel was filled in, as in the corners of a turned image."""
_NEIGHBOURS: Final = 6
"""The tile itself and five others."""
_BLOCK: Final = 65_536
_DETAIL_PX: Final = 3.0
_MIN_DETAIL: Final = 0.75
"""Correlation of what a blur by `_DETAIL_PX` takes away, at twice the size. Of 1,564 real copies
(JPEG q50, other gain, resized to 81, 224 or 512 px) the lowest had 0.86."""
Image = npt.NDArray[np.uint8]
Read = Callable[[int], Image]
_Floats = npt.NDArray[np.float32]


def coefficients(pixels: Image) -> npt.NDArray[np.float16]:
    """The lowest cosine waves of a tile reduced to 32 x 32 grey pixels: 128 bytes.

    Args:
        pixels: ``(height, width, 3)`` uint8 RGB.

    Returns:
        ``(8, 8)`` float16, vertical frequency first. The mean, at (0, 0), is set to 0. The root
        of the sum of squares is the standard deviation of the smoothed tile in grey levels.
    """
    waves = dctn(_grey(pixels, _SIDE), norm="ortho")[:_WAVES, :_WAVES] / _SIDE
    waves[0, 0] = 0
    return np.asarray(waves, np.float16)


def find_turned(waves: npt.NDArray[np.float16], read: Read) -> Links:
    """Link the tiles that are copies of one another in one of the eight turns.

    Candidates are the five nearest by the part of the waves that no turn changes. A link needs
    hashes (signs of the waves) that differ in at most 6 of 64 bits in the best of the eight turns,
    and a normalised cross-correlation above 0.9 of the two tiles, turned alike, at 32 x 32 px, and
    above 0.75 of their details at 64 x 64 px.

    Args:
        waves: ``(n, 8, 8)`` of `coefficients`.
        read: Gives the pixels of a tile by its row number.

    Returns:
        Links of kind "turned"; the score is the correlation.
    """
    kept = np.flatnonzero(
        np.sqrt((waves.astype(np.float32) ** 2).sum(axis=(1, 2))) >= _MIN_CONTRAST
    )
    vectors = _invariant(waves[kept].astype(np.float32))
    near, _ = nearest(vectors, vectors, _NEIGHBOURS)
    rows = np.repeat(np.arange(len(kept)), near.shape[1])
    pairs = np.sort(np.stack([rows, near.ravel()], axis=1), axis=1)
    pairs = np.unique(kept[pairs[(pairs[:, 0] != pairs[:, 1]) & (near.ravel() >= 0)]], axis=0)
    found, scores, turns = [], [], []
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        first, second = waves[block[:, 0]] > 0, waves[block[:, 1]].astype(np.float32)
        bits = np.stack([((_turned(second, t) > 0) != first).sum(axis=(1, 2)) for t in range(8)])
        best = bits.argmin(axis=0)
        for row in np.flatnonzero(bits.min(axis=0) <= _MAX_BITS).tolist():
            one, other = block[row].tolist()
            turn = int(best[row])
            score = _alike(read(one), turned(read(other), turn))
            if score > 0:
                found.append((one, other))
                scores.append(score)
                turns.append(turn)
    return Links.make("turned", found, scores, turns, np.zeros((len(found), 2)))


def _grey(pixels: Image, side: int) -> _Floats:
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def _turned(waves: _Floats, turn: int) -> _Floats:
    """Waves ``(n, 8, 8)`` of the tiles after one of the eight turns."""
    odd = (-1.0) ** np.arange(_WAVES, dtype=np.float32)
    if turn >= 4:
        waves = waves * odd
    for _ in range(turn % 4):
        # A quarter turn counter-clockwise: rows for columns, then upside down.
        waves = waves.swapaxes(1, 2) * odd[:, None]
    return waves


def _invariant(waves: _Floats) -> _Floats:
    """What no turn changes, ``(n, 72)`` of unit length: sizes of waves, each with its mirror."""
    size = np.abs(waves)
    other = size.swapaxes(1, 2)
    both = np.stack([size + other, np.abs(size - other)], axis=1) / 2
    upper = np.triu_indices(_WAVES)
    vectors = both[:, :, upper[0], upper[1]].reshape(len(waves), 2 * len(upper[0]))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-6), np.float32)


def _alike(first: Image, second: Image) -> float:
    """Normalised cross-correlation of two tiles; 0 where their details differ.

    A spot of tissue in one corner of the glass correlates with every other such spot.
    """
    score = _correlation(*(_grey(pixels, _SIDE) for pixels in (first, second)))
    if score <= _MIN_NCC:
        return 0.0
    large = [_grey(pixels, 2 * _SIDE) for pixels in (first, second)]
    blurred = [cv2.GaussianBlur(grey, (0, 0), _DETAIL_PX) for grey in large]
    shown = _shown(large[0], large[1], 9)
    one, other = ((grey - blur)[shown] for grey, blur in zip(large, blurred, strict=True))
    if one.size == 0 or min(one.std(), other.std()) == 0:
        return 0.0
    return score if np.corrcoef(one, other)[0, 1] > _MIN_DETAIL else 0.0


def _correlation(first: _Floats, second: _Floats) -> float:
    """Normalised cross-correlation where both show something."""
    shown = _shown(first, second, 5)
    one, other = first[shown], second[shown]
    if one.size < _MIN_SHOWN or min(one.std(), other.std()) < _MIN_CONTRAST:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _shown(first: _Floats, second: _Floats, margin: int) -> npt.NDArray[np.bool_]:
    """Where both tiles show something: black corners, and what mixes with them, are no tissue."""
    shown = np.uint8(np.minimum(first, second) > FILL)
    return np.asarray(cv2.erode(shown, np.ones((margin, margin))) > 0)
