"""Gaps in the lattice: places beside a tile where tissue goes on and no tile lies.

Seams tie neighbours. If tiles of a slide are missing, its parts stay separate components though
every single link was found, and the share of linked tiles does not show it. The gaps do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from splits.content.frames import SIDES, STEPS
from splits.content.mosaic import Assembly

__all__ = ["gap_share"]


def gap_share(assembly: Assembly, contrast: npt.NDArray[np.bool_]) -> float:
    """Share of the edges with tissue, inside the outline of a component, that have no neighbour.

    The outline is the bounding box of a rigid frame: a region may well end there. Only tiles on
    whole places of a lattice count.

    Args:
        assembly: Where each tile lies.
        contrast: ``(n_tiles, 4)`` whether the top, right, bottom and left edge show tissue.

    Returns:
        0 for complete rectangles and for tissue that ends in glass; 1 where nothing is placed.
    """
    rows = np.flatnonzero(assembly.turn >= 0)
    place = assembly.place[rows]
    on_lattice = (np.abs(place - np.rint(place)) < 0.25).all(axis=1)
    rows, place = rows[on_lattice], np.rint(place[on_lattice]).astype(np.int64)
    if len(rows) == 0:
        return 1.0
    _, frame = np.unique(assembly.frame[rows], return_inverse=True)
    low = np.full((frame.max() + 1, 2), np.iinfo(np.int64).max)
    high = np.full_like(low, -1)
    np.minimum.at(low, frame, place)
    np.maximum.at(high, frame, place)
    span = int(high.max()) + 3

    def key(at: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return np.asarray((frame * span + at[:, 0] + 1) * span + at[:, 1] + 1)

    held = np.unique(key(place))
    own_side = SIDES[assembly.turn[rows]]
    n_inside, n_open = 0, 0
    for side, step in enumerate(STEPS):
        beside = place + step
        inside = ((beside >= low[frame]) & (beside <= high[frame])).all(axis=1)
        inside &= contrast[rows, own_side[:, side]]
        n_inside += int(inside.sum())
        n_open += int((inside & ~np.isin(key(beside), held)).sum())
    return n_open / n_inside if n_inside else 0.0
