"""Seams of four tiles that meet in one corner: each confirms the other three."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splits.content.frames import COMPOSED, INVERSE, SIDES, STEPS, turned_each
from splits.content.links import Links

__all__ = ["in_squares"]


def in_squares(n_tiles: int, seams: Links) -> npt.NDArray[np.bool_]:
    """Whether a seam is one of four that agree around a corner.

    A false seam hardly ever is: it would need three others that are false in the same way.

    Args:
        n_tiles: Number of tiles.
        seams: Links of kind "seam"; of several at one side of a tile the last counts.

    Returns:
        ``(n_links,)``.
    """
    pairs, turn = seams.pairs, seams.turn
    back = INVERSE[turn]
    steps = seams.offset.astype(np.float64)
    # Every seam in both directions: the tile, the side it is left by, who lies there, and how.
    here = np.concatenate([pairs[:, 0], pairs[:, 1]])
    there = np.concatenate([pairs[:, 1], pairs[:, 0]])
    side = (np.concatenate([steps, -turned_each(steps, back)]) @ STEPS.T).argmax(axis=1)
    turns = np.concatenate([turn, back])
    beside = np.full((n_tiles + 1, 4), n_tiles)
    how = np.zeros((n_tiles + 1, 4), np.int8)
    beside[here, side], how[here, side] = there, turns
    found = np.zeros(len(here), np.bool_)
    for step in (1, 3):
        across = (side + step) % 4
        # Over the neighbour and then across, and the other way round: the same fourth tile?
        side_there = SIDES[turns, across]
        fourth, its_turn = beside[there, side_there], COMPOSED[how[there, side_there], turns]
        corner, its = beside[here, across], how[here, across]
        side_corner = SIDES[its, side]
        other, other_turn = beside[corner, side_corner], COMPOSED[how[corner, side_corner], its]
        found |= (fourth < n_tiles) & (fourth == other) & (its_turn == other_turn)
    n = len(seams)
    return np.asarray(found[:n] | found[n:])
