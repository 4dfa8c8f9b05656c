"""Bags larger than memory: one of 200,000 tiles, and a cohort that streams from disk.

python benchmarks/large_bags.py [--bags 10000] [--folder /tmp]

1. One step of ABMIL on a bag of 200,000 tiles of 512 float16 features in a memory map: seconds and
   peak memory above the start of the process, of which the pages of the map that the system keeps
   for as long as nobody needs the room are told apart.
2. An epoch of ABMIL on bags of 1,000 x 512 float16, batches of 16 bags as training makes
   them: rate from a memory map whose pages were dropped, against a tenth of it held in memory.

The cohort takes 1 MB a bag; where less than four times that is free, fewer bags are written. All
files are deleted at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mil import devices
from mil.aggregators import create
from mil.config import Compute
from mil.data.bags import Bags

DIM, BAG, HUGE, BATCH = 512, 1000, 200_000, 16_000


def write(file: Path, n_tiles: int) -> None:
    """A feature file, block by block."""
    features = np.lib.format.open_memmap(file, "w+", np.float16, (n_tiles, DIM))
    block = np.random.default_rng(0).standard_normal((10_000, DIM)).astype(np.float16)
    for start in range(0, n_tiles, len(block)):
        features[start : start + len(block)] = block[: n_tiles - start]
    features.flush()
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def drop(file: Path) -> None:
    """Let the system forget the pages of a file, so that they come from disk."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> dict[str, float]:
    """Megabytes of this process: its own and those of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: float(lines[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS", "RssAnon")}


def step(file: Path, budget: int, threads: int | None, pipe: Connection) -> None:
    """One step of training on one bag, in a process of its own."""
    fabric = devices.fabric(Compute(device="cpu", threads=threads))
    x = torch.from_numpy(np.load(file, mmap_mode="c"))
    held = resident()
    torch.manual_seed(0)
    module = create("abmil", dim=DIM, n_classes=2, hidden=DIM)
    module.budget = budget
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    model, optimizer = fabric.setup(module, optimizer)
    began = time.perf_counter()
    output = model(x, torch.tensor([0, len(x)]))
    fabric.backward(F.cross_entropy(output.logits.float(), torch.tensor([1])))
    optimizer.step()
    seconds = time.perf_counter() - began
    after = resident()
    pipe.send((seconds, after["VmHWM"] - held["VmRSS"], after["RssAnon"] - held["RssAnon"]))


def apart(work: Callable[[Connection], None]) -> tuple[float, ...]:
    """What ``work`` sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    received: tuple[float, ...] = ours.recv()
    process.join()
    return received


def rate(features: np.ndarray, n_bags: int, threads: int | None) -> float:
    """Megabytes a second of learning from all bags once, in a random order."""
    names = [f"{i:05}" for i in range(n_bags)]
    rows = {name: np.arange(i * BAG, (i + 1) * BAG) for i, name in enumerate(names)}
    bags = Bags(features, rows, dict.fromkeys(names, 0))
    fabric = devices.fabric(Compute(device="cpu", threads=threads))
    model = create("abmil", dim=DIM, n_classes=2, hidden=DIM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    plan = bags.plan(names, max_tiles=BATCH, generator=np.random.default_rng(0))
    began, total = time.perf_counter(), 0
    for batch in bags.packed(plan):
        optimizer.zero_grad(set_to_none=True)
        with fabric.autocast():
            logits = model(batch.x, batch.offsets).logits
        F.cross_entropy(logits, batch.label).backward()
        optimizer.step()
        total += len(batch.x)
    return total * DIM * 2 / 1e6 / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bags", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, help="all cores where not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "bag.npy"
        write(file, HUGE)
        print(f"ABMIL, one step on {HUGE} tiles, {file.stat().st_size / 1e6:.0f} MB on disk:")
        for budget in (4096, 65_536):
            seconds, peak, own = apart(partial(step, file, budget, options.threads))
            print(
                f"  budget {budget:6}: {seconds:6.1f} s, peak {peak:5.0f} MB above the start; "
                f"without the pages of the file {own:5.0f} MB"
            )
        file.unlink()
        free = shutil.disk_usage(folder).free
        n_bags = min(options.bags, int(free / 4 / (BAG * DIM * 2)))
        if n_bags < options.bags:
            print(f"{free / 1e9:.0f} GB free: {n_bags} bags instead of {options.bags}")
        file = Path(folder) / "cohort.npy"
        write(file, n_bags * BAG)
        print(f"{n_bags} bags of {BAG} x {DIM} float16, {file.stat().st_size / 1e9:.1f} GB:")
        small = max(1, n_bags // 10)
        memory = np.load(file, mmap_mode="r")[: small * BAG].copy()
        disk, held = [], []
        for _ in range(2):
            drop(file)
            disk.append(rate(np.load(file, mmap_mode="r"), n_bags, options.threads))
            held.append(rate(memory, small, options.threads))
        share = float(np.median(np.divide(disk, held)))
        print(
            f"  from disk {np.median(disk):.0f} MB/s, from memory {np.median(held):.0f} MB/s: "
            f"{share:.0%}"
        )


if __name__ == "__main__":
    main()
