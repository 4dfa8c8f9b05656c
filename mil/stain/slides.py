"""Stain vectors of the slides of a cohort, and the table of them that a run keeps.

The table follows the identity, so it can be made before the split (which may balance it) as well as
before the encoder sees a pixel: whoever asks first pays, and the next finds it current.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pandas as pd

from mil.config import Config
from mil.data import images as decoding
from mil.data.images import decode, in_threads
from mil.prepare import Progress, data_root, read_tiles
from mil.stain.density import Pixels, sample_pixels
from mil.stain.fit import StainFit, fit_slide, fit_tile, to_table
from mil.stain.vectors import REFERENCE
from splits.artifacts import digest, digests_of, is_current, read_table, write_table

__all__ = ["fit_stains", "fit_tiles", "stain_digests", "stain_table"]

# Part of the digest: a changed fit must not pass for the old one.
_FORM: Final = 2
_FIT_TILES: Final = 200
_FIT_PIXELS: Final = 100_000
_CONTRAST: Final = 4.0  # grey levels: a tile with less shows nothing that could be sharp

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
        The table of :func:`mil.stain.fit.to_table`; None for the method ``none`` (RGB).
    """
    if method == "none":
        return None
    by_slide = [(str(name), group) for name, group in tiles.groupby("slide_id")["tile_id"]]

    def fit(item: tuple[str, pd.Series]) -> tuple[str, StainFit]:
        slide_id, tile_ids = item
        rng = np.random.default_rng([seed, *slide_id.encode()])
        chosen = np.sort(rng.permutation(len(tile_ids))[:_FIT_TILES])
        found = fit_tiles([decode(root, tile_ids.iloc[i], size_px) for i in chosen], method, rng)
        if advance is not None:
            advance(1)
        return slide_id, found

    return to_table(dict(in_threads(fit, by_slide, threads)))


def fit_tiles(tiles: Sequence[Pixels], method: str, rng: np.random.Generator) -> StainFit:
    """Fit a slide to some of its tiles, each uint8 ``(height, width, 3)``; at least one."""
    each = -(-_FIT_PIXELS // len(tiles))
    pixels = np.concatenate([sample_pixels(tile, each, rng) for tile in tiles])
    fit = fit_slide(pixels, method, sharpness(tiles))
    if method != "macenko_tile":
        return fit
    alone = [fit_tile(tile.reshape(-1, 3), fit.white, REFERENCE)[2] for tile in tiles]
    if all(alone):
        return fit
    failed = f"{len(tiles) - sum(alone)} of {len(tiles)} tiles take the reference vectors"
    return replace(fit, note="; ".join(filter(None, [fit.note, failed])))


def sharpness(tiles: Sequence[Pixels]) -> float:
    """Detail of 1 to 2 px relative to all contrast of the green channel, median over tiles.

    The deviation between two Gaussian blurs (1 and 2 px) over that of the first, which keeps the
    noise of the camera out. Tiles without contrast are left out; NaN if there are no others.
    """
    shares = []
    for tile in tiles:
        fine = cv2.GaussianBlur(tile[..., 1].astype(np.float32), (0, 0), 1.0)
        if (contrast := float(fine.std())) > _CONTRAST:
            # Blurs add in squares: 1 px and then the root of 3 make 2.
            coarse = cv2.GaussianBlur(fine, (0, 0), 3.0**0.5)
            shares.append(float((fine - coarse).std()) / contrast)
    return float(np.median(shares)) if shares else float("nan")


def stain_digests(run: Path, config: Config) -> dict[str, str]:
    """What the stain table of a run is made from."""
    settings = [
        _FORM,
        decoding.FORM,
        config.stain.model_dump(mode="json"),
        config.encoder.resize_px,
        config.seed,
    ]
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
