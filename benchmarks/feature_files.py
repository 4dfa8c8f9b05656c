"""Reading bags: files of other tools, the packed map that a run makes of them, and memory itself.

    python benchmarks/feature_files.py [--bags 60] [--tiles 1000] [--dim 1024] [--rounds 7]

float16 bags from a warm cache, one at a time in random order, each copied into memory once. The
ways take turns at each bag; medians are printed in MB/s and as ratios to TRIDENT's `.h5` (chunks of
one row, as the tool writes it). Gates: the packed map at 15 x TRIDENT and 90 % of memory copy. What
a run pays once, to read the files, check, pack and list them, is timed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from mil.config import Data
from mil.data.store import open_features
from mil.features import Bag, find
from mil.features.cohort import MATRIX, bring_in
from mil.features.export import WRITERS

Read = Callable[[int], np.ndarray]


def write(base: Path, n_bags: int, n_tiles: int, dim: int) -> None:
    """The same bags as TRIDENT, CLAM and npz files."""
    rng = np.random.default_rng(0)
    (base / "trident").mkdir()
    for i in range(n_bags):
        x = rng.normal(size=(n_tiles, dim)).astype(np.float16)
        coords = np.stack([np.arange(n_tiles) % 32, np.arange(n_tiles) // 32], axis=1) * 512
        with h5py.File(base / "trident" / f"s{i:04d}.h5", "w") as file:
            shape = {"chunks": (1, dim), "maxshape": (None, dim)}
            file.create_dataset("features", data=x, **shape)
            file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
            file["coords"].attrs["patch_size_level0"] = 512
        bag = Bag(f"s{i:04d}", "npz", x, coords, "level0_px", tile=512.0)
        for kind in ("clam-pt", "npz"):
            WRITERS[kind](bag, base / kind)
    labels = "".join(f"s{i:04d},{'ab'[i % 2]}\n" for i in range(n_bags))
    (base / "labels.csv").write_text("slide_id,label\n" + labels, encoding="utf-8")


def main() -> None:
    """Write the files, read them in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("bags", 60), ("tiles", 1000), ("dim", 1024), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    n_bytes = given.bags * given.tiles * given.dim * 2
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write(base, given.bags, given.tiles, given.dim)
        start = time.perf_counter()
        bring_in(base / "run", Data(features=base / "trident", labels=base / "labels.csv"))
        once = time.perf_counter() - start
        matrix = open_features(base / "run" / MATRIX)
        memory = np.array(matrix)
        files = {kind: find(base / kind) for kind in ("trident", "clam-pt", "npz")}
        names = files["trident"].slide_ids

        def rows(source: np.ndarray) -> Read:
            return lambda i: np.array(source[i * given.tiles : (i + 1) * given.tiles])

        def of_file(kind: str) -> Read:
            return lambda i: files[kind].read(names[i]).x

        ways: dict[str, Read] = {
            "TRIDENT .h5, chunks of one row": of_file("trident"),
            "CLAM .pt": of_file("clam-pt"),
            "npz": of_file("npz"),
            "packed map": rows(matrix),
            "memory copy": rows(memory),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(given.rounds):
            for i in np.random.default_rng(round_).permutation(given.bags):
                for name, read in ways.items():
                    start = time.perf_counter()
                    read(int(i))
                    seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(of) for name, of in seconds.items()}
        first = next(iter(ways))
        n_bag = n_bytes / given.bags / 1e6
        print(f"{given.bags} bags of {given.tiles} x {given.dim} float16, {n_bytes / 1e6:.0f} MB")
        for name, spent in median.items():
            rate, ratio = n_bag / spent, median[first] / spent
            print(f"{name:32} {rate:8.0f} MB/s  {ratio:6.1f} x")
        share = median["memory copy"] / median["packed map"]
        print(f"the packed map reads at {share:.0%} of memory copy")
        print(f"once: {once:.2f} s to read, check, pack and list ({n_bytes / 1e6 / once:.0f} MB/s)")


if __name__ == "__main__":
    main()
