"""Seams: tiles that are neighbours on the slide, found by comparing the pixels along their edges.

Jigsaw solvers match edges in the same way: a candidate is judged by how much better it is than the
runner-up (Pomeranz, Shemesh and Ben-Shahar, CVPR 2011), in any orientation (Gallagher, CVPR 2012).
Slides add two difficulties: most edges of a sparse set have no partner at all, and there may be
millions of them. So the gate is set by decoys, as in protein identification (Elias and Gygi, Nature
Methods 2007): lines from inside the tiles, which look like edges and have no partner. What they
match tells how many false links to expect, whatever the number of tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from splits.content.edges import N_SAMPLES, REVERSED, Edges, edge_lines
from splits.content.frames import STEPS
from splits.content.links import Links, turned
from splits.content.nearest import nearest

__all__ = ["Lie", "edge_lines", "find_seams", "probe"]

_REACHES_PX: Final = (0.6, -0.5, 1.5)
"""Continuing the lines lets them meet: tiles that touch, share a line of pixels, or leave a gap."""
_MIN_NCC: Final = 0.5
_MAX_RATIO: Final = 0.9
_MAX_MISFIT: Final = 0.9
_MAX_FALSE: Final = 1e-4
"""Share of false links that the decoys may predict."""
_SURE_RATIO: Final = 0.6
_N_SURE: Final = 20
"""Sure links that it takes to say what holds for the whole set."""
_MIN_UPRIGHT: Final = 0.95
_N_PROBES: Final = 256
_N_CANDIDATES: Final = 6
"""Five, and the edge itself."""
_BLOCK: Final = 2048

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lie:
    """How the tiles of a set lie beside each other.

    Attributes:
        reach_px: How far each edge is continued to meet its neighbour.
        upright: Whether the tiles are as they were cut: none is turned or mirrored.
    """

    reach_px: float
    upright: bool

    @property
    def apart_px(self) -> int:
        """Pixels between two neighbours; negative where they overlap."""
        return round(2 * self.reach_px) - 1


def probe(lines: npt.NDArray[np.uint8], *, same: npt.NDArray[np.int64] | None = None) -> Lie:
    """Tell from a sample of edges whether tiles touch, overlap or leave a gap, and are upright.

    Args:
        lines: As for `find_seams`.
        same: As for `find_seams`.
    """
    edges = Edges.of(lines, _firsts(lines, same), _REACHES_PX[0])
    probes = np.arange(edges.n)[:: -(-edges.n // _N_PROBES) or 1]
    n_best, reach_px, upright = -1, _REACHES_PX[0], False
    for reach in _REACHES_PX:
        found = _match(replace(edges, reach_px=reach), probes, upright=False)
        sure = (found.partner >= 0) & (found.distance < _SURE_RATIO * found.runner_up)
        if sure.sum() > n_best:
            sides = edges.side[probes[sure]], edges.side[found.partner[sure]]
            turns = _TURNS[(*sides, found.backwards[sure].astype(int))]
            n_best, reach_px = int(sure.sum()), reach
            upright = n_best >= _N_SURE and bool((turns == 0).mean() >= _MIN_UPRIGHT)
    return Lie(reach_px if n_best >= _N_SURE else _REACHES_PX[0], upright)


def _firsts(lines: npt.NDArray[np.uint8], same: npt.NDArray[np.int64] | None) -> _Ints:
    """The tiles that are searched: of copies the first."""
    if same is None:
        return np.arange(len(lines))
    return np.sort(np.unique(same, return_index=True)[1])


def find_seams(
    lines: npt.NDArray[np.uint8],
    *,
    same: npt.NDArray[np.int64] | None = None,
    lie: Lie | None = None,
) -> Links:
    """Link the tiles whose edges continue each other.

    Two edges are linked if each is the best match of the other, their normalised cross-correlation
    (NCC) is above 0.5, their distance is below 0.9 of that to either runner-up, and the misfit is
    below 0.9. The misfit is that ratio times the root of the distance in units of the roughness of
    both edges, where 1 is the median of the sure links of the set: so gaps and resampling cancel.
    The limit of the misfit is lowered until the decoys predict one false link in 10,000.

    A sample of edges tells first whether tiles touch, overlap by a line of pixels or leave a gap,
    and whether they are upright. If they are, only right edges are compared with left ones and
    bottom edges with top ones: there are 8 times fewer competitors, and more links pass. Otherwise
    a tile may be turned and mirrored in any way. Two tiles alike in several edges are copies that
    ``same`` does not know, and are not linked.

    Args:
        lines: ``(n, 6, N_SAMPLES, 4)`` of `edge_lines`.
        same: ``(n,)`` labels of tiles that are copies of one another, however turned. Only the
            first tile of each label is searched: its copies would match as well as it does.
        lie: What `probe` told of these tiles; by default it is asked.

    Returns:
        Links of kind "seam", ordered by pair. The score is the NCC times (1 - misfit / 2).
    """
    how = probe(lines, same=same) if lie is None else lie
    edges = Edges.of(lines, _firsts(lines, same), how.reach_px)
    found = _match(edges, np.arange(len(edges.tile)), upright=how.upright)

    first = _mutual(found, edges.n)
    second = found.partner[first]
    ratio = found.distance[first] / np.minimum(found.runner_up[first], found.runner_up[second])
    ncc, distance = _compare(edges, found, first)
    sure = distance[(ratio < _SURE_RATIO) & (ncc > _MIN_NCC)]
    scale = np.median(sure) if len(sure) >= _N_SURE else 1.0
    misfit = ratio * np.sqrt(distance / scale)
    passes = (ratio < _MAX_RATIO) & (ncc > _MIN_NCC) & (misfit < _MAX_MISFIT)

    # A decoy is linked where it would beat the partner of the edge that it matches.
    decoys = np.arange(edges.n, len(edges.tile))
    n_decoys = len(decoys)
    decoys = decoys[found.partner[decoys] >= 0]
    rival = np.minimum(found.runner_up[decoys], found.distance[found.partner[decoys]])
    decoy_ncc, distance = _compare(edges, found, decoys)
    with np.errstate(over="ignore"):  # equal lines, as of screens and rulers, have no distance
        decoy_ratio = found.distance[decoys] / rival
        decoy_misfit = decoy_ratio * np.sqrt(distance / scale)
    decoy_misfit = decoy_misfit[(decoy_ratio < _MAX_RATIO) & (decoy_ncc > _MIN_NCC)]
    passes &= misfit <= _limit(misfit[passes], decoy_misfit, n_decoys, edges.n)

    first, second = first[passes], second[passes]
    pairs = np.stack([edges.tile[first], edges.tile[second]], axis=1)
    turns = _TURNS[edges.side[first], edges.side[second], found.backwards[first].astype(int)]
    score = ncc[passes] * (1 - misfit[passes] / 2)
    links = Links.make("seam", pairs, score, turns, STEPS[edges.side[first]])
    # Several edges alike: a copy that is not among the same.
    _, rows, counts = np.unique(links.pairs, axis=0, return_index=True, return_counts=True)
    return links[rows[counts == 1]]


@dataclass(frozen=True)
class _Matches:
    """The best match of each line.

    Attributes:
        partner: ``(m,)`` row of the edge; -1 for none.
        backwards: ``(m,)`` whether that edge is read backwards.
        distance: ``(m,)`` root mean square difference to it.
        runner_up: ``(m,)`` the same to the second best; equal to ``distance`` if there is none.
    """

    partner: _Ints
    backwards: npt.NDArray[np.bool_]
    distance: _Floats
    runner_up: _Floats


def _match(edges: Edges, asking: _Ints, *, upright: bool) -> _Matches:
    """Look among the edges for the partner of each line that is ``asking``."""
    vectors = edges.vectors()
    queries = vectors[asking]
    if upright:
        near = np.full((len(asking), _N_CANDIDATES), -1)
        for side in range(4):
            facing = np.flatnonzero(edges.side[: edges.n] == (side + 2) % 4)
            rows = np.flatnonzero(edges.side[asking] == side)
            found, _ = nearest(vectors[facing], queries[rows], _N_CANDIDATES)
            near[rows, : found.shape[1]] = np.where(found < 0, -1, facing[found])
        return _judge(edges, asking, near, np.zeros(near.shape[1], bool))
    both = np.concatenate([queries, queries * REVERSED])
    found, _ = nearest(vectors[: edges.n], both, _N_CANDIDATES)
    near = np.concatenate([found[: len(asking)], found[len(asking) :]], axis=1)
    return _judge(edges, asking, near, np.repeat([False, True], found.shape[1]))


def _judge(edges: Edges, asking: _Ints, near: _Ints, backwards: npt.NDArray[np.bool_]) -> _Matches:
    """Compare whole lines with their candidates ``(m, c)``, of which some columns are reversed."""
    best = np.zeros(len(asking), int)
    two = np.full((len(asking), 2), np.inf, np.float32)
    for at in range(0, len(asking) if near.shape[1] > 1 else 0, _BLOCK):
        part = slice(at, at + _BLOCK)
        others = edges.levelled(near[part])
        others[:, backwards] = others[:, backwards, ::-1]
        others -= edges.levelled(asking[part])[:, None]
        distance = np.sqrt(np.einsum("mcij,mcij->mc", others, others) / (3 * N_SAMPLES))
        own = edges.tile[near[part]] == edges.tile[asking[part]][:, None]
        distance[own | (near[part] < 0)] = np.inf
        order = np.argsort(distance, axis=1, kind="stable")[:, :2]
        two[part] = np.take_along_axis(distance, order, axis=1)
        best[part] = order[:, 0]
    alone = np.isinf(two[:, 0])
    two[:, 1] = np.where(np.isinf(two[:, 1]), two[:, 0], two[:, 1])
    two[alone] = 1
    two = np.maximum(two, np.finfo(np.float32).tiny)
    if not near.shape[1]:
        return _Matches(np.full(len(asking), -1), alone, two[:, 0], two[:, 1])
    partner = np.where(alone, -1, near[np.arange(len(asking)), best])
    return _Matches(partner, backwards[best], two[:, 0], two[:, 1])


def _mutual(found: _Matches, n_edges: int) -> _Ints:
    """Edges whose best match has them as its best match, in the same direction, once a pair."""
    rows = np.flatnonzero(found.partner[:n_edges] >= 0)
    partner = found.partner[rows]
    agree = (found.partner[partner] == rows) & (found.backwards[partner] == found.backwards[rows])
    mutual: _Ints = rows[agree & (rows < partner)]
    return mutual


def _compare(edges: Edges, found: _Matches, rows: _Ints) -> tuple[_Floats, _Floats]:
    """NCC of lines with their best match, and distance in units of the roughness of both."""
    ncc, relative = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    for at in range(0, len(rows), _BLOCK):
        part = slice(at, at + _BLOCK)
        one, other = rows[part], found.partner[rows[part]]
        distance = found.distance[one]
        ncc[part] = 1 - distance**2 / (edges.power(one) + edges.power(other))
        relative[part] = distance / np.sqrt(edges.roughness(one) * edges.roughness(other))
    return ncc, relative


def _limit(misfit: _Floats, decoys: _Floats, n_decoys: int, n_edges: int) -> float:
    """The largest misfit of a link up to which the decoys predict few enough false links."""
    ranked = np.sort(misfit)
    n_links = np.arange(1, len(ranked) + 1)
    n_matched = np.searchsorted(np.sort(decoys), ranked, side="right")
    # Two edges without a partner make one false link.
    n_false = n_matched / max(n_decoys, 1) * (n_edges - 2 * n_links) / 2
    allowed = np.flatnonzero(n_false <= _MAX_FALSE * n_links)
    return float(ranked[allowed[-1]]) if len(allowed) else -1.0


def _turns() -> npt.NDArray[np.int8]:
    """By side of the first tile, side of the second, and direction: the turn of the second."""

    def sides(picture: _Ints) -> list[_Ints]:
        return [picture[0], picture[:, -1], picture[-1], picture[:, 0]]

    picture = np.arange(9).reshape(3, 3)
    table = np.empty((4, 4, 2), np.int8)
    for turn in range(8):
        for first in range(4):
            facing = sides(turned(picture, turn))[(first + 2) % 4].tolist()
            for second, line in enumerate(sides(picture)):
                for backwards, way in enumerate((line.tolist(), line[::-1].tolist())):
                    if facing == way:
                        table[first, second, backwards] = turn
    return table


_TURNS: Final = _turns()
