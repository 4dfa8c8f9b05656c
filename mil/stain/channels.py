"""From RGB batches to what an encoder sees, by the stain table of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pandas as pd
import torch
from torch import Tensor

from mil.stain.separate import Separate

__all__ = ["CHANNELS", "Stainer", "stainer"]

CHANNELS: Final = {"rgb": ("R", "G", "B"), "he": ("H", "E"), "h": ("H",), "e": ("E",)}
"""Channel names of each choice of ``encoder.channels``."""
_SEPARATED: Final = {"he": [0, 1], "h": [0], "e": [1]}

Stainer = Callable[[Tensor, Sequence[str]], Tensor]
"""uint8 RGB ``(n, 3, h, w)`` and the slide of each tile -> uint8 ``(n, n_channels, h, w)``."""


def stainer(stains: pd.DataFrame | None, channels: str) -> Stainer:
    """What turns decoded RGB into the encoder's channels.

    Args:
        stains: The stain table (:func:`mil.stain.vectors.to_table`); None leaves RGB as it is.
        channels: A key of ``CHANNELS``.
    """
    if stains is None:
        return lambda rgb, _: rgb
    separate = Separate.from_table(stains)
    rank = {name: i for i, name in enumerate(stains["slide_id"])}

    def stain(rgb: Tensor, slides: Sequence[str]) -> Tensor:
        place = torch.tensor([rank[name] for name in slides], dtype=torch.int64)
        both: Tensor = separate(rgb, place)
        return both[:, _SEPARATED[channels]].contiguous()

    return stain
