"""Drawing of the phantom's tissues, as maps of the hematoxylin and the eosin concentration.

A whole slide is one continuous field that is cut into tiles afterwards, so that facing edges of
neighbouring tiles match as they do on glass. The scale is about one micrometre a pixel: a healthy
nucleus is 9 px wide, a gland about 60 px. The classes differ in architecture and scale (gland
lumina, sheets of large nuclei, honeycombs of clear cells), never in the stain.

Concentrations are per unit stain vector and natural optical density, so an intensity is
``white * exp(-(c_h * v_h + c_e * v_e))``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from mil.phantom_canvas import Canvas, FloatMap, Nuclei, soften

__all__ = ["SHARED_TISSUES", "TUMOUR_TISSUES", "draw_tissue"]

SHARED_TISSUES: Final = ("stroma", "fat", "healthy")
"""Tissues that any slide can hold."""
TUMOUR_TISSUES: Final = ("glandular", "solid", "clear")
"""Tissues that only slides of the class of that name hold."""


def draw_tissue(
    layout: npt.NDArray[np.str_], tile_px: int, rng: np.random.Generator
) -> tuple[FloatMap, FloatMap]:
    """Draw one canvas.

    Args:
        layout: (rows, columns) tissue name of every tile.
        tile_px: Side of a tile.
        rng: Source of all randomness.

    Returns:
        Hematoxylin and eosin concentrations, each (rows * tile_px, columns * tile_px).
    """
    pixels = np.repeat(np.repeat(layout, tile_px, axis=0), tile_px, axis=1)
    canvas = Canvas(rng, pixels)
    # A shift of a tenth of a tile leaves every tile mostly to the tissue that it is called after.
    canvas.region = canvas.bent(pixels, tile_px / 10, tile_px / 3)
    _stroma(canvas)
    for name, draw in _DRAW.items():
        if (layout == name).any():
            draw(canvas)
    return canvas.stained()


def _fibres(canvas: Canvas, angle: float, period_px: float) -> tuple[FloatMap, FloatMap]:
    """Wavy bundles: a line profile read along a bent coordinate, and the local direction."""
    y, x = np.indices(canvas.shape).astype(np.float32)
    bend = 34 * canvas.noise(130) + 7 * canvas.noise(38) + 1.3 * canvas.noise(11)
    across = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle)) + bend
    profile = canvas.rng.standard_normal(int((np.ptp(across)) / period_px) + 4)
    position = (across - across.min()) / period_px + 1
    value = np.interp(position, np.arange(len(profile)), profile).astype(np.float32)
    slope_y, slope_x = np.gradient(across)
    return value * (0.6 + 0.4 * canvas.noise(22)), np.arctan2(-slope_x, slope_y)


def _stroma(canvas: Canvas) -> None:
    """Collagen with clefts, spindle nuclei along the fibres, and a few lymphocytes."""
    rng = canvas.rng
    angle = rng.uniform(0, np.pi)
    coarse, direction = _fibres(canvas, angle, 7.0)
    fine, _ = _fibres(canvas, angle + rng.normal(0, 0.15), 2.6)
    cleft = np.clip((-coarse - 0.95) * 2.2, 0, 1)
    canvas.eosin += np.clip(0.62 + 0.17 * coarse + 0.13 * fine + 0.07 * canvas.noise(50), 0.1, 1.3)
    canvas.eosin *= 1 - 0.9 * cleft
    canvas.hematoxylin += (0.06 + 0.02 * canvas.noise(9)) * (1 - cleft)

    spindle = canvas.points(21, jitter=0.7)
    spindle = spindle[rng.random(len(spindle)) < 0.62]
    along = direction[spindle[:, 0].astype(np.intp), spindle[:, 1].astype(np.intp)]
    n = len(spindle)
    canvas.stamp(
        Nuclei(
            spindle[:, 0],
            spindle[:, 1],
            long_px=rng.uniform(5.0, 9.0, n),
            short_px=rng.uniform(1.5, 2.5, n),
            angle=along + rng.normal(0, 0.12, n),
            density=rng.uniform(0.95, 1.5, n),
            membrane=0.1,
        )
    )
    immune = canvas.points(11, jitter=0.6)
    cluster = canvas.noise(45)[immune[:, 0].astype(np.intp), immune[:, 1].astype(np.intp)]
    immune = immune[rng.random(len(immune)) < np.clip(0.35 * (cluster - 1.1), 0.01, 0.6)]
    canvas.stamp(_round(rng, immune, (2.7, 3.5), (1.5, 1.9)))


def _round(
    rng: np.random.Generator,
    points: npt.NDArray[np.float64],
    radius_px: tuple[float, float],
    density: tuple[float, float],
    *,
    membrane: float = 0.25,
    nucleolus: float = 0.0,
) -> Nuclei:
    n = len(points)
    radius = rng.uniform(*radius_px, n)
    return Nuclei(
        points[:, 0],
        points[:, 1],
        long_px=radius * rng.uniform(1.0, 1.15, n),
        short_px=radius,
        angle=rng.uniform(0, np.pi, n),
        density=rng.uniform(*density, n),
        membrane=membrane,
        nucleolus=nucleolus,
        irregular=0.02,
    )


def _fat(canvas: Canvas) -> None:
    """White vacuoles of many sizes, thin walls, and flat nuclei pressed into the corners."""
    rng = canvas.rng
    points = canvas.points(33, jitter=0.55)
    label, distance = canvas.cells(points, 1.5)
    inside = (canvas.named(points) == "fat")[label]
    wall = np.exp(-np.square(distance / (1.5 + 0.4 * canvas.noise(14))))
    canvas.clear_nuclei(soften(inside, 0.7))
    canvas.lay(
        soften(inside, 0.7),
        (0.02 + 0.10 * wall).astype(np.float32),
        (0.015 + 0.62 * wall).astype(np.float32),
    )
    corner = canvas.points(17, jitter=0.6)
    at = corner.astype(np.intp)
    squeezed = inside[at[:, 0], at[:, 1]] & (distance[at[:, 0], at[:, 1]] < 2.6)
    corner, at = corner[squeezed], at[squeezed]
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(distance, 2))
    along = np.arctan2(slope_y, slope_x)[at[:, 0], at[:, 1]] + np.pi / 2
    n = len(corner)
    canvas.stamp(
        Nuclei(
            corner[:, 0],
            corner[:, 1],
            long_px=rng.uniform(3.2, 5.5, n),
            short_px=rng.uniform(1.4, 2.1, n),
            angle=along,
            density=rng.uniform(1.2, 1.6, n),
            membrane=0.1,
        )
    )


def _healthy(canvas: Canvas) -> None:
    """Plates of polygonal cells with one small round nucleus each, and thin sinusoids."""
    rng = canvas.rng
    points = canvas.points(19, jitter=0.32)
    label, distance = canvas.cells(points, 1.2)
    mine = canvas.named(points) == "healthy"
    inside = mine[label]
    shade = rng.normal(0, 0.05, len(points)).astype(np.float32)[label]
    membrane = np.exp(-np.square(distance / 1.1))
    granular = 0.07 * canvas.noise(1.8) + 0.06 * canvas.noise(4)
    width = np.clip(0.10 + 0.10 * canvas.noise(14), -0.1, 0.4)
    sinusoid = np.clip((width - np.abs(canvas.noise(26))) * 9, 0, 1)
    where = soften(inside, 0.8)
    canvas.clear_nuclei(where)
    eosin = np.clip(0.46 + shade + granular + 0.16 * membrane, 0.05, 1.2)
    canvas.lay(
        where,
        (0.10 + 0.3 * shade + 0.3 * granular) * (1 - 0.8 * sinusoid),
        eosin * (1 - 0.92 * sinusoid),
    )
    kept = points[mine & (rng.random(len(points)) < 0.86)]
    kept = kept + rng.normal(0, 1.1, kept.shape)
    canvas.stamp(_round(rng, kept, (3.7, 4.5), (0.95, 1.2), membrane=0.45, nucleolus=0.45))


def _glandular(canvas: Canvas) -> None:
    """Glands: an open lumen in a ring of tall cells whose nuclei stand radially at the base."""
    rng = canvas.rng
    centres = canvas.points(52, jitter=0.22)
    depth = ndimage.distance_transform_edt(canvas.region == "glandular")
    for centre in centres:
        radius = float(rng.uniform(21, 30))
        if depth[int(centre[0]), int(centre[1])] > 0.6 * radius:
            _gland(canvas, centre, radius)


def _gland(canvas: Canvas, centre: npt.NDArray[np.float64], radius_px: float) -> None:
    rng = canvas.rng
    reach = int(radius_px * 1.6)
    top, left = (max(int(value) - reach, 0) for value in centre)
    window = (slice(top, int(centre[0]) + reach), slice(left, int(centre[1]) + reach))
    height, width = canvas.eosin[window].shape
    y, x = np.indices((height, width)) + np.array([top, left])[:, None, None]
    dy, dx = y - centre[0], x - centre[1]
    wave, phase = rng.normal(0, (0.16, 0.07, 0.04)), rng.uniform(0, 2 * np.pi, 3)

    def outline(phi: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        waves = [w * np.cos(k * phi + p) for k, w, p in zip((2, 3, 5), wave, phase, strict=True)]
        return np.asarray(radius_px * (1 + sum(waves)), np.float64)

    rough = 1.2 * canvas.rng.standard_normal((height // 6 + 2, width // 6 + 2)).astype(np.float32)
    ragged = np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))
    inward = outline(np.arctan2(dy, dx)) - np.hypot(dy, dx)
    tall = float(rng.uniform(11, 14))
    body = np.clip(inward + 0.5, 0, 1).astype(np.float32)
    lumen = np.clip((inward - tall + ragged) / 1.5, 0, 1).astype(np.float32)
    halo = np.clip(1 - np.abs(inward + 1.6) / 1.4, 0, 1).astype(np.float32)
    apical = np.clip(inward / tall, 0, 1).astype(np.float32)
    brush = np.exp(-np.square((inward - tall + ragged) / 1.3)).astype(np.float32)
    secretion = np.float32(rng.uniform(0, 0.12)) * np.clip(1 + 0.6 * ragged, 0, 2)

    covered = np.maximum(body, halo)
    canvas.chromatin[window] *= 1 - covered
    canvas.nuclear[window] *= 1 - covered
    for ground, space, cytoplasm, content in (
        (canvas.hematoxylin, 0.02, 0.30 - 0.16 * apical, 0.01),
        (canvas.eosin, 0.10, 0.38 + 0.10 * apical + 0.22 * brush, 0.02 + secretion),
    ):
        part = ground[window]
        part += 0.8 * halo * (space - part)
        part += body * (cytoplasm - part)
        part += lumen * (content - part)

    n = int(2 * np.pi * radius_px / 4.6)
    phi = np.sort(rng.uniform(0, 2 * np.pi / n, n) + np.arange(n) * 2 * np.pi / n)
    base = outline(phi) - rng.uniform(4.2, 7.0, n)
    canvas.stamp(
        Nuclei(
            centre[0] + base * np.sin(phi),
            centre[1] + base * np.cos(phi),
            long_px=rng.uniform(3.9, 5.6, n),
            short_px=rng.uniform(2.1, 3.0, n),
            angle=phi + rng.normal(0, 0.15, n),
            density=rng.uniform(1.05, 1.6, n),
            membrane=0.3,
            nucleolus=0.15,
        )
    )


def _solid(canvas: Canvas) -> None:
    """Crowded sheets of large nuclei of very different size and density, with thin septa."""
    rng = canvas.rng
    nests = canvas.points(75, jitter=0.5)
    _, septum = canvas.cells(nests, 7)
    mask = canvas.region == "solid"
    where = soften(mask, 2.5) * np.clip((septum - 1.0) / 2.5, 0, 1)
    canvas.clear_nuclei(where)
    canvas.lay(
        where,
        np.clip(0.30 + 0.07 * canvas.noise(5) + 0.05 * canvas.noise(18), 0.02, 1),
        np.clip(0.40 + 0.08 * canvas.noise(4) + 0.07 * canvas.noise(25), 0.02, 1),
    )
    points = canvas.points(11.5, jitter=0.5)
    at = points.astype(np.intp)
    points = points[mask[at[:, 0], at[:, 1]] & (septum[at[:, 0], at[:, 1]] > 4)]
    kind = rng.random(len(points))
    for chosen, radius, density, nucleolus in (
        (kind < 0.62, 5.3, (0.75, 1.1), 0.75),
        ((kind >= 0.62) & (kind < 0.95), 4.6, (1.3, 1.9), 0.1),
        (kind >= 0.95, 8.2, (1.1, 1.7), 0.5),
    ):
        n = int(chosen.sum())
        short = radius * rng.lognormal(0, 0.17, n).clip(0.65, 1.5)
        canvas.stamp(
            Nuclei(
                points[chosen][:, 0],
                points[chosen][:, 1],
                long_px=short * rng.uniform(1.05, 1.5, n),
                short_px=short,
                angle=rng.uniform(0, np.pi, n),
                density=rng.uniform(*density, n),
                membrane=0.6,
                nucleolus=nucleolus,
                irregular=0.06,
            )
        )


def _clear(canvas: Canvas) -> None:
    """Honeycomb of cells with empty cytoplasm, thin membranes and small dark nuclei, in nests."""
    rng = canvas.rng
    points = canvas.points(15, jitter=0.42)
    label, distance = canvas.cells(points, 0.8)
    mine = canvas.named(points) == "clear"
    inside = mine[label]
    nests = canvas.points(62, jitter=0.5)
    _, septum = canvas.cells(nests, 6)
    where = soften(inside, 0.7) * np.clip((septum - 1.2) / 1.5, 0, 1)
    canvas.clear_nuclei(where)
    membrane = np.exp(-np.square(distance / 1.0))
    wisps = np.clip(0.05 * canvas.noise(2.2) + 0.05 * canvas.noise(5), -0.05, 0.2)
    canvas.lay(where, 0.03 + 0.10 * membrane, 0.09 + wisps + 0.5 * membrane)
    at = points.astype(np.intp)
    kept = points[mine & (septum[at[:, 0], at[:, 1]] > 4) & (rng.random(len(points)) < 0.8)]
    kept = kept + rng.normal(0, 1.6, kept.shape)
    canvas.stamp(_round(rng, kept, (2.6, 3.6), (1.35, 1.8), membrane=0.1))


_DRAW: Final = {
    "healthy": _healthy,
    "fat": _fat,
    "clear": _clear,
    "solid": _solid,
    "glandular": _glandular,
}
