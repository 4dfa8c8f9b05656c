"""Pairs of tiles that share landmarks: candidates for the proof by keypoints.

Landmarks that look alike meet in a few sorted lists; a pair of tiles becomes a candidate where some
of its landmarks agree on one similarity transform. Work and memory grow with the number of tiles.
"""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

from splits.content.landmarks import MIRROR, N_LANDMARKS, SIGN_BYTES, geometry, rank_within

__all__ = ["candidate_pairs"]

_BITS: Final = 8 * SIGN_BYTES
_TABLES: Final = 16
_AHEAD: Final = 2
_ALIKE: Final = 18  # bits that may differ between the two landmarks which propose a pair
_AGREE: Final = 24  # and between two that vote for it
_CERTAIN: Final = 41  # less the bits that differ: weight of a vote. Chance falls tenfold by 4 bits
_VOTES: Final = 48  # three votes, or two good ones
_FAR: Final = 0.1  # tile sides,
_BEND: Final = 0.4  # radians and
_GROWN: Final = 0.4  # powers of e between two votes for one transform
_PER_TILE: Final = 6
_PAIRS_AT_ONCE: Final = 2048
_BLOCK: Final = 1 << 18

_POPULATION: Final = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


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
        mirror image of the other; ``(m,)`` summed weights of the landmarks that agree. A tile keeps
        its best pairs.
    """
    pairs, mirrored = _proposed(marks)
    votes = np.concatenate(
        [
            _agreement(
                marks,
                pairs[start : start + _PAIRS_AT_ONCE],
                mirrored[start : start + _PAIRS_AT_ONCE],
            )
            for start in range(0, len(pairs), _PAIRS_AT_ONCE)
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
    signs = marks[tile, mark, :SIGN_BYTES]
    n, n_tiles = len(signs), len(marks)
    signs = np.concatenate([signs, signs ^ MIRROR])
    owner = np.concatenate([tile, tile])
    rng = np.random.default_rng(0)
    codes = [np.empty(0, np.int64)]
    for _ in range(_TABLES):
        order = _sorted(signs, rng.permutation(_BITS)[:32])
        for start, step in product(range(0, 2 * n, _BLOCK), range(1, _AHEAD + 1)):
            second = order[start + step : start + step + _BLOCK]
            first = order[start : start + len(second)]
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
    for start in range(0, len(signs), _BLOCK):
        block = np.s_[start : start + _BLOCK]
        bits = np.take(np.unpackbits(signs[block], axis=1), chosen, axis=1)
        keys[block] = np.packbits(bits, axis=1).view(">u4")[:, 0]
    # Sorting key and row number as one number is faster than an argsort, and never ambiguous.
    packed = np.sort((keys << np.uint64(32)) | np.arange(len(signs), dtype=np.uint64))
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _differing(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int64]:
    """Number of different bits of two ``(n, SIGN_BYTES)`` arrays."""
    differing = _POPULATION[(first ^ second).view(np.uint16)]
    return np.asarray(differing.sum(axis=1, dtype=np.int64))


def _agreement(
    marks: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Summed weights of the landmarks that agree on one similarity transform, ``(m,)``."""
    first, second = marks[pairs[:, 0]], marks[pairs[:, 1]]
    signs = second[:, :, :SIGN_BYTES] ^ (MIRROR * mirrored[:, None, None])
    one, other = (
        np.unpackbits(bits, axis=2).astype(np.float32) * 2 - 1
        for bits in (first[:, :, :SIGN_BYTES], signs)
    )
    differ = (_BITS - one @ other.transpose(0, 2, 1)) / 2
    there = (first[:, :, None, -1] > 0) & (second[:, None, :, -1] > 0)
    pair, i, j = np.nonzero((differ <= _AGREE) & there)
    x, y, angle, scale = geometry(first[pair, i])
    u, v, turn, size = geometry(second[pair, j])
    # A mirror image about x = 0: the place does not matter, only that it is the same for all.
    mirror = np.where(mirrored[pair], -1, 1)
    turn = np.where(mirrored[pair], np.pi - turn, turn)
    grow, rotate = np.exp(scale - size), angle - turn
    right, down = grow * np.cos(rotate), grow * np.sin(rotate)
    # Where a transform takes the centre of the second tile: matches of one transform agree on it.
    from_x, from_y = mirror * (0.5 - u), 0.5 - v
    place = np.stack([x + right * from_x - down * from_y, y + down * from_x + right * from_y])
    weight = _CERTAIN - differ[pair, i, j].astype(np.int64)
    agree = weight.copy()
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
        np.add.at(agree, near, weight[near + step])
        np.add.at(agree, near + step, weight[near])
    votes = np.zeros(len(pairs), np.int64)
    np.maximum.at(votes, pair, agree)
    return votes


def _among_best(
    pairs: npt.NDArray[np.int64], votes: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether a pair is among the best of either of its tiles."""
    kept = np.zeros(len(pairs), bool)
    for side in (0, 1):
        order = np.argsort(-votes, kind="stable")
        kept[order[rank_within(pairs[order, side]) < _PER_TILE]] = True
    return kept
