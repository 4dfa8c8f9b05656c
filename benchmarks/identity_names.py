"""Time and memory of identity from names alone, against the number of tiles.

    python benchmarks/identity_names.py 10000 100000 1000000

Names are TCGA barcodes with positions, 1,000 tiles a slide. Printed: seconds, tiles a second, and
the largest memory of the process.
"""

from __future__ import annotations

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas as pd

from splits import tiles as tile_table
from splits.identity import identify


def measure(n_tiles: int) -> str:
    """One line of the table."""
    names = [
        f"class{slide % 4}/TCGA-{slide % 30:02d}-{slide:04d}-01Z-00-DX1_x{250 * x}_y{250 * y}.jpg"
        for slide in range(-(-n_tiles // 1000))
        for x in range(40)
        for y in range(25)
    ][:n_tiles]
    table = tile_table.check(
        pd.DataFrame(
            {
                "tile_id": names,
                "slide_label": [name.split("/")[0] for name in names],
                "sha256": [f"{number:064x}" for number in range(n_tiles)],
                "width_px": 250,
                "height_px": 250,
            }
        )
    )
    start = time.perf_counter()
    _, report = identify(table)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {n_tiles:,} | {report['n']['slides']:,} | {report['grade']} | {seconds:.1f} "
        f"| {n_tiles / seconds:,.0f} | {memory:,.0f} |"
    )


def main() -> None:
    """Print the table."""
    print("| tiles | slides | grade | s | tiles/s | memory, MB |\n|" + "---|" * 6)
    for text in sys.argv[1:]:
        # A process of its own each: the largest memory of a process never falls.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            print(pool.submit(measure, int(text)).result(), flush=True)


if __name__ == "__main__":
    main()
