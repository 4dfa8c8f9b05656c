"""How much slides differ in RGB and after each way of staining, on real tiles.

    python benchmarks/stain_spread.py ../shared/data/tcga_organs docs/stain_spread.png

Measured are the means of whole tiles (250 px) in each channel that an encoder would see, 0 to 255.
Between: deviation of the slides about their common mean; within: of tiles about their slide's
mean; share: variance between slides of all variance (one-way random effects, the intraclass
correlation). Tissue differs between slides too, so the share cannot and should not reach 0. Slides
are told by the barcode in front of ``_r``; those with red and blue exchanged in the files are
counted once and left out once. The picture shows Macenko against RGB, a dot a slide, its mean in
units of the deviation within slides. Last, the colour of tissue that Reinhard's reference is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from mil.data.images import decode
from mil.stain.channels import stainer
from mil.stain.fit import EXCHANGED, METHODS
from mil.stain.slides import fit_stains

SIDE_PX = 250
INK, SOFT, OTHER = (34, 29, 43), (120, 113, 128), (214, 96, 20)
COLOURS = {"R": (200, 45, 45), "G": (40, 140, 60), "B": (50, 80, 200), "H": (80, 60, 150),
           "E": (214, 90, 140)}  # fmt: skip
Floats = npt.NDArray[np.float64]


def spread(values: Floats, slides: npt.NDArray[np.str_]) -> tuple[float, float, float]:
    """Deviation between slides, within slides, and the share of variance between."""
    frame = pd.DataFrame({"slide": slides, "value": values})
    group = frame.groupby("slide")["value"]
    n, mean = group.size().to_numpy(), group.mean().to_numpy()
    total, k = n.sum(), len(n)
    within = float(np.square(frame["value"] - group.transform("mean")).sum()) / (total - k)
    between = float((n * np.square(mean - values.mean())).sum()) / (k - 1)
    per_slide = (total - np.square(n).sum() / total) / (k - 1)
    variance = max((between - within) / per_slide, 0.0)
    return variance**0.5, within**0.5, variance / (variance + within)


def picture(
    means: dict[str, Floats], slides: npt.NDArray[np.str_], swapped: set[str], path: Path
) -> None:
    """A line a channel, a dot a slide."""
    width, height, left, right, line = 940, 520, 150, 250, 84
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet, "RGBA")
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    names = {"R": "red", "G": "green", "B": "blue", "H": "hematoxylin", "E": "eosin"}
    order = np.array([name not in swapped for name in slides])
    draw.text((left, 8), "Slides differ less after stain separation", INK, font)
    draw.text((width - right + 14, 8), "share of variance between slides", INK, small)
    draw.text((width - right + 14, 24), "all slides / in order", SOFT, small)
    scale = (width - left - right) / 12  # 12 deviations across
    middle = left + 6 * scale
    for row, (name, values) in enumerate(means.items()):
        y = 84 + row * line - (0 if row < 3 else -14)
        draw.text((16, y - 10), names[name], COLOURS[name], font)
        draw.line((left, y, width - right, y), (225, 222, 228), 1)
        _, within, share = spread(values, slides)
        _, _, ordered = spread(values[order], slides[order])
        per_slide = pd.Series(values).groupby(slides).mean()
        for place, (slide, mean) in enumerate(per_slide.items()):
            x = middle + scale * np.clip((mean - values.mean()) / within, -6, 6)
            up = y + 7 * (place % 5 - 2)
            ring = slide in swapped
            colour = (*COLOURS[name], 150)
            draw.ellipse(
                (x - 5, up - 5, x + 5, up + 5),
                None if ring else colour,
                OTHER if ring else None,
                2 if ring else 0,
            )
        draw.text((width - right + 14, y - 10), f"{share:.0%}  /  {ordered:.0%}", INK, font)
    axis = height - 52
    for step in range(-6, 7, 2):
        x = middle + step * scale
        draw.line((x, axis - 4, x, axis), SOFT, 1)
        draw.text((x - 8, axis + 2), f"{step:+d}" if step else "0", SOFT, small)
    caption = (
        "mean of a slide, in deviations of its tiles' means about it; "
        "rings: red and blue exchanged in the files"
    )
    draw.text((left - 40, height - 26), caption, SOFT, small)
    sheet.quantize(96).save(path, optimize=True)


def main(root: Path, out: Path) -> None:
    """Print the table and draw the picture."""
    tiles = pd.DataFrame({"tile_id": sorted(p.relative_to(root) for p in root.rglob("*.jpg"))})
    tiles["tile_id"] = [path.as_posix() for path in tiles["tile_id"]]
    tiles["slide_id"] = [Path(name).name.split("_r")[0] for name in tiles["tile_id"]]
    slides = tiles["slide_id"].to_numpy(dtype=str)
    rgb = np.stack([decode(root, name, SIDE_PX) for name in tiles["tile_id"]])
    rgb = np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))
    drawn: dict[str, Floats] = {}
    usual = fit_stains(root, tiles, "macenko", size_px=SIDE_PX, seed=0)
    assert usual is not None
    swapped = set(usual.loc[usual["note"].str.contains(EXCHANGED), "slide_id"])
    ordered = np.array([name not in swapped for name in slides])
    for method in ("none", *METHODS):
        table = fit_stains(root, tiles, method, size_px=SIDE_PX, seed=0)
        stain = stainer(table, "rgb" if method == "reinhard" else "he")
        blocks = [
            stain(torch.from_numpy(rgb[i : i + 64]), slides[i : i + 64].tolist())
            .numpy()
            .mean(axis=(2, 3))
            for i in range(0, len(rgb), 64)
        ]
        means = np.concatenate(blocks)
        names = "RGB" if means.shape[1] == 3 else "HE"
        if method in ("none", "macenko"):
            drawn |= dict(zip(names, means.T, strict=True))
        for kept, what in ((np.ones(len(slides), dtype=bool), "all"), (ordered, "in order")):
            line = f"{method:13}{what:13}{len(set(slides[kept])):3} slides"
            for name, values in zip(names, means.T, strict=True):
                between, within, share = spread(values[kept], slides[kept])
                line += f"   {name} {between:5.1f} / {within:4.1f} {share:4.0%}"
            print(line)
    picture(drawn, slides, swapped, out)
    colour = usual[~usual["slide_id"].isin(swapped)].filter(like="lab_").median()
    print(f"\nmedian colour of tissue, slides in order: {colour.round(1).to_dict()}\n{out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
