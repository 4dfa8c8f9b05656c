"""Time and memory of the search for identity in pixels, against the number of tiles.

    [taskset -c 0] python benchmarks/identity_scale.py 1000 10000 100000

Tiles of 250 px are cut from synthetic slides of 32 x 32 tiles (noise of several scales in stain
colours), stored as JPEG (quality 90), and shuffled. Printed for each number of tiles:
seconds of the pass over the pixels (decoding included) and tiles a second a core; seconds of the
searches, and tiles a second a core of the whole; bytes kept a tile; growth of the resident memory;
links; slides that came back in one piece; components of several slides.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.content.evidence import gather
from splits.content.signatures import n_workers, sign
from splits.images import read_image

T = TypeVar("T")
TILE_PX = 250
SIDE = 32
OCTAVES = (4, 8, 16, 32, 125, 500)


def write_slide(folder: Path, number: int, n_tiles: int) -> None:
    """Write the first tiles of a synthetic slide, numbered on over all slides."""
    random = np.random.default_rng(number)
    px = SIDE * TILE_PX
    density = np.zeros((px, px, 2), np.float32)
    for scale in OCTAVES:
        n = px // scale + 2
        noise = random.normal(size=(n, n, 2)).astype(np.float32)
        density += cv2.resize(noise, (px, px), interpolation=cv2.INTER_CUBIC)
    density = np.clip(0.25 + 0.12 * density, 0, 1.5)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]) * random.uniform(0.8, 1.2, (2, 3))
    for tile in range(n_tiles):
        y, x = (TILE_PX * place for place in divmod(tile, SIDE))
        part = density[y : y + TILE_PX, x : x + TILE_PX] @ stains.astype(np.float32)
        colours = np.round(255 * np.exp(-part)).astype(np.uint8)
        name = str(folder / f"{number * SIDE**2 + tile}.jpg")
        cv2.imwrite(name, colours[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


def read_row(folder: Path, place: npt.NDArray[np.int64], row: int) -> npt.NDArray[np.uint8]:
    """Pixels of a tile."""
    return read_image(folder / f"{place[row]}.jpg")


def write_slides(folder: Path, n_tiles: int) -> None:
    """Write that many tiles."""
    for number in range(-(-n_tiles // SIDE**2)):
        write_slide(folder, number, min(SIDE**2, n_tiles - number * SIDE**2))


def measure(folder: Path, n_tiles: int) -> str:
    """One line of the table."""
    place = np.random.default_rng(0).permutation(n_tiles)
    read = partial(read_row, folder, place)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    n_cores = n_workers(n_tiles)
    signatures = sign(read, n_tiles, workers=n_cores)
    looked = time.perf_counter() - start
    evidence = gather([None] * n_tiles, read, signatures)
    whole = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    truth, component = place // SIDE**2, evidence.assembly.component
    mixed = int((pd.Series(truth).groupby(component).nunique() > 1).sum())
    n_pieces = pd.Series(component).groupby(truth).nunique()
    return (
        f"| {n_tiles:,} | {looked:.1f} | {n_tiles / looked / n_cores:.0f} | {whole - looked:.1f} "
        f"| {n_tiles / whole / n_cores:.0f} | {signatures.nbytes / n_tiles:.0f} | {grown:.0f} "
        f"| {int(evidence.assembly.used.sum()):,} | {(n_pieces == 1).sum()} of {len(n_pieces)} "
        f"| {mixed} |"
    )


def main() -> None:
    """Print the table."""
    print(
        "| tiles | pass, s | tiles/s a core | searches, s | whole, tiles/s a core | bytes a tile "
        "| memory, MB | links used | slides in one piece | mixed components |"
    )
    print("|" + "---|" * 10)
    for n_tiles in (int(text) for text in sys.argv[1:]):
        with tempfile.TemporaryDirectory() as name:
            apart(write_slides, Path(name), n_tiles)
            print(apart(measure, Path(name), n_tiles), flush=True)


def apart(work: Callable[[Path, int], T], folder: Path, n_tiles: int) -> T:
    """Do it in a process of its own: the largest memory of a process never falls."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, folder, n_tiles).result()


if __name__ == "__main__":
    main()
