"""Seams between tiles of real fields, against the known grid: precision, recall, false merges.

    python benchmarks/identity_grids.py FIELDS [--size 125 250 500] [--jobs 2]

FIELDS is a folder of images named by their slide (``tcga_fields``: 44 fields of 1000 px). Each is
cut into tiles; every variant changes all tiles (JPEG quality, gain of each channel, size, turn, gap
between the tiles), shuffles them, and runs the search of ``slidewise identify`` on them. Two fields
given as one by ``--same`` count as one slide.

Printed for each: tiles, true neighbours (both edges with contrast), links, precision, recall (of
links, and of links that were used), components of several tiles that mix slides, components.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from splits.content.evidence import gather
from splits.content.links import turned
from splits.content.signatures import sign
from splits.images import read_image

Image = npt.NDArray[np.uint8]
Change = Callable[[Image, np.random.Generator], Image]
SAME = ("TCGA-RD-A8N9-01A-01-TS1", "TCGA-KB-A93J-01A-01-TS1")


def jpeg(quality: int) -> Change:
    """Save and read again."""

    def change(tile: Image, _: np.random.Generator) -> Image:
        _, code = cv2.imencode(".jpg", tile[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])

    return change


def gain(tile: Image, random: np.random.Generator) -> Image:
    """Another brightness of each channel, up to 7 % either way."""
    return np.clip(np.rint(tile * random.uniform(0.93, 1.07, 3)), 0, 255).astype(np.uint8)


def resize(side: int) -> Change:
    """Another size in px."""

    def change(tile: Image, _: np.random.Generator) -> Image:
        how = cv2.INTER_AREA if side < len(tile) else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(tile, (side, side), interpolation=how))

    return change


def turn(tile: Image, random: np.random.Generator) -> Image:
    """One of the eight turns."""
    return turned(tile, int(random.integers(8)))


@dataclass(frozen=True)
class Variant:
    """What is done to each tile after it was cut, and by how much it was cut smaller."""

    name: str
    changes: tuple[Change, ...] = ()
    gap: int = 0


VARIANTS = (
    Variant("PNG"),
    *(Variant(f"JPEG q{quality}", (jpeg(quality),)) for quality in (95, 90, 80, 70, 60, 50)),
    Variant("gain +-7 % a tile, q90", (gain, jpeg(90))),
    Variant("resized to 224 px, q90", (resize(224), jpeg(90))),
    Variant("resized to 512 px, q90", (resize(512), jpeg(90))),
    Variant("turned and flipped, q90", (turn, jpeg(90))),
    Variant("turned, gain, q70", (turn, gain, jpeg(70))),
    Variant("turned, gain, resized to 224 px, q50", (turn, gain, resize(224), jpeg(50))),
    Variant("gap of 2 px", (), 2),
    Variant("gap of 2 px, q90", (jpeg(90),), 2),
    Variant("gap of 4 px, q90", (jpeg(90),), 4),
)


def measure(job: tuple[Path, int, int, tuple[str, str]]) -> str:
    """One line of the table."""
    folder, size, number, same = job
    variant = VARIANTS[number]
    cv2.setNumThreads(1)
    random = np.random.default_rng(0)
    tiles, place = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        image = read_image(path)
        for y in range(0, image.shape[0] - size + 1, size):
            for x in range(0, image.shape[1] - size + 1, size):
                tile = image[y : y + size - variant.gap, x : x + size - variant.gap]
                for change in variant.changes:
                    tile = np.ascontiguousarray(change(tile, random))
                tiles.append(tile)
                place.append((path.stem, x // size, y // size))
    order = random.permutation(len(tiles))
    tiles, place = [tiles[i] for i in order], [place[i] for i in order]
    signatures = sign(tiles.__getitem__, len(tiles))
    evidence = gather([None] * len(tiles), tiles.__getitem__, signatures)
    slide = np.array([same[0] if name in same else name for name, _, _ in place])
    at = {p: row for row, p in enumerate(place)}
    true = {
        tuple(sorted((row, at[name, x + dx, y + dy])))
        for (name, x, y), row in at.items()
        for dx, dy in ((1, 0), (0, 1))
        if (name, x + dx, y + dy) in at
        and not signatures.blank[[row, at[name, x + dx, y + dy]]].any()
    }
    found = set(map(tuple, evidence.links.pairs.tolist()))
    used = set(map(tuple, evidence.links.pairs[evidence.assembly.used].tolist()))
    # The two fields that are one continue each other: those links are right and not in the grid.
    across = {p for p in found if slide[p[0]] == slide[p[1]] and place[p[0]][0] != place[p[1]][0]}
    right = len((found - across) & true)
    component = evidence.assembly.component
    mixed = [c for c in np.unique(component) if len(set(slide[component == c])) > 1]
    return (
        f"| {size} | {variant.name} | {len(tiles):,} | {len(true):,} | {len(found):,} "
        f"| {right / max(len(found - across), 1):.5f} | {right / len(true):.4f} "
        f"| {len(used & true) / len(true):.4f} | {len(mixed)} | {len(np.unique(component))} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields", type=Path)
    parser.add_argument("--size", type=int, nargs="+", default=[125, 250, 500])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--same", nargs=2, default=SAME)
    given = parser.parse_args()
    variants = range(len(VARIANTS))
    jobs = [(given.fields, s, v, tuple(given.same)) for s in given.size for v in variants]
    print(
        "| px | tiles are | tiles | neighbours | links | precision | recall | used | mixed "
        "| components |\n|" + "---|" * 10
    )
    with ProcessPoolExecutor(given.jobs) as pool:
        for line in pool.map(measure, jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
