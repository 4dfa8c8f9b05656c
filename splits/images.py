"""Reading a tile's pixels: a whole image file, or a window of one given as a media fragment.

A tile that was cut out of a larger image is named ``image.tif#xywh=x,y,width,height`` (W3C Media
Fragments URI 1.0, section 4.2.2), in pixels of that image.

A JPEG file can be decoded at 1/2, 1/4 or 1/8 of its size by leaving out cosine terms (libjpeg's
scaled decoding): see `read_image` for when that is done and what it costs in grey levels.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from threading import Lock
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


def read_image(path: Path, *, enough_px: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode an 8-bit colour image to ``(height, width, 3)`` uint8 RGB.

    Transparent pixels are laid over white, the glass of a slide.

    Args:
        path: The image file.
        enough_px: The image is to be scaled down so that its shorter side has this many pixels. A
            JPEG is then decoded at 1/2, 1/4 or 1/8 where that gives exactly this size, or leaves at
            least twice of it. On 512 px tiles at 40x, quality 90, the first is 0.5 to 0.9 grey
            levels (mean) from the area average of the full image (antialiased bilinear: 2.1 to
            4.0), the second, resized by antialiased bilinear, 0.5 to 0.8 from the full image so
            resized; sizes in between would be 1 to 3 away (``benchmarks/decode.py``). None, or any
            other file: full size.

    Raises:
        UnreadableTileError: Missing, truncated, not an image, grey, CMYK, or more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode in _REFUSED or mode.startswith(("I;", "BGR;")):
                raise UnreadableTileError(_REFUSED.get(mode, _REFUSED["I"]))
            if enough_px is not None:
                part = _scale(min(image.size), enough_px)
                image.draft(None, (image.width // part, image.height // part))
            if mode in {"RGBA", "PA", "RGBX"} or "transparency" in image.info:
                layer = image.convert("RGBA")
                glass = Image.new("RGBA", layer.size, "white")
                return np.asarray(Image.alpha_composite(glass, layer).convert("RGB"))
            return np.asarray(image if mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError as error:
        message = "the file does not exist"
        raise UnreadableTileError(message) from error
    except UnidentifiedImageError as error:
        message = "not an image that Pillow can identify"
        raise UnreadableTileError(message) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        message = f"cannot be decoded: {error}".splitlines()[0]
        raise UnreadableTileError(message) from error


def read_tile(root: Path, tile_id: str, *, enough_px: int | None = None) -> npt.NDArray[np.uint8]:
    """Pixels of a tile, ``(height, width, 3)`` uint8 RGB.

    Args:
        root: Folder that tile ids are relative to.
        tile_id: A file, or a window of one.
        enough_px: See :func:`read_image`; a window is cut from the full image.

    Raises:
        UnreadableTileError: See :func:`read_image`.
    """
    window = window_of(tile_id)
    path = root / PurePosixPath(image_of(tile_id))
    if window is None:
        return read_image(path, enough_px=enough_px)
    x, y, width, height = window
    image = _recent(path)
    if y + height > image.shape[0] or x + width > image.shape[1]:
        message = f"the window {window} leaves the image of {image.shape[1]}x{image.shape[0]} px"
        raise UnreadableTileError(message)
    return image[y : y + height, x : x + width]


def _scale(side_px: int, enough_px: int) -> int:
    """The largest part of a side, 8, 4 or 2 (or all of it, 1), that decoding may be asked for."""
    return next(
        (
            part
            for part in (8, 4, 2)
            if side_px == part * enough_px or side_px >= 2 * part * enough_px
        ),
        1,
    )


class _Recent:
    """The images that were read last: tiles of one large image are read one after another.

    An image that two threads ask for is decoded once; one that changed on disk is read again.
    """

    def __init__(self, n_images: int, n_bytes: int) -> None:
        self._n_images, self._n_bytes = n_images, n_bytes
        self._images: OrderedDict[tuple[Path, int, int], Future[npt.NDArray[np.uint8]]]
        self._images = OrderedDict()
        self._lock = Lock()

    def __call__(self, path: Path) -> npt.NDArray[np.uint8]:
        try:
            state = path.stat()
        except OSError:
            return read_image(path)  # which says why it cannot be read
        key = (path, state.st_size, state.st_mtime_ns)
        with self._lock:
            found = self._images.get(key)
            mine = found is None
            image = self._images[key] = Future() if found is None else found
            self._images.move_to_end(key)
        if mine:
            try:
                image.set_result(read_image(path))
            except BaseException as error:
                image.set_exception(error)
                raise
            finally:
                self._forget()
        return image.result()

    def _forget(self) -> None:
        """Let go of failed images, and of the oldest ones above the limits but for the last."""
        with self._lock:
            n_images = n_bytes = 0
            for key, image in reversed(list(self._images.items())):
                if not image.done():
                    continue
                if image.exception() is None:
                    n_images, n_bytes = n_images + 1, n_bytes + image.result().nbytes
                    if n_images == 1 or (n_images <= self._n_images and n_bytes <= self._n_bytes):
                        continue
                del self._images[key]


_recent = _Recent(n_images=8, n_bytes=1 << 29)
