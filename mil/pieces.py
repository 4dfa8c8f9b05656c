"""Some tiles of a bag: drawn at random, or what is left when others leave in an order.

Which tiles these are follows from the seed and the name of the bag alone, so every method is asked
about the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil.seeds import generator

__all__ = ["SHARES", "Bag", "Piece", "bag_of", "groups", "offsets", "removals", "subsets"]

SHARES: Final = (0.0, 0.05, *(round(0.1 * tenth, 1) for tenth in range(1, 10)), 0.95)
"""Shares of the tiles that are taken away; they mirror each other, so that what is left when the
bottom of an order goes is what is put in when its top comes first."""
_MOST: Final = 256
"""Largest number of tiles drawn from a bag: its answer is settled long before."""

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bag:
    """One bag of a batch, with random orders of its tiles.

    Attributes:
        name: Slide, or patient.
        start: Its first tile in the batch.
        n_tiles: How many it has.
        orders: Places of its tiles, ``(n_tiles,)`` each, one a repeat.
        ties: Another such order, which ranks tiles of equal score.
    """

    name: str
    start: int
    n_tiles: int
    orders: list[Rows]
    ties: Rows

    def ordered(self, score: Scores) -> Rows:
        """Its tiles from the highest score down; equal ones in random order."""
        return np.lexsort((self.ties, -score))

    @property
    def rows(self) -> slice:
        """Where its tiles lie in the batch."""
        return slice(self.start, self.start + self.n_tiles)


@dataclass(frozen=True)
class Piece:
    """Some tiles of a bag.

    Attributes:
        bag: The bag.
        tiles: Places within it, in any order.
        chosen: How they were chosen, as columns of a table.
    """

    bag: Bag
    tiles: Rows
    chosen: Mapping[str, Any]


def bag_of(name: str, start: int, n_tiles: int, *, repeats: int, seed: int) -> Bag:
    """A bag with so many random orders."""
    ties, *orders = (
        generator(seed, "evidence", name, what).permutation(n_tiles)
        for what in ("ties", *range(repeats))
    )
    return Bag(name, start, n_tiles, orders, ties)


def subsets(bag: Bag) -> list[Piece]:
    """1, 2, 4, ... of its tiles, fewer than all, for each order; each set lies within the next."""
    return [
        Piece(bag, order[:m], {"m": m, "repeat": repeat})
        for repeat, order in enumerate(bag.orders)
        for m in (2**power for power in range(_MOST.bit_length()))
        if m < bag.n_tiles
    ]


def removals(bag: Bag, order: Rows, chosen: Mapping[str, Any]) -> list[Piece]:
    """What is left when the first tiles of an order go: a piece for each number of them.

    A share is rounded to whole tiles, and one tile stays; shares that come to the same number of
    tiles are one piece.
    """
    shares: dict[int, list[float]] = {}
    for share in SHARES:
        shares.setdefault(min(round(share * bag.n_tiles), bag.n_tiles - 1), []).append(share)
    return [
        Piece(bag, order[n:], {**chosen, "n_removed": n, "shares": same})
        for n, same in shares.items()
    ]


def offsets(pieces: Sequence[Piece]) -> Tensor:
    """Of these pieces as bags of a packed batch, ``(n_pieces + 1,)``."""
    return torch.from_numpy(np.cumsum([0, *(len(piece.tiles) for piece in pieces)]))


def groups(pieces: Sequence[Piece], budget: int) -> Iterator[list[Piece]]:
    """Consecutive pieces of at most so many tiles together; a larger piece is alone."""
    group: list[Piece] = []
    n_tiles = 0
    for piece in pieces:
        if group and n_tiles + len(piece.tiles) > budget:
            yield group
            group, n_tiles = [], 0
        group.append(piece)
        n_tiles += len(piece.tiles)
    if group:
        yield group
