"""Decoded and stained tiles in one uint8 memory map: pixels are paid for once.

``cache/tiles.npy`` is ``(n_tiles, n_channels, size, size)`` uint8, row-aligned to the tile table.
RGB is stored as it is; stain channels in the scale of :mod:`mil.stain.separate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil.data.images import decode, in_threads
from mil.stain.channels import CHANNELS, stainer
from splits.artifacts import atomic, is_current, read_json, write_json

__all__ = ["build", "open_cache", "render"]

_BLOCK = 64

Advance = Callable[[int], object]


def render(
    root: Path,
    tiles: pd.DataFrame,
    stains: pd.DataFrame | None,
    channels: str,
    *,
    size_px: int,
    threads: int | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Blocks ``(n, n_channels, size, size)`` uint8 of the tiles in table order."""
    stain = stainer(stains, channels)

    def work(block: pd.DataFrame) -> npt.NDArray[np.uint8]:
        rgb = np.stack([decode(root, name, size_px) for name in block["tile_id"]])
        rgb = np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))
        seen: npt.NDArray[np.uint8] = stain(
            torch.from_numpy(rgb), block["slide_id"].tolist()
        ).numpy()
        return seen

    blocks = (tiles.iloc[start : start + _BLOCK] for start in range(0, len(tiles), _BLOCK))
    return in_threads(work, blocks, threads)


def build(
    folder: Path,
    root: Path,
    tiles: pd.DataFrame,
    stains: pd.DataFrame | None,
    channels: str,
    *,
    size_px: int,
    digests: Mapping[str, str],
    threads: int | None = None,
    advance: Advance | None = None,
) -> None:
    """Write the cache unless one with the same digests is there."""
    if is_current(folder / "meta.json", digests) and (folder / "tiles.npy").exists():
        return
    shape = (len(tiles), len(CHANNELS[channels]), size_px, size_px)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    # Written in order through a file: on a full disk that is an error, a sparse map would crash.
    with atomic(folder / "tiles.npy") as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in render(root, tiles, stains, channels, size_px=size_px, threads=threads):
            file.write(np.ascontiguousarray(block).data)
            if advance is not None:
                advance(len(block))
    write_json(folder / "meta.json", {"channels": CHANNELS[channels], "shape": shape}, digests)


def open_cache(folder: Path) -> npt.NDArray[np.uint8]:
    """The memory map, read-only, ``(n_tiles, n_channels, size, size)`` uint8."""
    read_json(folder / "meta.json")
    cached: npt.NDArray[np.uint8] = np.load(folder / "tiles.npy", mmap_mode="r")
    return cached
