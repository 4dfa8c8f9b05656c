"""How strong the prior of a stain fit should be: real slides known from one small window.

    python benchmarks/stain_prior.py ../shared/data/tcga_organs ../shared/data/ucsb_breast

The vectors of the whole slide stand for the truth. A window of 8 to 128 px of one of its tiles is
fitted alone (the slide's white point is known) and drawn to the reference with ``n / (n + prior)``,
where ``n`` is its number of tissue pixels; six windows a slide. Printed are the mean and the 90th
percentile of the larger error of the two vectors, in degrees. Below, what the cohort gets at 32 px
a tile: slides that a fall-back below 2,000 tissue pixels would have sent to the reference, and
those whose fit leans on it by half or more now.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mil.data.images import resize_tile
from mil.seeds import generator
from mil.stain.density import is_ink, is_tissue, optical_density
from mil.stain.fit import PRIOR_PX, fit_slide
from mil.stain.vectors import REFERENCE, degrees, implausible, is_exchanged, macenko, unit
from splits.images import read_tile

PRIORS = (0, 30, 100, 300, 1_000, 3_000, 10_000)
SIDES = (8, 16, 32, 64, 128)
WINDOWS = 6
FEW_PX = 2_000
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def slides(roots: list[Path]) -> dict[str, list[Pixels]]:
    """At most 12 tiles of each slide; an image of UCSB is a slide and cut into 256 px."""
    found: dict[str, list[Pixels]] = {}
    for root in roots:
        for path in sorted([*root.rglob("*.jpg"), *root.rglob("*.tif")]):
            image = read_tile(root, path.relative_to(root).as_posix())
            tiles = found.setdefault(path.stem.split("_r")[0], [])
            size = min(256, *image.shape[:2])
            for top in range(0, image.shape[0] - size + 1, size):
                for left in range(0, image.shape[1] - size + 1, size):
                    tiles.append(image[top : top + size, left : left + size])
    return {name: tiles[:: max(1, len(tiles) // 12)] for name, tiles in found.items()}


def tissue_of(pixels: Pixels, white: Floats) -> Floats:
    """Densities of stained pixels."""
    density = optical_density(pixels.reshape(-1, 3), white)
    density = density[is_tissue(density)]
    return density[~is_ink(density)]


def main(roots: list[Path]) -> None:
    """Print the table."""
    errors: dict[int, list[list[float]]] = {side: [] for side in SIDES}
    few = lean = 0
    found = slides(roots)
    for name, tiles in found.items():
        rng = generator(0, "stain_prior", name)
        whole = fit_slide(np.concatenate([tile.reshape(-1, 3) for tile in tiles]), "macenko")
        reference = REFERENCE[:, ::-1] if is_exchanged(whole.vectors) else REFERENCE
        for side in SIDES * WINDOWS:
            tile = tiles[rng.integers(len(tiles))]
            top, left = rng.integers(0, np.array(tile.shape[:2]) - side + 1)
            tissue = tissue_of(tile[top : top + side, left : left + side], whole.white)
            if len(tissue) < 2:
                continue
            own = macenko(tissue)
            own = reference if implausible(own) else own
            row = []
            for prior in PRIORS:
                weight = len(tissue) / (len(tissue) + prior)
                used = unit(weight * own + (1 - weight) * reference)
                row.append(max(degrees(a, b) for a, b in zip(used, whole.vectors, strict=True)))
            errors[side].append(row)
        small = fit_slide(
            np.concatenate([resize_tile(t, 32).reshape(-1, 3) for t in tiles]), "macenko"
        )
        few += small.n_tissue_px < FEW_PX
        lean += small.n_tissue_px < PRIOR_PX
    print("window  windows   " + "".join(f"{prior:>14,}" for prior in PRIORS))
    for side, rows in errors.items():
        mean, high = np.mean(rows, axis=0), np.percentile(rows, 90, axis=0)
        cells = "".join(f"{a:8.1f} {b:5.1f}" for a, b in zip(mean, high, strict=True))
        print(f"{side:3} px {len(rows):9}   {cells}")
    print(f"\n{len(found)} slides at 32 px a tile: {few} below {FEW_PX:,} tissue pixels, ", end="")
    print(f"{lean} below {PRIOR_PX}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
