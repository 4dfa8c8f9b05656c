"""Many small tiles in few characters: sprites of a slide within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from mil.report.pictures import ReadTile, jpeg_uri, read_or_none

__all__ = ["UNREAD", "Thumbnails", "sprite"]

UNREAD: Final = (150, 150, 150)
_SIDES: Final = (112, 96, 80, 64, 48)
_QUALITY: Final = 78


class Thumbnails:
    """Small squares of the tiles of one slide, each read once.

    Args:
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id; None where there are none.
    """

    def __init__(self, read_tile: ReadTile | None) -> None:
        self._read = read_tile
        self._kept: dict[str, Image.Image | None] = {}
        self.can_read = read_tile is not None

    def get(self, tile_id: str) -> Image.Image | None:
        """The centre square of a tile, at most 112 px a side; None where it cannot be read."""
        if tile_id not in self._kept:
            pixels = read_or_none(tile_id, self._read)
            self._kept[tile_id] = None if pixels is None else _square(Image.fromarray(pixels))
        return self._kept[tile_id]


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    small = min(side, _SIDES[0])
    return image.resize(
        (small, small),
        Image.Resampling.LANCZOS,
        box=(left, top, left + side, top + side),
        reducing_gap=3.0,
    )


def sprite(thumbnails: Thumbnails, tile_ids: Sequence[str], n_chars: int) -> dict[str, Any] | None:
    """The tiles in a row on one JPEG, the largest size that fits, or the smallest there is.

    Args:
        thumbnails: Of the slide.
        tile_ids: From left to right; one that cannot be read is grey.
        n_chars: The most characters that the data URI should take.

    Returns:
        ``uri``, ``n`` (tiles) and ``unread`` (places of the grey ones); None where all are.
    """
    found = [thumbnails.get(name) for name in tile_ids]
    unread = [place for place, image in enumerate(found) if image is None]
    if len(unread) == len(found):
        return None
    uri = ""
    for side in _SIDES:
        sheet = Image.new("RGB", (side * len(found), side), UNREAD)
        for place, image in enumerate(found):
            if image is not None:
                small = image.resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(Image.fromarray(np.asarray(small)), (place * side, 0))
        uri = jpeg_uri(sheet, _QUALITY)
        if len(uri) <= n_chars:
            break
    return {"uri": uri, "n": len(found), "unread": unread}
