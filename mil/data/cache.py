"""A map of tiles on disk, so that pixels are paid for once.

A map is a folder of two files: ``tiles.npy``, uint8 ``(n_tiles, n_channels, size, size)``,
row-aligned to the tile table, and ``meta.json`` with its shape and the digests of what it is made
from. ``meta.json`` is written first and says what is being made; the pixels are appended to
``tiles.npy.part``, which gets its final name when it is whole. A build that was killed at any
moment therefore goes on after the last whole tile, and gives the same bytes as one that was not.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock

from mil.data.images import in_threads
from mil.data.sources import Pixels, Tiles
from splits.artifacts import is_current, write_json
from splits.errors import InputError

__all__ = ["FORM", "build", "is_whole", "open_map"]

FORM: Final = 2
"""Version of these two files, part of the digests of a map."""
_BLOCK = 64

Advance = Callable[[int], object]


def build(
    folder: Path,
    source: Tiles,
    digests: Mapping[str, str],
    *,
    notes: Mapping[str, Any] | None = None,
    threads: int | None = None,
    advance: Advance | None = None,
) -> None:
    """Write the map unless it is there, whole and of these digests.

    Two processes may ask for the same map at once: one builds it, the other waits and finds it.

    Args:
        folder: Of the map.
        source: What to write; read in blocks of 64 tiles, each by one thread.
        digests: Of all that the pixels are made from.
        notes: What else ``meta.json`` is to say.
        threads: Blocks that are read at the same time; None takes all cores.
        advance: Called with the number of tiles that were written since.

    Raises:
        InputError: The disk is full, or a tile cannot be read. What is written so far stays for the
            next attempt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made, part = folder / "tiles.npy", folder / "tiles.npy.part"
    with FileLock(folder / ".lock"):
        if is_whole(folder, source.shape, digests):
            return
        made.unlink(missing_ok=True)
        if not _is_of(folder, digests):
            part.unlink(missing_ok=True)
            write_json(folder / "meta.json", {"shape": source.shape, **(notes or {})}, digests)
        try:
            _append(part, source, threads, advance)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            message = (
                f"{folder}: {error.strerror}; the tile cache takes {_n_bytes(source.shape)} bytes: "
                "make room and run again (it goes on where it stopped), put it on another disk "
                "(compute.cache_dir), or do without (compute.cache=off)"
            )
            raise InputError(message) from error
        part.replace(made)


def is_whole(folder: Path, shape: tuple[int, ...], digests: Mapping[str, str]) -> bool:
    """Whether a map of these digests and this shape is there, header and length as they must be."""
    made, header = folder / "tiles.npy", _header(shape)
    if not _is_of(folder, digests) or not made.is_file():
        return False
    with made.open("rb") as file:
        begins = file.read(len(header))
    return begins == header and made.stat().st_size == _n_bytes(shape)


def open_map(folder: Path, *, in_memory: bool) -> Pixels:
    """The tiles of a whole map, read-only.

    Args:
        folder: Of the map, see :func:`is_whole`.
        in_memory: Read all of it now; else pages are read as they are asked for.
    """
    made = folder / "tiles.npy"
    if not in_memory:
        # A plain array over the map: indexing the subclass costs more than copying a small tile.
        return np.asarray(np.load(made, mmap_mode="r"))
    tiles: Pixels = np.load(made)
    tiles.flags.writeable = False
    return tiles


def _append(part: Path, source: Tiles, threads: int | None, advance: Advance | None) -> None:
    n_tiles, *rest = source.shape
    header, n_bytes = _header(source.shape), int(np.prod(rest))
    # Written through a file: on a full disk that is an error, a sparse map would crash.
    with part.open("ab") as file:
        done = max(0, (file.tell() - len(header)) // n_bytes)
        if file.tell() < len(header):
            file.truncate(0)
            file.write(header)
        file.truncate(len(header) + done * n_bytes)
        if advance is not None:
            advance(done)
        blocks = (slice(at, min(at + _BLOCK, n_tiles)) for at in range(done, n_tiles, _BLOCK))
        for block in in_threads(source.__getitem__, blocks, threads):
            file.write(np.ascontiguousarray(block).data)
            if advance is not None:
                advance(len(block))


def _is_of(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether ``meta.json`` says these digests; a damaged one says none."""
    try:
        return is_current(folder / "meta.json", digests)
    except InputError:
        return False


def _header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(n) for n in shape)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _n_bytes(shape: tuple[int, ...]) -> int:
    return len(_header(shape)) + int(np.prod(shape, dtype=np.int64))
