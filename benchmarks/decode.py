"""JPEG tiles of 512 px decoded to 256 px: the usual way and ours, and what ours costs in levels.

    python benchmarks/decode.py [--fields ../shared/data/tcga_fields] [--quality 90] [--rounds 5]

Tiles are cut from real fields at 40x and saved as JPEG with Pillow's chroma subsampling. The ways
take turns; printed are medians. One core is measured in processor time, which other work on the
machine disturbs least, two threads by the clock. The error is the mean difference in grey levels:
for sizes that divide the tile from the area average of the full image, for others from the full
image resized by antialiased bilinear; beside it, the same for antialiased bilinear and area.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mil.data.images import decode, in_threads, resize_tile
from splits.images import read_image

TILE_PX, SIZE_PX = 512, 256
SIZES = (256, 224, 128, 112, 64, 56)


def write_tiles(fields: Path, folder: Path, quality: int) -> list[str]:
    """Cut the corners of every field; names in order."""
    names = []
    for path in sorted(fields.glob("*.jpg")):
        pixels = read_image(path)
        for x in (0, pixels.shape[1] - TILE_PX):
            for y in (0, pixels.shape[0] - TILE_PX):
                names.append(f"{len(names)}.jpg")
                tile = Image.fromarray(pixels[y : y + TILE_PX, x : x + TILE_PX])
                tile.save(folder / names[-1], quality=quality)
    return names


def pillow(folder: Path, name: str) -> np.ndarray:
    """Decode in full, then resize by antialiased bilinear."""
    with Image.open(folder / name) as image:
        full = image.convert("RGB")
        return np.asarray(full.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))


def notebook(folder: Path, name: str) -> torch.Tensor:
    """The same and torchvision's ``ToTensor``, float32 of 0 to 1, as the founding notebook did."""
    return to_tensor(pillow(folder, name).copy())


def ours(folder: Path, name: str) -> np.ndarray:
    """As the cache is built."""
    return decode(folder, name, SIZE_PX)


def opencv(folder: Path, name: str) -> np.ndarray:
    """The same scaled decoding without any check: what libjpeg itself takes."""
    return cv2.imread(str(folder / name), cv2.IMREAD_REDUCED_COLOR_2)


WAYS = {
    "Pillow, decode and resize": pillow,
    "the same and ToTensor": notebook,
    "ours": ours,
    "OpenCV, half size": opencv,
}


def speed(folder: Path, names: list[str], rounds: int) -> None:
    """Print tiles a second."""
    one: dict[str, list[float]] = {way: [] for way in WAYS}
    two: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, read in WAYS.items():
            began = time.process_time()
            for name in names:
                read(folder, name)
            one[way].append(len(names) / (time.process_time() - began))
            began = time.perf_counter()
            for _ in in_threads(bound(read, folder), names, 2):
                pass
            two[way].append(len(names) / (time.perf_counter() - began))
    base = np.median(one["Pillow, decode and resize"])
    print("| way | one core, tiles/s | ratio | two threads, tiles/s |\n|---|---|---|---|")
    for way in WAYS:
        rate = np.median(one[way])
        print(f"| {way} | {rate:.0f} | {rate / base:.2f} | {np.median(two[way]):.0f} |")


def bound(read: Callable[[Path, str], object], folder: Path) -> Callable[[str], object]:
    """A way as a function of the name."""
    return lambda name: read(folder, name)


def errors(folder: Path, names: list[str]) -> None:
    """Print grey levels between ours and the full image, for several sizes."""
    print("\n| size | decoded at | ours - area | ours - bilinear | bilinear - area |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        rows = []
        for name in names:
            full = read_image(folder / name)
            area = cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA).astype(float)
            bilinear = resize_tile(full, size).astype(float)
            mine = decode(folder, name, size)
            pairs = ((mine, area), (mine, bilinear), (bilinear, area))
            rows.append([np.abs(a - b).mean() for a, b in pairs])
        at = read_image(folder / names[0], enough_px=size).shape[0]
        print(f"| {size} | {at} | " + " | ".join(f"{v:.2f}" for v in np.mean(rows, axis=0)) + " |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=Path, default=Path("../shared/data/tcga_fields"))
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_tiles(given.fields, folder, given.quality)
        if not names:
            raise SystemExit(f"no *.jpg in {given.fields}: give --fields")
        kb = np.mean([(folder / name).stat().st_size for name in names]) / 1e3
        print(f"{len(names)} tiles of {TILE_PX} px, quality {given.quality}, {kb:.0f} kB each\n")
        speed(folder, names, given.rounds)
        errors(folder, names[::4])


if __name__ == "__main__":
    main()
