"""How an image file was written: one line a tile, for what pixels do not show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image

from splits.images import image_of

__all__ = ["read_headers"]

_TAGS: Final = {271: "make", 272: "model", 305: "software"}


def read_headers(root: Path, tile_ids: Sequence[str]) -> dict[str, str]:
    """By tile id: format, size, mode, JPEG tables, resolution and software of its image file.

    No pixel is decoded. A file that cannot be opened has the header ``unreadable``.

    Args:
        root: Folder that tile ids are relative to.
        tile_ids: Ids; tiles that were cut out of one image share its header.
    """
    read = lru_cache(maxsize=None)(_header)
    return {name: read(root / PurePosixPath(image_of(name))) for name in tile_ids}


def _header(path: Path) -> str:
    try:
        with Image.open(path) as image:
            said = [image.format or "", f"{image.width}x{image.height}", image.mode]
            tables = getattr(image, "quantization", None)
            if tables:
                values = repr(sorted((key, list(rows)) for key, rows in tables.items()))
                said.append("tables " + hashlib.sha256(values.encode()).hexdigest()[:8])
            if "progressive" in image.info:
                said.append("progressive")
            if "dpi" in image.info:
                said.append("dpi " + "x".join(f"{float(value):.0f}" for value in image.info["dpi"]))
            exif = image.getexif()
            said += [f"{name} {exif[tag]}" for tag, name in _TAGS.items() if exif.get(tag)]
            return ", ".join(said)
    except (OSError, ValueError, SyntaxError):
        return "unreadable"
