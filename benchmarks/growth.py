"""Time and memory from a folder to cached tiles, against the number of tiles.

    python benchmarks/growth.py [--tiles 1000 10000 100000] [--context 4]

Tiles of 64 px of the phantom (PNG), 250 a slide; the slides of one small phantom are written again
under other names, and the search for identity in pixels is off. Each number of tiles runs in a
process of its own. Printed: seconds of scan, identity by names, stain vectors, the cache (on disk),
its context map, and one pass over both in batches of 64; tiles a second of it all; the largest
resident memory, what of it is beside the cache (a map's pages count as resident, though the system
can take them back), and processor milliseconds a tile of all stages, which other work on the
machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from mil import phantom, prepare
from mil.config import Compute, Config, Data, Encoder, Identity
from mil.phantom import CLASSES, Phantom

PX, TILES_A_SLIDE, RENDERED = 64, 250, 8
STAGES = ("scan", "identity", "stain", "cache", "context", "pass")


def write_cohort(root: Path, n_tiles: int) -> None:
    """Write that many tiles, 250 a slide."""
    settings = Phantom(slides=RENDERED, tiles_per_slide=TILES_A_SLIDE, tile_px=PX)
    encoded = []
    for index in range(RENDERED):
        for tile in phantom.render(settings, index):
            file = io.BytesIO()
            Image.fromarray(tile).save(file, "PNG", compress_level=1)
            encoded.append(file.getvalue())
    for place in range(n_tiles):
        slide, tile = divmod(place, TILES_A_SLIDE)
        folder = root / CLASSES[slide % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        y, x = (PX * at for at in divmod(tile, 16))
        name = f"TCGA-P{slide % 7}-{slide:04d}-01Z-00-DX1_r0_x{x}_y{y}.png"
        (folder / name).write_bytes(encoded[place % len(encoded)])


def measure(root: Path, run: Path, scale: int) -> tuple[dict[str, float], float, int, float]:
    """Seconds of each stage and of the processor, tiles, and the largest memory in MB."""
    from mil.pixels import pixels
    from mil.stain.slides import stain_table

    compute = Compute(cache="disk")
    encoder = Encoder(resize_px=PX, image_px=PX)
    config = Config(
        data=Data(root=root), identity=Identity(content=False), encoder=encoder, compute=compute
    )
    around = config.model_copy(
        update={"encoder": encoder.model_copy(update={"context": (1, scale)})}
    )
    seconds = {}

    def timed(stage: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        seconds[stage] = time.perf_counter() - began

    def read_all() -> None:
        tiles = pixels(run, around).tiles
        for start in range(0, len(tiles), 64):
            tiles[start : start + 64].max()

    began = time.process_time()
    timed("scan", lambda: prepare.scan(run, config))
    timed("identity", lambda: prepare.identify(run, config))
    timed("stain", lambda: stain_table(run, config))
    timed("cache", lambda: pixels(run, config))
    timed("context", lambda: pixels(run, around))
    timed("pass", read_all)
    processor = time.process_time() - began
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, processor, len(prepare.read_tiles(run)), largest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--context", type=int, default=4)
    given = parser.parse_args()
    titles = ["tiles", *(f"{stage}, s" for stage in STAGES), "tiles/s", "memory, MB", "beside, MB"]
    print(
        f"| {' | '.join([*titles, 'CPU ms a tile'])} |\n|{'---|' * (len(titles) + 1)}", flush=True
    )
    for n_tiles in given.tiles:
        with tempfile.TemporaryDirectory() as name:
            write_cohort(Path(name) / "tiles", n_tiles)
            os.sync()
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                paths = Path(name) / "tiles", Path(name) / "run"
                answer = pool.submit(measure, *paths, given.context).result()
        seconds, processor, n, largest = answer
        kept = n * 2 * 2 * PX**2 / 2**20
        cells = [f"{n:,}", *(f"{seconds[stage]:.1f}" for stage in STAGES)]
        cells += [f"{n / sum(seconds.values()):.0f}", f"{largest:,.0f}", f"{largest - kept:,.0f}"]
        cells.append(f"{1e3 * processor / n:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
