"""What the encoder of a run sees: stain vectors of every slide, and its tiles as uint8 channels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.config import Config
from mil.data import cache, context, images
from mil.data.sources import SideBySide, Streamed, Tiles
from mil.prepare import Progress, data_root, read_tiles
from mil.stain.channels import CHANNELS
from mil.stain.slides import stain_table
from splits import tiles as tile_table
from splits.artifacts import digest
from splits.errors import InputError

__all__ = ["Pixels", "Tiles", "new_pixels", "pixels"]

_IN_MEMORY: Final = 0.25  # share of the free memory that tiles may take without being asked
_ON_DISK: Final = 0.9  # share of the free disk that a cache may take

Say = Callable[[str], object]
Hoods = Mapping[int, context.Neighbourhood]


@dataclass(frozen=True)
class Pixels:
    """The tiles of a run as its encoder sees them.

    Attributes:
        tiles: All of them, row-aligned to the tile table.
        digest: Of everything that they are made from.
    """

    tiles: Tiles
    digest: str


def pixels(
    run: Path, config: Config, progress: Progress | None = None, say: Say | None = None
) -> Pixels:
    """Make ``stain.parquet`` and the tile cache unless they are current, and open the tiles.

    The cache lies in ``cache/`` of the run or, with ``compute.cache_dir``, in a folder there that
    is named by the digest of its content, for other runs to find. Context has a map of its own
    (``cache/context-4/``), so that runs with and without context share the tiles.

    Args:
        run: Run folder.
        config: Its configuration.
        progress: Of the stains and of the maps.
        say: Called with one line, the size of the cache and where it is kept, before it is built.

    Raises:
        InputError: The cache does not fit where it was asked for, a tile cannot be read any more,
            or context is asked for and tiles have no coordinates.
    """
    table, root = read_tiles(run), data_root(run, config)
    # Stain vectors are a slide's: they follow the identity, not only the pixels.
    stains = None
    if config.stain.method != "none":
        stains = stain_table(run, config, progress)
    else:
        (run / "stain.parquet").unlink(missing_ok=True)
    streamed = _streamed(root, table, stains, config, threads=1)
    hoods = _hoods(table, config)
    base = _digests(table, stains, config)
    digests = {1: base, **{s: {**base, "context": hood.digest} for s, hood in hoods.items()}}
    folders = {scale: _folder(run, config, scale, of) for scale, of in digests.items()}
    whole = {
        scale: cache.is_whole(folder, streamed.shape, digests[scale])
        for scale, folder in folders.items()
    }
    n_bytes = int(np.prod(streamed.shape, dtype=np.int64))
    place = _place(config, n_bytes * len(whole), n_bytes * (len(whole) - sum(whole.values())), run)
    if say is not None:
        say(_announcement(streamed.shape, hoods, place, folders[1], whole=all(whole.values())))
    made_from = digest(list(digests.values()))
    if place == "off":
        streamed = _streamed(root, table, stains, config, threads=config.compute.threads)
        return Pixels(_with_context(streamed, hoods, config), made_from)
    parts: list[Tiles] = []
    for scale, folder in folders.items():
        source: Tiles = streamed
        notes: dict[str, Any] = {"channels": CHANNELS[config.encoder.channels]}
        if scale > 1:
            source = context.Surroundings(parts[0], hoods[scale], glass=_glass(config))
            notes |= {"context": scale, "covered": round(float(hoods[scale].covered.mean()), 4)}
        advance = None
        if progress is not None and not whole[scale]:
            advance = progress(f"context {scale}" if scale > 1 else "cache", len(table))
        threads = config.compute.threads
        cache.build(folder, source, digests[scale], notes=notes, threads=threads, advance=advance)
        parts.append(cache.open_map(folder, in_memory=place == "ram"))
    return Pixels(parts[0] if len(parts) == 1 else SideBySide(parts), made_from)


def new_pixels(
    root: Path, table: pd.DataFrame, stains: pd.DataFrame | None, config: Config
) -> Tiles:
    """Tiles as the encoder sees them, decoded when they are asked for and never stored.

    Args:
        root: Folder that tile ids are relative to.
        table: Tile table of whole slides: context shows no tile that is not in it.
        stains: Stain table of its slides.
        config: Of the encoder.

    Raises:
        InputError: Context is asked for and tiles have no coordinates. Indexing raises it for a
            tile that cannot be read.
    """
    streamed = _streamed(root, table, stains, config, threads=config.compute.threads)
    return _with_context(streamed, _hoods(table, config), config)


def _streamed(
    root: Path,
    table: pd.DataFrame,
    stains: pd.DataFrame | None,
    config: Config,
    *,
    threads: int | None,
) -> Streamed:
    channels, size_px = config.encoder.channels, config.encoder.resize_px
    return Streamed(root, table, stains, channels, size_px=size_px, threads=threads)


def _hoods(table: pd.DataFrame, config: Config) -> Hoods:
    scales = config.encoder.context[1:]
    if not scales:
        return {}
    where = context.places(table)
    return {scale: context.Neighbourhood(where, scale) for scale in scales}


def _with_context(tiles: Tiles, hoods: Hoods, config: Config) -> Tiles:
    if not hoods:
        return tiles
    around = [context.Surroundings(tiles, hood, glass=_glass(config)) for hood in hoods.values()]
    return SideBySide([tiles, *around])


def _glass(config: Config) -> int:
    return 255 if config.encoder.channels == "rgb" else 0


def _digests(table: pd.DataFrame, stains: pd.DataFrame | None, config: Config) -> dict[str, str]:
    """What the tiles are made from: content alone, so that runs can share them."""
    encoder = config.encoder
    stained = None
    if stains is not None:
        stained = [stains.to_dict("list"), table["slide_id"].tolist()]
    return {
        "pixels": tile_table.pixels_digest(table),
        "stain": digest(stained),
        "input": digest([cache.FORM, images.FORM, encoder.channels, encoder.resize_px]),
    }


def _folder(run: Path, config: Config, scale: int, digests: Mapping[str, str]) -> Path:
    if config.compute.cache_dir is not None:
        return config.compute.cache_dir / digest(digests)
    return run / "cache" / f"context-{scale}" if scale > 1 else run / "cache"


def _place(config: Config, n_bytes: int, n_missing: int, run: Path) -> str:
    """``ram``, ``disk`` or ``off``: what was asked for, or what ``auto`` comes to."""
    asked = config.compute.cache
    if asked == "off":
        return asked
    folder = config.compute.cache_dir or run
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if n_missing > _ON_DISK * free:
        if asked == "auto":
            return "off"
        message = (
            f"the tile cache needs {n_missing / 1e9:.1f} GB more and {folder} has "
            f"{free / 1e9:.1f} GB free: set compute.cache_dir to another disk, compute.cache=off, "
            "or a smaller encoder.resize_px"
        )
        raise InputError(message)
    if asked == "disk":
        return asked
    memory = _free_memory()
    if asked == "ram" and n_bytes > _ON_DISK * memory:
        message = (
            f"compute.cache=ram needs {n_bytes / 1e9:.1f} GB and {memory / 1e9:.1f} GB of memory "
            "are free: set compute.cache=disk"
        )
        raise InputError(message)
    return "ram" if asked == "ram" or n_bytes <= _IN_MEMORY * memory else "disk"


def _free_memory() -> int:
    """Bytes that can be had without swapping; all memory where the system does not tell, or 0."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        names: Mapping[str, int] = getattr(os, "sysconf_names", {})
        if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 0


def _announcement(
    shape: tuple[int, ...], hoods: Hoods, place: str, folder: Path, *, whole: bool
) -> str:
    """One line such as ``cache: 899 tiles, 2 x 112 x 112, 22 MB, in memory``."""
    n_tiles, n_channels, size, _ = shape
    n_bytes = (1 + len(hoods)) * int(np.prod(shape, dtype=np.int64))
    unit, power = next((u for u in (("GB", 1e9), ("MB", 1e6)) if n_bytes >= u[1]), ("kB", 1e3))
    amount = f"{n_bytes / power:.{1 if unit == 'GB' else 0}f} {unit}"
    where = {
        "ram": "in memory",
        "disk": "on disk",
        "off": "none kept: tiles are decoded whenever they are needed",
    }[place]
    if place != "off":
        where += f" ({folder}, made before)" if whole else f" ({folder})"
    covered = "".join(
        f"; context {scale}: {hood.covered.mean():.0%} covered" for scale, hood in hoods.items()
    )
    n_all = n_channels * (1 + len(hoods))
    return f"cache: {n_tiles} tiles, {n_all} x {size} x {size}, {amount}, {where}{covered}"
