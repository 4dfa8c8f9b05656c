"""Augmented duplicates and overlaps, proven by keypoints on the candidates that landmarks give.

A rotation by 20 degrees with a crop leaves no hash alive, but hundreds of ORB keypoints (Rublee et
al., "ORB: an efficient alternative to SIFT or SURF", ICCV 2011) that fit one transform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from splits.content.candidates import candidate_pairs
from splits.content.copies import FILL
from splits.content.landmarks import grey_levels
from splits.content.links import Forest, Links, components, join

__all__ = ["find_duplicates"]

Read = Callable[[int], npt.NDArray[np.uint8]]

_LONGER: Final = (320, 480)  # px of a tile's longer side: at least, at most
_PX_A_KEYPOINT: Final = 128
_FAST: Final = 3  # grey levels: fat and mucus are faint
_RATIO: Final = 0.8
_OFF: Final = 4.0  # px at which a match still fits
_INLIERS: Final = 30
_SURE: Final = 100  # votes of landmarks with which half as many inliers suffice,
_SURE_NCC: Final = 0.9  # if both tiles look the same to this degree: glass gives few keypoints
_SPREAD: Final = 0.03  # of the side: standard deviation of the inliers across their main direction
_GROWTH: Final = (0.5, 2.0)
_STRETCH: Final = 1.5  # of one direction over the other: a crop resized to a square
_NCC: Final = 0.5
_STRAIGHT: Final = 0.1  # deviation from a pure turn at which one is tried, as a rate or in radians
_MOST: Final = 0.8  # share of the inliers that must fit a pure turn and shift
_SHIFT: Final = 0.05  # of a tile: less is no overlap but a copy
_PROOFS: Final = 3  # links of a tile to its copies after which more are not looked for
_CACHED: Final = 512


def find_duplicates(
    marks: npt.NDArray[np.uint8], read: Read, known: npt.NDArray[np.int64] | None = None
) -> Links:
    """Links of kinds "duplicate" and "overlap".

    A pair is linked if at least 30 ORB matches fit one affine transform that keeps the size within
    a factor of two and hardly stretches, they do not lie on a line, and both tiles look the same
    where they overlap. 15 matches suffice where many landmarks agree and the correlation is above
    0.9. It is an overlap, with its offset, if one is the other moved and perhaps turned by right
    angles; else a duplicate, whose turn and offset have no place on a lattice. Of many copies of
    one tile, not all pairs are linked.

    Args:
        marks: ``(n, N_LANDMARKS, 16)`` of `landmarks`.
        read: Gives the pixels of a row as ``(height, width, 3)`` RGB.
        known: Pairs ``(m, 2)`` that other evidence links already: they are not read again.

    Returns:
        The links; their score is the correlation of the overlap.
    """
    pairs, mirrored, votes = candidate_pairs(marks)
    if known is not None:
        low, high = np.sort(known, axis=1).T
        new = ~np.isin(pairs @ [len(marks), 1], low * len(marks) + high)
        pairs, mirrored, votes = pairs[new], mirrored[new], votes[new]

    @lru_cache(maxsize=_CACHED)
    def keypoints(row: int, *, mirror: bool) -> _Keypoints:
        pixels = read(row)
        return _keypoints(pixels[:, ::-1] if mirror else pixels)

    # Copies of one tile follow each other, so that the keypoints of each are found once.
    together = components(len(marks), pairs)[pairs[:, 0]]
    order = np.argsort(together, kind="stable")
    links = []
    copies = _Copies(len(marks))
    columns = (pairs[order], mirrored[order], votes[order] >= _SURE)
    for pair, mirror, sure in zip(*(column.tolist() for column in columns), strict=True):
        if copies.settled(*pair):
            continue
        first, second = keypoints(pair[0], mirror=False), keypoints(pair[1], mirror=mirror)
        fit = _fit(first, second, _INLIERS // 2 if sure else _INLIERS)
        if fit is None:
            continue
        score = _correlation(first, second, fit.transform)
        if score > (_NCC if len(fit.at_first) >= _INLIERS else _SURE_NCC):
            kind, turn, offset = _placed(first, second, fit, mirror=mirror)
            links.append(Links.make(kind, [pair], [score], [turn], [offset]))
            if kind == "duplicate":
                copies.join(*pair)
    found = join(links)
    return found[np.lexsort(found.pairs.T[::-1])]


class _Copies:
    """Tiles that are copies of one, so that 100 copies do not need 4,950 proofs."""

    def __init__(self, n_tiles: int) -> None:
        self._forest = Forest(n_tiles)
        self._n_links = [0] * n_tiles

    def settled(self, one: int, other: int) -> bool:
        """Whether two tiles are known to be copies, each by several proofs."""
        enough = min(self._n_links[one], self._n_links[other]) >= _PROOFS
        return enough and self._forest.root(one) == self._forest.root(other)

    def join(self, one: int, other: int) -> None:
        """Note a proof."""
        self._forest.join(one, other)
        for tile in (one, other):
            self._n_links[tile] += 1


@dataclass(frozen=True)
class _Keypoints:
    """A reduced tile ``(height, width)``, its keypoints ``(n, 2)`` and their ORB ``(n, 32)``."""

    grey: npt.NDArray[np.uint8]
    at: npt.NDArray[np.float32]
    orb: npt.NDArray[np.uint8]


def _keypoints(pixels: npt.NDArray[np.uint8]) -> _Keypoints:
    side = int(np.clip(max(pixels.shape), *_LONGER))
    grey = grey_levels(np.ascontiguousarray(pixels), side)
    n = grey.size // _PX_A_KEYPOINT
    detector = cv2.ORB.create(nfeatures=n, edgeThreshold=15, fastThreshold=_FAST)
    # Staircases along the border of black corners are alike on all tiles turned by one angle.
    tissue = cv2.erode((grey > FILL).astype(np.uint8), np.ones((15, 15), np.uint8))
    points, orb = detector.detectAndCompute(grey, tissue)
    at = np.array([point.pt for point in points], np.float32).reshape(-1, 2)
    return _Keypoints(grey, at, np.empty((0, 32), np.uint8) if orb is None else orb)


@dataclass(frozen=True)
class _Fit:
    """A proven ``(2, 3)`` transform of the second tile into the frame of the first, its inliers."""

    transform: npt.NDArray[np.float64]
    at_first: npt.NDArray[np.float32]
    at_second: npt.NDArray[np.float32]


def _fit(first: _Keypoints, second: _Keypoints, needed: int) -> _Fit | None:
    """The transform that so many matches or more prove, or None.

    An affine fit is tighter than a similarity: on 1,500 unrelated pairs of tiles at most 20 matches
    fitted the one, 30 the other, which may shrink a tile to a point.
    """
    if min(len(first.at), len(second.at)) < needed:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(second.orb, first.orb, k=2)
    good = [best for best, other in matches if best.distance < _RATIO * other.distance]
    if len(good) < needed:
        return None
    at_first = first.at[[match.trainIdx for match in good]]
    at_second = second.at[[match.queryIdx for match in good]]
    transform, fits = cv2.estimateAffine2D(
        at_second, at_first, method=cv2.RANSAC, ransacReprojThreshold=_OFF
    )
    if transform is None or fits.sum() < needed:
        return None
    inlier = fits[:, 0] > 0
    fit = _Fit(np.asarray(transform, np.float64), at_first[inlier], at_second[inlier])
    linear = _linear(first, second, fit)
    large, small = np.linalg.svd(linear, compute_uv=False)
    plausible = _GROWTH[0] <= small <= large <= min(_GROWTH[1], _STRETCH * small)
    spread = np.linalg.svd(np.cov(fit.at_first.T), compute_uv=False)[1] ** 0.5
    spread_enough = spread > _SPREAD * max(first.grey.shape)
    return fit if plausible and np.linalg.det(linear) > 0 and spread_enough else None


def _linear(first: _Keypoints, second: _Keypoints, fit: _Fit) -> npt.NDArray[np.float64]:
    """The ``(2, 2)`` turning part of a transform where the longer side of each tile is 1."""
    ratio = max(second.grey.shape) / max(first.grey.shape)
    return np.asarray(fit.transform[:, :2] * ratio, np.float64)


def _correlation(
    first: _Keypoints, second: _Keypoints, transform: npt.NDArray[np.float64]
) -> float:
    """Normalised cross-correlation where both tiles show something."""
    height, width = first.grey.shape
    moved = cv2.warpAffine(second.grey, transform, (width, height), borderValue=0)
    shown = cv2.erode(((first.grey > FILL) & (moved > FILL)).astype(np.uint8), np.ones((5, 5)))
    one, other = (cv2.GaussianBlur(image, (0, 0), 2)[shown > 0] for image in (first.grey, moved))
    if one.size == 0 or min(one.std(), other.std()) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _placed(
    first: _Keypoints, second: _Keypoints, fit: _Fit, *, mirror: bool
) -> tuple[str, int, npt.NDArray[np.float64]]:
    """Kind, turn and offset of a proven pair."""
    size = np.array(first.grey.shape[::-1], np.float64)
    height, width = second.grey.shape
    # Image rows run down: a turn counter-clockwise has a negative sine.
    angle = np.arctan2(-fit.transform[1, 0], fit.transform[0, 0])
    quarters = int(np.rint(angle / (np.pi / 2)))
    cosine, sine = np.round([np.cos(quarters * np.pi / 2), np.sin(quarters * np.pi / 2)])
    pure = np.array([[cosine, sine], [-sine, cosine]])
    if np.abs(_linear(first, second, fit) - pure).max() < _STRAIGHT:
        # The free fit bends a little after the noise of its matches; most must bear a stiff one.
        pure *= max(first.grey.shape) / max(second.grey.shape)
        shifts = fit.at_first - fit.at_second @ pure.T
        shift = np.median(shifts, axis=0)
        still = (np.abs(shifts - shift) < _OFF).all(axis=1).mean() >= _MOST
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ pure.T
        offset = (corners + shift).min(axis=0) / size
        if still and np.abs(offset).max() > _SHIFT:
            return "overlap", quarters % 4 + 4 * mirror, offset
    return "duplicate", -1, np.full(2, np.nan)
