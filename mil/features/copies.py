"""Tiles that occur again: within a slide, and in slides that are copies of each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix

from mil.features.bag import Array

__all__ = ["COPY", "Copies", "copies", "row_digests", "row_numbers"]

COPY: Final = 0.5
"""Share of the smaller slide's distinct tiles from which two slides are copies."""
_COMMON: Final = 50  # slides from which a tile is background, and no sign of a copy
_N_TILES: Final = 2  # distinct tiles that copies share at least, or all there are

Ints = npt.NDArray[np.int64]


def row_digests(x: Array) -> list[str]:
    """SHA-256 (first 32 hex digits) of the bytes of each row ``(n_tiles, dim)``."""
    rows = np.ascontiguousarray(x)
    return [hashlib.sha256(row).hexdigest()[:32] for row in rows]


def row_numbers(x: Array) -> npt.NDArray[np.uint64]:
    """A number for the bytes of each row, ``(n_tiles,)``: eight bytes of memory a tile."""
    rows = np.ascontiguousarray(x)
    made = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(made), dtype=np.uint64)


@dataclass(frozen=True)
class Copies:
    """What is shared between slides.

    Attributes:
        pairs: ``(slide, slide, share)`` of slides that are copies, whole or in part.
        common: Digests that occur in several slides which are no copies: background, as a rule.
        within: Slide -> how many of its tiles occur again in it.
    """

    pairs: list[tuple[str, str, float]]
    common: frozenset[object]
    within: dict[str, int]


def copies(digests: pd.Series, slide_ids: pd.Series) -> Copies:
    """Look for tiles with the same features, which as a rule are the same pixels.

    Args:
        digests: Of the features of each tile, as :func:`row_digests` or `row_numbers` make them.
        slide_ids: Of each tile.
    """
    table = pd.DataFrame({"digest": digests.to_numpy(), "slide": slide_ids.to_numpy()})
    n_tiles = table["slide"].value_counts()
    distinct = table.drop_duplicates()
    n_distinct = distinct["slide"].value_counts()
    within = (n_tiles - n_distinct.reindex(n_tiles.index)).loc[lambda n: n > 0]
    n_slides = distinct["digest"].map(distinct["digest"].value_counts())
    shared = distinct[n_slides > 1]
    pairs = _pairs(shared[n_slides[shared.index] <= _COMMON], Counter(n_distinct.to_dict()))
    tied = {frozenset(pair[:2]) for pair in pairs}
    common = []
    for name, slides in shared.groupby("digest")["slide"]:
        first, *rest = sorted(slides)
        # Every slide that holds it is a copy of the first: a copy's tile, not background.
        if any(frozenset((first, other)) not in tied for other in rest):
            common.append(name)
    ordered = {str(name): int(n) for name, n in sorted(within.items())}
    return Copies(pairs, frozenset(common), ordered)


def _pairs(shared: pd.DataFrame, size: Counter[str]) -> list[tuple[str, str, float]]:
    if shared.empty:
        return []
    slide, names = pd.factorize(shared["slide"], sort=True)
    tile, _ = pd.factorize(shared["digest"])
    ones = np.ones(len(shared), dtype=np.int64)
    held = csr_matrix((ones, (slide, tile)), shape=(len(names), int(tile.max()) + 1))
    both = (held @ held.T).tocoo()
    found = []
    for i, j, n in zip(both.row, both.col, both.data, strict=True):
        smaller = min(size[names[i]], size[names[j]])
        if i < j and n >= max(COPY * smaller, min(_N_TILES, smaller)):
            found.append((str(names[i]), str(names[j]), float(n / smaller)))
    return sorted(found)
