"""From RGB batches to what an encoder sees, by the stain table of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mil.stain import reinhard
from mil.stain.fit import EXCHANGED, StainFit, fit_tile, from_table
from mil.stain.separate import Separate
from mil.stain.vectors import REFERENCE

__all__ = ["CHANNELS", "Stainer", "stainer"]

CHANNELS: Final = {"rgb": ("R", "G", "B"), "he": ("H", "E"), "h": ("H",), "e": ("E",)}
"""Channel names of each choice of ``encoder.channels``."""
_SEPARATED: Final = {"he": [0, 1], "h": [0], "e": [1]}

Stainer = Callable[[Tensor, Sequence[str]], Tensor]
"""uint8 RGB ``(n, 3, h, w)`` and the slide of each tile -> uint8 ``(n, n_channels, h, w)``."""


def stainer(stains: pd.DataFrame | None, channels: str) -> Stainer:
    """What turns decoded RGB into the encoder's channels.

    Args:
        stains: The stain table (:func:`mil.stain.fit.to_table`), all of one method; None leaves RGB
            as it is.
        channels: A key of ``CHANNELS``.
    """
    if stains is None:
        return lambda rgb, _: rgb
    method = str(stains["method"].iloc[0])
    if method == "reinhard":
        return _coloured(from_table(stains))
    both = _by_tile(from_table(stains)) if method == "macenko_tile" else _by_slide(stains)
    if channels == "he":
        return both
    chosen = _SEPARATED[channels]
    return lambda rgb, slides: both(rgb, slides)[:, chosen].contiguous()


def _by_slide(stains: pd.DataFrame) -> Stainer:
    separate = Separate.from_table(stains)
    rank = {name: i for i, name in enumerate(stains["slide_id"])}

    def stain(rgb: Tensor, slides: Sequence[str]) -> Tensor:
        place = torch.tensor([rank[name] for name in slides], dtype=torch.int64, device=rgb.device)
        both: Tensor = separate.to(rgb.device)(rgb, place)
        return both

    return stain


def _by_tile(fits: dict[str, StainFit]) -> Stainer:
    def stain(rgb: Tensor, slides: Sequence[str]) -> Tensor:
        pixels = rgb.cpu().permute(0, 2, 3, 1).reshape(len(rgb), -1, 3).numpy()
        white = np.stack([fits[name].white for name in slides])
        found = [
            fit_tile(one, fits[name].white, _reference(fits[name]))
            for one, name in zip(pixels, slides, strict=True)
        ]
        vectors, p99, _ = zip(*found, strict=True)
        separate = Separate(tuple(slides), white, np.stack(vectors), np.stack(p99)).to(rgb.device)
        both: Tensor = separate(rgb, torch.arange(len(rgb), device=rgb.device))
        return both

    return stain


def _coloured(fits: dict[str, StainFit]) -> Stainer:
    def stain(rgb: Tensor, slides: Sequence[str]) -> Tensor:
        pixels = rgb.cpu().permute(0, 2, 3, 1).numpy().copy()
        flipped = [_exchanged(fits[name]) for name in slides]
        pixels[flipped] = pixels[flipped][..., ::-1]
        even = reinhard.normalise(pixels, [fits[name].colour for name in slides])
        return torch.from_numpy(even).permute(0, 3, 1, 2).contiguous().to(rgb.device)

    return stain


def _exchanged(fit: StainFit) -> bool:
    return EXCHANGED in fit.note


def _reference(fit: StainFit) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return REFERENCE[:, ::-1] if _exchanged(fit) else REFERENCE
