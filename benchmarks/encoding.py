"""Encoding: float32 and bfloat16 eagerly, our fast encoder, and the same compiled.

python benchmarks/encoding.py [--rounds 5]

The eager ways run as torch runs them; ``fast`` also keeps its memory (``devices.keep_memory``).
ResNet18 has random weights, its norms fitted to the tiles; EfficientNet-Lite0 those of
``../shared/models`` where they are. Classes are the slides that tiles were cut from, told apart by
a linear head fitted on float32 embeddings of other tiles: decisions of each way are compared with
those of float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from side_by_side import Turn, ceiling, in_turns, medians, write_tiles
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.flop_counter import FlopCounterMode
from training import CACHE_PX, IMAGE_PX, build

from mil import devices
from mil.config import Compute
from mil.encoders import TileEncoder, create
from mil.encoders.augment import centre_view, random_view
from mil.encoders.inference import fast
from mil.seeds import of_rows

BATCH = 64

N_TILES, N_VIEWS = 256, 3
LITE0 = Path(__file__).resolve().parents[1] / "../shared/models"
LITE0 = LITE0 / "tf_efficientnet_lite0_imagenet.safetensors"


def encoder_of(name: str, tiles: np.ndarray) -> TileEncoder:
    """ResNet18 from scratch or Lite0 with its published weights, on H and E."""
    torch.manual_seed(0)
    weights = LITE0 if name != "resnet18" else None
    encoder = create(name, channels="he", n_classes=2, image_px=IMAGE_PX, checkpoint=weights)
    if weights is None:
        with torch.no_grad():
            encoder.train()
            for module in encoder.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None  # the mean of what it sees
            for start in range(0, 128, 32):
                encoder(centre_view(torch.from_numpy(tiles[start : start + 32]), IMAGE_PX))
    return encoder.eval()


def reader(encoder: TileEncoder, way: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Uint8 tiles -> embeddings, in one of the ways."""
    single = way == "float32 eager"
    if way.endswith("eager"):
        devices.keep_memory = lambda: False
    fabric = devices.fabric(Compute(device="cpu", precision="float32" if single else "auto"))
    if way.startswith("fast"):
        return fast(encoder, fabric, IMAGE_PX, compiled=way.endswith("compiled"))

    def embed(tiles: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), fabric.autocast():
            return encoder.embed(centre_view(tiles, IMAGE_PX)).float()

    return embed


def encode(name: str, tiles_file: Path, way: str, out: Path) -> Turn:
    """One batch a turn; before that, the embeddings of all test tiles into a file."""
    tiles = np.load(tiles_file)
    encoder = encoder_of(name, tiles)
    began = time.perf_counter()
    embed = reader(encoder, way)
    embed(torch.from_numpy(tiles[:BATCH]))
    ready = time.perf_counter() - began
    np.save(out, np.concatenate([embed(view).numpy() for view in views(tiles)]))
    block = torch.from_numpy(tiles[:BATCH])

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        embed(block)
        return {"rate": BATCH / (time.perf_counter() - began), "ready": ready}

    return turn


def views(tiles: np.ndarray) -> Iterator[torch.Tensor]:
    """Crops and turns of every tile, for more decisions than there are tiles."""
    for start in range(0, N_VIEWS * len(tiles), BATCH):
        rows = np.arange(start, start + BATCH)
        block = torch.from_numpy(tiles[rows % len(tiles)])
        seen = random_view(
            block, CACHE_PX, of_rows(0, rows), crop_scale=(0.5, 1), quarter_turns=True
        )
        yield seen.round().byte()


def agreement(folder: Path, name: str, ways: list[str], slides: np.ndarray) -> dict[str, float]:
    """Share of decisions equal to float32's, by a head fitted on every other tile."""
    x = {way: np.load(folder / f"{name} {way}.npy") for way in ways}
    target = np.tile(slides, N_VIEWS)
    fitted = np.tile(np.arange(len(slides)) // 8 % 2 == 0, N_VIEWS)
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    head.fit(x[ways[0]][fitted], target[fitted])
    wanted = head.predict(x[ways[0]][~fitted])
    print(
        f"{name}: the head is right for {(wanted == target[~fitted]).mean():.0%} "
        f"of {len(wanted)} other tiles and views"
    )
    return {way: float((head.predict(x[way][~fitted]) == wanted).mean()) for way in ways}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ways = ["float32 eager", "bfloat16 eager", "fast", "fast, compiled"]
    encoders = ["resnet18", *(["tf_efficientnet_lite0"] if LITE0.exists() else [])]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        names = write_tiles(folder, N_TILES)
        tiles, _ = build(folder, names)
        slides = np.array([int(name[5 : name.index("/")]) for name in names])
        for name in encoders:
            made: dict[str, Callable[[], Turn]] = {"ceiling": ceiling}
            for way in ways:
                out = folder / f"{name} {way}.npy"
                made[way] = partial(encode, name, tiles, way, out)
            measured = in_turns(made, rounds)
            equal = agreement(folder, name, ways, slides)
            middle = {way: medians(turns) for way, turns in measured.items()}
            encoder = encoder_of(name, np.load(tiles))
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                encoder.embed(torch.zeros(1, 2, IMAGE_PX, IMAGE_PX))
            flops, peak = counter.get_total_flops(), middle["ceiling"]["flops"]
            print(f"{flops / 1e9:.2f} GFLOP an image, bf16 ceiling {peak / 1e9:.0f} GFLOP/s")
            print(f"{'way':18}{'img/s':>7}{'ratio':>8}{'ceiling':>9}{'equal':>8}{'ready, s':>10}")
            for way in ways:
                pairs = zip(measured[way], measured[ways[0]], strict=True)
                ratio = np.median([mine["rate"] / theirs["rate"] for mine, theirs in pairs])
                rate, ready = middle[way]["rate"], middle[way]["ready"]
                of_peak = rate * flops / peak
                print(
                    f"{way:18}{rate:7.0f}{ratio:8.2f}{of_peak:9.1%}{equal[way]:8.2%}{ready:10.1f}"
                )
            gain = 1 / middle["fast"]["rate"] - 1 / middle["fast, compiled"]["rate"]
            cost = middle["fast, compiled"]["ready"] - middle["fast"]["ready"]
            if gain > 0:
                print(f"compiling pays from {cost / gain:,.0f} tiles on")


if __name__ == "__main__":
    main()
