"""Grammars of tile exporters: the slide is whatever the user called the image.

Nothing in such a name proves that it is a slide, so default words, counters, camera time stamps and
zoom levels are refused here and the rest is put to a folder-wide test.
"""

from __future__ import annotations

import re
from typing import Final

from splits.identity.name import SUFFIX, Name, place, stem
from splits.identity.position import locate

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
        *(
            "idx",
            "index",
            "no",
            "nr",
            "num",
            "hash",
            "tilegroup",
            "temp",
            "tmp",
            "result",
            "results",
        ),
    }
)
_DATE = re.compile(r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])", re.ASCII)
_POSITION = re.compile(
    r"(?:x[_=]?)?(0|[1-9]\d{0,8})[_-](?:y[_=]?)?(0|[1-9]\d{0,8})", re.I | re.ASCII
)
_ZOOM = re.compile(r"(?:0|[1-9]\d?)(?:\.\d+)?x?", re.I | re.ASCII)
_WRAPPED = re.compile(
    r"(?:[_ .-]+(?:tile|patch|crop|img|image|level|lvl)s?[_ -]?\d*|-r\d+-c\d+)+$", re.I
)
_REGION = re.compile(r"[_-](?:r|reg|region_?|roi_?)(\d{1,6})$", re.I | re.ASCII)
_COUNTED = re.compile(
    r"(?P<slide>.+?)(?:_|[_ -](?:tile|patch|crop|img|image)[_ -]?)\d{1,6}", re.I | re.ASCII
)


def qupath(path: str) -> Name | None:
    """QuPath's tile exporter: ``<image> [d=..,x=..,y=..,w=..,h=..]``; brackets may nest."""
    text = stem(path)
    at = locate(text) if text.endswith("]") else None
    slide = _believable(text[: at.start]) if at is not None and "w=" in text[at.start :] else None
    return place(Name(patient=slide, slide=slide), text) if slide is not None else None


def deep_zoom(path: str) -> Name | None:
    """Deep Zoom image (Microsoft): ``<slide>_files/<level>/<column>_<row>``."""
    at = locate(path) if "_files/" in path else None
    slide = _believable(stem(path[: at.start])) if at is not None and at.level else None
    return place(Name(patient=slide, slide=slide), path) if slide is not None else None


def common(path: str) -> Name | None:
    """``<slide>_<x>_<y>`` (CLAM, TRIDENT), a slide and any form of `locate`, ``<patient>_<n>``."""
    text = _UUID.sub("", stem(path))
    if _TIME_STAMP.search(text) or "_files/" in path:
        return None
    at = locate(text)
    if at is None or (at.is_bare and at.start == 0):
        match = _COUNTED.fullmatch(text)
        slide = _believable(match["slide"]) if match else None
        return Name(patient=slide, slide=slide) if slide and re.search(r"\d", slide) else None
    before = _WRAPPED.sub("", text[: at.start].rstrip(" _-[(,."))
    part = None if at.is_bare else _REGION.search(before)
    slide = _believable(before[: part.start()] if part is not None else before)
    # Without a tag, a mere word before numbers is a class or a default prefix, not a slide.
    if slide is None or (at.is_bare and not re.search(r"\d", slide)):
        return None
    region = part[1] if part is not None else None
    return Name(
        patient=slide, slide=slide, region=region, x=at.x, y=at.y, col=at.col, row=at.row,
        downsample=at.downsample,
    )  # fmt: skip


def slide_folder(path: str) -> Name | None:
    """``<slide>/<x>_<y>``: the folder is the slide and the file name is a pure position."""
    parent, _, text = path.rpartition("/")
    at = _POSITION.fullmatch(text)
    slide = _believable(stem(parent)) if at else None
    # A word is a class and a short bare number a zoom level as often as a slide.
    if at is None or slide is None or not re.search(r"\d", slide) or _ZOOM.fullmatch(slide):
        return None
    return Name(patient=slide, slide=slide, x=int(at[1]), y=int(at[2]))


def histolab(path: str) -> Name | None:
    """The default prefix of histolab is empty: a position and no slide (grammar ``none``)."""
    text = stem(path)
    at = locate(text) if text.startswith("tile_") else None
    if at is None or at.start or at.is_bare:
        return None
    return Name("none", x=at.x, y=at.y)


def without_uuid(slide: str) -> str:
    """A slide id without the UUID that a download portal appends; a bare UUID stays."""
    return _UUID.sub("", slide) or slide


def _believable(slide: str) -> str | None:
    """The slide id without suffix and UUID, or ``None`` where it could be anything.

    Default words, separators, the word slide itself and a bare date are no identity.
    """
    slide = without_uuid(SUFFIX.sub("", slide.strip(" ._-"))).strip(" ._-")
    words = re.findall(r"[^\W\d_]+", slide.lower())
    if not re.search(r"[^\W_]", slide) or (words and _DEFAULT_WORDS.issuperset(words)):
        return None
    if slide.lower() in {"slide", "slides", "wsi"} or _DATE.fullmatch(slide):
        return None
    return slide
