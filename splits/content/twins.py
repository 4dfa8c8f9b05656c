"""Planted twins: tiles of known origin that every search has to find.

A search that links nothing may be right or blind. So some tiles of the set are given a twin each,
made the way real ones come about, and the searches run on all of them together. The share that is
found says how far the links of this set, at this size and quality, may be taken for complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from splits.content.links import KINDS, Links, components, turned

__all__ = ["Twins", "plant_copies", "plant_seams"]

N_PLANTED: Final = 100
"""Twins of each kind, where the set has as many tiles with tissue."""
_EDGE_STD: Final = 6.0
_CUT_AT: Final = 0.43
"""Place of the cut; no tile that overlaps by a half or a quarter ends there."""
_QUALITY: Final = 85
_MAX_DEGREES: Final = 25.0
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Twins:
    """Planted tiles, numbered on from the last tile of the set.

    Attributes:
        pixels: One image a planted tile, ``(height, width, 3)`` uint8 RGB.
        pairs: ``(n, 2)`` row numbers that have to be linked; a pair may be two planted tiles.
        kinds: How each pair was made: ``turned``, ``duplicate`` or ``seam``.
    """

    pixels: tuple[Image, ...]
    pairs: npt.NDArray[np.int64]
    kinds: tuple[str, ...]

    def found(self, links: Links) -> dict[str, dict[str, int]]:
        """How many were planted and found, by kind.

        A seam has to be found as a seam. A turned or altered copy counts whichever search of copies
        ties it to its tile, if need be through another copy of that tile.
        """
        seams = links.kind == KINDS.index("seam")
        known = {tuple(pair) for pair in links.pairs[seams].tolist()}
        copies = links.pairs[~seams]
        n = 1 + max(int(rows.max(initial=0)) for rows in (copies, self.pairs))
        tied = components(n, copies)
        counts: dict[str, dict[str, int]] = {}
        for pair, kind in zip(np.sort(self.pairs, axis=1).tolist(), self.kinds, strict=True):
            count = counts.setdefault(kind, {"planted": 0, "found": 0})
            count["planted"] += 1
            one, other = pair
            found = tuple(pair) in known if kind == "seam" else tied[one] == tied[other]
            count["found"] += int(found)
        return counts


def plant_copies(
    rows: npt.NDArray[np.int64], n_tiles: int, read: Callable[[int], Image], seed: int = 0
) -> Twins:
    """Make copies of a random sample of tiles.

    Each gets a ``turned`` copy (one of the other seven turns) and a ``duplicate`` (rotated by up to
    25 degrees, cropped, perhaps mirrored), compressed again (JPEG).

    Args:
        rows: Tiles that may be sampled: those that are not blank.
        n_tiles: Number of tiles before the first planted one.
        read: Gives the pixels of a tile.
        seed: Seed of the sample and of the alterations.
    """
    random = np.random.default_rng(seed)
    pixels: list[Image] = []
    pairs: list[tuple[int, int]] = []
    for row in _sample(rows, random):
        tile = read(row)
        for copy in (turned(tile, int(random.integers(1, 8))), _augmented(tile, random)):
            pairs.append((row, n_tiles + len(pixels)))
            pixels.append(_compressed(copy))
    return _twins(pixels, pairs, ("turned", "duplicate") * (len(pairs) // 2))


def plant_seams(
    rows: npt.NDArray[np.int64],
    n_tiles: int,
    read: Callable[[int], Image],
    *,
    apart_px: int = 0,
    seed: int = 0,
) -> Twins:
    """Cut a random sample of tiles into halves that lie beside each other as the tiles do.

    The cut is as long as a tile's edge. The sides across from it come from the inside of the tile,
    so that they do not compete with its own neighbours. Both halves are compressed again (JPEG).

    Args:
        rows: Tiles that may be sampled: those that are not blank.
        n_tiles: Number of tiles before the first planted one.
        read: Gives the pixels of a tile.
        apart_px: Pixels between the halves; negative where they overlap.
        seed: Seed of the sample.
    """
    pixels: list[Image] = []
    pairs: list[tuple[int, int]] = []
    for row in _sample(rows, np.random.default_rng(seed)):
        left, right = _halves(read(row), apart_px)
        # The gate of the seam search refuses edges without structure: none is planted there.
        if min(float(side.std()) for side in (left[:, -1], right[:, 0])) >= _EDGE_STD:
            first = n_tiles + len(pixels)
            pairs.append((first, first + 1))
            pixels += [_compressed(left), _compressed(right)]
    return _twins(pixels, pairs, ("seam",) * len(pairs))


def _sample(rows: npt.NDArray[np.int64], random: np.random.Generator) -> list[int]:
    sample = np.sort(random.choice(rows, min(N_PLANTED, len(rows)), replace=False))
    return [int(row) for row in sample]


def _twins(pixels: list[Image], pairs: list[tuple[int, int]], kinds: tuple[str, ...]) -> Twins:
    return Twins(tuple(pixels), np.array(pairs, np.int64).reshape(-1, 2), kinds)


def _augmented(tile: Image, random: np.random.Generator) -> Image:
    """A rotation with reflected corners, a crop of up to 15 %, perhaps a mirror image."""
    height, width = tile.shape[:2]
    degrees = float(random.uniform(-_MAX_DEGREES, _MAX_DEGREES))
    zoom = 1 / float(random.uniform(0.85, 1.0))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, zoom)
    rotated = cv2.warpAffine(tile, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(rotated[:, ::-1] if random.random() < 0.5 else rotated, np.uint8)


def _halves(tile: Image, apart_px: int) -> tuple[Image, Image]:
    width = tile.shape[1]
    cut = round(_CUT_AT * width)
    start = max(cut + apart_px, 0)
    return tile[:, width // 8 : cut], tile[:, start : width - width // 8]


def _compressed(image: Image) -> Image:
    _, encoded = cv2.imencode(
        ".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
