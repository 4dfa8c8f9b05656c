"""Augmented copies of real tiles: how many are found, and how many pairs are linked falsely.

    python benchmarks/identity_duplicates.py IMAGES [--tile 250] [--copies 2] [--seed 0 1]

IMAGES is a folder of images (``ucsb_breast``). Tiles are cut side by side, which are neighbours and
no copies. Each gets copies as augmentation scripts make them: rotated by up to 25 degrees (corners
reflected, or black), cropped to 80 to 100 % of its side, turned and mirrored, JPEG of quality 60 to
95. All are shuffled. A copy is found if links of any kind but seams tie it to its tile, perhaps
through another copy; every other such link is false. Copies without tissue (at most a speck on
glass, by themselves or in their tile) are counted apart. Two of the images show one tissue, as this
search found out: ``--same`` names them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from splits.content.evidence import gather
from splits.content.links import KINDS, components, turned
from splits.content.signatures import sign
from splits.images import SUFFIXES, read_image

Image = npt.NDArray[np.uint8]
SAME = ["ytma23_022103_benign2_ccd", "ytma23_022103_benign3_ccd"]


def augmented(tile: Image, random: np.random.Generator) -> Image:
    """One copy of a tile."""
    height, width = tile.shape[:2]
    degrees, share = random.uniform(-25, 25), random.uniform(0.8, 1.0)
    border = random.choice([cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT])
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    rotated = cv2.warpAffine(tile, matrix, (width, height), borderMode=int(border))
    h, w = round(height * share), round(width * share)
    y, x = random.integers(height - h + 1), random.integers(width - w + 1)
    cropped = cv2.resize(rotated[y : y + h, x : x + w], (width, height))
    view = np.ascontiguousarray(turned(cropped, int(random.integers(8)))[..., ::-1])
    _, code = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(60, 96))])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def measure(images: Path, size: int, n_copies: int, seed: int, same: list[str]) -> str:
    """One line of the table."""
    random = np.random.default_rng(seed)
    tiles: list[Image] = []
    origin: list[str] = []
    for path in sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES):
        image = read_image(path)
        for y in range(0, image.shape[0] - size + 1, size):
            for x in range(0, image.shape[1] - size + 1, size):
                tiles.append(image[y : y + size, x : x + size])
                origin.append("one tissue" if path.stem in same else path.stem)
    order = random.permutation(len(tiles) * (1 + n_copies))
    source = order // (1 + n_copies)
    is_copy = order % (1 + n_copies) > 0
    shown = [
        augmented(tiles[row], random) if copy else np.ascontiguousarray(tiles[row])
        for row, copy in zip(source, is_copy, strict=True)
    ]
    start = time.perf_counter()
    signatures = sign(shown.__getitem__, len(shown))
    evidence = gather([None] * len(shown), shown.__getitem__, signatures)
    seconds = time.perf_counter() - start

    links = evidence.links[evidence.links.kind != KINDS.index("seam")]
    first, second = source[links.pairs].T
    right = first == second
    component = components(len(shown), links.pairs[right])
    home = np.empty(len(tiles), np.int64)
    home[source[~is_copy]] = component[~is_copy]
    speck = np.zeros(len(tiles), bool)
    speck[source[~is_copy]] = signatures.faint[~is_copy]
    no_tissue = (signatures.faint | signatures.blank | speck[source])[is_copy]
    found = (component == home[source])[is_copy]
    image_of = np.array(origin)[source]
    one_tissue = (image_of[links.pairs] == "one tissue").all(axis=1)
    n_false = int((~right & ~one_tissue).sum())
    n = len(shown)
    n_pairs = n * (n - 1) // 2 - len(tiles) * (n_copies + 1) * n_copies // 2
    return (
        f"| {seed} | {n:,} | {found[~no_tissue].sum():,} of {(~no_tissue).sum():,} "
        f"({found[~no_tissue].mean():.5f}) | {found[no_tissue].sum()} of {no_tissue.sum()} "
        f"| {n_false} among {n_pairs:,} | {seconds:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--tile", type=int, default=250)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--same", nargs="*", default=SAME)
    given = parser.parse_args()
    print("| seed | tiles | copies with tissue found | without tissue | false links | s |")
    print("|" + "---|" * 6)
    for seed in given.seed:
        print(measure(given.images, given.tile, given.copies, seed, given.same), flush=True)


if __name__ == "__main__":
    main()
