"""RGB to hematoxylin and eosin with each slide's own stain vectors, as a torch layer.

Optical density has only 256 values a channel, so it is a table look-up; least squares is then one
product of a 2 x 3 matrix with the three densities of a pixel. Table and matrix belong to the slide,
so tiles of many slides share a batch, on any device.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from mil.stain import vectors
from splits.errors import InputError

__all__ = ["MAX_CONCENTRATION", "UNIT", "Separate", "decode"]

UNIT: Final = 170  # grey levels that stand for the 99th percentile of the slide
MAX_CONCENTRATION: Final = 255 / UNIT  # 1.5: what the encoding can hold, in 99th percentiles


def decode(encoded: Tensor) -> Tensor:
    """Concentrations in 99th percentiles of the slide (float32, 0 to 1.5) from encoded uint8."""
    return encoded.to(torch.float32) / UNIT


class Separate(nn.Module):
    """Hematoxylin and eosin channels of RGB tiles.

    ``round(clip(c / p99, 0, 1.5) * 170)`` as uint8, where ``c`` are the least-squares
    concentrations (:func:`mil.stain.vectors.concentrations`) and ``p99`` their 99th percentile over
    the tissue of the slide. 170 grey levels therefore mean the same on every slide: as strong as
    the strongest stain there. Agrees with float64 up to ties of the rounding.

    Args:
        slides: Slide ids; tiles name theirs by its place in this order.
        white: ``(n_slides, 3)`` grey level of unstained glass.
        stain: ``(n_slides, 2, 3)`` stain vectors.
        p99: ``(n_slides, 2)`` concentrations, above zero.
    """

    density: Tensor
    matrix: Tensor

    def __init__(
        self,
        slides: tuple[str, ...],
        white: npt.NDArray[np.float64],
        stain: npt.NDArray[np.float64],
        p99: npt.NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.slides = slides
        density = np.stack([vectors.density_table(one) for one in white])
        matrix = np.linalg.pinv(stain).transpose(0, 2, 1) * (UNIT / p99[:, :, None])
        self.register_buffer("density", torch.tensor(density.ravel(), dtype=torch.float32))
        self.register_buffer("matrix", torch.tensor(matrix, dtype=torch.float32))

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Separate:
        """Build from a stain table (:func:`mil.stain.vectors.to_table`), slides in its order.

        Raises:
            InputError: A column is missing, a slide is there twice, or a number is not usable.
        """
        missing = [name for name in vectors.TABLE_COLUMNS if name not in table.columns]
        if missing or not len(table):
            message = f"not a stain table: {len(table)} rows, columns missing: {missing}"
            raise InputError(message)
        slides = tuple(table["slide_id"].astype(str))
        repeated = table.loc[table["slide_id"].duplicated(), "slide_id"].tolist()
        if repeated:
            message = f"slide {repeated[0]!r} is in the stain table more than once"
            raise InputError(message)
        numbers = table[list(vectors.TABLE_COLUMNS[5:])].to_numpy(dtype=np.float64)
        white, stain, p99 = numbers[:, :3], numbers[:, 3:9].reshape(-1, 2, 3), numbers[:, 9:]
        sound = np.isfinite(numbers).all(axis=1) & (white >= 0).all(axis=1) & (p99 > 0).all(axis=1)
        # Parallel vectors have no least-squares answer that tells the stains apart.
        sound &= np.linalg.norm(np.cross(stain[:, 0], stain[:, 1]), axis=1) > 1e-6
        if not sound.all():
            message = f"the stain of slide {slides[int(np.argmin(sound))]!r} is not usable"
            raise InputError(message)
        return cls(slides, white, stain, p99)

    @torch.no_grad()
    def forward(self, rgb: Tensor, slide: Tensor) -> Tensor:
        """Separate a batch.

        Args:
            rgb: uint8 ``(n_tiles, 3, height, width)``.
            slide: int64 ``(n_tiles,)`` place of each tile's slide in ``slides``.

        Returns:
            uint8 ``(n_tiles, 2, height, width)``: hematoxylin, eosin; see :func:`decode`.

        Raises:
            ValueError: Wrong type or shape.
            IndexError: No such slide.
        """
        if rgb.dtype != torch.uint8 or rgb.ndim != 4 or rgb.shape[1] != 3:
            message = f"rgb must be uint8 (n_tiles, 3, height, width), not {rgb.dtype} {rgb.shape}"
            raise ValueError(message)
        n_tiles, _, height, width = rgb.shape
        if slide.shape != (n_tiles,) or slide.dtype != torch.int64:
            message = f"slide must be int64 ({n_tiles},), not {slide.dtype} {tuple(slide.shape)}"
            raise ValueError(message)
        low, high = (int(slide.min()), int(slide.max())) if n_tiles else (0, 0)
        if low < 0 or high >= len(self.slides):
            message = f"slide must be 0 to {len(self.slides) - 1}, not {low} to {high}"
            raise IndexError(message)
        levels = rgb.reshape(n_tiles, 3, height * width)
        out = torch.empty((n_tiles, 2, height * width), dtype=torch.uint8, device=rgb.device)
        channel = torch.arange(3, dtype=torch.int32, device=rgb.device)
        row = ((slide.to(torch.int32)[:, None] * 3 + channel) * 256)[:, :, None]
        matrix = self.matrix[slide]
        # One tile at a time keeps its densities in the cache of a core (4 x faster than a batch of
        # 32); other devices want few large calls.
        step = 1 if rgb.device.type == "cpu" else max(n_tiles, 1)
        for start in range(0, n_tiles, step):
            part = slice(start, start + step)
            index = levels[part].to(torch.int32, memory_format=torch.contiguous_format)
            index += row[part]
            density = self.density.index_select(0, index.view(-1)).view(index.shape)
            encoded = torch.bmm(matrix[part], density).clamp_(0, 255).round_()
            # By way of int16: the direct cast to uint8 is not vectorised on CPU (5 x slower).
            out[part] = encoded.to(torch.int16)
        return out.view(n_tiles, 2, height, width)
