"""Tiles a second from RGB to hematoxylin and eosin on one core, against what the field uses.

    OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/stain.py

256 x 256 px phantom tiles of four slides, in random order, decoded already. Every way has its turn
in each of seven rounds; medians, and ratios to the classic way: Macenko per tile in numpy, as the
founding notebook has it. Peers that are not installed are named; they are not dependencies:

    pip install torchstain torch-staintools kornia macenko-pca

torchstain and torch-staintools also paint normalised pictures, which is how they give their stains.
Ours has the vectors of its slides fitted already; what that takes a slide is printed below, from
100,000 pooled pixels. Ours is also compared with a float64 least squares, tile by tile.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from mil.phantom import Phantom, render
from mil.stain import vectors
from mil.stain.fit import METHODS, fit_slide, to_table
from mil.stain.separate import UNIT, Separate

SIDE_PX = 256
N_SLIDES, N_TILES = 4, 8
ROUNDS = 7
Way = Callable[[], Any]


def classic(tile: np.ndarray, beta: float = 0.15) -> np.ndarray:
    """Macenko per tile: OD, threshold, eigenvectors, percentile angles, least squares."""
    density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / 240)
    kept = density[~np.any(density < beta, axis=1)]
    _, axes = np.linalg.eigh(np.cov(kept.T))
    plane = kept.dot(axes[:, 1:3])
    angle = np.arctan2(plane[:, 1], plane[:, 0])
    low, high = np.percentile(angle, 1), np.percentile(angle, 99)
    first = axes[:, 1:3].dot(np.array([np.cos(low), np.sin(low)]))
    second = axes[:, 1:3].dot(np.array([np.cos(high), np.sin(high)]))
    stain = np.array([first, second] if first[0] > second[0] else [second, first]).T
    amount = np.linalg.lstsq(stain, density.T, rcond=None)[0]
    amount /= np.percentile(amount, 99, axis=1)[:, None]
    return amount.reshape(2, *tile.shape[:2])


def peers(tiles: np.ndarray) -> dict[str, Way | str]:
    """What is installed, and what is not."""
    planar = torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))

    def torchstain(kind: str) -> Way:
        module = importlib.import_module(f"torchstain.{kind}.normalizers")
        if kind == "numpy":
            one = module.NumpyMacenkoNormalizer()
            one.fit(tiles[0])
            return lambda: [one.normalize(tile, stains=True) for tile in tiles]
        other = module.TorchMacenkoNormalizer()
        other.fit(planar[0])
        return lambda: [other.normalize(tile, stains=True) for tile in planar]

    def staintools() -> Way:
        builder = importlib.import_module("torch_staintools.normalizer").NormalizerBuilder
        normalizer = builder.build("macenko", concentration_solver="qr")
        scaled = planar.float() / 255
        normalizer.fit(scaled[:1])
        return lambda: normalizer(scaled)

    def rust() -> Way:
        pca = importlib.import_module("macenko_pca")
        return lambda: [
            pca.rgb_color_deconvolution(tile, pca.rgb_separate_stains_macenko_pca(tile))
            for tile in tiles.astype(np.float32)
        ]

    def scikit() -> Way:
        color = importlib.import_module("skimage.color")
        return lambda: [color.rgb2hed(tile) for tile in tiles]

    makers: dict[str, Callable[[], Way]] = {
        "torchstain, numpy": lambda: torchstain("numpy"),
        "torchstain, torch": lambda: torchstain("torch"),
        "torch-staintools": staintools,
        "macenko-pca (Rust)": rust,
        "scikit-image rgb2hed, fixed": scikit,
    }
    return {name: made(make) for name, make in makers.items()}


def made(make: Callable[[], Way]) -> Way | str:
    """The way, or that its package is not there."""
    try:
        return make()
    except ImportError as error:
        return f"not installed ({error.name})"


def exact(tiles: np.ndarray, slide: torch.Tensor, table: Any, got: np.ndarray) -> float:
    """Largest distance to the unrounded float64 answer, in grey levels; a tie is 0.5."""
    worst = 0.0
    for tile, row, one in zip(tiles, slide.tolist(), got, strict=True):
        numbers = table.iloc[row]
        white = numbers[["white_r", "white_g", "white_b"]].to_numpy(float)
        stain = numbers[["h_r", "h_g", "h_b", "e_r", "e_g", "e_b"]].to_numpy(float).reshape(2, 3)
        amount = vectors.concentrations(tile, white, stain)
        scaled = amount / numbers[["h_p99", "e_p99"]].to_numpy(float) * UNIT
        worst = max(worst, float(np.abs(one.transpose(1, 2, 0) - scaled.clip(0, 255)).max()))
    return worst


def main() -> None:
    """Time all ways."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    settings = Phantom(slides=N_SLIDES, tiles_per_slide=N_TILES, tile_px=SIDE_PX)
    slides = [render(settings, index) for index in range(N_SLIDES)]
    rng = np.random.default_rng(0)
    pools = [one.reshape(-1, 3)[rng.integers(0, one[..., 0].size, 100_000)] for one in slides]
    table = to_table({f"{i}": fit_slide(pool, "macenko") for i, pool in enumerate(pools)})
    order = rng.permutation(N_SLIDES * N_TILES)
    tiles = np.concatenate(slides)[order]
    slide = torch.from_numpy(order // N_TILES)
    planar = torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))
    separate = Separate.from_table(table)
    ways: dict[str, Way | str] = {
        "classic Macenko per tile, numpy": lambda: [classic(tile) for tile in tiles],
        **peers(tiles),
        "Separate, a batch of 32": lambda: separate(planar, slide),
    }
    seconds: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            if isinstance(way, str):
                continue
            start = time.perf_counter()
            way()
            if turn:  # the first warms up
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    base = float(np.median(seconds["classic Macenko per tile, numpy"]))
    print(f"{'way':34}{'tiles/s':>10}{'ratio':>8}")
    for name, way in ways.items():
        if isinstance(way, str):
            print(f"{name:34}{way}")
        else:
            middle = float(np.median(seconds[name]))
            print(f"{name:34}{len(tiles) / middle:10,.0f}{base / middle:8.1f}")
    worst = exact(tiles, slide, table, separate(planar, slide).numpy())
    print(f"\nSeparate against float64: at most {worst:.4f} grey levels from the unrounded value")
    for method in METHODS:
        taken = []
        for pool in pools * 3:
            start = time.perf_counter()
            fit_slide(pool, method)
            taken.append(1e3 * (time.perf_counter() - start))
        print(f"fit of a slide, 100,000 pixels, {method:13}{np.median(taken):6.1f} ms")


if __name__ == "__main__":
    main()
