"""What the encoder of a run sees: stain vectors of every slide, and its tiles as uint8 channels."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.config import Config
from mil.data import cache
from mil.prepare import Progress, data_root, read_tiles
from mil.stain.channels import CHANNELS
from mil.stain.slides import stain_digests, stain_table
from splits.artifacts import digest
from splits.errors import InputError

__all__ = ["Pixels", "Tiles", "pixels"]


class Tiles(Protocol):
    """Tiles in table order; indexing gives uint8 ``(n, n_channels, size, size)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_tiles, n_channels, size, size)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Pixels:
    """The tiles of a run as its encoder sees them.

    Attributes:
        tiles: All of them, row-aligned to the tile table.
        digest: Of everything that they are made from.
    """

    tiles: Any
    digest: str


def pixels(run: Path, config: Config, progress: Progress | None = None) -> Pixels:
    """Make ``stain.parquet`` and the tile cache unless they are current, and open the tiles."""
    table = read_tiles(run)
    root = data_root(run, config)
    encoder, threads = config.encoder, config.compute.threads
    # Stain vectors are a slide's: they follow the identity, not only the pixels.
    stains = None
    if config.stain.method != "none":
        stains = stain_table(run, config, progress)
    else:
        (run / "stain.parquet").unlink(missing_ok=True)
    digests = {
        **stain_digests(run, config),
        "encoder_input": digest([encoder.channels, encoder.resize_px]),
    }
    _announce(run, table, config)
    advance = progress("cache", len(table)) if progress else None
    cache.build(
        run / "cache",
        root,
        table,
        stains,
        encoder.channels,
        size_px=encoder.resize_px,
        digests=digests,
        threads=threads,
        advance=advance,
    )
    return Pixels(cache.open_cache(run / "cache"), digest(digests))


def _announce(run: Path, table: pd.DataFrame, config: Config) -> None:
    encoder = config.encoder
    needed = len(table) * len(CHANNELS[encoder.channels]) * encoder.resize_px**2
    free = shutil.disk_usage(run).free
    if needed > free and not (run / "cache" / "tiles.npy").exists():
        message = (
            f"the tile cache needs {needed / 1e9:.1f} GB and {run} has {free / 1e9:.1f} GB free: "
            "choose another --out or a smaller encoder.resize_px"
        )
        raise InputError(message)
