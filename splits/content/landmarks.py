"""Landmarks of a tile: what is kept of it to find it again turned, cut or shifted by a part.

No global signature finds a tile after a rotation by 20 degrees and a crop, or half of it in its
neighbour, so 48 points are kept, 16 bytes each: 96 bits of appearance, place, angle and scale.

OpenCV's own detectors were measured first. Of 1,044 pairs of a tile and its rotated, cropped copy,
the corners of ORB lost 0.7 % (fewer than two of 48 points agreed), extrema of the Hessian placed
between the pixels none; and the 256 bits of ORB's descriptor do not follow a mirror image.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "MIRROR",
    "N_LANDMARKS",
    "SIGN_BYTES",
    "geometry",
    "grey_levels",
    "landmarks",
    "rank_within",
]

N_LANDMARKS: Final = 48
"""Landmarks kept of a tile; 16 bytes each."""

# Lengths are in pixels of the tile reduced to `_SIDE` on its longer side.
_SIDE: Final = 128
_SIGMAS: Final = 1.3 * 1.3 ** np.arange(6)
_MARGIN: Final = 5
_PARTS: Final = 4  # along each side
_PER_PART: Final = 4
_RADIUS: Final = 3.5  # of the patch, in scales of the landmark
_FAINT: Final = 0.3  # determinant of the Hessian below which a peak is noise on glass
_PATCH: Final = 12
_BLOCK: Final = 10  # DCT frequencies along each axis
_BITS: Final = 96
SIGN_BYTES: Final = _BITS // 8
"""Bytes of a landmark that describe what it looks like."""
_TURN: Final = 2 * np.pi / 256  # one step of the angle byte
_SCALE: Final = np.log(2) / 32  # one step of the scale byte, from a scale of 1/512 of the tile on


def _dct(size: int, n: int) -> npt.NDArray[np.float32]:
    """The first ``n`` rows of the DCT-II, ``(n, size)``."""
    steps = np.pi * (np.arange(size) + 0.5) / size
    return np.cos(np.arange(n)[:, None] * steps).astype(np.float32)


def _grid() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    axis = np.linspace(-1, 1, _PATCH, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


_X, _Y = _grid()
_DISC: Final = np.where(_X**2 + _Y**2 <= 1.05, np.exp(-(_X**2) - _Y**2), 0).astype(np.float32)
_DCT: Final = _dct(_PATCH, _BLOCK)
_FREQUENCIES: Final = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).ravel()
# The lowest frequencies, without the mean and the slopes: the angle fixes those.
_KEPT: Final = np.argsort(_FREQUENCIES, kind="stable")[3 : 3 + _BITS]
MIRROR: Final = np.packbits((_KEPT // _BLOCK) % 2 == 1)
"""Exclusive or with this gives the description of the mirror image."""


def landmarks(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The landmarks of a tile: extrema of the Hessian's determinant over place and scale.

    Each is described by the signs of the low DCT frequencies of the patch around it, turned to the
    patch's own centre of mass. A mirror image negates the odd frequencies across that direction, so
    that the landmarks of the mirrored tile follow without its pixels.

    Args:
        pixels: ``(height, width, 3)`` RGB.

    Returns:
        ``(N_LANDMARKS, 16)``, strongest first: 12 bytes of signs, x and y (255 is the longer side),
        angle (256 is a full turn), and 1 + 32 times the binary logarithm of the scale. Rows of
        zeros fill up a tile with fewer; glass has none.

    Source: Lindeberg, "Feature detection with automatic scale selection", IJCV 1998.
    """
    found = np.zeros((N_LANDMARKS, SIGN_BYTES + 4), np.uint8)
    grey = grey_levels(pixels, _SIDE).astype(np.float32)
    strength = _hessians(grey)
    at = _peaks(strength)
    n = at.shape[1]
    if n == 0:
        return found
    level, row, column = at + _summits(strength, at)
    scale = _SIGMAS[0] * (_SIGMAS[1] / _SIGMAS[0]) ** level
    smooth = cv2.GaussianBlur(grey, (0, 0), float(_SIGMAS[0]))
    disc = _patches(smooth, column, row, np.zeros(n), scale)
    disc = (disc - disc.mean(axis=(1, 2), keepdims=True)) * _DISC
    angle = np.arctan2((disc * _Y).sum(axis=(1, 2)), (disc * _X).sum(axis=(1, 2)))
    waves = _DCT @ _patches(smooth, column, row, angle, scale) @ _DCT.T
    found[:n, :SIGN_BYTES] = np.packbits(waves.reshape(n, -1)[:, _KEPT] > 0, axis=1)
    side = max(grey.shape)
    found[:n, SIGN_BYTES:] = np.stack(
        [
            np.rint((column + 0.5) / side * 255),
            np.rint((row + 0.5) / side * 255),
            np.rint(angle / _TURN) % 256,
            1 + np.rint(np.log(scale / side * 512) / _SCALE),
        ],
        axis=1,
    )
    return found


def grey_levels(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """A tile as grey levels, ``side`` px on its longer side."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = (max(1, round(length * side / max(grey.shape))) for length in grey.shape)
    how = cv2.INTER_AREA if side < max(grey.shape) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, (width, height), interpolation=how), np.uint8)


def _hessians(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Size of the scale-normalised determinant of the Hessian, ``(n_scales, height, width)``."""
    strength = np.empty((len(_SIGMAS), *grey.shape), np.float32)
    blurred, done = grey, 0.5
    for number, sigma in enumerate(_SIGMAS):
        blurred = cv2.GaussianBlur(blurred, (0, 0), float(np.sqrt(sigma**2 - done**2)))
        done = sigma
        xx, yy, xy = (
            cv2.Sobel(blurred, cv2.CV_32F, *order, scale=sigma**2 / 4)
            for order in ((2, 0), (0, 2), (1, 1))
        )
        cv2.absdiff(xx * yy, xy * xy, dst=strength[number])
    return strength


def _peaks(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The strongest local maxima over scale and place, strongest first: ``(3, n)``."""
    highest = np.empty_like(strength)
    for level, around in zip(strength, highest, strict=True):
        cv2.dilate(level, np.ones((3, 3), np.uint8), dst=around)
    inside = np.s_[1:-1, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    peak = (strength[inside] >= highest[inside]) & (strength[inside] > _FAINT)
    # Far faster than `nonzero` of three dimensions.
    level, row, column = np.unravel_index(np.flatnonzero(peak), peak.shape)
    at = np.stack([level + 1, row + _MARGIN, column + _MARGIN])
    value = strength[tuple(at)]
    finer, coarser = (highest[at[0] + step, at[1], at[2]] for step in (-1, 1))
    at, value = (array[..., (value >= finer) & (value >= coarser)] for array in (at, value))
    order = np.argsort(-value, kind="stable")
    # The strongest of every part come first: a tile that overlaps by one side must be known by it.
    part = np.ravel_multi_index(
        at[1:, order] * _PARTS // np.array(strength.shape[1:])[:, None], (_PARTS, _PARTS)
    )
    weaker = rank_within(part) >= _PER_PART
    return at[:, order[np.argsort(weaker, kind="stable")][:N_LANDMARKS]]


def rank_within(group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The place of each row among the rows of its group, in their order."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return rank


def _summits(
    strength: npt.NDArray[np.float32], at: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Where a parabola through each peak has its summit: ``(3, n)`` parts of a step."""
    moves = []
    for axis in np.eye(3, dtype=np.int64)[:, :, None]:
        before, here, after = (strength[tuple(at + step * axis)] for step in (-1, 0, 1))
        curvature = np.minimum(before - 2 * here + after, -1e-6)
        moves.append(np.clip((before - after) / (2 * curvature), -0.5, 0.5))
    return np.stack(moves).astype(np.float64)


def _patches(
    image: npt.NDArray[np.float32],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    angle: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """Square patches around points, turned by an angle: ``(n, _PATCH, _PATCH)``."""
    right, down = (
        (_RADIUS * scale * turn(angle)).astype(np.float32)[:, None, None]
        for turn in (np.cos, np.sin)
    )
    at_x = x[:, None, None] + right * _X - down * _Y
    at_y = y[:, None, None] + down * _X + right * _Y
    patches = cv2.remap(
        image,
        at_x.reshape(-1, _PATCH).astype(np.float32),
        at_y.reshape(-1, _PATCH).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.asarray(patches, np.float32).reshape(-1, _PATCH, _PATCH)


def geometry(marks: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], ...]:
    """Place (the longer side is 1), angle, and logarithm of the scale (up to a constant)."""
    x, y, angle, scale = marks[:, SIGN_BYTES:].astype(np.float64).T
    return x / 255, y / 255, angle * _TURN, scale * _SCALE
