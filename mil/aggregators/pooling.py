"""Pooling of tile embeddings without attention: the baselines that attention has to beat."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import nn

from mil.aggregators.contract import (
    AGGREGATORS,
    Aggregator,
    Output,
    check_sizes,
    class_scores,
    linear,
)
from mil.aggregators.segments import segment_ids
from mil.aggregators.tiles import Tiles
from splits.errors import InputError

__all__ = ["LogSumExpPooling", "MaxPooling", "MeanPooling"]


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
        tiles = self.tiles(x, offsets, self.embed)
        bags = self.pool(tiles)  # (n_bags, width)
        parts = None if self.training else self.contributions(tiles)
        return Output(self.classifier(self.dropout(bags)), contributions=parts)

    def contributions(self, tiles: Tiles) -> torch.Tensor | None:
        """``(n_tiles, n_classes)`` where the logits are a sum over tiles."""
        return None


@AGGREGATORS.register("mean")
class MeanPooling(_Pooling):
    """The mean operator at the level of embeddings.

    Source: Ilse, Tomczak & Welling, "Attention-based deep multiple instance learning", ICML 2018,
    section 2: ``z = 1/K sum_k h_k`` over the K tiles of a bag, logits ``= W z + b``.

    Deviations: without ``hidden`` the given embeddings are pooled as they are, since the encoder
    has already been trained; logits over ``n_classes`` instead of one Bernoulli probability.

    Contributions: pooling and classifier are linear, so tile k adds exactly ``W h_k / K``.

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
        return tiles.sum(self._share(tiles))

    def contributions(self, tiles: Tiles) -> torch.Tensor:
        """``(n_tiles, n_classes)``."""
        return class_scores(tiles, self.classifier) * self._share(tiles)[:, None]

    def _share(self, tiles: Tiles) -> torch.Tensor:
        share = 1 / tiles.offsets.diff().to(self.mean.dtype)  # (n_bags,)
        return share[segment_ids(tiles.offsets)]  # (n_tiles,)


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


@AGGREGATORS.register("lse")
class LogSumExpPooling(_Pooling):
    """Log-sum-exp pooling: a smooth maximum, between the mean and the maximum.

    Source: Ramon & De Raedt, "Multi instance neural networks", ICML workshop 2000; Pinheiro &
    Collobert, "From image-level to pixel-level labeling with convolutional networks", CVPR 2015,
    equation 5: ``z_m = 1/r log(1/K sum_k exp(r h_km))`` over the K tiles of a bag, logits
    ``= W z + b``. A small r gives the mean, a large one the maximum.

    Deviations: as for :class:`MeanPooling`; both papers pool the scores of tiles, here their
    embeddings are pooled, as in the other methods of this module.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of a layer with ReLU on each tile before pooling; None for no such layer.
        dropout: On the pooled embedding.
        sharpness: The r of the equation, above 0.

    Raises:
        InputError: An argument lies outside its range.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        sharpness: float = 1.0,
    ) -> None:
        if not isinstance(sharpness, int | float) or not 0 < sharpness < math.inf:
            message = f"sharpness is {sharpness!r}, allowed is a finite number above 0"
            raise InputError(message)
        super().__init__(dim=dim, n_classes=n_classes, hidden=hidden, dropout=dropout)
        self.sharpness = sharpness

    def pool(self, tiles: Tiles) -> torch.Tensor:
        """Embedded tiles to ``(n_bags, width)``."""
        n_tiles = tiles.offsets.diff().to(self.mean.dtype)  # (n_bags,)
        return tiles.logsumexp(self.sharpness) - n_tiles.log()[:, None] / self.sharpness
