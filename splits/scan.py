"""From a folder of images to the tile table and the list of what was left out."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.artifacts import digest
from splits.errors import InputError
from splits.images import SUFFIXES, UnreadableTileError, read_image
from splits.tiles import check

__all__ = ["Listing", "label_of", "list_folder", "scan"]

Skipped = list[tuple[str, str, str]]
_SAME_PX = 2
"""Difference in size of tiles that are one size: at the border of a Deep Zoom grid the overlap of
one or two pixels is missing."""
_PARTS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Listing:
    """What lies in a data root: image paths (relative, POSIX, sorted), other files, a digest."""

    root: Path
    images: tuple[str, ...]
    others: tuple[str, ...]
    digest: str


def list_folder(root: Path) -> Listing:
    """List a data root without opening any file.

    The digest covers names, sizes and modification times, so a later run can tell an unchanged
    folder in milliseconds. Hidden files and folders are not part of the data.

    Raises:
        InputError: The folder is missing, is a file, or holds no image.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        message = f"data root {str(root)!r} {state}: a folder of images is needed (data.root)"
        raise InputError(message)
    images: list[str] = []
    others: list[str] = []
    stamps: list[tuple[str, int, int]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            (images if path.suffix.lower() in SUFFIXES else others).append(relative)
            state_of = path.stat()
            stamps.append((relative, state_of.st_size, state_of.st_mtime_ns))
    if not images:
        message = f"no image under {str(root)!r} (allowed: {', '.join(SUFFIXES)})"
        raise InputError(message)
    return Listing(root, tuple(sorted(images)), tuple(sorted(others)), digest(sorted(stamps)))


def label_of(rule: str) -> Callable[[str], str | None]:
    """The function from a tile id to its label.

    Args:
        rule: ``folder`` (the first folder, ``train``, ``val`` and ``test`` passed over), ``none``
            (a manifest brings the labels), or a regular expression with a group ``label`` that is
            searched in the tile id.

    Raises:
        InputError: The regular expression is broken or has no group ``label``.
    """
    if rule == "none":
        return lambda _: None
    if rule == "folder":
        return _first_folder
    try:
        pattern = re.compile(rule)
    except re.error as error:
        message = f"data.label {rule!r} is not a regular expression: {error}"
        raise InputError(message) from error
    if "label" not in pattern.groupindex:
        message = f"data.label {rule!r}: allowed are folder, none, or a regex with (?P<label>...)"
        raise InputError(message)

    def search(tile_id: str) -> str | None:
        found = pattern.search(tile_id)
        return found.group("label") if found else None

    return search


def scan(
    listing: Listing,
    *,
    label: str = "folder",
    tile_px: int | None = None,
    mixed_sizes: Literal["skip", "resize"] = "skip",
    progress: Callable[[int], object] | None = None,
) -> tuple[pd.DataFrame, Skipped]:
    """Decode every image once and build the tile table.

    Args:
        listing: The data root's files.
        label: Where the slide label comes from, see :func:`label_of`.
        tile_px: Cut every image into squares of this size, row by row from its top left corner;
            None takes every file as one tile.
        mixed_sizes: ``skip`` leaves out tiles that differ from the most frequent size by more than
            2 px (the overlap that Deep Zoom tiles lack at the border of the slide); ``resize``
            keeps them (the encoder sees all at its working size, so their scale differs).
        progress: Called with 1 after each image.

    Returns:
        The tile table (identity still null) and rows ``(level, id, cause)`` for ``skipped.csv``.

    Raises:
        InputError: No tile is left, or no size is frequent enough to be the cohort's.
    """
    find_label = label_of(label)
    skipped: Skipped = [
        ("file", name, f"not an image (suffix {PurePosixPath(name).suffix or 'none'})")
        for name in listing.others
    ]
    rows: list[dict[str, object]] = []

    def look(name: str) -> tuple[list[dict[str, object]], Skipped]:
        result = _look(listing.root, name, tile_px)
        if progress is not None:
            progress(1)
        return result

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for found, left_out in pool.map(look, listing.images):
            rows += found
            skipped += left_out
    for row in rows:
        row["slide_label"] = find_label(str(row["tile_id"]))
    if tile_px is None and mixed_sizes == "skip":
        rows, odd = _one_size(rows)
        skipped += odd
    if not rows:
        causes = Counter(cause for _, _, cause in skipped).most_common(1)
        message = f"no usable tile under {str(listing.root)!r}; most frequent cause: {causes[0][0]}"
        raise InputError(message)
    return check(pd.DataFrame(rows)), skipped


def _look(root: Path, name: str, tile_px: int | None) -> tuple[list[dict[str, object]], Skipped]:
    try:
        image = read_image(root / name)
    except UnreadableTileError as error:
        return [], [("tile" if tile_px is None else "file", name, str(error))]
    if tile_px is None:
        return [_row(name, image)], []
    height, width = image.shape[:2]
    rows = [
        _row(f"{name}#xywh={x},{y},{tile_px},{tile_px}", window, x, y)
        for x, y, window in _windows(image, tile_px)
    ]
    left_out: Skipped = []
    if not rows:
        left_out = [("file", name, f"{width}x{height} px is smaller than data.tile_px={tile_px}")]
    elif width % tile_px or height % tile_px:
        cause = (
            f"strip of {width % tile_px} px at the right and {height % tile_px} px at the bottom"
        )
        left_out = [("file", f"{name} (rest)", f"{cause}: smaller than data.tile_px={tile_px}")]
    return rows, left_out


def _windows(
    image: npt.NDArray[np.uint8], size: int
) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    for y in range(0, image.shape[0] - size + 1, size):
        for x in range(0, image.shape[1] - size + 1, size):
            yield x, y, image[y : y + size, x : x + size]


def _row(
    tile_id: str, pixels: npt.NDArray[np.uint8], x: int | None = None, y: int | None = None
) -> dict[str, object]:
    state = hashlib.sha256(repr(pixels.shape).encode())
    state.update(np.ascontiguousarray(pixels).data)
    return {
        "tile_id": tile_id,
        "width_px": pixels.shape[1],
        "height_px": pixels.shape[0],
        "sha256": state.hexdigest(),
        "x_px": x,
        "y_px": y,
    }


def _one_size(rows: list[dict[str, object]]) -> tuple[list[dict[str, object]], Skipped]:
    sizes = Counter((row["width_px"], row["height_px"]) for row in rows)
    if len(sizes) <= 1:
        return rows, []
    (width, height), count = sizes.most_common(1)[0]
    if count < 0.5 * len(rows):
        message = (
            f"tiles come in {len(sizes)} sizes, the most frequent {width}x{height} px for "
            f"{count} of {len(rows)}: set data.mixed_sizes=resize, or data.tile_px to cut images"
        )
        raise InputError(message)
    near = [
        all(
            abs(int(str(row[side])) - int(str(px))) <= _SAME_PX
            for side, px in (("width_px", width), ("height_px", height))
        )
        for row in rows
    ]
    kept = list(itertools.compress(rows, near))
    odd = [
        (
            "tile",
            str(row["tile_id"]),
            f"{row['width_px']}x{row['height_px']} px differs from the "
            f"cohort's {width}x{height} px (data.mixed_sizes=resize keeps it)",
        )
        for row, alike in zip(rows, near, strict=True)
        if not alike
    ]
    return kept, odd


def _first_folder(tile_id: str) -> str | None:
    folders = [part for part in PurePosixPath(tile_id).parts[:-1] if part.lower() not in _PARTS]
    return folders[0] if folders else None
