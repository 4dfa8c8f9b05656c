"""The tile cache: how fast it is built, and read from once it is there.

    python benchmarks/cache.py [--fields ../shared/data/tcga_fields] [--tiles 4000] [--rounds 5]

JPEG tiles of 512 px (quality 90) cut from real fields, at 256 px as hematoxylin and eosin. Built on
one thread and on two. Random sorted batches of 32 are then read from the warm map, from memory, and
(one batch) decoded anew; the ways take turns and medians are printed. For the reads, real tiles are
repeated to `--tiles` rows. Gate: 40,000 tiles/s. Context at scale 4 is built from the map.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from decode import TILE_PX, pillow, write_tiles

from mil.data import cache
from mil.data.context import Neighbourhood, Surroundings, places
from mil.data.sources import Streamed, Tiles
from mil.stain.slides import fit_stains
from splits import tiles as tile_table

SIZE_PX, BATCH = 256, 32


class Repeated:
    """Tiles over and over, up to ``n``."""

    def __init__(self, tiles: np.ndarray, n: int) -> None:
        self._tiles = tiles
        self.shape = (n, *tiles.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._tiles[np.arange(len(self))[rows] % len(self._tiles)]


def table_of(names: list[str]) -> pd.DataFrame:
    """Four tiles a field, in a square."""
    place = np.arange(len(names))
    columns = {
        "tile_id": names,
        "slide_id": [f"slide {i // 4}" for i in place],
        "x_px": place % 4 // 2 * TILE_PX,
        "y_px": place % 2 * TILE_PX,
    }
    return tile_table.check(pd.DataFrame(columns).assign(width_px=TILE_PX, height_px=TILE_PX))


def reads(ways: Mapping[str, Tiles], rounds: int) -> None:
    """Print tiles a second of random batches."""
    rng, rates = np.random.default_rng(0), {way: list[float]() for way in ways}
    for _ in range(rounds):
        for way, tiles in ways.items():
            n_batches = 2 if isinstance(tiles, Streamed) else 400
            rows = [np.sort(rng.permutation(len(tiles))[:BATCH]) for _ in range(n_batches)]
            began = time.perf_counter()
            for batch in rows:
                tiles[batch]
            rates[way].append(n_batches * BATCH / (time.perf_counter() - began))
    for way, found in rates.items():
        print(f"| read, {way} | {np.median(found):,.0f} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=Path, default=Path("../shared/data/tcga_fields"))
    parser.add_argument("--tiles", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "tiles"
        root.mkdir()
        table = table_of(write_tiles(given.fields, root, 90))
        stains = fit_stains(root, table, "macenko", size_px=SIZE_PX, seed=0)
        hood = Neighbourhood(places(table), 4)
        rates: dict[str, list[float]] = {}
        for step in range(3):
            for threads in (1, 2):
                made = Path(name) / f"{step}-{threads}"
                source = Streamed(root, table, stains, "he", size_px=SIZE_PX, threads=1)
                began = time.perf_counter()
                cache.build(made, source, {}, threads=threads)
                rate = len(table) / (time.perf_counter() - began)
                rates.setdefault(f"build, {threads} thread(s)", []).append(rate)
            around = Surroundings(cache.open_map(made, in_memory=False), hood, glass=0)
            began = time.perf_counter()
            cache.build(made / "context-4", around, {}, threads=2)
            rate = len(table) / (time.perf_counter() - began)
            rates.setdefault("build context 4, 2 threads", []).append(rate)
            began = time.perf_counter()
            for tile in table["tile_id"][:44]:
                pillow(root, tile)
            rate = 44 / (time.perf_counter() - began)
            rates.setdefault("Pillow, decode and resize, no stain", []).append(rate)
        print("| way | tiles/s |\n|---|---|")
        for way, found in rates.items():
            print(f"| {way} | {np.median(found):,.0f} |")
        small = cache.open_map(made, in_memory=True)
        large = Path(name) / "large"
        cache.build(large, Repeated(small, given.tiles), {})
        ways = {
            "memory map, warm": cache.open_map(large, in_memory=False),
            "in memory": cache.open_map(large, in_memory=True),
            "off: decoded and stained, all cores": Streamed(
                root, table, stains, "he", size_px=SIZE_PX
            ),
        }
        reads(ways, given.rounds)


if __name__ == "__main__":
    main()
