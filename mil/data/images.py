"""Tiles decoded at the working size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from splits.images import read_tile

__all__ = ["decode", "in_threads", "resize_tile"]

T = TypeVar("T")
R = TypeVar("R")


def decode(root: Path, tile_id: str, size_px: int) -> npt.NDArray[np.uint8]:
    """One tile as ``(size_px, size_px, 3)`` uint8 RGB, see :func:`resize_tile`."""
    return resize_tile(read_tile(root, tile_id), size_px)


def resize_tile(pixels: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    """Scale the shorter side to ``size_px`` (antialiased bilinear) and cut the centre square.

    Tissue is never stretched: an oblong tile loses its ends, as with torchvision's
    ``Resize`` + ``CenterCrop``.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size_px, size_px):
        return pixels
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(pixels).resize(
        (size_px, size_px),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(image)


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int | None) -> Iterator[R]:
    """Results of ``work`` in order; decoding releases the GIL, so threads are enough.

    At most a few items a thread are in flight, whatever the number of items.
    """
    n_threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(n_threads) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 4 * n_threads:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()
