"""A backbone, the scale of its input, and a linear tile classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TileEncoder"]


class TileEncoder(nn.Module):
    """uint8 tiles -> embeddings and class logits.

    Mean and deviation of the input are buffers: they are saved with the weights, so a file of
    weights is complete.

    Args:
        backbone: Module with ``num_features`` that maps ``(n, n_channels, size, size)`` to
            ``(n, num_features)``.
        n_channels: Input channels.
        n_classes: Classes of the linear classifier.
    """

    card: dict[str, object] = {}  # noqa: RUF012
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = int(backbone.num_features)  # type: ignore[arg-type]
        self.head = nn.Linear(self.dim, n_classes)
        self.register_buffer("mean", torch.full((n_channels,), 127.5))
        self.register_buffer("std", torch.full((n_channels,), 63.75))

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and deviation of each channel, in grey levels."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def embed(self, tiles: Tensor) -> Tensor:
        """Embeddings ``(n, dim)`` of tiles ``(n, n_channels, size, size)`` in grey levels."""
        x = (tiles.float() - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        embedding: Tensor = self.backbone(x)
        return embedding

    def forward(self, tiles: Tensor) -> Tensor:
        """Class logits ``(n, n_classes)``."""
        logits: Tensor = self.head(self.embed(tiles))
        return logits

    def classify(self, embeddings: Tensor) -> Tensor:
        """Class probabilities ``(n, n_classes)`` from embeddings, float32."""
        return F.softmax(F.linear(embeddings.float(), self.head.weight, self.head.bias), dim=1)
