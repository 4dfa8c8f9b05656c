"""Small pictures inside the page: attended tiles, and hematoxylin and eosin of each site."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mil.predictions import ends
from mil.report.inputs import Inputs, true_probability
from mil.stain.vectors import concentrations
from splits.errors import SlidewiseError

__all__ = [
    "Picture",
    "ReadTile",
    "attended",
    "cut_text",
    "gallery",
    "jpeg_uri",
    "read_or_none",
    "thumbnail",
    "tint",
]

ReadTile = Callable[[str], npt.NDArray[np.uint8]]
SIDE_PX = 128
N_TILES = 6
N_SLIDES = 3
MAX_SITES = 12
_TRIED = 7
# Optical density (natural logarithm) drawn for a concentration at its slide's 99th percentile.
_DENSITY = 1.7


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI (``None`` where the tile could not be read) and the words under it."""

    uri: str | None
    alt: str
    lines: tuple[str, ...]


def thumbnail(rgb: npt.NDArray[np.uint8]) -> str:
    """A data URI of the picture (H, W, 3), its longer side at most 128 px."""
    image = Image.fromarray(rgb)
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return jpeg_uri(image)


def jpeg_uri(image: Image.Image, quality: int = 85) -> str:
    """The picture as a JPEG in a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def cut_text(text: str, width_px: int, font: Any) -> str:
    """Cut a line that is wider than the sheet."""
    while len(text) > 1 and font.getlength(text) > width_px:
        text = text[:-2] + "\u2026"
    return text


def tint(
    amount: npt.NDArray[np.floating[Any]], vector: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.uint8]:
    """Colour a stain from white to its own colour by Beer-Lambert.

    Args:
        amount: Relative concentration (H, W), clipped to 0 to 1.
        vector: Optical-density direction of the stain (3,), any length.

    Returns:
        RGB, (H, W, 3).
    """
    unit = vector / max(float(np.linalg.norm(vector)), 1e-9)
    density = _DENSITY * np.clip(amount, 0, 1)[..., None] * unit
    colours: npt.NDArray[np.uint8] = np.round(255 * np.exp(-density)).astype(np.uint8)
    return colours


def attended(inputs: Inputs, method: str, read_tile: ReadTile | None) -> list[dict[str, Any]]:
    """The most and least attended tiles of the surest right and the most mistaken slides.

    Slides are ranked by the probability of their true class, at most one a class, so that the
    choice follows from the tables alone.
    """
    if inputs.attention is None:
        return []
    weights = inputs.attention[inputs.attention["method"] == method]
    slides = inputs.slides_of(method)
    slides = slides[slides.index.isin(weights["slide_id"])]
    slides = slides.assign(p_true=true_probability(slides, inputs.classes))
    right = slides["predicted"] == slides["label"]
    picked = []
    for is_right, rows in ((True, slides[right]), (False, slides[~right])):
        ranked = rows.sort_values("p_true", ascending=not is_right, kind="stable")
        for slide in ranked.drop_duplicates("label").head(N_SLIDES).itertuples():
            bag = weights[weights["slide_id"] == slide.Index]
            picked.append(
                {
                    "slide_id": str(slide.Index),
                    "right": is_right,
                    "label": str(slide.label),
                    "predicted": str(slide.predicted),
                    "p_true": f"{slide.p_true:.2f}",
                    "n_tiles": len(bag),
                    **_ends(bag, read_tile),
                }
            )
    return picked


def _ends(bag: pd.DataFrame, read_tile: ReadTile | None) -> dict[str, list[Picture]]:
    pictures: dict[str, list[Picture]] = {"top": [], "bottom": []}
    for row in ends(bag, "attention", N_TILES).itertuples():
        rgb = read_or_none(str(row.tile_id), read_tile)
        weight = float(row.attention)
        pictures[str(row.end)].append(
            Picture(
                uri=None if rgb is None else thumbnail(rgb),
                alt=f"tile {row.tile_id}",
                lines=(f"{weight:.3f}", f"{weight * len(bag):.1f} \u00d7 even"),
            )
        )
    return pictures


def gallery(inputs: Inputs, read_tile: ReadTile | None) -> dict[str, Any]:
    """RGB, hematoxylin and eosin of one tile of one slide a site.

    Of a few tiles spread over the slide, the most coloured one is shown, since many are blank.
    Without sites, slides spread over the sorted ids stand in for them.
    """
    result: dict[str, Any] = {"rows": [], "not_shown": 0, "by_site": True, "stains": False}
    if inputs.tiles is None or inputs.tiles["slide_id"].isna().all():
        return result
    tiles = inputs.tiles.sort_values("tile_id")
    slides = tiles.drop_duplicates("slide_id").sort_values("slide_id")
    if slides["site_id"].notna().any():
        chosen = slides.dropna(subset="site_id").drop_duplicates("site_id").sort_values("site_id")
        result["not_shown"] = max(0, len(chosen) - MAX_SITES)
        chosen = chosen.head(MAX_SITES)
    else:
        result["by_site"] = False
        places = np.linspace(0, len(slides) - 1, min(MAX_SITES, len(slides)))
        chosen = slides.iloc[np.round(places).astype(int)]
        result["not_shown"] = len(slides) - len(chosen)
    stain = _stain(inputs)
    result["stains"] = bool(stain)
    for slide in chosen.itertuples():
        names = tiles.loc[tiles["slide_id"] == slide.slide_id, "tile_id"].astype(str).tolist()
        rgb = _most_coloured(names, read_tile)
        entry = stain.get(str(slide.slide_id))
        site = str(slide.site_id) if pd.notna(slide.site_id) else None
        result["rows"].append(
            {
                "site": site,
                "slide_id": str(slide.slide_id),
                "label": str(slide.slide_label),
                "source": None if entry is None else str(entry["source"]),
                "note": "" if entry is None or pd.isna(entry["note"]) else str(entry["note"]),
                "pictures": [] if rgb is None else _stained(rgb, entry, str(slide.slide_id)),
            }
        )
    return result


def _stain(inputs: Inputs) -> dict[str, dict[str, Any]]:
    if inputs.stain is None:
        return {}
    rows = inputs.stain[inputs.stain["method"] != "none"]
    return {str(row["slide_id"]): row for row in rows.to_dict("records")}


def _stained(rgb: npt.NDArray[np.uint8], entry: dict[str, Any] | None, slide: str) -> list[Picture]:
    pictures = [Picture(thumbnail(rgb), f"a tile of slide {slide}", ("RGB",))]
    if entry is None:
        return pictures
    white = np.array([entry[f"white_{c}"] for c in "rgb"], dtype=np.float64)
    vectors = np.array([[entry[f"{s}_{c}"] for c in "rgb"] for s in "he"], dtype=np.float64)
    amounts = np.asarray(concentrations(rgb, white, vectors))
    for place, (key, name) in enumerate((("h", "Hematoxylin"), ("e", "Eosin"))):
        amount = amounts[..., place] / max(float(entry[f"{key}_p99"]), 1e-9)
        picture = thumbnail(tint(amount, vectors[place]))
        pictures.append(Picture(picture, f"{name} of the same tile", (name,)))
    return pictures


def _most_coloured(names: list[str], read_tile: ReadTile | None) -> npt.NDArray[np.uint8] | None:
    places = np.round(np.linspace(0, len(names) - 1, min(_TRIED, len(names)))).astype(int)
    found = [
        rgb
        for rgb in (read_or_none(names[place], read_tile) for place in places)
        if rgb is not None
    ]
    if not found:
        return None
    return max(found, key=lambda rgb: float((rgb.max(-1) - rgb.min(-1)).mean()))


def read_or_none(tile_id: str, read_tile: ReadTile | None) -> npt.NDArray[np.uint8] | None:
    """The pixels of a tile, or None: the page says so in their place."""
    if read_tile is None:
        return None
    try:
        return read_tile(tile_id)
    except (OSError, SlidewiseError):
        return None
