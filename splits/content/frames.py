"""Rigid frames of tiles, and turns of many vectors at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.content.links import Links, compose, inverse, vector_turned

__all__ = [
    "COMPOSED",
    "INVERSE",
    "PER_TILE",
    "ROTATE",
    "SIDES",
    "STEPS",
    "TOLERANCE",
    "Frames",
    "Relations",
    "turned_each",
]

TOLERANCE: Final = 0.05
"""Difference of two places, in tile widths or heights, that is measurement error."""
COMPOSED: Final = np.array([[compose(a, b) for b in range(8)] for a in range(8)], np.int8)
"""``COMPOSED[first, second]`` is `compose` of two turns."""
INVERSE: Final = np.array([inverse(turn) for turn in range(8)], np.int8)
"""``INVERSE[turn]`` undoes a turn."""
_AXES: Final = np.eye(2, dtype=np.float32)
_MATRIX: Final = np.array(
    [np.stack([vector_turned(axis, turn) for axis in _AXES], axis=1) for turn in range(8)],
    np.float64,
)
"""``_MATRIX[turn] @ vector`` is the vector after the turn."""
ROTATE: Final[list[list[float]]] = _MATRIX.reshape(8, 4).tolist()
"""The same row by row as plain lists: single look-ups in them are several times faster."""
_COMPOSE: Final[list[list[int]]] = COMPOSED.tolist()
_INVERT: Final[list[int]] = INVERSE.tolist()
STEPS: Final = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])
"""Columns and rows to the neighbour at the top, right, bottom and left."""
SIDES: Final = np.stack([(STEPS @ _MATRIX[turn] @ STEPS.T).argmax(axis=1) for turn in range(8)])
"""``SIDES[turn, side]``: which side of a tile lies at ``side`` after the turn."""
PER_TILE: Final = 10
"""Steps a tile width by which a shared place is noticed; a step is twice the tolerance."""


@dataclass(frozen=True)
class Relations:
    """How links lay one frame beside another.

    Attributes:
        frames: ``(n_links, 2)`` int64, the frames of the two tiles, the smaller number first.
        turn: ``(n_links,)`` int8, the turn that brings the second frame into the first.
        shift: ``(n_links, 2)`` float64, where the origin of the turned second frame then lies.
    """

    frames: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int8]
    shift: npt.NDArray[np.float64]

    def at_rest(self) -> npt.NDArray[np.bool_]:
        """Links that leave their second frame where it is: ``(n_links,)``."""
        return np.asarray((self.turn == 0) & (np.abs(self.shift) <= TOLERANCE).all(axis=1))


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
        first, second = links.pairs.T.tolist()
        frame_1, turn_1, place_1 = self._poses(first)
        frame_2, turn_2, place_2 = self._poses(second)
        relative = COMPOSED[INVERSE[turn_2], COMPOSED[links.turn, turn_1]]
        target = place_1 + turned_each(links.offset.astype(np.float64), turn_1)
        shift = target - turned_each(place_2, relative)
        frames = np.stack([frame_1, frame_2], axis=1)
        swap = frames[:, 0] > frames[:, 1]
        relative[swap] = INVERSE[relative[swap]]
        shift[swap] = -turned_each(shift[swap], relative[swap])
        return Relations(np.sort(frames, axis=1), relative, shift)

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
        xx, xy, yx, yy = ROTATE[self._turn[first]]
        to_x = self._x[first] + xx * offset[0] + xy * offset[1]
        to_y = self._y[first] + yx * offset[0] + yy * offset[1]
        relative = _COMPOSE[_INVERT[self._turn[second]]][_COMPOSE[turn][self._turn[first]]]
        xx, xy, yx, yy = ROTATE[relative]
        shift_x = to_x - xx * self._x[second] - xy * self._y[second]
        shift_y = to_y - yx * self._x[second] - yy * self._y[second]
        stays, moves = self._frame[first], self._frame[second]
        if len(self._tiles.get(stays, ())) < len(self._tiles.get(moves, ())):
            stays, moves = moves, stays
            relative = _INVERT[relative]
            xx, xy, yx, yy = ROTATE[relative]
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
        """Frame ``(n,)``, turn ``(n,)`` and place ``(n, 2)`` of all tiles, as in `Assembly`."""
        codes, turn, place = self._poses(list(range(len(self._frame))))
        frame, _ = pd.factorize(codes)
        _, first, size = np.unique(frame, return_index=True, return_counts=True)
        upright = INVERSE[turn[first]][frame]
        place = turned_each(place, upright)
        least = np.full((len(first), 2), np.inf)
        np.minimum.at(least, frame, place)
        alone = size[frame] == 1
        turn = np.where(alone, -1, COMPOSED[turn, upright]).astype(np.int8)
        shown = np.where(alone[:, None], np.nan, place - least[frame]).astype(np.float32)
        return np.asarray(frame, np.int64), turn, shown

    def _poses(
        self, tiles: list[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.float64]]:
        frame, turn, x, y = (
            [values[tile] for tile in tiles]
            for values in (self._frame, self._turn, self._x, self._y)
        )
        place = np.array([x, y], np.float64).T
        return np.array(frame, np.int64), np.array(turn, np.int8), place


def turned_each(
    vectors: npt.NDArray[np.float64], turns: npt.NDArray[np.int8]
) -> npt.NDArray[np.float64]:
    """Each vector of ``(n, 2)`` after its own turn of ``(n,)``."""
    return np.asarray(np.einsum("nij,nj->ni", _MATRIX[turns], vectors))


def _key(x: float, y: float) -> int:
    return (round(x * PER_TILE) << 32) + round(y * PER_TILE)
