"""Stain vectors of the slides of a cohort, and the table of them that a run keeps.

The table follows the identity, so it can be made before the split (which may balance it) as well as
before the encoder sees a pixel: whoever asks first pays, and the next finds it current.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mil.config import Config
from mil.data.images import decode, in_threads
from mil.prepare import Progress, data_root, read_tiles
from mil.stain.vectors import StainFit, fit_slide, sample_pixels, to_table
from splits.artifacts import digest, digests_of, is_current, read_table, write_table

__all__ = ["fit_stains", "stain_digests", "stain_table"]

_FIT_TILES = 200
_FIT_PIXELS = 100_000

Advance = Callable[[int], object]


def fit_stains(
    root: Path,
    tiles: pd.DataFrame,
    method: str,
    *,
    size_px: int,
    seed: int,
    threads: int | None = None,
    advance: Advance | None = None,
) -> pd.DataFrame | None:
    """Stain vectors of every slide from tissue pixels pooled over its tiles.

    At most 200 tiles a slide are decoded, 100,000 pixels in all, drawn by a generator of the
    slide's own: adding a slide changes no other.

    Returns:
        The table of :func:`mil.stain.to_table`; None for the method ``none`` (RGB).
    """
    if method == "none":
        return None
    by_slide = [(str(name), group) for name, group in tiles.groupby("slide_id")["tile_id"]]

    def fit(item: tuple[str, pd.Series]) -> tuple[str, StainFit]:
        slide_id, tile_ids = item
        rng = np.random.default_rng([seed, *slide_id.encode()])
        chosen = rng.permutation(len(tile_ids))[:_FIT_TILES]
        each = -(-_FIT_PIXELS // len(chosen))
        pixels = [
            sample_pixels(decode(root, tile_ids.iloc[row], size_px), each, rng)
            for row in np.sort(chosen)
        ]
        if advance is not None:
            advance(1)
        return slide_id, fit_slide(np.concatenate(pixels), method)

    return to_table(dict(in_threads(fit, by_slide, threads)))


def stain_digests(run: Path, config: Config) -> dict[str, str]:
    """What the stain table of a run is made from."""
    settings = [config.stain.model_dump(mode="json"), config.encoder.resize_px, config.seed]
    identity = digests_of(run / "tiles.parquet")["identity"]
    return {"identity": identity, "stain": digest(settings)}


def stain_table(run: Path, config: Config, progress: Progress | None = None) -> pd.DataFrame:
    """The stain table of an identified run, made unless it is current.

    It is ``stain.parquet``. A run whose encoder sees RGB (method ``none``) has no such file; who
    asks for stains nevertheless gets Macenko's, kept as ``cache/stain.parquet``.
    """
    rgb = config.stain.method == "none"
    path = run / "cache" / "stain.parquet" if rgb else run / "stain.parquet"
    digests = stain_digests(run, config)
    if not is_current(path, digests):
        table = read_tiles(run)
        stains = fit_stains(
            data_root(run, config),
            table,
            "macenko" if rgb else config.stain.method,
            size_px=config.encoder.resize_px,
            seed=config.seed,
            threads=config.compute.threads,
            advance=progress("stain", table["slide_id"].nunique()) if progress else None,
        )
        write_table(path, stains, digests)
    return read_table(path)
