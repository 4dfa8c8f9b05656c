"""Stain vectors and concentrations against the truth of phantom slides.

    python benchmarks/stain_phantom.py [--slides 24] [--signature 1.5]

First table: degrees between the fitted and the true vectors, against the share of tissue among the
pixels. A slide is 100,000 pixels pooled over its tiles, and a tile (``macenko_tile``) 16,384 pixels
of one of them; the share is made by adding glass (the slide's white point with camera noise of 2
grey levels). Tissue is where the true mean optical density reaches 0.15. Per method: mean error of
hematoxylin, of eosin, the 95th percentile of the larger of the two, and how often the reference had
to be taken instead.

Second table: Pearson correlation within a slide between the drawn concentrations, blurred by the
slide's lens, and those separated from its uint8 tiles, over tissue pixels and over the means of
4 x 4 px blocks that are at least half tissue. Camera noise alone lowers it, so it stands beside
what the true vectors and the true white point give.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mil.phantom import Phantom, render
from mil.phantom_plan import Signature, layout_of, random_of, signature_of, slides_of
from mil.phantom_tissue import draw_tissue
from mil.seeds import generator
from mil.stain.fit import fit_slide, fit_tile
from mil.stain.vectors import REFERENCE, concentrations, degrees

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20, 0.50)
POOL_PX, TILE_PX = 100_000, 128 * 128
NOISE_LEVELS = 2.0
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


def slides(settings: Phantom) -> Iterator[tuple[Pixels, Floats, Signature]]:
    """Tiles ``(n, s, s, 3)``, true concentrations ``(n, s, s, 2)`` by the lens, and the look."""
    side = settings.tile_px
    for index, slide in enumerate(slides_of(settings)):
        look, layout = signature_of(settings, slide), layout_of(settings, slide)
        drawn = draw_tissue(layout, side, random_of(settings, slide, "tissue"))
        truth = look.strength * np.stack(drawn, axis=-1).astype(np.float64)
        seen = ndimage.gaussian_filter(truth, (look.blur_px, look.blur_px, 0))
        rows, columns = layout.shape
        cut = seen.reshape(rows, side, columns, side, 2).swapaxes(1, 2).reshape(-1, side, side, 2)
        tiles = render(settings, index)
        yield tiles, cut[: len(tiles)], look


def means(values: Floats, side: int) -> Floats:
    """Means over blocks of ``side`` x ``side`` px of ``(n, s, s, c)``."""
    n, size, _, channels = values.shape
    blocks = values.reshape(n, size // side, side, size // side, side, channels)
    return np.asarray(blocks.mean(axis=(2, 4)))


def correlations(found: Floats, truth: Floats, is_tissue: npt.NDArray[np.bool_]) -> list[float]:
    """H and E a pixel, then H and E a block of 4 x 4 px."""
    result = []
    for side in (1, 4):
        kept = means(is_tissue[..., None].astype(np.float64), side)[..., 0] >= 0.5
        a, b = means(found, side)[kept], means(truth, side)[kept]
        result += [float(np.corrcoef(a[:, i], b[:, i])[0, 1]) for i in range(2)]
    return result


def with_glass(
    tissue: Pixels, share: float, n: int, look: Signature, rng: np.random.Generator
) -> Pixels:
    """``n`` pixels, ``share`` of them tissue."""
    n_tissue = round(share * n)
    glass = look.white + NOISE_LEVELS * rng.standard_normal((n - n_tissue, 3))
    chosen = tissue[rng.integers(0, len(tissue), n_tissue)]
    return np.concatenate([chosen, np.rint(glass).clip(0, 255).astype(np.uint8)])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=24)
    parser.add_argument("--signature", type=float, default=1.5)
    given = parser.parse_args()
    settings = Phantom(
        slides=given.slides, tiles_per_slide=9, tile_px=128, signature=given.signature
    )
    errors: dict[tuple[str, float], list[tuple[float, float, bool]]] = {}
    correlation: dict[str, list[list[float]]] = {}
    from_reference = []
    start = time.perf_counter()
    for index, (tiles, truth, look) in enumerate(slides(settings)):
        rng = generator(0, "stain_phantom", index)
        stain = np.stack([look.hematoxylin, look.eosin])
        from_reference.append([degrees(a, b) for a, b in zip(REFERENCE, stain, strict=True)])
        is_tissue = (truth @ stain).mean(axis=-1) >= 0.15
        fullest = int(is_tissue.mean(axis=(1, 2)).argmax())
        for share in SHARES:
            pool = with_glass(tiles[is_tissue], share, POOL_PX, look, rng)
            one = tiles[fullest][is_tissue[fullest]]
            tile = with_glass(one, share, TILE_PX, look, rng)
            for method in ("macenko", "vahadane"):
                fit = fit_slide(pool, method)
                away = [degrees(a, b) for a, b in zip(fit.vectors, stain, strict=True)]
                failed = fit.source == "reference"
                errors.setdefault((method, share), []).append((away[0], away[1], failed))
            vectors, _, own = fit_tile(tile, fit.white, REFERENCE)
            away = [degrees(a, b) for a, b in zip(vectors, stain, strict=True)]
            errors.setdefault(("macenko_tile", share), []).append((away[0], away[1], not own))
        fit = fit_slide(tiles.reshape(-1, 3), "macenko")
        for name, white, used in (("fit", fit.white, fit.vectors), ("truth", look.white, stain)):
            found = concentrations(tiles, white, used)
            correlation.setdefault(name, []).append(correlations(found, truth, is_tissue))
    print(
        f"{given.slides} slides, signature {given.signature:g}; the reference itself is "
        f"{np.mean(from_reference):.1f} degrees off, {time.perf_counter() - start:.0f} s\n"
    )
    print(f"{'':7}" + "".join(f"{name:>30}" for name in ("macenko", "vahadane", "macenko_tile")))
    print("tissue " + f"{'H':>12}{'E':>6}{'95 %':>6}{'ref':>6}" * 3)
    for share in SHARES:
        line = f"{share:6.0%} "
        for method in ("macenko", "vahadane", "macenko_tile"):
            rows = np.array(errors[method, share])
            worst = np.percentile(rows[:, :2].max(axis=1), 95)
            line += f"{rows[:, 0].mean():12.2f}{rows[:, 1].mean():6.2f}{worst:6.2f}"
            line += f"{rows[:, 2].mean():6.0%}"
        print(line)
    print("\ncorrelation, median (least) over slides" + f"{'own fit':>15}{'true vectors':>19}")
    for place, name in enumerate(("H, pixel", "E, pixel", "H, 4 x 4 px", "E, 4 x 4 px")):
        line = f"{name:39}"
        for rows in correlation.values():
            column = np.array(rows)[:, place]
            line += f"{np.median(column):8.4f} ({column.min():.3f})"
        print(line)


if __name__ == "__main__":
    main()
