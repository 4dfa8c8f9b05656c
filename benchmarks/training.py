"""Training: the founding notebook's loop against ours, where a step's time goes, and the ceiling.

python benchmarks/training.py [--rounds 5]

The notebook's loop, re-created: JPEGs of 512 px opened with PIL, halved, Macenko fitted on every
tile in numpy, a crop of 192 px and a flip, all in the main process; ResNet18 from scratch on H and
E in float32 with Adam, the loss read every step. Ours: the same tiles as a uint8 memory map, views
drawn on the batch, ``loop``'s AdamW, precision and memory as ``devices`` sets them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from side_by_side import Turn, ceiling, in_turns, medians, write_tiles
from torch.utils.flop_counter import FlopCounterMode

from mil import devices, loop
from mil.config import Augment, Compute
from mil.data.sources import Streamed
from mil.encoders import create
from mil.encoders.augment import random_view
from mil.seeds import of_rows
from mil.stain.slides import fit_stains

N_TILES, CACHE_PX, IMAGE_PX, N_CLASSES = 256, 256, 192, 4
EPOCHS, EXPERIMENT = 100, 8000
STAGES = ("load", "stain", "augment", "forward", "backward", "optimiser")


class Clock:
    """Seconds by stage: each lap goes to the stage that it ends."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap."""
        now = time.perf_counter()
        self.spent[stage] += now - self.last
        self.last = now


def macenko(tile: np.ndarray) -> np.ndarray:
    """H and E ``(2, height, width)`` of one tile alone: Macenko et al. 2009, as the notebook."""
    density = -np.log((tile.reshape(-1, 3).astype(float) + 1) / 240)
    tissue = density[(density >= 0.15).all(axis=1)]
    try:
        _, vectors = np.linalg.eigh(np.cov(tissue.T))
        vectors = vectors * np.where(vectors[0] < 0, -1, 1)
        plane = tissue @ vectors[:, 1:]
        angle = np.arctan2(plane[:, 1], plane[:, 0])
        ends = [
            vectors[:, 1:] @ (np.cos(a), np.sin(a))
            for a in (np.percentile(angle, p) for p in (1, 99))
        ]
        stains = np.stack(sorted(ends, key=lambda v: -v[0]), axis=1)
        amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    except (np.linalg.LinAlgError, IndexError):
        return np.random.default_rng().random((2, *tile.shape[:2]))
    amounts /= np.percentile(amounts, 99, axis=1, keepdims=True)
    return amounts.reshape(2, *tile.shape[:2])


def notebook(root: Path, names: list[str], batch: int, n_steps: int) -> Turn:
    """Steps of the notebook's loop."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = timm.create_model("resnet18", in_chans=2, num_classes=N_CLASSES).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def turn() -> dict[str, float]:
        clock = Clock()
        for _ in range(n_steps):
            views, target = [], []
            for i in rng.integers(len(names), size=batch):
                image = Image.open(root / names[i]).convert("RGB")
                image = image.resize((CACHE_PX, CACHE_PX), Image.Resampling.BILINEAR)
                tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
                clock.lap("load")
                pixels = (tensor.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
                stained = torch.from_numpy(macenko(pixels)).float()
                clock.lap("stain")
                y, x = rng.integers(CACHE_PX - IMAGE_PX + 1, size=2)
                view = stained[:, y : y + IMAGE_PX, x : x + IMAGE_PX]
                views.append(view.flip(2) if rng.random() < 0.5 else view)
                target.append(int(i) % N_CLASSES)
                clock.lap("augment")
            optimizer.zero_grad()
            value = F.cross_entropy(model(torch.stack(views)), torch.tensor(target))
            clock.lap("forward")
            value.backward()
            value.item()
            clock.lap("backward")
            optimizer.step()
            clock.lap("optimiser")
        return rates(clock, batch * n_steps)

    return turn


def ours(
    tiles_file: Path,
    batch: int,
    n_steps: int,
    memory: str,
    name: str = "resnet18",
    precision: str = "auto",
) -> Turn:
    """Steps of our loop; ``memory`` as the C library has it, or kept as ``devices`` does."""
    if memory == "returned":
        devices.keep_memory = lambda: False
    fabric = devices.fabric(Compute(device="cpu", precision=precision))
    torch.manual_seed(0)
    encoder = create(name, channels="he", n_classes=N_CLASSES, image_px=IMAGE_PX)
    encoder = encoder.to(memory_format=torch.channels_last)
    optimizer = loop.OPTIMIZERS.create(
        "adamw", params=encoder.parameters(), lr=5e-4, weight_decay=0.01
    )
    model, optimizer = fabric.setup(encoder, optimizer)
    model.train()
    tiles = np.load(tiles_file, mmap_mode="r")
    rng = np.random.default_rng(0)
    settings = Augment().model_dump()

    def turn() -> dict[str, float]:
        clock = Clock()
        for _ in range(n_steps):
            rows = np.sort(rng.choice(len(tiles), batch, replace=False))
            block = torch.from_numpy(tiles[rows])
            target = torch.from_numpy(rows % N_CLASSES)
            clock.lap("load")
            view = random_view(block, IMAGE_PX, of_rows(int(rng.integers(2**62)), rows), **settings)
            view = view.contiguous(memory_format=torch.channels_last)
            clock.lap("augment")
            optimizer.zero_grad(set_to_none=True)
            value = F.cross_entropy(model(view), target)
            clock.lap("forward")
            fabric.backward(value)
            clock.lap("backward")
            optimizer.step()
            clock.lap("optimiser")
        return rates(clock, batch * n_steps)

    return turn


def rates(clock: Clock, n_images: int) -> dict[str, float]:
    """Images a second and milliseconds an image by stage."""
    return {
        "rate": n_images / sum(clock.spent.values()),
        **{stage: spent / n_images * 1e3 for stage, spent in clock.spent.items()},
    }


def flops_of_training() -> float:
    """Operations of forward and backward an image."""
    model = timm.create_model("resnet18", in_chans=2, num_classes=N_CLASSES)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 2, IMAGE_PX, IMAGE_PX)).sum().backward()
    return counter.get_total_flops() / 2


def build(root: Path, names: list[str]) -> tuple[Path, float]:
    """The memory map of the tiles, and the seconds it took."""
    table = pd.DataFrame({"tile_id": names, "slide_id": [n.split("/")[0] for n in names]})
    began = time.perf_counter()
    stains = fit_stains(root, table, "macenko", size_px=CACHE_PX, seed=0)
    np.save(root / "tiles.npy", Streamed(root, table, stains, "he", size_px=CACHE_PX)[:])
    return root / "tiles.npy", time.perf_counter() - began


def report(measured: dict[str, list[dict[str, float]]], seconds_a_tile: float) -> Iterator[str]:
    """The lines of the table."""
    middle = {name: medians(turns) for name, turns in measured.items()}
    peak = middle.pop("ceiling")["flops"]
    flops = flops_of_training()
    first = measured["notebook, batch 4"]
    yield f"bf16 matrix product {peak / 1e9:.0f} GFLOP/s; training {flops / 1e9:.2f} GFLOP an image"
    yield f"{'way':34}{'img/s':>7}{'ratio':>7}{'ceiling':>9}  ms an image: {', '.join(STAGES)}"
    for name, one in middle.items():
        pairs = zip(measured[name], first, strict=True)
        ratio = np.median([mine["rate"] / theirs["rate"] for mine, theirs in pairs])
        of_peak = "" if "ViT" in name else f"{one['rate'] * flops / peak:9.0%}"
        spent = " ".join(f"{one[stage]:6.2f}" for stage in STAGES)
        yield f"{name:34}{one['rate']:7.1f}{ratio:7.2f}{of_peak:>9}  {spent}"
    half, single = (measured[f"ViT-Base, batch 8, {p}"] for p in ("bfloat16", "float32"))
    gain = np.median([a["rate"] / b["rate"] for a, b in zip(half, single, strict=True)])
    yield f"ViT-Base, bfloat16 against float32: {gain:.2f} x"
    kept, returned = (measured[f"ours, batch 32, memory {how}"] for how in ("kept", "returned"))
    gain = np.median([a["rate"] / b["rate"] for a, b in zip(kept, returned, strict=True)])
    yield f"memory kept against returned: {gain:.2f} x"
    step = middle["ours, batch 32, memory kept"]
    share = (step["load"] + step["augment"]) * step["rate"] / 1e3
    yield f"loading and augmentation: {share:.1%} of a step"
    yield f"{EXPERIMENT} tiles, {EPOCHS} epochs, {CACHE_PX} to {IMAGE_PX} px:"
    for name, one in middle.items():
        if "ViT" not in name:
            once = 0 if "notebook" in name else EXPERIMENT * seconds_a_tile
            hours = (once + EXPERIMENT * EPOCHS / one["rate"]) / 3600
            yield f"  {name:34}{hours:6.1f} h, of which decoding and staining once {once:.0f} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write_tiles(root, N_TILES)
        tiles, seconds = build(root, names)
        ways: dict[str, Callable[[], Turn]] = {
            "ceiling": ceiling,
            "notebook, batch 4": partial(notebook, root, names, 4, 4),
            "notebook, batch 12": partial(notebook, root, names, 12, 2),
            "ours, batch 32, memory returned": partial(ours, tiles, 32, 3, "returned"),
            "ours, batch 32, memory kept": partial(ours, tiles, 32, 3, "kept"),
            "ours, batch 64, memory kept": partial(ours, tiles, 64, 2, "kept"),
            "ViT-Base, batch 8, float32": partial(ours, tiles, 8, 1, "kept", "vit_base", "float32"),
            "ViT-Base, batch 8, bfloat16": partial(ours, tiles, 8, 1, "kept", "vit_base"),
        }
        measured = in_turns(ways, rounds)
    print(*report(measured, seconds / N_TILES), sep="\n")


if __name__ == "__main__":
    main()
