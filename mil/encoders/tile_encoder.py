"""A backbone, the scale of its input, and a linear tile classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TileEncoder"]


class TileEncoder(nn.Module):
    """uint8 tiles -> embeddings and class logits.

    Mean and deviation of the input are buffers: they are saved with the weights, so a file of
    weights is complete.

    Args:
        backbone: Module with ``num_features`` that maps ``(n, n_channels / n_scales_apart, size,
            size)`` to ``(n, num_features)``. Parameters that are not to be trained have
            ``requires_grad`` off.
        n_channels: Input channels over all scales, scale by scale.
        n_classes: Classes of the linear classifier.
        n_scales_apart: So many scales go through the backbone one by one, and their embeddings
            stand side by side; 1 gives it all channels at once.
        card: What a user of the weights must know of their origin and preprocessing.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        n_channels: int,
        n_classes: int,
        *,
        n_scales_apart: int = 1,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.n_scales_apart = n_scales_apart
        # Where timm keeps a hidden layer in the head, embeddings come from behind it.
        width: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        self.dim = int(width) * n_scales_apart
        self.card = dict(card or {})
        self.head = nn.Linear(self.dim, n_classes)
        self.register_buffer("mean", torch.full((n_channels,), 127.5))
        self.register_buffer("std", torch.full((n_channels,), 63.75))

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and deviation of each channel ``(n_channels,)``, in grey levels."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def train(self, mode: bool = True) -> TileEncoder:  # noqa: FBT001, FBT002
        """Set training mode, but leave parts that are not trained as they work in eval mode.

        The running statistics of their batch normalisation would move otherwise, though no weight
        does.
        """
        super().train(mode)
        if mode:
            _rest(self.backbone)
        return self

    def embed(self, tiles: Tensor) -> Tensor:
        """Embeddings ``(n, dim)`` of tiles ``(n, n_channels, size, size)`` in grey levels."""
        x = (tiles.float() - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        if self.n_scales_apart == 1:
            embedding: Tensor = self.backbone(x)
            return embedding
        each: Tensor = self.backbone(torch.cat(x.chunk(self.n_scales_apart, dim=1)))
        return torch.cat(each.chunk(self.n_scales_apart), dim=1)

    def forward(self, tiles: Tensor) -> Tensor:
        """Class logits ``(n, n_classes)``."""
        logits: Tensor = self.head(self.embed(tiles))
        return logits

    def classify(self, embeddings: Tensor) -> Tensor:
        """Class probabilities ``(n, n_classes)`` from embeddings, float32."""
        return F.softmax(F.linear(embeddings.float(), self.head.weight, self.head.bias), dim=1)


def _rest(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
    else:
        for child in module.children():
            _rest(child)
