"""What the phantom cohort holds, before anything is drawn: settings, slides, layouts, truth.

Every slide draws from its own generators, so a larger cohort begins with the slides of a smaller
one (and with their defects, as long as there are no more defects than slides).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from mil.phantom_tissue import SHARED_TISSUES, TUMOUR_TISSUES
from mil.seeds import derive, generator
from splits.artifacts import digest

__all__ = [
    "CLASSES",
    "DEFOCUS_PX",
    "Phantom",
    "Signature",
    "Slide",
    "defects_of",
    "layout_of",
    "plan",
    "random_of",
    "signature_of",
    "slides_of",
]

CLASSES: Final = ("healthy", *TUMOUR_TISSUES)
"""Slide labels. ``healthy`` is the absence of the others: none of its tiles bears it alone."""

# Macenko et al. 2009, as used throughout the field: r, g, b of a unit optical density vector.
_HEMATOXYLIN: Final = (0.5626, 0.7201, 0.4062)
_EOSIN: Final = (0.2159, 0.8012, 0.5581)
_WHITE: Final = 242.0
_BLUR_PX: Final = 0.6
DEFOCUS_PX: Final = 5.0
# Part of the digest: a changed drawing must not pass for the old one.
_DRAWING: Final = 1


class Phantom(BaseModel):
    """What cohort to draw."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    slides: int = Field(default=48, ge=len(CLASSES), le=10_000)
    """Number of slides; classes take turns, and every third patient of a class has two slides."""
    tiles_per_slide: int = Field(default=16, ge=2, le=4096)
    """Tiles of a slide: one compact patch, filled row by row."""
    tile_px: int = Field(default=128, ge=32, le=1024)
    """Side of a tile; the magnification stays, so a larger tile shows more tissue."""
    bearing: float = Field(default=0.4, gt=0, le=1)
    """Share of a slide's tiles that show its class."""
    signature: float = Field(default=1.0, ge=0, le=3)
    """How far slides (and a little, sites) differ in stain, strength, white and blur; 0: not."""
    names: Literal["barcode", "anonymous"] = "barcode"
    """Tile names: ``barcode`` tells site, patient, slide and place; ``anonymous`` nothing."""
    n_blank: int = Field(default=0, ge=0)
    """Tiles that are replaced by empty glass."""
    n_blurred: int = Field(default=0, ge=0)
    """Tiles that are out of focus."""
    n_truncated: int = Field(default=0, ge=0)
    """Tile files that end too early, so that they cannot be decoded."""
    sites: int = Field(default=4, ge=1, le=9)
    """Number of tissue source sites; every site has every class."""
    seed: int = Field(default=0, ge=0)
    """The same seed draws the same bytes."""

    @model_validator(mode="after")
    def _few_defects(self) -> Phantom:
        given = self.n_blank + self.n_blurred + self.n_truncated
        allowed = self.slides * (self.tiles_per_slide // 2)
        if given > allowed:
            message = (
                f"n_blank + n_blurred + n_truncated is {given}, but at most half of the tiles of "
                f"each slide can be defective: {allowed} in all"
            )
            raise ValueError(message)
        return self

    def digest(self) -> str:
        """What the cohort is a function of: the settings and the way of drawing."""
        return digest({"drawing": _DRAWING, **self.model_dump(mode="json")})


@dataclass(frozen=True)
class Slide:
    """Who a slide is; ``label`` is its class."""

    index: int
    label: str
    slide_id: str
    patient_id: str
    site_id: str


@dataclass(frozen=True)
class Signature:
    """How a slide looks: unit stain vectors (3,), strength, white point (3,), blur."""

    hematoxylin: npt.NDArray[np.float64]
    eosin: npt.NDArray[np.float64]
    strength: float
    white: npt.NDArray[np.float64]
    blur_px: float


def plan(settings: Phantom) -> pd.DataFrame:
    """The truth table, one row a tile in the order of drawing.

    Columns: ``path`` (relative to the folder of tiles), ``slide_id``, ``patient_id``, ``site_id``,
    ``label``, ``tile_label`` (tissue of most of the tile; ``background`` for empty glass),
    ``x_px``, ``y_px``, ``bearing`` (1 where the tile shows a tumour class, else 0), the slide's
    unit stain vectors ``h_r`` to ``e_b``, ``strength``, ``white_r`` to ``white_b``, ``blur_px``,
    and ``defect`` (empty, ``blank``, ``blurred`` or ``truncated``).
    """
    rows: list[dict[str, object]] = []
    taken: set[str] = set()
    for slide in slides_of(settings):
        look = signature_of(settings, slide)
        known = {
            **dict(zip(("h_r", "h_g", "h_b"), look.hematoxylin, strict=True)),
            **dict(zip(("e_r", "e_g", "e_b"), look.eosin, strict=True)),
            "strength": look.strength,
            **dict(zip(("white_r", "white_g", "white_b"), look.white, strict=True)),
        }
        layout = layout_of(settings, slide)
        defects = defects_of(settings, slide, layout)
        for tile in range(settings.tiles_per_slide):
            row, column = divmod(tile, layout.shape[1])
            defect = defects.get(tile, "")
            tissue = "background" if defect == "blank" else str(layout[row, column])
            x_px, y_px = column * settings.tile_px, row * settings.tile_px
            name = f"{slide.slide_id}_r0_x{x_px}_y{y_px}"
            if settings.names == "anonymous":
                name = _token(settings.seed, name, taken)
            rows.append(
                {
                    "path": f"{slide.label}/{name}.png",
                    "slide_id": slide.slide_id,
                    "patient_id": slide.patient_id,
                    "site_id": slide.site_id,
                    "label": slide.label,
                    "tile_label": tissue,
                    "x_px": x_px,
                    "y_px": y_px,
                    "bearing": int(tissue in TUMOUR_TISSUES),
                    **known,
                    "blur_px": DEFOCUS_PX if defect == "blurred" else look.blur_px,
                    "defect": defect,
                }
            )
    return pd.DataFrame(rows)


def random_of(settings: Phantom, slide: Slide, purpose: str) -> np.random.Generator:
    """The generator of one slide for one purpose."""
    return generator(settings.seed, "phantom", "slide", slide.index, purpose)


def slides_of(settings: Phantom) -> list[Slide]:
    """All slides, in order; the classes take turns."""
    found: list[Slide] = []
    patient = 0
    while len(found) < settings.slides:
        # A round is one patient of each class, all from one site: no site tells a class.
        turn, kind = divmod(patient, len(CLASSES))
        site_id = f"P{turn % settings.sites + 1}"
        patient_id = f"TCGA-{site_id}-{patient + 1:04d}"
        found += [
            Slide(
                index=len(found) + section,
                label=CLASSES[kind],
                slide_id=f"{patient_id}-01Z-00-DX{section + 1}",
                patient_id=patient_id,
                site_id=site_id,
            )
            for section in range(2 if turn % 3 == 2 else 1)
        ]
        patient += 1
    return found[: settings.slides]


def signature_of(settings: Phantom, slide: Slide) -> Signature:
    """Drawn from the slide and its site alone, so it says nothing about the class."""
    own = random_of(settings, slide, "signature").standard_normal(12)
    shared = generator(settings.seed, "phantom", "site", slide.site_id).standard_normal(12)
    by_slide, by_site = settings.signature * own, settings.signature * shared

    def vector(base: tuple[float, float, float], at: slice) -> npt.NDArray[np.float64]:
        turned = np.array(base) * np.exp(0.11 * by_slide[at] + 0.05 * by_site[at])
        return np.asarray(turned / np.linalg.norm(turned), np.float64)

    tint = 0.012 * by_slide[6] + 0.008 * by_slide[7:10] + 0.006 * by_site[7:10]
    return Signature(
        hematoxylin=vector(_HEMATOXYLIN, slice(0, 3)),
        eosin=vector(_EOSIN, slice(3, 6)),
        strength=float(np.exp(0.13 * by_slide[10] + 0.05 * by_site[10])),
        white=(_WHITE * np.exp(tint)).clip(0, 255),
        blur_px=float(_BLUR_PX * np.exp(0.30 * by_slide[11] + 0.10 * by_site[11])),
    )


def layout_of(settings: Phantom, slide: Slide) -> npt.NDArray[np.str_]:
    """(rows, columns) tissue of every tile; places after the last tile are drawn and not cut."""
    rng = random_of(settings, slide, "layout")
    n = settings.tiles_per_slide
    columns = int(np.ceil(np.sqrt(n)))
    shape = (-(-n // columns), columns)

    def smooth() -> npt.NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(rng.standard_normal(shape), 0.7, mode="nearest"))

    tissue = np.array(SHARED_TISSUES)[np.argmax([smooth() for _ in SHARED_TISSUES], axis=0)]
    n_bearing = max(1, round(settings.bearing * n))
    chosen = np.argsort(-smooth().ravel()[:n], kind="stable")[:n_bearing]
    layout = tissue.astype("<U16").ravel()
    layout[chosen] = slide.label
    return np.asarray(layout.reshape(shape), np.str_)


def defects_of(settings: Phantom, slide: Slide, layout: npt.NDArray[np.str_]) -> dict[int, str]:
    """Tile -> defect. Slides take turns; tiles that bear the class are spared while others last."""
    kinds = (
        ["blank"] * settings.n_blank
        + ["blurred"] * settings.n_blurred
        + ["truncated"] * settings.n_truncated
    )[slide.index :: settings.slides]
    shuffled = random_of(settings, slide, "defects").permutation(settings.tiles_per_slide)
    bears = np.isin(layout.ravel()[shuffled], TUMOUR_TISSUES)
    order = shuffled[np.argsort(bears, kind="stable")]
    return {int(tile): kind for tile, kind in zip(order, kinds, strict=False)}


def _token(seed: int, name: str, taken: set[str]) -> str:
    """Ten hex digits that say nothing and sort at random; derived again if already in use."""
    attempt = 0
    while (token := f"{derive(seed, 'phantom', 'name', name, attempt):016x}"[-10:]) in taken:
        attempt += 1
    taken.add(token)
    return token
