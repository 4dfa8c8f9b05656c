"""An aggregator behind the standardisation of its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mil.aggregators.contract import Output

__all__ = ["Scaled"]


class Scaled(nn.Module):
    """Standardises each feature by the training tiles of the fold, then aggregates.

    Mean and deviation are buffers, so they are saved with the weights.

    Args:
        aggregator: Any registered aggregator.
        dim: Length of an embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, aggregator: nn.Module, dim: int) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def standardise(self, features: npt.NDArray[np.floating[Any]]) -> None:
        """Take mean and deviation from training tiles ``(n_tiles, dim)``."""
        mean = features.mean(axis=0, dtype=np.float64)
        std = features.std(axis=0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(mean))
        # A feature that is constant in training says nothing: it must not explode elsewhere.
        self.std.copy_(torch.from_numpy(np.where(std > 1e-3 * std.max(), std, np.inf)))

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``; see the aggregator contract."""
        output: Output = self.aggregator((x - self.mean) / self.std, offsets)
        return output
