"""`Name`, what a file name says, and the text handling that all grammars share."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from splits.images import image_of, window_of

__all__ = ["Name", "barcode", "clean", "place", "split_fragment", "stem", "whole"]

SUFFIX = re.compile(
    r"\.(?:svs|tiff?|jpe?g|png|bmp|webp|gif|jp2|ndpi|mrxs|scn|vms|bif|czi|dcm|svslide|dzi)$", re.I
)
DEEP_ZOOM = re.compile(r"_files/(\d{1,2}(?:\.\d+)?)/(\d{1,7})_(\d{1,7})$", re.ASCII)
_COPY = re.compile(r"(?:\s*\((?:copy|\d{1,3})\)|(?:\s-)?\scopy(?:\s\d{1,3})?)$", re.I)
_TAGGED = re.compile(
    r"(?<![A-Za-z])x(?:min|ini)?[_=-]?(\d{1,9})[,_-]+y(?:min|ini)?[_=-]?(\d{1,9})", re.I | re.ASCII
)
_PLAIN = re.compile(r"(?:^|[/_.-])(\d{1,7})_(\d{1,7})$", re.ASCII)
_REGION = re.compile(r"_r(?:eg(?:ion)?_?)?(\d{1,6})(?=_|$)", re.I | re.ASCII)
_MPP = re.compile(r"(?<![A-Za-z])mpp[-_=]?(\d{1,3}\.\d{1,8})", re.I | re.ASCII)


@dataclass(frozen=True)
class Name:
    """What a name says; ``None`` where it says nothing.

    Attributes:
        x: Position in pixels as the name gives it (level-0 where the exporter says so); ``y`` too.
        col: Deep Zoom grid index, which is no pixel position; ``row`` too.
        mpp: Micrometres a pixel.
        batch: Scan batch or array, where the name gives one and no site.
        confidence: How far the identity is believed, 0 to 1.
        downsample: Level-0 pixels a pixel of the file, where the name says so.
    """

    grammar: str = ""
    site: str | None = None
    patient: str | None = None
    slide: str | None = None
    region: str | None = None
    x: int | None = None
    y: int | None = None
    col: int | None = None
    row: int | None = None
    mpp: float | None = None
    batch: str | None = None
    confidence: float = 0.0
    downsample: float = 1.0

    def printed(self) -> dict[str, str]:
        """The columns of ``slidewise names`` as text, empty where nothing is known."""
        cells = {
            "grammar": self.grammar,
            "site": self.site,
            "patient": self.patient,
            "slide": self.slide,
            "region": self.region,
            "x": self.x if self.col is None else f"col {self.col}",
            "y": self.y if self.row is None else f"row {self.row}",
            "mpp": self.mpp,
            "batch": self.batch,
            "confidence": self.confidence or None,
        }
        return {key: "" if value is None else str(value) for key, value in cells.items()}


def split_fragment(tile_id: str) -> tuple[str, tuple[int, int] | None]:
    """Split a W3C media fragment (``#xywh=x,y,w,h``) off a tile id: (file, (x, y) or None)."""
    window = window_of(tile_id)
    return image_of(tile_id), None if window is None else window[:2]


def clean(path: str) -> str:
    """POSIX separators, no image suffix, no mark of a file manager's copy."""
    text = SUFFIX.sub("", path.replace("\\", "/"))
    while (match := _COPY.search(text)) is not None:
        text = text[: match.start()]
    return text


def stem(path: str) -> str:
    """The last component of a cleaned path."""
    return path.rsplit("/", 1)[-1]


def place(name: Name, tail: str) -> Name:
    """Add position, region and resolution from the text that follows an id."""
    if (zoom := DEEP_ZOOM.search(tail)) is not None:
        name = replace(name, region=zoom[1], col=int(zoom[2]), row=int(zoom[3]))
    elif (at := _TAGGED.search(tail) or _PLAIN.search(tail)) is not None:
        name = replace(name, x=int(at[1]), y=int(at[2]))
    if name.region is None and (part := _REGION.search(tail)) is not None:
        name = replace(name, region=part[1])
    if (mpp := _MPP.search(tail)) is not None and float(mpp[1]) > 0:
        name = replace(name, mpp=float(mpp[1]))
    return name


def barcode(pattern: re.Pattern[str], path: str) -> Name | None:
    """Read an id that may stand in a folder or in the file name.

    ``pattern`` has the groups ``patient`` and ``section`` (what makes a slide of the patient), and
    may have ``site`` and ``region``. Two patients in one path contradict each other: no identity.
    Of several ids of one patient the most specific counts.
    """
    matches = list(pattern.finditer(path))
    if not matches or len({match["patient"].upper() for match in matches}) > 1:
        return None
    best = max(matches, key=lambda match: (len(match["section"] or ""), match.start()))
    found = best.groupdict()
    name = Name(
        site=found.get("site"),
        patient=found["patient"],
        slide=found["patient"] + (found["section"] or ""),
        region=found.get("region"),
    )
    return place(name, path[matches[-1].end() :])


def whole(pattern: re.Pattern[str], path: str) -> Name | None:
    """Match a pattern over the whole stem; its named groups are the fields of `Name`."""
    match = pattern.fullmatch(stem(path))
    if match is None:
        return None
    found = match.groupdict()
    return Name(
        patient=found.get("patient") or found["slide"],
        slide=found["slide"],
        region=found.get("region"),
        x=int(found["x"]) if found.get("x") else None,
        y=int(found["y"]) if found.get("y") else None,
        mpp=float(found["mpp"]) if found.get("mpp") else None,
        batch=found.get("batch"),
    )
