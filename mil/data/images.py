"""Tiles decoded at the working size, and the threads that this is done in."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from splits.errors import InputError
from splits.images import UnreadableTileError, read_tile

__all__ = ["FORM", "ahead", "decode", "in_threads", "resize_tile"]

FORM: Final = 2
"""Part of the digest of decoded pixels: counts up when `decode` gives other ones."""

T = TypeVar("T")
R = TypeVar("R")


def decode(root: Path, tile_id: str, size_px: int) -> npt.NDArray[np.uint8]:
    """One tile as ``(size_px, size_px, 3)`` uint8 RGB, see :func:`resize_tile`.

    A JPEG is decoded at a part of its size where that is exact enough
    (:func:`splits.images.read_image`).

    Raises:
        InputError: The tile cannot be read, though it could when the folder was scanned.
    """
    try:
        return resize_tile(read_tile(root, tile_id, enough_px=size_px), size_px)
    except UnreadableTileError as error:
        message = (
            f"tile {tile_id} was read when {root} was scanned and cannot be now: {error}. Restore "
            "the file, or scan again (`slidewise run` does): the tile then goes to skipped.csv"
        )
        raise InputError(message) from error


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

    At most a few items a thread are in flight, whatever the number of items. After an error, or
    where the results are no longer wanted, what has not begun is not begun.
    """
    n_threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(n_threads) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 4 * n_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def ahead(items: Iterable[T], n: int) -> Iterator[T]:
    """The items in order, up to ``n`` of them made in advance by one other thread.

    An error comes where its item would have come. What torch keeps a thread (inference mode,
    autocast) does not hold where the items are made.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T | object]] = deque(
            pool.submit(next, source, end) for _ in range(max(n, 1))
        )
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(next, source, end))
                yield item  # type: ignore[misc]
        finally:
            for future in pending:
                future.cancel()
