"""Where the encoder's tiles come from: decoded as they are asked for, or several maps side by side.

Whatever the source, the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil.data.images import decode, in_threads
from mil.stain.channels import CHANNELS, stainer

__all__ = ["Pixels", "Rows", "SideBySide", "Streamed", "Tiles"]

Pixels = npt.NDArray[np.uint8]
Rows = slice | npt.NDArray[np.int64]

_CHUNK = 16


class Tiles(Protocol):
    """Tiles in table order; indexing gives uint8 ``(n, n_channels, size, size)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_tiles, n_channels, size, size)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Rows) -> Pixels: ...


class Streamed:
    """Tiles that are decoded and stained whenever they are asked for.

    Args:
        root: Folder that tile ids are relative to.
        table: Tile table with ``tile_id`` and ``slide_id``.
        stains: Stain table of its slides; None leaves RGB as it is.
        channels: A key of :data:`mil.stain.channels.CHANNELS`.
        size_px: Working size.
        threads: Threads that share the rows of one request; None takes all cores.

    Indexing raises ``InputError`` for a tile that cannot be read any more; the error names it.
    """

    def __init__(
        self,
        root: Path,
        table: pd.DataFrame,
        stains: pd.DataFrame | None,
        channels: str,
        *,
        size_px: int,
        threads: int | None = None,
    ) -> None:
        self._root, self._size_px, self._threads = root, size_px, threads
        self._names = table["tile_id"].to_numpy(dtype=object)
        self._slides = table["slide_id"].to_numpy(dtype=object)
        self._stain = stainer(stains, channels)
        self.shape = (len(table), len(CHANNELS[channels]), size_px, size_px)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> Pixels:
        names, slides = self._names[rows], self._slides[rows]
        result = np.empty((len(names), *self.shape[1:]), dtype=np.uint8)

        def work(start: int) -> None:
            part = slice(start, start + _CHUNK)
            rgb = np.stack([decode(self._root, str(name), self._size_px) for name in names[part]])
            rgb = np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))
            result[part] = self._stain(torch.from_numpy(rgb), slides[part].tolist()).numpy()

        starts = range(0, len(names), _CHUNK)
        if self._threads == 1 or len(starts) == 1:
            for start in starts:
                work(start)
        else:
            for _ in in_threads(work, starts, self._threads):
                pass
        return result


class SideBySide:
    """The channels of several sources of the same tiles, one source after the other."""

    def __init__(self, parts: Sequence[Tiles]) -> None:
        self._parts = parts
        n_tiles, _, *size = parts[0].shape
        self.shape = (n_tiles, sum(part.shape[1] for part in parts), *size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> Pixels:
        return np.concatenate([part[rows] for part in self._parts], axis=1)
