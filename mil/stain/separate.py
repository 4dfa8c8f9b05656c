"""RGB to hematoxylin and eosin with each slide's own stain vectors, as a torch layer.

Optical density has only 256 values a channel and least squares is linear in it, so both fold into
one table a slide and channel: what each grey level adds to hematoxylin and to eosin. Separation is
three look-ups of two values and two additions. The table belongs to the slide, so tiles of many
slides share a batch, on any device.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from mil.stain.density import density_table
from mil.stain.fit import SEPARATION
from splits.errors import InputError

__all__ = ["MAX_CONCENTRATION", "UNIT", "Separate", "decode"]

UNIT: Final = 170  # grey levels that stand for the 99th percentile of the slide
MAX_CONCENTRATION: Final = 255 / UNIT  # 1.5: what the encoding can hold, in 99th percentiles

_BLOCK_PX: Final = 32_768  # 0.8 MB of sums stay in the cache of a core

Bytes = npt.NDArray[np.uint8]


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

    table: Tensor

    def __init__(
        self,
        slides: tuple[str, ...],
        white: npt.NDArray[np.float64],
        stain: npt.NDArray[np.float64],
        p99: npt.NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.slides = slides
        density = np.stack([density_table(one) for one in white])
        # (n_slides, 3 channels, 2 stains)
        share = np.linalg.pinv(stain) * (UNIT / p99[:, None, :])
        table = density[..., None] * share[:, :, None, :]
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Separate:
        """Build from a stain table (:func:`mil.stain.fit.to_table`), slides in its order.

        Raises:
            InputError: A column is missing, a slide is there twice, or a number is not usable.
        """
        missing = [name for name in ("slide_id", *SEPARATION) if name not in table.columns]
        if missing or not len(table):
            message = f"not a stain table: {len(table)} rows, columns missing: {missing}"
            raise InputError(message)
        slides = tuple(table["slide_id"].astype(str))
        repeated = table.loc[table["slide_id"].duplicated(), "slide_id"].tolist()
        if repeated:
            message = f"slide {repeated[0]!r} is in the stain table more than once"
            raise InputError(message)
        numbers = table[list(SEPARATION)].to_numpy(dtype=np.float64)
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
        n_tiles = len(rgb)
        if slide.shape != (n_tiles,) or slide.dtype != torch.int64:
            message = f"slide must be int64 ({n_tiles},), not {slide.dtype} {tuple(slide.shape)}"
            raise ValueError(message)
        low, high = (int(slide.min()), int(slide.max())) if n_tiles else (0, 0)
        if low < 0 or high >= len(self.slides):
            message = f"slide must be 0 to {len(self.slides) - 1}, not {low} to {high}"
            raise IndexError(message)
        rgb = rgb.contiguous()
        if rgb.device.type == "cpu":
            codes = _look_up(rgb.numpy(), self.table.numpy(), slide.numpy())
            return torch.from_numpy(codes)
        return _gather(rgb, self.table, slide)


def _gather(rgb: Tensor, table: Tensor, slide: Tensor) -> Tensor:
    """``forward`` on any device."""
    n_tiles, _, height, width = rgb.shape
    rows = table.view(-1, 2)
    total = torch.zeros((), device=rgb.device)
    for channel in range(3):
        start = (slide * 3 + channel) * 256
        index = rgb[:, channel].reshape(n_tiles, -1).to(torch.int64) + start[:, None]
        total = total + rows[index]
    codes = total.clamp_(0, 255).round_().to(torch.uint8)
    return codes.permute(0, 2, 1).reshape(n_tiles, 2, height, width)


def _look_up(rgb: Bytes, table: npt.NDArray[np.float32], slide: npt.NDArray[np.int64]) -> Bytes:
    """``forward`` on CPU, the same sums in the same order.

    OpenCV's look-up gives one value a grey level, and a pair of float32 is one of 64 bits. Its
    sums to uint8 round half to even and saturate, as ``clamp`` and ``round`` do. All of it lets
    other threads run.
    """
    n_tiles, _, height, width = rgb.shape
    levels = rgb.reshape(n_tiles, 3, height * width)
    out = np.empty((n_tiles, 2, height * width), dtype=np.uint8)
    pairs = np.ascontiguousarray(table).view(np.float64)[..., 0]
    for first in range(0, height * width, _BLOCK_PX):
        block = slice(first, first + _BLOCK_PX)
        n = min(_BLOCK_PX, height * width - first)
        looked: Any = np.empty((3, n))
        red, green, blue = looked.view(np.float32)
        code = np.empty(2 * n, dtype=np.uint8)
        for tile in range(n_tiles):
            for channel in range(3):
                lut = pairs[slide[tile], channel]
                cv2.LUT(levels[tile, channel, block], lut, dst=looked[channel])
            cv2.add(red, green, dst=red)
            cv2.add(red, blue, dst=code, dtype=cv2.CV_8U)
            hematoxylin, eosin = (one[block].reshape(1, n) for one in out[tile])
            cv2.split(code.reshape(1, n, 2), [hematoxylin, eosin])
    return out.reshape(n_tiles, 2, height, width)
