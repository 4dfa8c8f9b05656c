"""Attention pooling: a bag is a weighted mean of its tiles, with weights that are learned."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from mil.aggregators.contract import AGGREGATORS, Aggregator, Output, check_sizes, linear
from mil.aggregators.segments import segment_softmax, widened

__all__ = ["ABMIL", "AttentionBranch", "GatedABMIL", "GatedBranch"]


class AttentionBranch(nn.Module):
    """Scores of equation 8: ``w^T tanh(V h)``; several share V, each with a w of its own."""

    def __init__(self, width: int, attention_dim: int, n_scores: int = 1) -> None:
        super().__init__()
        self.value = linear(width, attention_dim, activation="tanh")
        # Without a bias: softmax cancels it, so it would be a parameter that never learns.
        self.score = linear(attention_dim, n_scores, bias=False)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """Score rows ``(n_tiles, width)``: ``(n_tiles, n_scores)``."""
        hidden = torch.tanh(widened(self.value(embedded)))  # (n_tiles, attention_dim)
        scores: torch.Tensor = self.score(hidden)  # (n_tiles, n_scores)
        return scores


class GatedBranch(AttentionBranch):
    """Scores of equation 9: ``w^T (tanh(V h) * sigmoid(U h))``."""

    def __init__(self, width: int, attention_dim: int, n_scores: int = 1) -> None:
        super().__init__(width, attention_dim, n_scores)
        self.gate = linear(width, attention_dim, activation="sigmoid")

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """Score rows ``(n_tiles, width)``: ``(n_tiles, n_scores)``."""
        value, gate = widened(self.value(embedded)), widened(self.gate(embedded))
        hidden = torch.tanh(value) * torch.sigmoid(gate)  # (n_tiles, attention_dim)
        scores: torch.Tensor = self.score(hidden)  # (n_tiles, n_scores)
        return scores


@AGGREGATORS.register("abmil")
class ABMIL(Aggregator):
    """Attention-based MIL.

    Source: Ilse, Tomczak & Welling, "Attention-based deep multiple instance learning", ICML 2018.
    Each tile is embedded, ``h_k = ReLU(W x_k + b)``; equation 8 weighs the tiles of a bag,
    ``a_k = softmax_k(w^T tanh(V h_k))``; equation 7 pools them, ``z = sum_k a_k h_k``; a linear
    layer gives the logits.

    Deviations: logits over ``n_classes`` instead of one Bernoulli probability; V has a bias, as in
    the authors' code and unlike the equation; the softmax and the sum run in float32 or wider,
    also under autocast.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the embedding ``h``.
        attention_dim: Width of the attention branch (128 in the paper).
        dropout: On the embedding of each tile, where CLAM has it; the paper has none.

    Raises:
        InputError: An argument lies outside its range.
    """

    _branch: ClassVar[type[AttentionBranch]] = AttentionBranch

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int = 128,
        attention_dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(
            n_classes=n_classes,
            dropout=dropout,
            dim=dim,
            hidden=hidden,
            attention_dim=attention_dim,
        )
        super().__init__(dim, n_classes)
        self.embed = nn.Sequential(
            linear(dim, hidden, activation="relu"), nn.ReLU(), nn.Dropout(dropout)
        )
        self.attention = self._branch(hidden, attention_dim)
        self.classifier = linear(hidden, n_classes)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor) -> Output:
        """Classify bags and weigh their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``."""
        tiles = self.tiles(x, offsets, self.embed)
        weights = segment_softmax(tiles.map(self.attention).squeeze(1), offsets)  # (n_tiles,)
        bags = tiles.sum(weights)  # (n_bags, hidden)
        return Output(self.classifier(bags), weights)


@AGGREGATORS.register("gated_abmil")
class GatedABMIL(ABMIL):
    """Attention-based MIL with the gate of equation 9.

    Source: Ilse, Tomczak & Welling 2018, as :class:`ABMIL`, with the weights
    ``a_k = softmax_k(w^T (tanh(V h_k) * sigmoid(U h_k)))``: tanh is nearly linear around zero,
    and the gate adds the non-linearity that is missing there.

    Deviations: as for :class:`ABMIL`; U has a bias like V.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the embedding ``h``.
        attention_dim: Width of the attention branch (128 in the paper).
        dropout: On the embedding of each tile, where CLAM has it; the paper has none.

    Raises:
        InputError: An argument lies outside its range.
    """

    _branch = GatedBranch
