"""Links between frames of tiles that other links confirm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from splits.content.frames import (
    COMPOSED,
    INVERSE,
    PER_TILE,
    ROTATE,
    TOLERANCE,
    Relations,
    turned_each,
)

__all__ = ["Cycles", "close_cycles"]

_COMPOSE: Final[list[list[int]]] = COMPOSED.tolist()


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

    The frames are laid out along a spanning forest: of parallel links those that most others agree
    with, then the strongest. Every other link that agrees with the layout closes a cycle and
    confirms all links of it: what remains are the bridges of the graph of agreeing links
    (Tarjan 1974), each the only tie between its two sides.

    Args:
        relations: Links between different frames, the strongest first.
        evidence: ``(n_links,)`` int64. Links of two frames with one number show the same thing
            (tiles and their copies) and do not confirm each other.
    """
    n = len(relations.turn)
    names, nodes = np.unique(relations.frames, return_inverse=True)
    nodes = nodes.reshape(-1, 2)
    chosen = _representatives(relations, evidence)
    # Ranks start at 1, as a sparse 0 is no link.
    ends = (np.arange(1.0, len(chosen) + 1), nodes[chosen].T)
    forest = minimum_spanning_tree(coo_matrix(ends, shape=(len(names), len(names))).tocsr())
    branch = chosen[forest.data.astype(np.int64) - 1]
    tree = np.zeros(n, np.bool_)
    tree[branch] = True
    order, parent = _walk(len(names), nodes[branch])
    up = np.full(len(names), -1)
    child_is_second = parent[nodes[branch, 1]] == nodes[branch, 0]
    up[np.where(child_is_second, nodes[branch, 1], nodes[branch, 0])] = branch
    turn, place, depth = _lay_out(relations, nodes, order, parent, up)
    first, second = nodes.T
    astray = COMPOSED[relations.turn, turn[first]] != turn[second]
    miss = place[first] + turned_each(relations.shift, turn[first]) - place[second]
    astray |= (np.abs(miss) > TOLERANCE).any(axis=1)
    # A parallel link of the same tiles or their copies is no second cue.
    beside = np.where(parent[second] == first, up[second], -1)
    beside = np.where(parent[first] == second, up[first], beside)
    repeats = (beside >= 0) & (evidence[beside] == evidence)
    group = _contract(nodes[~astray & ~tree & ~repeats], parent, depth)
    return Cycles(~astray & (group[first] == group[second]), tree, astray)


def _representatives(
    relations: Relations, evidence: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """One link of every two frames that are linked, the most trusted first."""
    table = pd.DataFrame(
        {
            "pair": relations.frames[:, 0] << 32 | relations.frames[:, 1],
            "turn": relations.turn,
            "x": np.rint(relations.shift[:, 0] * PER_TILE),
            "y": np.rint(relations.shift[:, 1] * PER_TILE),
            "evidence": evidence,
        }
    )
    parallel = table[table["pair"].duplicated(keep=False)]
    alike = parallel.groupby(["pair", "turn", "x", "y"])["evidence"].transform("nunique")
    votes = np.ones(len(table), np.int64)
    votes[alike.index] = alike
    order = np.argsort(-votes, kind="stable")
    return np.asarray(order[~table["pair"].iloc[order].duplicated().to_numpy()])


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
    back = INVERSE[given]
    step_turn = np.where(forward, given, back).tolist()
    step = np.where(forward[:, None], shift, -turned_each(shift, back)).tolist()
    n = len(up)
    turn, x, y, depth = [0] * n, [0.0] * n, [0.0] * n, [0] * n
    parents = parent.tolist()
    for node in order.tolist():
        above = parents[node]
        if above == n:
            continue
        xx, xy, yx, yy = ROTATE[turn[above]]
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
