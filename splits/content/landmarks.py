"""Landmarks of a tile, and the pairs of tiles that share some: candidates for the keypoint proof.

No global signature finds a tile again after a rotation by 20 degrees and a crop, or half of it in
its neighbour, so candidates come from local features: 48 points of a tile, 16 bytes each (96 bits
of appearance, place, angle, scale). Landmarks that look alike meet in a few sorted lists; a pair of
tiles becomes a candidate where several of its landmarks agree on one similarity transform.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["N_LANDMARKS", "candidate_pairs", "grey_levels", "landmarks"]

N_LANDMARKS: Final = 48
"""Landmarks kept of a tile; 16 bytes each."""

# Landmarks. Lengths are in pixels of the tile reduced to `_SIDE` on its longer side.
_SIDE: Final = 128
_SIGMAS: Final = 1.3 * 1.3 ** np.arange(6)
_MARGIN: Final = 5
_RADIUS: Final = 5.0  # of the patch, in scales of the landmark
_FAINT: Final = 0.3  # determinant of the Hessian below which a peak is noise on glass
_PATCH: Final = 12
_BLOCK: Final = 10  # DCT frequencies along each axis
_BITS: Final = 96
_BYTES: Final = _BITS // 8
_TURN: Final = 2 * np.pi / 256  # one step of the angle byte
_SCALE: Final = np.log(2) / 32  # one step of the scale byte, from a scale of 1/512 of the tile on

# Candidates.
_TABLES: Final = 16
_AHEAD: Final = 2
_ALIKE: Final = 16  # bits that may differ between the two landmarks which propose a pair
_AGREE: Final = 24  # and between two that vote for it
_VOTES: Final = 3
_FAR: Final = 0.1  # tile sides,
_BEND: Final = 0.4  # radians and
_GROWN: Final = 0.4  # powers of e between two votes for one transform
_PER_TILE: Final = 8
_AT_ONCE: Final = 2048

_POPULATION: Final = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


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
_MIRROR: Final = np.packbits((_KEPT // _BLOCK) % 2 == 1)


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
    found = np.zeros((N_LANDMARKS, _BYTES + 4), np.uint8)
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
    found[:n, :_BYTES] = np.packbits(waves.reshape(n, -1)[:, _KEPT] > 0, axis=1)
    side = max(grey.shape)
    found[:n, _BYTES:] = np.stack(
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
    factor = side / max(grey.shape)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, None, fx=factor, fy=factor, interpolation=how), np.uint8)


def _hessians(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Size of the scale-normalised determinant of the Hessian, ``(n_scales, height, width)``."""
    strength = np.empty((len(_SIGMAS), *grey.shape), np.float32)
    blurred, done = grey, 0.5
    for number, sigma in enumerate(_SIGMAS):
        blurred = cv2.GaussianBlur(blurred, (0, 0), float(np.sqrt(sigma**2 - done**2)))
        done = sigma
        xx, yy, xy = (
            cv2.Sobel(blurred, cv2.CV_32F, *order, scale=scale)
            for order, scale in (((2, 0), 1 / 4), ((0, 2), 1 / 4), ((1, 1), 1 / 4))
        )
        strength[number] = np.abs(xx * yy - xy * xy) * sigma**4
    return strength


def _peaks(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The strongest local maxima over scale and place, strongest first: ``(3, n)``."""
    highest = np.empty_like(strength)
    for level, around in zip(strength, highest, strict=True):
        cv2.dilate(level, np.ones((3, 3), np.uint8), dst=around)
    inside = np.s_[1:-1, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    peak = (strength[inside] >= highest[inside]) & (strength[inside] > _FAINT)
    level, row, column = np.nonzero(peak)
    at = np.stack([level + 1, row + _MARGIN, column + _MARGIN])
    value = strength[tuple(at)]
    finer, coarser = (highest[at[0] + step, at[1], at[2]] for step in (-1, 1))
    at, value = (array[..., (value >= finer) & (value >= coarser)] for array in (at, value))
    return at[:, np.argsort(-value, kind="stable")[:N_LANDMARKS]]


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


def candidate_pairs(
    marks: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Pairs of tiles of which several landmarks agree on one similarity transform.

    Work and memory grow with the number of tiles: every landmark meets its next two in each of 16
    sorted lists of randomly chosen bits (Charikar, "Similarity estimation techniques from rounding
    algorithms", STOC 2002), once as it is and once mirrored.

    Args:
        marks: ``(n, N_LANDMARKS, 16)`` of `landmarks`.

    Returns:
        Pairs ``(m, 2)``, the smaller row first and the pairs in order; ``(m,)`` whether one is the
        mirror image of the other; ``(m,)`` how many landmarks agree. A tile keeps its best pairs.
    """
    pairs, mirrored = _proposed(marks)
    votes = np.concatenate(
        [
            _agreement(marks, pairs[start : start + _AT_ONCE], mirrored[start : start + _AT_ONCE])
            for start in range(0, len(pairs), _AT_ONCE)
        ]
        or [np.empty(0, np.int64)]
    )
    # A pair may be proposed both ways: the way with more votes stands.
    order = np.lexsort((-votes, pairs[:, 1], pairs[:, 0]))
    pairs, mirrored, votes = pairs[order], mirrored[order], votes[order]
    kept = votes >= _VOTES
    kept[1:] &= (pairs[1:] != pairs[:-1]).any(axis=1)
    pairs, mirrored, votes = pairs[kept], mirrored[kept], votes[kept]
    best = _among_best(pairs, votes)
    return pairs[best], mirrored[best], votes[best]


def _proposed(marks: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Pairs of tiles with one pair of landmarks alike, and whether one is mirrored."""
    tile, mark = np.nonzero(marks[:, :, -1])
    signs = marks[tile, mark, :_BYTES]
    n, n_tiles = len(signs), len(marks)
    signs = np.concatenate([signs, signs ^ _MIRROR])
    owner = np.concatenate([tile, tile])
    rng = np.random.default_rng(0)
    codes = [np.empty(0, np.int64)]
    for _ in range(_TABLES):
        order = _sorted(signs, rng.permutation(_BITS)[:32])
        for step in range(1, _AHEAD + 1):
            first, second = order[:-step], order[step:]
            # Two mirrored landmarks meet as they are, too.
            met = (owner[first] != owner[second]) & ((first < n) | (second < n))
            first, second = first[met], second[met]
            alike = _differing(signs[first], signs[second]) <= _ALIKE
            first, second = first[alike], second[alike]
            low, high = np.sort([owner[first], owner[second]], axis=0)
            mirrored = (first >= n) != (second >= n)
            codes.append(np.unique((low * n_tiles + high) * 2 + mirrored))
    found = np.unique(np.concatenate(codes))
    return np.stack(np.divmod(found // 2, n_tiles), axis=1), found % 2 == 1


def _sorted(signs: npt.NDArray[np.uint8], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row numbers in the order of 32 chosen bits."""
    keys = np.empty(len(signs), np.uint64)
    for start in range(0, len(signs), _AT_ONCE * N_LANDMARKS):
        block = np.s_[start : start + _AT_ONCE * N_LANDMARKS]
        bits = np.take(np.unpackbits(signs[block], axis=1), chosen, axis=1)
        keys[block] = np.packbits(bits, axis=1).view(">u4")[:, 0]
    # Sorting key and row number as one number is faster than an argsort, and never ambiguous.
    packed = np.sort((keys << np.uint64(32)) | np.arange(len(signs), dtype=np.uint64))
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _differing(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Number of different bits of two ``(n, _BYTES)`` arrays."""
    differing = _POPULATION[(first ^ second).view(np.uint16)]
    return np.asarray(differing.sum(axis=1, dtype=np.int64))


def _agreement(
    marks: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """How many landmarks of each pair of tiles agree on one similarity transform, ``(m,)``."""
    first, second = marks[pairs[:, 0]], marks[pairs[:, 1]]
    signs = second[:, :, :_BYTES] ^ np.where(mirrored[:, None, None], _MIRROR, 0).astype(np.uint8)
    one, other = (
        np.unpackbits(bits, axis=2).astype(np.float32) * 2 - 1
        for bits in (first[:, :, :_BYTES], signs)
    )
    differ = (_BITS - one @ other.transpose(0, 2, 1)) / 2
    there = (first[:, :, None, -1] > 0) & (second[:, None, :, -1] > 0)
    pair, i, j = np.nonzero((differ <= _AGREE) & there)
    x, y, angle, scale = _geometry(first[pair, i])
    u, v, turn, size = _geometry(second[pair, j])
    # A mirror image about x = 0: the place does not matter, only that it is the same for all.
    mirror = np.where(mirrored[pair], -1, 1)
    turn = np.where(mirrored[pair], np.pi - turn, turn)
    grow, rotate = np.exp(scale - size), angle - turn
    right, down = grow * np.cos(rotate), grow * np.sin(rotate)
    # Where a transform takes the centre of the second tile: matches of one transform agree on it.
    from_x, from_y = mirror * (0.5 - u), 0.5 - v
    place = np.stack([x + right * from_x - down * from_y, y + down * from_x + right * from_y])
    agree = np.ones(len(pair), np.int64)
    for step in range(1, N_LANDMARKS):
        near = np.flatnonzero(pair[:-step] == pair[step:])
        if len(near) == 0:
            break
        # Two matches of one landmark are one witness.
        near = near[(i[near] != i[near + step]) & (j[near] != j[near + step])]
        far = np.hypot(*(place[:, near] - place[:, near + step]))
        bend = np.abs(np.angle(np.exp(1j * (rotate[near] - rotate[near + step]))))
        grown = np.abs(np.log(grow[near] / grow[near + step]))
        near = near[(far < _FAR) & (bend < _BEND) & (grown < _GROWN)]
        np.add.at(agree, near, 1)
        np.add.at(agree, near + step, 1)
    votes = np.zeros(len(pairs), np.int64)
    np.maximum.at(votes, pair, agree)
    return votes


def _geometry(marks: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], ...]:
    """Place (the longer side is 1), angle, and logarithm of the scale (up to a constant)."""
    x, y, angle, scale = marks[:, _BYTES:].astype(np.float64).T
    return x / 255, y / 255, angle * _TURN, scale * _SCALE


def _among_best(
    pairs: npt.NDArray[np.int64], votes: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether a pair is among the best of either of its tiles."""
    kept = np.zeros(len(pairs), bool)
    for side in (0, 1):
        order = np.lexsort((-votes, pairs[:, side]))
        ordered = pairs[order, side]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        kept[order[rank < _PER_TILE]] = True
    return kept
