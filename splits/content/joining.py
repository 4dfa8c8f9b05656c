"""Rigid frames of tiles, and the links between them that a closed cycle confirms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from splits.content.links import Links, compose, inverse, vector_turned

__all__ = ["TOLERANCE", "Cycles", "Frames", "Relations", "close_cycles"]

TOLERANCE: Final = 0.05
"""Difference of two places, in tile widths or heights, that is measurement error."""
_COMPOSED: Final = np.array([[compose(a, b) for b in range(8)] for a in range(8)], np.int8)
_INVERSE: Final = np.array([inverse(turn) for turn in range(8)], np.int8)
_AXES: Final = np.eye(2, dtype=np.float32)
_MATRIX: Final = np.array(
    [np.stack([vector_turned(axis, turn) for axis in _AXES], axis=1) for turn in range(8)],
    np.float64,
)
"""``_MATRIX[turn] @ vector`` is the vector after the turn."""
# The same tables as plain lists: single look-ups in them are several times faster.
_COMPOSE: Final[list[list[int]]] = _COMPOSED.tolist()
_INVERT: Final[list[int]] = _INVERSE.tolist()
_ROTATE: Final[list[list[float]]] = _MATRIX.reshape(8, 4).tolist()
_PER_TILE: Final = 10
"""Steps a tile width by which a shared place is noticed; a step is twice the tolerance."""


@dataclass(frozen=True)
class Relations:
    """How links lay one frame beside another.

    Attributes:
        frames: ``(n_links, 2)`` int64, the frames of the first and of the second tile.
        turn: ``(n_links,)`` int8, the turn that brings the second frame into the first.
        shift: ``(n_links, 2)`` float64, where the origin of the turned second frame then lies.
    """

    frames: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int8]
    shift: npt.NDArray[np.float64]

    def at_rest(self) -> npt.NDArray[np.bool_]:
        """Links that leave their second frame where it is: ``(n_links,)``."""
        return (self.turn == 0) & (np.abs(self.shift) <= TOLERANCE).all(axis=1)


class Frames:
    """Tiles on rigid lattices; each tile starts at the origin of its own.

    The smaller frame moves into the larger, so that n tiles are moved O(n log n) times in all.

    Args:
        copy: ``(n_tiles,)`` int64. Tiles with one number are copies and may share a place.
    """

    def __init__(self, copy: npt.NDArray[np.int64]) -> None:
        n = len(copy)
        self._copy: list[int] = copy.tolist()
        self._frame = list(range(n))
        self._turn = [0] * n
        self._x = [0.0] * n
        self._y = [0.0] * n
        # Only frames of several tiles are listed: at a million tiles most never need a list.
        self._tiles: dict[int, list[int]] = {}
        self._at: dict[int, dict[int, int]] = {}

    def frame(self, tile: int) -> int:
        """Number of the frame of a tile."""
        return self._frame[tile]

    def relations(self, links: Links) -> Relations:
        """What links with geometry say about the frames of their tiles."""
        frame, turn, place = self._poses()
        first, second = links.pairs.T
        relative = _COMPOSED[_INVERSE[turn[second]], _COMPOSED[links.turn, turn[first]]]
        target = place[first] + _turned(links.offset.astype(np.float64), turn[first])
        return Relations(frame[links.pairs], relative, target - _turned(place[second], relative))

    def join(
        self, first: int, second: int, turn: int, offset: tuple[float, float]
    ) -> tuple[int, int] | None:
        """Move one of the frames of two tiles into the other.

        Args:
            first: A tile.
            second: A tile of another frame.
            turn: Turn of the second in the frame of the first, as in `Links`.
            offset: Place of the second seen from the first, as in `Links`.

        Returns:
            Nothing, or two tiles that are no copies and would share a place: then none moved.
        """
        xx, xy, yx, yy = _ROTATE[self._turn[first]]
        to_x = self._x[first] + xx * offset[0] + xy * offset[1]
        to_y = self._y[first] + yx * offset[0] + yy * offset[1]
        relative = _COMPOSE[_INVERT[self._turn[second]]][_COMPOSE[turn][self._turn[first]]]
        xx, xy, yx, yy = _ROTATE[relative]
        shift_x = to_x - xx * self._x[second] - xy * self._y[second]
        shift_y = to_y - yx * self._x[second] - yy * self._y[second]
        stays, moves = self._frame[first], self._frame[second]
        if len(self._tiles.get(stays, ())) < len(self._tiles.get(moves, ())):
            stays, moves = moves, stays
            relative = _INVERT[relative]
            xx, xy, yx, yy = _ROTATE[relative]
            shift_x, shift_y = -xx * shift_x - xy * shift_y, -yx * shift_x - yy * shift_y
        moved = self._tiles.get(moves, [moves])
        x = [xx * self._x[tile] + xy * self._y[tile] + shift_x for tile in moved]
        y = [yx * self._x[tile] + yy * self._y[tile] + shift_y for tile in moved]
        keys = [_key(*place) for place in zip(x, y, strict=True)]
        at = self._at.get(stays) or {_key(self._x[stays], self._y[stays]): stays}
        for tile, key in zip(moved, keys, strict=True):
            there = at.get(key)
            if there is not None and self._copy[there] != self._copy[tile]:
                return min(there, tile), max(there, tile)
        for tile, key, new_x, new_y in zip(moved, keys, x, y, strict=True):
            self._frame[tile] = stays
            self._turn[tile] = _COMPOSE[self._turn[tile]][relative]
            self._x[tile], self._y[tile] = new_x, new_y
            at.setdefault(key, tile)
        self._at[stays] = at
        self._tiles.setdefault(stays, [stays]).extend(moved)
        self._tiles.pop(moves, None)
        self._at.pop(moves, None)
        return None

    def lattices(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Frame ``(n,)``, turn ``(n,)`` and place ``(n, 2)`` of all tiles, as `Assembly` has them."""
        codes, turn, place = self._poses()
        frame, _ = pd.factorize(codes)
        _, first, size = np.unique(frame, return_index=True, return_counts=True)
        upright = _INVERSE[turn[first]][frame]
        place = _turned(place, upright)
        least = np.full((len(first), 2), np.inf)
        np.minimum.at(least, frame, place)
        alone = size[frame] == 1
        turn = np.where(alone, -1, _COMPOSED[turn, upright]).astype(np.int8)
        place = np.where(alone[:, None], np.nan, place - least[frame]).astype(np.float32)
        return frame.astype(np.int64), turn, place

    def _poses(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.float64]]:
        place = np.stack([np.array(self._x), np.array(self._y)], axis=1)
        return np.array(self._frame, np.int64), np.array(self._turn, np.int8), place


@dataclass(frozen=True)
class Cycles:
    """What `close_cycles` found, each ``(n_links,)`` bool.

    Attributes:
        closed: Lies on a cycle of links that agree.
        tree: Is in the spanning forest by which the frames were laid out.
        astray: Disagrees with that layout.
    """

    closed: npt.NDArray[np.bool_]
    tree: npt.NDArray[np.bool_]
    astray: npt.NDArray[np.bool_]


def close_cycles(relations: Relations, evidence: npt.NDArray[np.int64]) -> Cycles:
    """Find the links that other links confirm.

    The frames are laid out along the spanning forest of the strongest links. Every other link that
    agrees with the layout closes a cycle and confirms all links of it: what remains are the bridges
    of the graph of agreeing links (Tarjan 1974), each the only tie between its two sides.

    Args:
        relations: Links between different frames, the strongest first.
        evidence: ``(n_links,)`` int64. Links of two frames with one number show the same thing
            (tiles and their copies) and do not confirm each other.
    """
    n = len(relations.turn)
    names, nodes = np.unique(relations.frames, return_inverse=True)
    nodes = nodes.reshape(-1, 2)
    low, high = nodes.min(axis=1), nodes.max(axis=1)
    # Of parallel links the strongest stands for all; rows start at 1, as a sparse 0 is no link.
    _, strongest = np.unique(low * len(names) + high, return_index=True)
    rows = (strongest + 1.0, (low[strongest], high[strongest]))
    forest = minimum_spanning_tree(coo_matrix(rows, shape=(len(names), len(names))).tocsr())
    branch = forest.data.astype(np.int64) - 1
    tree = np.zeros(n, np.bool_)
    tree[branch] = True
    order, parent = _walk(len(names), nodes[branch])
    up = np.full(len(names), -1)
    child_is_second = parent[nodes[branch, 1]] == nodes[branch, 0]
    up[np.where(child_is_second, nodes[branch, 1], nodes[branch, 0])] = branch
    turn, place, depth = _lay_out(relations, nodes, order, parent, up)
    first, second = nodes.T
    astray = _COMPOSED[relations.turn, turn[first]] != turn[second]
    miss = place[first] + _turned(relations.shift, turn[first]) - place[second]
    astray |= (np.abs(miss) > TOLERANCE).any(axis=1)
    # A parallel link of the same tiles or their copies is no second cue.
    beside = np.where(parent[second] == first, up[second], -1)
    beside = np.where(parent[first] == second, up[first], beside)
    repeats = (beside >= 0) & (evidence[beside] == evidence)
    group = _contract(nodes[~astray & ~tree & ~repeats], parent, depth)
    return Cycles(~astray & (group[first] == group[second]), tree, astray)


def _walk(
    n: int, edges: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Nodes of a forest, parents before children, and their parents; a root has parent n."""
    ones = np.ones(len(edges), np.int8)
    _, label = connected_components(coo_matrix((ones, edges.T), shape=(n, n)), directed=False)
    _, roots = np.unique(label, return_index=True)
    rooted = np.concatenate([edges, np.stack([np.full(len(roots), n), roots], axis=1)])
    graph = coo_matrix((np.ones(len(rooted), np.int8), rooted.T), shape=(n + 1, n + 1))
    order, parent = breadth_first_order(graph.tocsr(), n, directed=False)
    return order[1:].astype(np.int64), parent[:n].astype(np.int64)


def _lay_out(
    relations: Relations,
    nodes: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int64],
    up: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64], list[int]]:
    """Turn, place and depth of every frame in the layout of its tree."""
    # The relation of each frame to its parent, whichever of the two the link names first.
    forward = nodes[up, 1] == np.arange(len(up))
    given, shift = relations.turn[up], relations.shift[up]
    back = _INVERSE[given]
    step_turn = np.where(forward, given, back).tolist()
    step = np.where(forward[:, None], shift, -_turned(shift, back)).tolist()
    n = len(up)
    turn, x, y, depth = [0] * n, [0.0] * n, [0.0] * n, [0] * n
    parents = parent.tolist()
    for node in order.tolist():
        above = parents[node]
        if above == n:
            continue
        xx, xy, yx, yy = _ROTATE[turn[above]]
        step_x, step_y = step[node]
        turn[node] = _COMPOSE[step_turn[node]][turn[above]]
        x[node] = x[above] + xx * step_x + xy * step_y
        y[node] = y[above] + yx * step_x + yy * step_y
        depth[node] = depth[above] + 1
    return np.array(turn, np.int8), np.stack([np.array(x), np.array(y)], axis=1), depth


def _contract(
    extra: npt.NDArray[np.int64], parent: npt.NDArray[np.int64], depth: list[int]
) -> npt.NDArray[np.int64]:
    """Number the parts of a forest that links beside it hold together by a second way."""
    top = list(range(len(depth)))  # of the part of a node, the node nearest to the root
    parents = parent.tolist()

    def find(node: int) -> int:
        while top[node] != node:
            top[node] = top[top[node]]
            node = top[node]
        return node

    for first, second in extra.tolist():
        one, other = find(first), find(second)
        while one != other:
            if depth[one] < depth[other]:
                one, other = other, one
            top[one] = parents[one]
            one = find(one)
    return np.array([find(node) for node in range(len(top))], np.int64)


def _turned(
    vectors: npt.NDArray[np.float64], turns: npt.NDArray[np.int8]
) -> npt.NDArray[np.float64]:
    """Each vector of ``(n, 2)`` after its own turn of ``(n,)``."""
    return np.asarray(np.einsum("nij,nj->ni", _MATRIX[turns], vectors))


def _key(x: float, y: float) -> int:
    return (round(x * _PER_TILE) << 32) + round(y * _PER_TILE)
