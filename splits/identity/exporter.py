"""Grammars of tile exporters: the slide is whatever the user called the image.

Nothing in such a name proves that it is a slide, so default words, counters, camera time stamps and
zoom levels are refused here and the rest is put to a folder-wide test.
"""

from __future__ import annotations

import re
from typing import Final

from splits.identity.name import DEEP_ZOOM, SUFFIX, Name, place, stem

__all__ = ["common", "deep_zoom", "histolab", "qupath", "slide_folder", "without_uuid"]

_UUID = re.compile(r"[._ -]?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-z])", re.I)
_TIME_STAMP = re.compile(
    r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
    r"[-_. T]*(?:at\s)?[0-2]\d[-_.:h]?[0-5]\d[-_.:m]?[0-5]\d",
    re.ASCII,
)
# Words that exporters, cameras and folder layouts put where a slide could stand.
_DEFAULT_WORDS: Final = frozenset(
    {
        *("tile", "tiles", "patch", "patches", "img", "imgs", "image", "images", "crop", "crops"),
        *("roi", "rois", "region", "field", "fov", "frame", "cell", "photo", "pic", "picture"),
        *("dsc", "dscn", "dscf", "pxl", "mvimg", "screenshot", "scan", "export", "output"),
        *("untitled", "new", "copy", "level", "x", "y", "row", "col", "mask", "aug", "augmented"),
        *("original", "orig", "rotated", "flip", "blk", "block", "thumbnail", "data", "dataset"),
        *("train", "training", "test", "testing", "val", "valid", "validation", "class", "label"),
        *("idx", "index", "no", "nr", "num", "hash"),
    }
)
_X, _Y = r"(?P<x>\d{1,9})", r"(?P<y>\d{1,9})"
_BRACKETS = re.compile(r"(?:\s*\[[^\[\]]{1,120}\])+$")
_CELL = re.compile(r"([dxywh])=(\d{1,9}(?:\.\d{1,6})?)", re.ASCII)
_HISTOLAB = re.compile(rf"(?P<slide>.*?)[_-]?tile_\d+_level\d+_{_X}-{_Y}-\d+-\d+", re.ASCII)
_TAGGED = re.compile(rf"(?P<slide>.+?)[_-]\[?x[_=-]?{_X}[,_-]+y[_=-]?{_Y}(?:[\],_-].*)?", re.ASCII)
_PLAIN = re.compile(r"(?P<slide>.+?)_(?P<x>\d{1,7})_(?P<y>\d{1,7})", re.ASCII)
_COUNTED = re.compile(r"(?P<slide>.+?)_\d{1,6}", re.ASCII)


def qupath(path: str) -> Name | None:
    """QuPath's tile exporter: ``<image> [d=..,x=..,y=..,w=..,h=..]``.

    Brackets nest when an exported image is cut again: the inner position counts in pixels of the
    outer image, which is ``d`` times smaller than the slide.
    """
    text = stem(path)
    match = _BRACKETS.search(text)
    slide = _believable(SUFFIX.sub("", text[: match.start()])) if match else None
    if match is None or slide is None:
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
    return Name(patient=slide, slide=slide, x=round(x), y=round(y), downsample=scale)


def deep_zoom(path: str) -> Name | None:
    """Deep Zoom image (Microsoft): ``<slide>_files/<level>/<column>_<row>``."""
    match = DEEP_ZOOM.search(path)
    slide = _believable(stem(path[: match.start()])) if match else None
    if match is None or slide is None:
        return None
    return place(Name(patient=slide, slide=slide), path[match.start() :])


def common(path: str) -> Name | None:
    """``<slide>_<x>_<y>`` (CLAM, TRIDENT), tagged x and y, histolab's prefix, ``<patient>_<n>``."""
    text = _UUID.sub("", stem(path))
    if _TIME_STAMP.search(text):
        return None
    for pattern in (_HISTOLAB, _TAGGED, _PLAIN, _COUNTED):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        slide = _believable(match["slide"])
        # Without a tag, a mere word before numbers is a class or a default prefix, not a slide.
        untagged = pattern in (_PLAIN, _COUNTED)
        if slide is None or (untagged and not re.search(r"\d", slide)):
            return None
        if pattern is _COUNTED:
            return Name(patient=slide, slide=slide)
        return Name(patient=slide, slide=slide, x=int(match["x"]), y=int(match["y"]))
    return None


def slide_folder(path: str) -> Name | None:
    """``<slide>/<x>_<y>``: the folder is the slide and the file name is a pure position."""
    parent, _, text = path.rpartition("/")
    at = re.fullmatch(rf"(?:x[_=]?)?{_X}[_-](?:y[_=]?)?{_Y}", text, re.ASCII)
    slide = _believable(stem(parent)) if at else None
    # A short bare number is a zoom level or a magnification as often as a slide.
    if at is None or slide is None or re.fullmatch(r"(?:0|[1-9]\d?)(?:\.\d+)?x?", slide, re.I):
        return None
    return Name(patient=slide, slide=slide, x=int(at["x"]), y=int(at["y"]))


def histolab(path: str) -> Name | None:
    """The default prefix of histolab is empty: a position and no slide (grammar ``none``)."""
    match = _HISTOLAB.fullmatch(stem(path))
    return Name("none", x=int(match["x"]), y=int(match["y"])) if match else None


def without_uuid(slide: str) -> str:
    """A slide id without the UUID that a download portal appends; a bare UUID stays."""
    return _UUID.sub("", slide) or slide


def _believable(slide: str) -> str | None:
    """The slide id without UUID, or ``None`` where it is only a default word or a separator."""
    slide = without_uuid(slide).strip(" ._-")
    words = re.findall(r"[^\W\d_]+", slide.lower())
    if not re.search(r"[^\W_]", slide) or (words and _DEFAULT_WORDS.issuperset(words)):
        return None
    return slide
