"""`Name`, what a file name says, and the text handling that all grammars share."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from splits.identity.position import locate_after
from splits.images import image_of, window_of

__all__ = ["Name", "barcode", "clean", "place", "posix", "split_fragment", "stem", "whole"]

SUFFIX = re.compile(
    r"(?:\.ome)?\.(?:svs|tiff?|jpe?g|png|bmp|webp|gif|jp2|ndpi|mrxs|scn|vms|bif|czi|dcm|svslide|dzi"
    r"|isyntax|zarr|h5|pt|npy|npz)$",
    re.I,
)
_COPY_WORD = r"(?:copy|kopie|copie|copia|kopia|c[oó]pia|копия|副本|コピー)"
_COPY = re.compile(
    rf"(?:\s*\((?:{_COPY_WORD}|\d{{1,3}})\)|\s?[\s_-]\s?{_COPY_WORD}(?:\s?\d{{1,3}})?)$", re.I
)
_COPY_OF = re.compile(rf"(?:^|(?<=/)){_COPY_WORD}\s(?:of|von|de|di|van)\s(?=[^/]*$)", re.I)
_TAIL = 24
_REGION = re.compile(r"_r(?:eg(?:ion)?_?|oi_?)?(\d{1,6})(?=_|$)", re.I | re.ASCII)
_APPENDED = re.compile(r"(?:[_ -][A-Za-z][\w-]*)?", re.ASCII)
_MPP = re.compile(r"(?<![A-Za-z])mpp[-_=]?(\d{1,3}\.\d{1,8})", re.I | re.ASCII)


@dataclass(frozen=True, slots=True)
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


def posix(path: str) -> str:
    """POSIX separators, and composed characters: a Mac writes ``ä`` as two, others as one."""
    text = path.replace("\\", "/")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean(path: str) -> str:
    """POSIX separators, no image suffix, no mark of a file manager's copy."""
    text = posix(path)
    # Both stand at the end: a search from there spares most of the time for a million names.
    while (
        match := SUFFIX.search(text, len(text) - _TAIL) or _COPY.search(text, len(text) - _TAIL)
    ) is not None:
        text = text[: match.start()]
    return _COPY_OF.sub("", text) if " " in text else text


def stem(path: str) -> str:
    """The last component of a cleaned path."""
    return path.rsplit("/", 1)[-1]


def place(name: Name, tail: str, *, dashes: bool = False) -> Name:
    """Add position, region and resolution from the text that follows an id."""
    at = locate_after(tail, dashes=dashes)
    mpp = _MPP.search(tail)
    if mpp is not None and float(mpp[1]) > 0:
        name = replace(name, mpp=float(mpp[1]))
    region = name.region
    if at is not None and at.level is not None:
        region = at.level
    elif region is None and (part := _REGION.search(tail)) is not None:
        region = part[1]
    if at is None:
        return replace(name, region=region) if region is not None else name
    return replace(
        name, region=region, x=at.x, y=at.y, col=at.col, row=at.row, downsample=at.downsample
    )


def barcode(pattern: re.Pattern[str], path: str) -> Name | None:
    """Read an id that may stand in a folder or in the file name, in any case.

    ``pattern`` has the groups ``patient`` and ``section`` (what makes a slide of the patient), and
    may have ``site``, ``region`` and ``dash``, the separator that stands for an archive's hyphens.
    Two patients in one path contradict each other: no identity. Of several ids of one patient the
    most specific counts.
    """
    matches = [
        match
        for match in pattern.finditer(path)
        # `TCGA_05_1024_2048` may be a counter and a position; with a section it is a barcode.
        if match["section"] or "dash" not in pattern.groupindex or match["dash"] == "-"
    ]
    if not matches or len({_written(match, "patient").lower() for match in matches}) > 1:
        return None
    best = max(matches, key=lambda match: (len(match["section"] or ""), match.start()))
    found = best.groupdict()
    patient, section = _written(best, "patient"), _written(best, "section")
    name = Name(
        site=_written(best, "site") if "site" in found else None,
        patient=patient,
        slide=patient + section,
        region=found.get("region"),
    )
    return place(name, path[matches[-1].end() :], dashes=bool(section))


def _written(match: re.Match[str], group: str) -> str:
    """A part of an id as its archive writes it."""
    text = match[group] or ""
    return text.replace(match["dash"], "-").upper() if "dash" in match.re.groupindex else text


def whole(pattern: re.Pattern[str], path: str) -> Name | None:
    """Match a pattern over the stem; its named groups are the fields of `Name`.

    Only a word may follow, as augmentation scripts append it: ``_flip``, ``_aug_3``.
    """
    text = stem(path)
    match = pattern.match(text)
    if match is None or not _APPENDED.fullmatch(text, match.end()):
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
