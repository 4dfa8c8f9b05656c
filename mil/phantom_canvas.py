"""The canvas of one phantom slide: random fields, cells, nuclei, and the two stains they take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

__all__ = ["Canvas", "FloatMap", "Nuclei", "soften"]

FloatMap = npt.NDArray[np.float32]
IntMap = npt.NDArray[np.intp]


@dataclass
class Nuclei:
    """Ellipses with membrane, chromatin and nucleolus; one row a nucleus."""

    y: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    long_px: npt.NDArray[np.float64]
    short_px: npt.NDArray[np.float64]
    angle: npt.NDArray[np.float64]
    density: npt.NDArray[np.float64]
    membrane: float = 0.35
    nucleolus: float = 0.0
    irregular: float = 0.04


@dataclass
class Canvas:
    """The maps of one slide while it is drawn."""

    rng: np.random.Generator
    region: npt.NDArray[np.str_]
    hematoxylin: FloatMap = field(init=False)
    eosin: FloatMap = field(init=False)
    chromatin: FloatMap = field(init=False)
    nuclear: FloatMap = field(init=False)

    def __post_init__(self) -> None:
        self.hematoxylin = np.zeros(self.shape, np.float32)
        self.eosin = np.zeros(self.shape, np.float32)
        self.chromatin = np.zeros(self.shape, np.float32)
        self.nuclear = np.zeros(self.shape, np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in px."""
        return self.region.shape[0], self.region.shape[1]

    def noise(self, scale_px: float) -> FloatMap:
        """A smooth random field of about unit variance and this correlation length."""
        rows, columns = (int(side / scale_px) + 4 for side in self.shape)
        coarse = self.rng.standard_normal((rows, columns)).astype(np.float32)
        size = (round(columns * scale_px), round(rows * scale_px))
        fine = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        top, left = (int(scale_px * offset) for offset in self.rng.uniform(1, 2, 2))
        window = np.asarray(fine)[top : top + self.shape[0], left : left + self.shape[1]]
        return (window / 0.8).astype(np.float32)

    def points(self, spacing_px: float, jitter: float = 0.3) -> npt.NDArray[np.float64]:
        """(n, 2) y and x of a jittered hexagonal lattice: no clumps, no visible order."""
        rows, columns = (int(side / spacing_px) + 2 for side in self.shape)
        y, x = np.mgrid[:rows, :columns].astype(np.float64)
        x[1::2] += 0.5
        lattice = np.stack([y.ravel(), x.ravel()], axis=1)
        lattice += self.rng.normal(0, jitter * 0.6, lattice.shape) - 0.25
        lattice *= spacing_px
        inside = ((lattice >= 0) & (lattice < np.array(self.shape) - 1)).all(axis=1)
        if not inside.any():  # a canvas smaller than the spacing
            return self.rng.uniform(0, np.array(self.shape) - 1, (1, 2))
        return np.asarray(lattice[inside], np.float64)

    def named(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.str_]:
        """Tissue under each point."""
        at = points.astype(np.intp).clip(0, np.array(self.shape) - 1)
        return np.asarray(self.region[at[:, 0], at[:, 1]], np.str_)

    def cells(self, points: npt.NDArray[np.float64], wobble_px: float) -> tuple[IntMap, FloatMap]:
        """The index of the nearest point and the distance to the border of that cell, in px."""
        free = np.ones(self.shape, bool)
        index = np.zeros(self.shape, np.intp)
        at = points.astype(np.intp)
        free[at[:, 0], at[:, 1]] = False
        index[at[:, 0], at[:, 1]] = np.arange(len(at))
        near = ndimage.distance_transform_edt(free, return_distances=False, return_indices=True)
        label = index[near[0], near[1]]
        label = self.bent(label, wobble_px, 12)
        border = np.zeros(self.shape, bool)
        border[1:] |= label[1:] != label[:-1]
        border[:, 1:] |= label[:, 1:] != label[:, :-1]
        if not border.any():
            return label, np.full(self.shape, max(self.shape), np.float32)
        distance = ndimage.distance_transform_edt(~border).astype(np.float32)
        # Whole-pixel walls look like stairs; a little smoothing makes them membranes.
        return label, np.asarray(ndimage.gaussian_filter(distance, 0.9), np.float32) - 0.4

    def bent(self, labels: npt.NDArray[Any], shift_px: float, scale_px: float) -> npt.NDArray[Any]:
        """The same map with wavy borders: every pixel looks a little beside itself."""
        y, x = np.indices(self.shape)
        y, x = (
            (at + shift_px * np.clip(self.noise(scale_px), -1.6, 1.6))
            .astype(np.intp)
            .clip(0, side - 1)
            for at, side in zip((y, x), self.shape, strict=True)
        )
        return labels[y, x]

    def lay(self, where: FloatMap, hematoxylin: FloatMap, eosin: FloatMap) -> None:
        """Replace the ground by this cytoplasm or space; ``where`` is 0 to 1."""
        self.hematoxylin += where * (hematoxylin - self.hematoxylin)
        self.eosin += where * (eosin - self.eosin)

    def clear_nuclei(self, where: FloatMap) -> None:
        """Remove what was stamped here."""
        self.chromatin *= 1 - where
        self.nuclear *= 1 - where

    def stamp(self, nuclei: Nuclei) -> None:
        """Draw nuclei; where two overlap, the denser wins, so that both outlines stay visible."""
        n = len(nuclei.y)
        if n == 0:
            return
        half = int(np.ceil(nuclei.long_px.max() * 1.2)) + 2
        step = np.arange(-half, half + 1)
        row, column = np.rint(nuclei.y).astype(np.intp), np.rint(nuclei.x).astype(np.intp)

        def each(values: npt.NDArray[np.float64]) -> FloatMap:
            return values.astype(np.float32)[:, None, None]

        dy = step.astype(np.float32)[None, :, None] + each(row - nuclei.y)
        dx = step.astype(np.float32)[None, None, :] + each(column - nuclei.x)
        cosine, sine = each(np.cos(nuclei.angle)), each(np.sin(nuclei.angle))
        u = (dx * cosine + dy * sine) / each(nuclei.long_px)
        v = (dy * cosine - dx * sine) / each(nuclei.short_px)
        phi = np.arctan2(v, u)
        phase = self.rng.uniform(0, 2 * np.pi, (3, n))
        outline = 1 + nuclei.irregular * (
            np.cos(2 * phi + each(phase[0])) + np.cos(3 * phi + each(phase[1]))
        )
        inward_px = (1 - np.hypot(u, v) / outline) * each(nuclei.short_px)
        alpha = np.clip(inward_px / 1.4 + 0.5, 0, 1)
        rim = np.exp(-np.square(inward_px - 0.6))
        away = 0.35 * np.stack([np.cos(phase[2]), np.sin(phase[2])]) * nuclei.short_px
        spot = np.exp(-(np.square(dy - each(away[0])) + np.square(dx - each(away[1]))) / 2.2)
        body = 1 + nuclei.membrane * (rim - 0.5) + nuclei.nucleolus * spot
        value = alpha * each(nuclei.density) * body

        y = row[:, None, None] + step[None, :, None]
        x = column[:, None, None] + step[None, None, :]
        inside = (y >= 0) & (y < self.shape[0]) & (x >= 0) & (x < self.shape[1]) & (alpha > 0)
        flat = (y * self.shape[1] + x)[inside]
        np.maximum.at(self.chromatin.reshape(-1), flat, value[inside])
        np.maximum.at(self.nuclear.reshape(-1), flat, alpha[inside])

    def stained(self) -> tuple[FloatMap, FloatMap]:
        """Both concentrations, with the chromatin clumped and the cytoplasm grainy."""
        clump = np.clip(1 + 0.16 * self.noise(1.5) + 0.20 * self.noise(2.6), 0.35, 1.7)
        grain = np.clip(1 + 0.05 * self.noise(1.3) + 0.06 * self.noise(6), 0.5, 1.5)
        hematoxylin = self.hematoxylin * grain * (1 - self.nuclear) + self.chromatin * clump
        eosin = self.eosin * grain * (1 - 0.55 * self.nuclear)
        return np.maximum(hematoxylin, 0), np.maximum(eosin, 0)


def soften(mask: npt.NDArray[np.bool_], sigma_px: float) -> FloatMap:
    """A mask with soft borders, 0 to 1."""
    return np.asarray(ndimage.gaussian_filter(mask.astype(np.float32), sigma_px))
