"""Maps of slides: tiles where their coordinates say they lie, never by their order.

A slide of which one tile has no place has no map, and the page says so.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mil.data.context import places
from mil.report.pictures import jpeg_uri
from mil.report.thumbnails import UNREAD, Thumbnails
from splits.errors import InputError

__all__ = ["draw"]

_SIDES: Final = (720, 560, 440, 340, 260)
"""Pixels of the longer side of a map, the largest that fits its budget."""
_TILE: Final = 112
_QUALITY: Final = 72
_GLASS: Final = (240, 238, 242)
_APART: Final = 1.0
"""Tiles between fields of a slide, whose places to each other are unknown."""

Floats = npt.NDArray[np.float64]


def draw(
    tiles: pd.DataFrame | None,
    bag: pd.DataFrame | None,
    thumbnails: Thumbnails,
    *,
    n_chars: int,
    n_tiles: int,
) -> dict[str, Any]:
    """One slide as a mosaic of small tiles, with what was scored of each.

    Args:
        tiles: The slide's rows of the tile table; None without a table.
        bag: ``tile_id, score`` of its tiles.
        thumbnails: Its small tiles.
        n_chars: The most characters that the picture may take.
        n_tiles: The most tiles that may be read.

    Returns:
        ``uri, width, height, boxes`` (left, top, side, score or None, tile id) and ``fields``; or
        ``why`` there is no map.
    """
    if tiles is None or tiles.empty:
        return {"why": "No map: no tile table says where the tiles of this slide lie."}
    lost = int(tiles[["x_px", "y_px"]].isna().any(axis=1).sum())
    if not thumbnails.can_read and not lost:
        return {"why": "No map: the tiles were not at hand when this page was made."}
    try:
        where = places(tiles)
    except InputError:
        return {
            "why": f"No map: {lost} of its {len(tiles)} tiles have no coordinates (x_px, y_px in "
            "a manifest or a name gives them), and tiles are never placed by their order."
        }
    if not thumbnails.can_read:
        return {"why": "No map: the tiles were not at hand when this page was made."}
    if len(tiles) > n_tiles or n_chars <= 0:
        return {"why": "No map: the room for maps in this page went to other slides."}
    corner, n_fields = _beside(where.centre - where.side[:, None] / 2, where.side, where.field)
    names = tiles["tile_id"].astype(str).tolist()
    scores = {} if bag is None else dict(zip(bag["tile_id"], bag["score"], strict=True))
    for longest in _SIDES:
        size = _sized(corner, where.side, longest)
        uri = _mosaic(names, *size, thumbnails)
        if len(uri) <= n_chars:
            break
    else:
        return {"why": "No map: it would not fit in the room that this page has for maps."}
    left, side, (width, height) = size
    return {
        "uri": uri,
        "width": width,
        "height": height,
        "fields": n_fields,
        "boxes": [
            [*map(int, at), int(wide), _score(scores.get(name)), name]
            for at, wide, name in zip(left, side, names, strict=True)
        ],
    }


def _score(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)


def _beside(corner: Floats, side: Floats, field: npt.NDArray[np.int64]) -> tuple[Floats, int]:
    """Fields with an origin of their own, from left to right."""
    placed, right = corner.copy(), 0.0
    fields = np.unique(field)
    for one in fields:
        inside = field == one
        placed[inside] += np.array([right, 0.0]) - corner[inside].min(axis=0)
        right = float((placed[inside, 0] + side[inside]).max()) + _APART * float(side.max())
    return placed, len(fields)


def _sized(
    corner: Floats, side: Floats, longest: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[int, int]]:
    """Left and top, side, and the extent in pixels of a picture that long."""
    extent = (corner + side[:, None]).max(axis=0)
    scale = min(longest / float(extent.max()), _TILE / float(side.max()))
    left = np.floor(corner * scale).astype(np.int64)
    px = np.maximum(np.ceil(side * scale), 1).astype(np.int64)
    width, height = (left + px[:, None]).max(axis=0).tolist()
    return left, px, (width, height)


def _mosaic(
    names: list[str],
    left: npt.NDArray[np.int64],
    side: npt.NDArray[np.int64],
    size: tuple[int, int],
    thumbnails: Thumbnails,
) -> str:
    canvas = Image.new("RGB", size, _GLASS)
    for name, at, px in zip(names, left.tolist(), side.tolist(), strict=True):
        image = thumbnails.get(name)
        small = Image.new("RGB", (px, px), UNREAD) if image is None else image.resize((px, px))
        canvas.paste(small, tuple(at))
    return jpeg_uri(canvas, _QUALITY)
