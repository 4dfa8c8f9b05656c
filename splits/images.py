"""Reading a tile's pixels: a whole image file, or a window of one given as a media fragment.

A tile that was cut out of a larger image is named ``image.tif#xywh=x,y,width,height`` (W3C Media
Fragments URI 1.0, section 4.2.2), in pixels of that image.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from splits.errors import SlidewiseError

__all__ = ["SUFFIXES", "UnreadableTileError", "image_of", "read_image", "read_tile", "window_of"]

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_FRAGMENT: Final = re.compile(
    r"#xywh=(?:pixel:)?(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})$", re.ASCII
)
_REFUSED: Final = {
    "1": "a black-and-white image carries no stain colours",
    "L": "a grey image carries no stain colours",
    "LA": "a grey image carries no stain colours",
    "I": "more than 8 bits a channel: convert to 8-bit RGB",
    "F": "floating-point pixels: convert to 8-bit RGB",
    "CMYK": "CMYK colours depend on a printer profile: convert to 8-bit RGB",
}


class UnreadableTileError(SlidewiseError):
    """A tile whose pixels cannot be used; the text is the cause for ``skipped.csv``."""


def image_of(tile_id: str) -> str:
    """The image file's part of a tile id."""
    return _FRAGMENT.sub("", tile_id)


def window_of(tile_id: str) -> tuple[int, int, int, int] | None:
    """The window ``(x, y, width, height)`` in px of a cut tile; None for a whole file."""
    found = _FRAGMENT.search(tile_id)
    if found is None:
        return None
    x, y, width, height = (int(text) for text in found.groups())
    return x, y, width, height


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode an 8-bit colour image to ``(height, width, 3)`` uint8 RGB.

    Transparent pixels are laid over white, the glass of a slide.

    Raises:
        UnreadableTileError: Missing, truncated, not an image, grey, CMYK, or more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode in _REFUSED or mode.startswith(("I;", "BGR;")):
                raise UnreadableTileError(_REFUSED.get(mode, _REFUSED["I"]))
            if mode in {"RGBA", "PA", "RGBX"} or "transparency" in image.info:
                layer = image.convert("RGBA")
                glass = Image.new("RGBA", layer.size, "white")
                image_rgb = Image.alpha_composite(glass, layer).convert("RGB")
            else:
                image_rgb = image.convert("RGB")
            return np.asarray(image_rgb)
    except FileNotFoundError as error:
        message = "the file does not exist"
        raise UnreadableTileError(message) from error
    except UnidentifiedImageError as error:
        message = "not an image that Pillow can identify"
        raise UnreadableTileError(message) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        message = f"cannot be decoded: {error}".splitlines()[0]
        raise UnreadableTileError(message) from error


def read_tile(root: Path, tile_id: str) -> npt.NDArray[np.uint8]:
    """Pixels of a tile, ``(height, width, 3)`` uint8 RGB.

    Raises:
        UnreadableTileError: See :func:`read_image`.
    """
    window = window_of(tile_id)
    path = root / PurePosixPath(image_of(tile_id))
    if window is None:
        return read_image(path)
    x, y, width, height = window
    image = _recent_image(path)
    if y + height > image.shape[0] or x + width > image.shape[1]:
        message = f"the window {window} leaves the image of {image.shape[1]}x{image.shape[0]} px"
        raise UnreadableTileError(message)
    return image[y : y + height, x : x + width]


# Tiles of one large image are read one after another: a few decoded images spare most decoding.
_recent_image = lru_cache(maxsize=8)(read_image)
