"""Hard links put together: components of one tissue, each tile on the lattice of its component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.content.cycles import close_cycles
from splits.content.frames import Frames
from splits.content.links import KINDS, Forest, Links, components
from splits.content.squares import in_squares

__all__ = ["Assembly", "Contradiction", "assemble"]

_COPIES: Final = [KINDS.index(kind) for kind in ("identical", "turned", "duplicate")]
_SEAM: Final = KINDS.index("seam")
_OPEN, _USED, _CUT = range(3)


@dataclass(frozen=True)
class Contradiction:
    """A link that the rest of its component speaks against.

    Attributes:
        link: Row of the link.
        tiles: The two tiles that cannot be where the link wants them, the smaller first.
        reason: ``"cycle"``: the tiles of the link lie elsewhere on their common lattice.
            ``"collision"``: the tiles, no copies of each other, would lie on one place.
    """

    link: int
    tiles: tuple[int, int]
    reason: str


@dataclass(frozen=True)
class Assembly:
    """Tiles in components of one tissue, and what became of each link.

    A component holds one or more rigid frames: a copy whose geometry is not known ties two frames
    into one component and says nothing about how they lie. Components and frames are numbered in
    the order of their first tiles.

    Attributes:
        component: ``(n_tiles,)`` int64.
        frame: ``(n_tiles,)`` int64, the rigid frame; no frame spans two components.
        turn: ``(n_tiles,)`` int8: the turn that brings a tile into its frame, in which the tile
            with the smallest row number is upright; -1 where the tile is alone in its frame.
        place: ``(n_tiles, 2)`` float32: column and row in tile widths and heights, the smallest of
            a frame 0; whole numbers unless overlaps tie the frame; NaN where the tile is alone.
        used: ``(n_links,)`` bool: ties its component or agrees with it. Each link is exactly one
            of used, held and cut.
        held: ``(n_links,)`` bool: a seam that is all that speaks for joining two components.
        cut: ``(n_links,)`` bool: contradicts its component.
        contradictions: One for each cut link, and one for each overlap that could not be placed.
    """

    component: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int8]
    place: npt.NDArray[np.float32]
    used: npt.NDArray[np.bool_]
    held: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    contradictions: list[Contradiction]


def assemble(
    n_tiles: int,
    links: Links,
    *,
    agree: npt.NDArray[np.bool_] | None = None,
    lone: bool = True,
) -> Assembly:
    """Put tiles together, so that no single false seam merges two slides.

    1. Copies and overlaps, verified over an area, join whatever they link.
    2. Seams that lie on a cycle of agreeing links join: each is confirmed by the others. So two
       seams between other pairs of tiles that lay two components in the same way join them.
    3. Seams whose tiles look like one slide (``agree``) join: the look is the second cue.
    4. A seam that is the only cue joins a single tile (with its copies) to whatever it touches, so
       that components grow tile by tile. Between two components of several tiles each it is held:
       a tile that touches two slides goes to the one it fits better, and merges nothing.

    Steps 2 to 4 are repeated until nothing joins. Each takes the strongest links first, by kind and
    score, and of seams those first that agree with three others around a corner; the order in
    which links are given does not matter. A link that disagrees with the
    lattice, or would lay a tile onto another that is no copy of it, is cut and recorded; an overlap
    that does the latter still ties its component, as two frames.

    Args:
        n_tiles: Number of tiles.
        links: Links with geometry (duplicates may lack it).
        agree: ``(n_links,)`` whether the two tiles of a link look like one slide; read for seams.
        lone: Whether step 4 is taken; else a seam always needs a second cue.
    """
    return _Mosaic(n_tiles, links, agree).assembly(lone=lone)


class _Mosaic:
    """Components in the making."""

    def __init__(self, n_tiles: int, links: Links, agree: npt.NDArray[np.bool_] | None) -> None:
        self._n_tiles = n_tiles
        self._links = links
        copy = components(n_tiles, links.pairs[np.isin(links.kind, _COPIES)])
        shown = np.sort(copy[links.pairs], axis=1)
        self._evidence = shown[:, 0] * n_tiles + shown[:, 1]
        self._differ = shown[:, 0] != shown[:, 1]
        self._frames = Frames(copy)
        self._forest = Forest(n_tiles)
        self._has_several = [False] * n_tiles  # tiles, copies aside: of a component, by its root
        self._status = np.full(len(links), _OPEN, np.int8)
        self._contradictions: list[Contradiction] = []
        self._placed = (links.turn >= 0) & np.isfinite(links.offset).all(axis=1)
        seam = links.kind == _SEAM
        columns = (
            *links.offset.T[::-1],
            links.turn,
            *links.pairs.T[::-1],
            -links.score,
            links.kind,
        )
        order = np.lexsort(columns)
        self._strong = order[~seam[order]]
        seams = order[seam[order]]
        self._seams = seams[np.argsort(~in_squares(n_tiles, links[seams]), kind="stable")]
        alike = np.zeros(len(links), np.bool_) if agree is None else agree
        self._agreeing = self._seams[alike[self._seams]]

    def assembly(self, *, lone: bool) -> Assembly:
        self._join(self._strong, sure=True)
        while (
            self._close()
            or self._join(self._agreeing, sure=True)
            or (lone and self._join(self._seams))
        ):
            pass
        roots = np.array([self._forest.root(tile) for tile in range(self._n_tiles)], np.int64)
        component, _ = pd.factorize(roots)
        frame, turn, place = self._frames.lattices()
        return Assembly(
            component=component.astype(np.int64),
            frame=frame,
            turn=turn,
            place=place,
            used=self._status == _USED,
            held=self._status == _OPEN,
            cut=self._status == _CUT,
            contradictions=self._contradictions,
        )

    def _close(self) -> bool:
        """Join by the seams that others confirm; returns whether any did."""
        joined, confirmed = False, True
        # A false seam in the layout leads true ones astray. So seams that nothing confirmed come
        # last in the next layout, as long as layouts confirm something.
        doubted = np.zeros(len(self._links), np.bool_)
        while True:
            rows = self._seams[(self._status == _OPEN)[self._seams] & self._placed[self._seams]]
            rows = rows[np.argsort(doubted[rows], kind="stable")]
            if len(rows) == 0:
                return joined
            cycles = close_cycles(self._frames.relations(self._links[rows]), self._evidence[rows])
            before, confirmed = confirmed, self._join(rows[cycles.closed], sure=True)
            joined |= confirmed
            if not cycles.astray.any() or not (before or confirmed):
                return joined
            doubted[rows[cycles.tree & ~cycles.closed]] = True

    def _join(self, rows: npt.NDArray[np.int64], *, sure: bool = False) -> bool:
        """Join by links in their order; an unsure one never joins two times several tiles.

        Returns:
            Whether any joined.
        """
        joined = False
        rows = rows[self._status[rows] == _OPEN]
        links = self._links[rows]
        columns = (rows, links.pairs, links.turn, links.offset, self._placed[rows])
        for row, (first, second), turn, offset, placed in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            one, other = self._forest.root(first), self._forest.root(second)
            several = self._has_several[one], self._has_several[other]
            if not sure and one != other and all(several):
                continue
            if placed:
                if self._frames.frame(first) == self._frames.frame(second):
                    continue  # _settle compares it with the finished lattice
                clash = self._frames.join(first, second, turn, offset)
                if clash is not None:
                    self._contradictions.append(Contradiction(row, clash, "collision"))
                    if self._links.kind[row] == _SEAM:
                        self._status[row] = _CUT
                        continue
            self._status[row] = _USED
            self._has_several[self._forest.join(one, other)] = any(several) or bool(
                self._differ[row]
            )
            joined = True
        self._settle()
        return joined

    def _settle(self) -> None:
        """Use or cut the open links within one frame."""
        rows = np.flatnonzero((self._status == _OPEN) & self._placed)
        relations = self._frames.relations(self._links[rows])
        within = relations.frames[:, 0] == relations.frames[:, 1]
        agrees = relations.at_rest()
        self._status[rows[within & agrees]] = _USED
        apart = rows[within & ~agrees]
        self._status[apart] = _CUT
        for row, (first, second) in zip(
            apart.tolist(), self._links.pairs[apart].tolist(), strict=True
        ):
            self._contradictions.append(Contradiction(row, (first, second), "cycle"))
