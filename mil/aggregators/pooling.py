"""Mean and max pooling of tile embeddings: the baselines that attention has to beat."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from mil.aggregators.contract import AGGREGATORS, Aggregator, Output, check_sizes, linear
from mil.aggregators.segments import segment_ids
from mil.aggregators.tiles import Tiles

__all__ = ["MaxPooling", "MeanPooling"]


class _Pooling(Aggregator, ABC):
    """Embed each tile, pool each column over the bag, classify the bag."""

    def __init__(
        self, *, dim: int, n_classes: int, hidden: int | None = None, dropout: float = 0.0
    ) -> None:
        width = dim if hidden is None else hidden
        check_sizes(n_classes=n_classes, dropout=dropout, dim=dim, hidden=width)
        super().__init__(dim, n_classes)
        self.embed = (
            nn.Identity()
            if hidden is None
            else nn.Sequential(linear(dim, hidden, activation="relu"), nn.ReLU())
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = linear(width, n_classes)

    @abstractmethod
    def pool(self, tiles: Tiles) -> torch.Tensor:
        """Embedded tiles to ``(n_bags, width)``."""

    def forward(self, x: torch.Tensor, offsets: torch.Tensor) -> Output:
        """Classify bags: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``; no attention."""
        bags = self.pool(self.tiles(x, offsets, self.embed))  # (n_bags, width)
        return Output(self.classifier(self.dropout(bags)), None)  # (n_bags, n_classes)


@AGGREGATORS.register("mean")
class MeanPooling(_Pooling):
    """The mean operator at the level of embeddings.

    Source: Ilse, Tomczak & Welling, "Attention-based deep multiple instance learning", ICML 2018,
    section 2: ``z = 1/K sum_k h_k`` over the K tiles of a bag, logits ``= W z + b``.

    Deviations: without ``hidden`` the given embeddings are pooled as they are, since the encoder
    has already been trained; logits over ``n_classes`` instead of one Bernoulli probability.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of a layer with ReLU on each tile before pooling; None for no such layer.
        dropout: On the pooled embedding: on tiles, the mean would average it away.

    Raises:
        InputError: An argument lies outside its range.
    """

    def pool(self, tiles: Tiles) -> torch.Tensor:
        """Embedded tiles to ``(n_bags, width)``."""
        share = 1 / tiles.offsets.diff().to(self.mean.dtype)  # (n_bags,)
        return tiles.sum(share[segment_ids(tiles.offsets)])


@AGGREGATORS.register("max")
class MaxPooling(_Pooling):
    """The maximum operator at the level of embeddings.

    Source: Ilse, Tomczak & Welling, "Attention-based deep multiple instance learning", ICML 2018,
    section 2: ``z_m = max_k h_km`` over the K tiles of a bag, logits ``= W z + b``.

    Deviations: as for :class:`MeanPooling`.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of a layer with ReLU on each tile before pooling; None for no such layer.
        dropout: On the pooled embedding.

    Raises:
        InputError: An argument lies outside its range.
    """

    def pool(self, tiles: Tiles) -> torch.Tensor:
        """Embedded tiles to ``(n_bags, width)``."""
        return tiles.max()
