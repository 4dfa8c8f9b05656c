"""Picture of the slides whose stain fit is most in doubt: ``stain.png``, and its place on the page.

A row a slide: a tile, its hematoxylin, its eosin, what both together explain, and where the two
vectors lie beside the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mil.report.inputs import Inputs
from mil.report.pictures import ReadTile, cut_text, jpeg_uri, read_or_none, tint
from mil.stain.density import optical_density
from mil.stain.fit import StainFit, from_table
from mil.stain.quality import summary
from mil.stain.vectors import REFERENCE, concentrations
from splits.artifacts import atomic

__all__ = ["StainSection", "section"]

N_SLIDES: Final = 6
_TRIED: Final = 7
_SIDE: Final = 132
_GAP: Final = 12
_TITLE: Final = 24
_PLOT: Final = 150
_SWATCH: Final = 56
_TOP: Final = 0.6  # end of both axes of the plot: share of red or blue in a vector
_INK: Final = (34, 29, 43)
_SOFT: Final = (100, 93, 112)
_LINE: Final = (205, 200, 212)
_DENSITY: Final = 1.2  # optical density at which a vector is shown as a colour
_GLASS: Final = np.full(3, 245.0)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StainSection:
    """What the page says of the stain fits.

    Attributes:
        sentence: The flags in words; empty if there are none.
        uri: The picture as a data URI; None where no tile could be read.
        n_shown: Slides on it.
    """

    sentence: str
    uri: str | None
    n_shown: int


def section(found: Inputs, read_tile: ReadTile | None) -> StainSection | None:
    """Draw ``stain.png`` into the run; None without a stain table that has qualities."""
    path = found.run / "stain.png"
    path.unlink(missing_ok=True)
    if found.stain is None or "severity" not in found.stain or found.tiles is None:
        return None
    worst = found.stain.sort_values("severity", ascending=False, kind="stable").head(N_SLIDES)
    fits = from_table(worst)
    rows = []
    for slide, fit in fits.items():
        names = found.tiles.loc[found.tiles["slide_id"] == slide, "tile_id"].sort_values()
        rgb = _fullest(names.astype(str).tolist(), fit, read_tile)
        if rgb is not None:
            rows.append((slide, fit, rgb))
    sentence = summary(found.stain)
    if not rows:
        return StainSection(sentence, None, 0)
    sheet = _draw(rows)
    with atomic(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return StainSection(sentence, jpeg_uri(sheet, quality=88), len(rows))


def _fullest(names: list[str], fit: StainFit, read_tile: ReadTile | None) -> Pixels | None:
    """Of a few tiles spread over the slide, the one that lets least light through."""
    places = np.round(np.linspace(0, len(names) - 1, min(_TRIED, len(names)))).astype(int)
    tiles = [read_or_none(names[place], read_tile) for place in places]
    readable = [rgb for rgb in tiles if rgb is not None]
    if not readable:
        return None
    return max(readable, key=lambda rgb: float(optical_density(rgb, fit.white).mean()))


def _draw(rows: list[tuple[str, StainFit, Pixels]]) -> Image.Image:
    step = _SIDE + _GAP
    width = _GAP + 4 * step + _PLOT + 2 * (_SWATCH + _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (width, _GAP + _TITLE + len(rows) * (step + 2 * _TITLE)), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=12)
    headings = ["RGB", "hematoxylin", "eosin", "both together", "vectors: blue against red"]
    for place, heading in enumerate(headings):
        draw.text((_GAP + place * step, _GAP), heading, _SOFT, small)
    for line, (slide, fit, rgb) in enumerate(rows):
        top = _GAP + _TITLE + line * (step + 2 * _TITLE)
        words = fit.quality.flag or f"not flagged ({fit.quality.severity:.0%} of the nearest limit)"
        if fit.note:
            words += f"; note: {fit.note}"
        draw.text((_GAP, top), cut_text(slide, width - 2 * _GAP, font), _INK, font)
        draw.text((_GAP, top + 18), cut_text(words, width - 2 * _GAP, small), _SOFT, small)
        top += 2 * _TITLE - 8
        for place, pixels in enumerate(_columns(rgb, fit)):
            image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            sheet.paste(image, (_GAP + place * step, top))
        left = _GAP + 4 * step
        _plot(draw, left, top, fit, small)
        for place, (name, vectors) in enumerate((("slide", fit.vectors), ("reference", REFERENCE))):
            x = left + _PLOT + _GAP + place * (_SWATCH + _GAP)
            draw.text((x, top - 2), name, _SOFT, small)
            for row, vector in enumerate(vectors):
                y = top + 16 + row * (_SWATCH + 2)
                draw.rectangle((x, y, x + _SWATCH, y + _SWATCH), _colour(vector))
                draw.text((x + 4, y + 2), "HE"[row], "white", small)
    return sheet


def _columns(rgb: Pixels, fit: StainFit) -> list[Pixels]:
    """RGB, both stains in the colour of their vectors, and their sum."""
    amount = np.maximum(concentrations(rgb, fit.white, fit.vectors), 0.0)
    both = np.rint((fit.white + 1) * np.exp(-amount @ fit.vectors) - 1).clip(0, 255)
    stains = [tint(amount[..., i] / fit.p99[i], fit.vectors[i]) for i in range(2)]
    return [rgb, *stains, both.astype(np.uint8)]


def _plot(draw: ImageDraw.ImageDraw, left: int, top: int, fit: StainFit, font: Any) -> None:
    """Share of red (right) and of blue (up) in each vector: dots, and rings for the reference."""
    side = _SIDE - 14

    def at(vector: npt.NDArray[np.float64]) -> tuple[float, float]:
        share = vector / vector.sum()
        return left + side * share[0] / _TOP, top + side * (1 - share[2] / _TOP)

    draw.rectangle((left, top, left + side, top + side), None, _LINE)
    draw.text((left + side - 24, top + side + 1), "red", _SOFT, font)
    draw.text((left + 4, top + 2), "blue", _SOFT, font)
    draw.line([at(vector) for vector in REFERENCE], _LINE, 2)
    draw.line([at(vector) for vector in fit.vectors], _SOFT, 2)
    for known, own in zip(REFERENCE, fit.vectors, strict=True):
        x, y = at(known)
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), None, _colour(known), 2)
        x, y = at(own)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), _colour(own))
    for name, own in zip("HE", fit.vectors, strict=True):
        x, y = at(own)
        draw.text((x + 7, y - 7), name, _INK, font)


def _colour(vector: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.rint(_GLASS * np.exp(-_DENSITY * vector)).astype(int).tolist()
    return red, green, blue
