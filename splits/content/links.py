"""Links between tiles that show one tissue, and the eight ways a tile can be turned.

A *turn* is a number from 0 to 7: ``turn % 4`` quarter turns counter-clockwise, after a mirror image
left to right where ``turn >= 4``. The eight turns are the symmetries of the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = [
    "KINDS",
    "Forest",
    "Links",
    "components",
    "compose",
    "inverse",
    "join",
    "turned",
    "vector_turned",
]

KINDS: Final = ("identical", "turned", "duplicate", "overlap", "seam")
"""Kinds of evidence, from the surest to the least sure."""
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class Links:
    """Pairs of tiles of one tissue.

    Attributes:
        pairs: ``(n_links, 2)`` int64 row numbers, the smaller first.
        kind: ``(n_links,)`` index into `KINDS`, int8.
        score: ``(n_links,)`` float32 from 0 to 1, comparable within a kind.
        turn: ``(n_links,)`` int8: the turn that brings the second tile into the frame of the first;
            -1 where it is not known.
        offset: ``(n_links, 2)`` float32: where the top left corner of the turned second tile lies
            from that of the first, right and down, in tile widths and heights; NaN where unknown.
    """

    pairs: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int8]
    score: npt.NDArray[np.float32]
    turn: npt.NDArray[np.int8]
    offset: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: npt.NDArray[Any]) -> Links:
        """The links of a mask or of row numbers."""
        return Links(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    @classmethod
    def make(
        cls,
        kind: str,
        pairs: npt.ArrayLike,
        score: npt.ArrayLike,
        turn: npt.ArrayLike | None = None,
        offset: npt.ArrayLike | None = None,
    ) -> Links:
        """Links of one kind; a pair may come in either order and its geometry turns with it."""
        given = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        n = len(given)
        turns = np.full(n, -1, np.int8) if turn is None else np.array(turn, np.int8).reshape(n)
        moves = (
            np.full((n, 2), np.nan, np.float32)
            if offset is None
            else np.array(offset, np.float32).reshape(n, 2)
        )
        swap = given[:, 0] > given[:, 1]
        for row in np.flatnonzero(swap & (turns >= 0)):
            turns[row] = inverse(int(turns[row]))
            moves[row] = -vector_turned(moves[row], int(turns[row]))
        kinds = np.full(n, KINDS.index(kind), np.int8)
        scores = np.array(score, np.float32).reshape(n)
        return cls(np.sort(given, axis=1), kinds, scores, turns, moves)


def join(parts: Sequence[Links]) -> Links:
    """All links of several searches, in their order."""
    if not parts:
        return Links.make("seam", [], [])
    columns = [column.name for column in fields(Links)]
    return Links(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in columns})


def turned(pixels: npt.NDArray[_Scalar], turn: int) -> npt.NDArray[_Scalar]:
    """An image ``(height, width, ...)`` after one of the eight turns."""
    mirrored = pixels[:, ::-1] if turn >= 4 else pixels
    return np.rot90(mirrored, turn % 4)


def vector_turned(vector: npt.NDArray[np.float32], turn: int) -> npt.NDArray[np.float32]:
    """A vector (right, down) after one of the eight turns of the plane."""
    x, y = (float(value) for value in vector)
    if turn >= 4:
        x = -x
    for _ in range(turn % 4):
        x, y = y, -x
    return np.array([x, y], np.float32)


def compose(first: int, second: int) -> int:
    """The turn that equals ``second`` after ``first``."""
    mirror = (first >= 4) != (second >= 4)
    # A mirror image after a quarter turn counter-clockwise is a clockwise one after the mirror.
    quarter = second % 4 + (-(first % 4) if second >= 4 else first % 4)
    return 4 * mirror + quarter % 4


def inverse(turn: int) -> int:
    """The turn that undoes ``turn``; a mirror image undoes itself."""
    return turn if turn >= 4 else -turn % 4


class Forest:
    """Sets that grow together, link by link (`components` numbers those of all links at once).

    Args:
        n: Members, each a set of its own at first.
    """

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, member: int) -> int:
        """The member that stands for the set."""
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, one: int, other: int) -> int:
        """Make two sets one; the root of the first stands for it and is returned."""
        root = self.root(one)
        self._parent[self.root(other)] = root
        return root


def components(n_nodes: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number the connected components: ``(n_nodes,)`` from ``(n_links, 2)``."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(n_nodes, n_nodes))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, dtype=np.int64)
