"""Ways to do the same work, each in a process of its own, timed in turns.

What one way sets for its process (memory, threads) must not reach another, and on a shared machine
only ways timed within the same seconds compare: a round asks every way in turn, the others wait.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mil import devices
from mil.config import Compute

Turn = Callable[[], dict[str, float]]
FIELDS = Path(__file__).resolve().parents[1] / "../shared/data/tcga_fields"


def in_turns(
    ways: Mapping[str, Callable[[], Turn]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """What each way measured in every round.

    Args:
        ways: Name -> what makes ready (not timed, one warm-up turn included) and returns a turn;
            importable from the top of a module, as ``spawn`` asks.
        rounds: Turns of each.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    try:
        for name, way in ways.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, way), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
            ours.recv()  # ready
            pipes[name] = ours
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send("go")
                measured[name].append(pipe.recv())
    finally:
        for process in processes:
            process.terminate()
    return measured


def _serve(pipe: Connection, way: Callable[[], Turn]) -> None:
    turn = way()
    turn()
    pipe.send(None)
    while pipe.recv() == "go":
        pipe.send(turn())


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """The median over the rounds of everything measured."""
    return {key: float(np.median([turn[key] for turn in turns])) for key in turns[0]}


def write_tiles(folder: Path, n_tiles: int, size_px: int = 512) -> list[str]:
    """JPEG tiles (quality 90) cut from public fields of slides, or from noise where they are not.

    Returns:
        Names, ``slide/number.jpg``.
    """
    rng = np.random.default_rng(0)
    fields = [np.asarray(Image.open(path)) for path in sorted(FIELDS.glob("*.jpg"))[:8]]
    if not fields:
        print("tcga_fields is absent: tiles of smoothed noise, so decoding is only roughly right")
        coarse = rng.integers(100, 255, (8, 64, 64, 3), dtype=np.uint8)
        fields = [np.asarray(Image.fromarray(one).resize((1000, 1000))) for one in coarse]
    names = []
    for tile in range(n_tiles):
        slide = tile % len(fields)
        y, x = (int(rng.integers(side - size_px + 1)) for side in fields[slide].shape[:2])
        name = f"slide{slide}/{tile}.jpg"
        (folder / name).parent.mkdir(exist_ok=True)
        square = fields[slide][y : y + size_px, x : x + size_px]
        Image.fromarray(square).save(folder / name, quality=90)
        names.append(name)
    return names


def ceiling() -> Turn:
    """Bfloat16 matrix products of 2048 x 2048 on all cores: ``{"flops": a second}``."""
    devices.fabric(Compute(device="cpu"))
    a, b = (torch.randn(2048, 2048).to(torch.bfloat16) for _ in range(2))
    return partial(_product, a, b)


def _product(a: Any, b: Any) -> dict[str, float]:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return {"flops": 2 * 2048**3 / float(np.median(seconds))}
