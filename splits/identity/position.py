"""Where in its slide a tile lies, in the ways in which tile exporters write it into a name."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Position", "locate", "locate_after"]

_FLOAT = r"(?:\.0+)?"
_GAP = r"[,_ -]+"
_X = rf"x(?:min|ini)?[_=-]?(?P<x>\d{{1,9}}){_FLOAT}"
_Y = rf"y(?:min|ini)?[_=-]?(?P<y>\d{{1,9}}){_FLOAT}"
_TAGGED = re.compile(rf"(?<![A-Za-z]){_X}{_GAP}{_Y}", re.I | re.ASCII)
_SWAPPED = re.compile(rf"(?<![A-Za-z]){_Y}{_GAP}{_X}", re.I | re.ASCII)
_GRID = re.compile(
    r"(?<![A-Za-z0-9])(?:r|row[_=-]?)(?P<row>\d{1,5})[,_ -](?:c|col[_=-]?)(?P<col>\d{1,5})(?!\w)",
    re.I | re.ASCII,
)
_DEEP_ZOOM = re.compile(r"_files/(\d{1,2}(?:\.\d+)?)/(\d{1,7})_(\d{1,7})$", re.ASCII)
_QUPATH = re.compile(r"(?:\s*\[[^\[\]]{1,120}\])+$")
_CELL = re.compile(r"([dxywh])=(\d{1,9}(?:\.\d{1,6})?)", re.ASCII)
_HISTOLAB = re.compile(
    r"(?:^|(?<=[/_-]))tile_\d+_level\d+_(?P<x>\d{1,9})-(?P<y>\d{1,9})-\d+-\d+$", re.ASCII
)
_BOX = re.compile(r"[\[(](?P<x>\d{1,9}),\s?(?P<y>\d{1,9})(?:,\s?\d{1,9}){0,2}[\])]$", re.ASCII)
_PLAIN = re.compile(r"(?:^|[/_.-])(?P<x>\d{1,7})_(?P<y>\d{1,7})$", re.ASCII)
# Only after an id whose end is known: two more numbers are the size or the opposite corner.
_CORNERS = re.compile(r"_(?P<x>\d{1,7})_(?P<y>\d{1,7})_\d{1,7}_\d{1,7}$", re.ASCII)
_DASHED = re.compile(r"^[^/]*?-(?P<x>\d{1,7})-(?P<y>\d{1,7})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Position:
    """A position and where in the text it begins.

    Attributes:
        start: Index of its first character.
        x: Pixels as the name gives them; ``y`` too.
        col: Index in a grid, which is no pixel position; ``row`` too.
        level: Deep Zoom level.
        downsample: Level-0 pixels a pixel of the file.
        is_bare: Two numbers without any tag, which could be anything.
    """

    start: int
    x: int | None = None
    y: int | None = None
    col: int | None = None
    row: int | None = None
    level: str | None = None
    downsample: float = 1.0
    is_bare: bool = False


def locate(text: str) -> Position | None:
    """Find the position in a cleaned name or in what follows an id.

    Known forms: Deep Zoom (``_files/<level>/<col>_<row>``), QuPath (``[d=,x=,y=,w=,h=]``), histolab
    (``tile_<n>_level<l>_<x>-<y>-…``), tagged x and y in either order, row and column, a box in
    brackets, and at the end two bare numbers (CLAM, TRIDENT).
    """
    if "_files/" in text and (zoom := _DEEP_ZOOM.search(text)) is not None:
        return Position(zoom.start(), col=int(zoom[2]), row=int(zoom[3]), level=zoom[1])
    if "[" in text and (found := _nested(text)) is not None:
        return found
    for pattern in (_TAGGED, _SWAPPED, _HISTOLAB, _BOX):
        if (match := pattern.search(text)) is not None:
            return Position(match.start(), x=int(match["x"]), y=int(match["y"]))
    if (match := _GRID.search(text)) is not None:
        return Position(match.start(), col=int(match["col"]), row=int(match["row"]))
    if (match := _PLAIN.search(text)) is not None:
        return Position(match.start(), x=int(match["x"]), y=int(match["y"]), is_bare=True)
    return None


def locate_after(tail: str, *, dashes: bool) -> Position | None:
    """Find the position in the text after an id that is known to end there.

    Args:
        tail: What follows the id.
        dashes: Whether ``-<x>-<y>`` (slideflow) is a position and no part of the id.
    """
    found = locate(tail)
    if found is not None and not found.is_bare:
        return found
    for pattern in (_CORNERS, _DASHED) if dashes else (_CORNERS,):
        if (match := pattern.search(tail)) is not None:
            return Position(match.start(), x=int(match["x"]), y=int(match["y"]))
    return found


def _nested(text: str) -> Position | None:
    """QuPath's brackets nest when an exported image is cut again.

    The inner position counts in pixels of the outer image, ``d`` times smaller than the slide.
    """
    match = _QUPATH.search(text)
    if match is None:
        return None
    x = y = 0.0
    scale = 1.0
    for bracket in re.findall(r"\[([^\]]*)\]", match[0]):
        cells = {key: float(value) for key, value in _CELL.findall(bracket)}
        if not {"x", "y", "w", "h"} <= set(cells):
            return None
        x, y = x + scale * cells["x"], y + scale * cells["y"]
        scale *= cells.get("d", 1.0)
    if not (max(x, y) < 2**53 and 0 < scale < 2**20):
        return None
    return Position(match.start(), round(x), round(y), downsample=scale)
