"""Tiles put back next to each other on one small picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mil.report.pictures import ReadTile, jpeg_uri
from splits.content.links import turned
from splits.errors import SlidewiseError

__all__ = ["Arrangement", "Cell", "Drawing", "arrange", "draw"]

MOSAIC_PX: Final = 328
TILE_PX: Final = 96
_MAX_SPAN: Final = 45
_GAP: Final = 0.3
_SHORT: Final = 0.25
"""By how much of a tile a place may miss its lattice, for it is measured, and still count there."""
_UNREAD: Final = 150
_HOLE: Final = 205


@dataclass(frozen=True)
class Cell:
    """A tile and where its top left corner lies, right and down, in tile widths and heights."""

    tile_id: str
    x: float
    y: float
    turn: int = 0


@dataclass(frozen=True)
class Arrangement:
    """The tiles of one component on a plane.

    Attributes:
        cells: The tiles to draw.
        step: One tile stands for each ``step`` by ``step`` block of places.
        n_pieces: Pieces whose place to each other is unknown.
        columns: Extent of the largest piece in tile widths.
        rows: Extent of the largest piece in tile heights.
        n_loose: Tiles without a place of their own: not placed, or on top of a placed tile.
    """

    cells: tuple[Cell, ...]
    step: int
    n_pieces: int
    columns: int
    rows: int
    n_loose: int


@dataclass(frozen=True)
class Drawing:
    """A JPEG as a data URI, with what is drawn over it.

    Attributes:
        uri: The picture.
        width_px: Its width.
        height_px: Its height.
        holes: SVG path of the places that no tile covers, in px; empty where there are none.
        boxes: Left, top, width and height of each cell in px, in the order of the cells.
        n_unread: Tiles that could not be read: grey squares.
    """

    uri: str
    width_px: int
    height_px: int
    holes: str
    boxes: tuple[tuple[int, int, int, int], ...]
    n_unread: int


def arrange(component: pd.DataFrame, limit: int) -> Arrangement:
    """Lay the pieces of a component side by side, thinned to ``limit`` tiles.

    Args:
        component: ``tile_id``, ``frame``, ``col``, ``row`` and ``turn`` of its tiles; positions
            are comparable within a frame, in tile widths and heights, and null where unknown.
        limit: The most tiles to draw, at least 1.
    """
    rows = component.sort_values("tile_id")
    has_place = rows["col"].notna() & rows["row"].notna()
    placed, unplaced = rows[has_place], rows[~has_place]
    # Copies of one tile share its place: one is drawn there, and the rest beside the mosaic.
    quarter = (placed[["col", "row"]].astype(float) * 4).round().assign(frame=placed["frame"])
    on_top = quarter.duplicated()
    loose = pd.concat([placed[on_top], unplaced])
    placed = placed[~on_top]
    corner = placed.groupby("frame")[["col", "row"]].transform("min").astype(float)
    places = placed.assign(x=placed["col"] - corner["col"], y=placed["row"] - corner["row"])
    places = places.astype({"x": float, "y": float, "turn": int})
    extents = places.groupby("frame")[["x", "y"]].max() + 1
    step = max(1, ceil(extents.to_numpy().max() / _MAX_SPAN)) if len(extents) else 1
    drawn = _thinned(places, step)
    while len(drawn) > max(limit, len(extents)):
        step += max(1, step // 8)
        drawn = _thinned(places, step)
    counts = drawn.groupby("frame").size().sort_values(ascending=False, kind="stable")
    pieces = [
        [Cell(c.tile_id, c.x, c.y, max(c.turn, 0)) for c in part.itertuples()]
        for part in (drawn[drawn["frame"] == frame] for frame in counts.index[:limit])
    ]
    n_spare = max(0, limit - len(drawn))
    pieces += [
        [Cell(cell.tile_id, 0.0, 0.0, max(int(cell.turn), 0))]
        for cell in loose.head(n_spare).itertuples()
    ]
    largest = extents.loc[counts.index[0]] if len(counts) else (1, 1)
    columns, lines = (max(1, ceil(float(value) - _SHORT)) for value in largest)
    return Arrangement(_packed(pieces), step, len(counts), columns, lines, len(loose))


def draw(
    cells: Sequence[Cell],
    read_tile: ReadTile,
    *,
    aspect: float = 1.0,
    tile_px: int = TILE_PX,
    mosaic_px: int = MOSAIC_PX,
) -> Drawing:
    """Compose one JPEG of small tiles.

    Args:
        cells: At least one tile.
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id.
        aspect: Width of a tile over its height.
        tile_px: The longer side of a tile is at most this.
        mosaic_px: The longer side of the picture is at most this (tiles keep at least one px).
    """
    x, y = (np.array([getattr(cell, name) for cell in cells]) for name in ("x", "y"))
    span_x, span_y = x.max() - x.min() + 1, y.max() - y.min() + 1
    wide, high = min(1.0, aspect), min(1.0, 1 / aspect)
    scale = min(tile_px, mosaic_px / (span_x * wide), mosaic_px / (span_y * high))
    width, height = max(1, int(scale * wide)), max(1, int(scale * high))
    left = np.round((x - x.min()) * width).astype(int)
    top = np.round((y - y.min()) * height).astype(int)
    canvas = np.full((top.max() + height, left.max() + width, 3), _HOLE, np.uint8)
    covered = np.zeros(canvas.shape[:2], bool)
    n_unread = 0
    for cell, x_px, y_px in zip(cells, left, top, strict=True):
        small = _small(cell, read_tile, width, height)
        n_unread += small is None
        window = np.s_[y_px : y_px + height, x_px : x_px + width]
        canvas[window] = _UNREAD if small is None else small
        covered[window] = True
    boxes = [(int(a), int(b), width, height) for a, b in zip(left, top, strict=True)]
    rows_px, columns_px = covered.shape
    return Drawing(
        jpeg_uri(Image.fromarray(canvas)),
        columns_px,
        rows_px,
        _holes(covered),
        tuple(boxes),
        n_unread,
    )


def _thinned(places: pd.DataFrame, step: int) -> pd.DataFrame:
    """One tile a block of ``step`` by ``step`` places: the one nearest to its centre."""
    if step == 1:
        return places
    column, line = ((places[axis] + _SHORT) // step for axis in ("x", "y"))
    middle = (step - 1) / 2
    off = (places["x"] - column * step - middle) ** 2 + (places["y"] - line * step - middle) ** 2
    blocks = places.assign(x=column, y=line, off=off).sort_values("off", kind="stable")
    return blocks.drop_duplicates(["frame", "x", "y"])


def _packed(pieces: Sequence[Sequence[Cell]]) -> tuple[Cell, ...]:
    """Put pieces on shelves, the highest first, towards a square."""
    sizes = [(max(c.x for c in p) + 1, max(c.y for c in p) + 1) for p in pieces]
    order = sorted(range(len(pieces)), key=lambda place: (-sizes[place][1], place))
    area = sum((wide + _GAP) * (high + _GAP) for wide, high in sizes)
    shelf = max([area**0.5, *(wide for wide, _ in sizes)])
    packed = []
    x = y = highest = 0.0
    for place in order:
        wide, high = sizes[place]
        if x > 0 and x + wide > shelf:
            x, y, highest = 0.0, y + highest + _GAP, 0.0
        packed += [Cell(c.tile_id, c.x + x, c.y + y, c.turn) for c in pieces[place]]
        x, highest = x + wide + _GAP, max(highest, high)
    return tuple(packed)


def _small(
    cell: Cell, read_tile: ReadTile, width: int, height: int
) -> npt.NDArray[np.uint8] | None:
    try:
        pixels = read_tile(cell.tile_id)
    except (OSError, SlidewiseError):
        return None
    image = Image.fromarray(np.ascontiguousarray(turned(pixels, cell.turn)))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0))


def _holes(covered: npt.NDArray[np.bool_]) -> str:
    """Rectangles of the pixels that are not covered, one for each run in a band of equal rows."""
    changes = np.flatnonzero((covered[1:] != covered[:-1]).any(axis=1)) + 1
    edges = [0, *changes.tolist(), len(covered)]
    path = []
    for top, bottom in pairwise(edges):
        line = np.concatenate([[True], covered[top], [True]]).astype(np.int8)
        starts, ends = (np.flatnonzero(np.diff(line) == sign).tolist() for sign in (-1, 1))
        path += [
            f"M{a} {top}h{b - a}v{bottom - top}h{a - b}z" for a, b in zip(starts, ends, strict=True)
        ]
    return "".join(path)
