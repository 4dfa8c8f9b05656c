"""Features that come from files: there is no network, only the tile classifier on top of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mil.encoders.tile_encoder import TileEncoder

__all__ = ["Given"]


class _Nothing(nn.Module):
    """In the place of a network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, _: Any) -> Tensor:
        message = "these features come from files: there is no network that could read a tile"
        raise RuntimeError(message)


class Given(TileEncoder):
    """A tile classifier ``(n_tiles, dim)`` to ``(n_tiles, n_classes)`` without an encoder.

    Args:
        dim: Of the features.
        n_classes: Classes of the linear classifier.
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__(_Nothing(dim), n_channels=1, n_classes=n_classes)
