"""Column and row of each tile on the grid of its slide, for aggregators that look at places.

Coordinates count pixels of level 0 or of the tile's own resolution; how many of them are one step
follows from the tiles themselves. Nothing is invented: a slide of which one tile has no
coordinates has no grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from mil.data.context import fields
from splits.identity.name import clean
from splits.identity.position import locate
from splits.images import window_of

__all__ = ["grid_positions", "slide_maps"]

_APART: Final = 16
"""Empty columns between the fields of a slide, more than a convolution reaches."""
_JITTER: Final = 0.01
"""Steps of one grid differ by this share: cutters round positions to whole pixels."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def grid_positions(table: pd.DataFrame) -> dict[str, Rows]:
    """Place the tiles of each slide on a grid.

    A step is, along x and along y, the smallest distance from a tile to the next one in line with
    it that is at least half as frequent as the most frequent one, over all fields of the slide at
    one resolution.
    Where fewer than half of the tiles have a next one there is no grid, and a step is the median
    distance of a tile to its nearest neighbour. Each tile takes the nearest place, so tiles that
    were not cut on a grid may share one. A name that gives column and row (Deep Zoom) is taken
    where pixels are missing.

    Fields of a slide (regions with coordinates of their own, resolutions, images that were cut)
    lie beside each other, too far apart to be neighbours.

    Args:
        table: An identified tile table, in any order.

    Returns:
        Slide -> ``(n_tiles, 2)`` column and row, from 0, in the order of the slide's rows in the
        table. Slides with a tile whose place is unknown are absent.
    """
    corner = table[["x_px", "y_px"]].to_numpy(dtype=np.float64, na_value=np.nan)
    lost = np.isnan(corner).any(axis=1)
    corner[lost] = np.nan
    names = table["tile_id"].to_numpy(dtype=object)
    for row in np.flatnonzero(lost):
        at = None if window_of(names[row]) else locate(clean(names[row]))
        if at is not None and at.col is not None and at.row is not None:
            corner[row] = at.col, at.row
    # Pixels and places on a grid are different fields: they have no common origin.
    field = 2 * fields(table) + lost
    scale = table["mpp"].astype("string").fillna("").to_numpy(dtype=object)
    placed = {}
    for slide, rows in table.groupby("slide_id").indices.items():
        if not np.isnan(corner[rows]).any():
            placed[str(slide)] = _slide(corner[rows], field[rows], scale[rows])
    return placed


def slide_maps(
    table: pd.DataFrame, slides: Sequence[str] | None = None
) -> tuple[dict[str, Rows], dict[str, str]]:
    """Which slides can be drawn by position, and why the others cannot.

    A map puts each tile in a place of its own; nothing is invented for a slide of which the place
    of one tile is unknown, and no tile is drawn over another.

    Args:
        table: An identified tile table.
        slides: Those of interest; None: all.

    Returns:
        Slide -> column and row of each tile, ``(n_tiles, 2)`` in the order of the slide's rows in
        the table; and slide -> one sentence, for those that are refused.
    """
    if slides is not None:
        table = table[table["slide_id"].isin(slides)]
    found = grid_positions(table)
    placed, refused = {}, {}
    for slide, rows in table.groupby("slide_id"):
        name, places = str(slide), found.get(str(slide))
        if places is None:
            known = int((rows["x_px"].notna() & rows["y_px"].notna()).sum())
            count = f"{len(rows) - known} of {len(rows)} tiles have" if known else "its tiles have"
            refused[name] = f"no map: {count} no coordinates"
            continue
        n_places = len(np.unique(places, axis=0))
        if len(rows) == 1:
            refused[name] = "no map: one tile is no map"
        elif n_places < len(rows):
            refused[name] = (
                f"no map: {len(rows)} tiles lie in {n_places} places, so they were not cut on a "
                "grid and would hide each other"
            )
        else:
            placed[name] = places
    return placed, refused


def _slide(corner: Floats, field: Rows, scale: npt.NDArray[np.object_]) -> Rows:
    """Places of the tiles of one slide, its fields beside each other."""
    place = np.zeros(corner.shape, dtype=np.int64)
    for one in np.unique(scale):
        step = _step(corner[scale == one], field[scale == one])
        place[scale == one] = np.rint(corner[scale == one] / step).astype(np.int64)
    column = 0
    for one in np.unique(field):
        inside = place[field == one]
        inside = inside - inside.min(axis=0)
        place[field == one] = inside + np.array([column, 0])
        column += int(inside[:, 0].max()) + 1 + _APART
    return place


def _step(corner: Floats, field: Rows) -> Floats:
    """Coordinates a step along x and along y, ``(2,)``."""
    gaps = []
    for along, across in ((0, 1), (1, 0)):
        order = np.lexsort((corner[:, along], corner[:, across], field))
        moved = np.diff(
            np.column_stack([field, corner[:, across], corner[:, along]])[order], axis=0
        )
        gaps.append(moved[(moved[:, 0] == 0) & (moved[:, 1] == 0) & (moved[:, 2] > 0), 2])
    if 2 * sum(map(len, gaps)) < len(corner):
        return np.full(2, _nearest(corner, field))
    steps = [_smallest_frequent(gap) for gap in gaps]
    known = max(step for step in steps if step is not None)
    return np.array([known if step is None else step for step in steps])


def _smallest_frequent(gaps: Floats) -> float | None:
    if len(gaps) == 0:
        return None
    values, counts = np.unique(gaps, return_counts=True)
    # Where many tiles are missing, a gap of two may by chance be more frequent than a step.
    step = values[2 * counts >= counts.max()][0]
    return float(gaps[np.abs(gaps - step) <= _JITTER * step].mean())


def _nearest(corner: Floats, field: Rows) -> float:
    """Median distance to the nearest other place in the same field; 1 where there is none."""
    found = []
    for one in np.unique(field):
        places = np.unique(corner[field == one], axis=0)
        if len(places) > 1:
            found.append(cKDTree(places).query(places, k=2, p=np.inf)[0][:, 1])
    return float(np.median(np.concatenate(found))) if found else 1.0
