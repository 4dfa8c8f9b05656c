"""One pass over the pixels of all tiles: what every search needs, in less than 2 kB a tile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from splits.content.colour import vector
from splits.content.copies import coefficients
from splits.content.landmarks import landmarks
from splits.content.seams import edge_lines

__all__ = ["BLANK_STD", "FORM", "Signatures", "is_blank", "is_faint", "n_workers", "sign"]

FORM: Final = 2
"""Version of what is kept: raised whenever a signature changes, so that none is read again."""

BLANK_STD: Final = 2.0
"""Standard deviation of the grey levels (0 to 255) below which a tile shows no tissue."""
_SPECK: Final = 0.02
"""Share of the pixels, the darkest, that may be dust on glass."""
_CHUNK: Final = 64
_FEW: Final = 2000
"""Tiles that are looked at sooner than other processes have started."""
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Signatures:
    """What is kept of each tile; every array has one row a tile.

    Attributes:
        blank: ``(n,)`` bool: shows no tissue.
        faint: ``(n,)`` bool: shows at most a speck, of dust or of tissue, beside glass.
        lines: `splits.content.seams.edge_lines`.
        coefficients: `splits.content.copies.coefficients`.
        landmarks: `splits.content.landmarks.landmarks`.
        vectors: `splits.content.colour.vector`, as float16.
    """

    blank: npt.NDArray[np.bool_]
    faint: npt.NDArray[np.bool_]
    lines: npt.NDArray[np.uint8]
    coefficients: npt.NDArray[np.float16]
    landmarks: npt.NDArray[np.uint8]
    vectors: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.blank)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return sum(getattr(self, column.name).nbytes for column in fields(self))

    def joined(self, other: Signatures) -> Signatures:
        """The tiles of both, one after the other."""
        names = [column.name for column in fields(self)]
        return Signatures(
            **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        )

    def save(self, path: Path) -> None:
        """Write all arrays into one ``.npz`` file."""
        with path.open("wb") as file:
            np.savez(file, **{column.name: getattr(self, column.name) for column in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Signatures:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{column.name: stored[column.name] for column in fields(cls)})


def is_blank(pixels: Image) -> bool:
    """Whether an image ``(height, width, 3)`` shows no tissue."""
    _, deviation = cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    return bool(deviation[0, 0] < BLANK_STD)


def is_faint(pixels: Image) -> bool:
    """Whether an image ``(height, width, 3)`` without its darkest pixels shows no tissue."""
    counts = cv2.calcHist([cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)], [0], None, [256], [0, 256])
    above = np.clip(np.cumsum(counts) - _SPECK * counts.sum(), 0, counts.ravel())
    levels = np.arange(256)
    mean = np.average(levels, weights=above)
    return bool(np.average((levels - mean) ** 2, weights=above) < BLANK_STD**2)


def sign(
    read: Callable[[int], Image],
    n_tiles: int,
    progress: Callable[[int], object] | None = None,
    *,
    workers: int = 1,
) -> Signatures:
    """Look once at the pixels of every tile.

    Args:
        read: Gives the pixels of a tile, ``(height, width, 3)`` uint8 RGB, by its row number.
        n_tiles: Number of tiles.
        progress: Called with the number of tiles just done.
        workers: Number of processes. To more than one, ``read`` is sent with each part of the work:
            it has to be small, as one that opens files is.
    """
    chunks = [range(at, min(at + _CHUNK, n_tiles)) for at in range(0, n_tiles, _CHUNK)]
    found: Iterable[Signatures] = (_part(read, rows) for rows in chunks)
    if workers > 1:
        # Threads gain nothing: most of the work is small calls, which hold the interpreter's lock.
        # joblib's processes need no guard in the user's script and are safe beside other threads.
        work = (delayed(_part_alone)(read, rows) for rows in chunks)
        found = Parallel(workers, return_as="generator")(work)
    parts = []
    for part in found:
        parts.append(part)
        if progress is not None:
            progress(len(part))
    names = [column.name for column in fields(Signatures)]
    return Signatures(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


def n_workers(n_tiles: int) -> int:
    """Processes worth their start for so many tiles: one for each core that may be used, or one."""
    if n_tiles < _FEW:
        return 1
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _part_alone(read: Callable[[int], Image], rows: range) -> Signatures:
    cv2.setNumThreads(1)
    return _part(read, rows)


def _part(read: Callable[[int], Image], rows: range) -> Signatures:
    images = (np.ascontiguousarray(read(row)) for row in rows)
    found = [
        (
            is_blank(image),
            is_faint(image),
            edge_lines(image),
            coefficients(image),
            landmarks(image),
            vector(image).astype(np.float16),
        )
        for image in images
    ]
    columns = zip(*found, strict=True)
    return Signatures(*(np.stack(column) for column in columns))
