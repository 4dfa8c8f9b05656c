"""Attention pooling: a bag is a weighted mean of its tiles, with weights that are learned."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.contract import (
    AGGREGATORS,
    Aggregator,
    Output,
    check_sizes,
    embedding,
    linear,
    of_winner,
)
from mil.aggregators.segments import segment_softmax, segment_sum, widened
from mil.aggregators.tiles import Tiles

__all__ = ["ABMIL", "AdditiveMIL", "AttentionBranch", "GatedABMIL", "GatedBranch"]


class AttentionBranch(nn.Module):
    """Scores of equation 8: ``w^T tanh(V h)``; several share V, each with a w of its own."""

    def __init__(self, width: int, attention_dim: int, n_scores: int = 1) -> None:
        super().__init__()
        self.value = linear(width, attention_dim, activation="tanh")
        # Without a bias: softmax cancels it, so it would be a parameter that never learns.
        self.score = linear(attention_dim, n_scores, bias=False)

    def forward(self, embedded: Tensor, classifier: nn.Linear | None = None) -> Tensor:
        """Score rows, and classify them where a classifier is given.

        Args:
            embedded: ``(n_tiles, width)``.
            classifier: Linear on embedded rows; its bias is left out.

        Returns:
            ``(n_tiles, n_scores)``, or ``(n_tiles, n_scores + n_classes)`` in float32 or wider.
        """
        layers = self._layers()
        n_hidden = sum(layer.out_features for layer in layers)
        # One product for all layers: rows are read once and have one gradient.
        beside = [] if classifier is None else [classifier]
        made = F.linear(embedded, torch.cat([layer.weight for layer in [*layers, *beside]]))
        hidden, of_class = torch.split(made, [n_hidden, made.shape[1] - n_hidden], dim=1)
        hidden = widened(hidden) + torch.cat([layer.bias for layer in layers])
        scores: Tensor = self.score(self._activated(*hidden.chunk(len(layers), dim=1)))
        return scores if classifier is None else torch.cat([widened(scores), of_class], dim=1)

    def _layers(self) -> list[nn.Linear]:
        return [self.value]

    def _activated(self, *hidden: Tensor) -> Tensor:
        """``(n_tiles, attention_dim)`` of each layer to one such."""
        (value,) = hidden
        return torch.tanh(value)


class GatedBranch(AttentionBranch):
    """Scores of equation 9: ``w^T (tanh(V h) * sigmoid(U h))``."""

    def __init__(self, width: int, attention_dim: int, n_scores: int = 1) -> None:
        super().__init__(width, attention_dim, n_scores)
        self.gate = linear(width, attention_dim, activation="sigmoid")

    def _layers(self) -> list[nn.Linear]:
        return [self.value, self.gate]

    def _activated(self, *hidden: Tensor) -> Tensor:
        value, gate = hidden
        return torch.tanh(value) * torch.sigmoid(gate)


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

    Contributions: pooling and classifier are linear, so the logits are exactly
    ``sum_k a_k C h_k + c``. This splits what the bag was given and says nothing of a bag with
    other tiles, whose softmax would be another; :class:`AdditiveMIL` is the method that is made
    for it, with a classifier of each tile that is not linear.

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
    _by_class: ClassVar[bool] = False
    """Whether each class has an attention of its own."""

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
        self.embed = embedding(dim, hidden, dropout)
        self.attention = self._branch(hidden, attention_dim, n_classes if self._by_class else 1)
        self.classifier = linear(hidden, n_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags and weigh their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``."""
        return self._pooled(self.tiles(x, offsets, self.embed))

    def _pooled(self, tiles: Tiles) -> Output:
        # Pooling and classifier are linear: tiles are classified and then pooled, which is the
        # same and moves n_classes numbers a tile, not its embedding.
        said = tiles.map(partial(self.attention, classifier=self.classifier))
        scores, of_class = said[:, : -self.n_classes], said[:, -self.n_classes :]
        weights = segment_softmax(scores, tiles.offsets)  # (n_tiles, 1 or n_classes)
        parts = weights * of_class  # (n_tiles, n_classes)
        logits = segment_sum(parts, tiles.offsets) + self.classifier.bias
        if not self._by_class:
            return Output(logits, weights.squeeze(1), contributions=parts)
        return Output(logits, of_winner(weights, logits, tiles.offsets), weights, parts)


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


@AGGREGATORS.register("additive")
class AdditiveMIL(Aggregator):
    """Additive MIL: tiles are classified one by one, and their scores add up to the logits.

    Source: Javed, Juyal, Padigela, Taylor-Weiner, Yu & Prakash, "Additive MIL: intrinsically
    interpretable multiple instance learning for pathology", NeurIPS 2022, over the attention of
    :class:`ABMIL`: ``m_k = a_k h_k``, and the logits are ``sum_k psi(m_k) + c`` with a multi-layer
    perceptron ``psi``, here ``psi(m) = C ReLU(U m)``. ``contributions`` holds ``psi(m_k)``.

    Deviations: psi has no biases, since a sum over tiles would count them once a tile and the size
    of the bag would speak; the bag has one bias c instead. As ReLU passes a positive factor on,
    ``psi(a_k h_k) = a_k psi(h_k)``, which is what is computed. Softmax and sum run in float32 or
    wider, also under autocast.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the embedding ``h``.
        attention_dim: Width of the attention branch.
        score_dim: Width of the hidden layer of psi.
        dropout: On the embedding of each tile.

    Raises:
        InputError: An argument lies outside its range.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int = 128,
        attention_dim: int = 128,
        score_dim: int = 64,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(
            n_classes=n_classes,
            dropout=dropout,
            dim=dim,
            hidden=hidden,
            attention_dim=attention_dim,
            score_dim=score_dim,
        )
        super().__init__(dim, n_classes)
        self.embed = embedding(dim, hidden, dropout)
        self.attention = AttentionBranch(hidden, attention_dim)
        self.psi = nn.Sequential(
            linear(hidden, score_dim, activation="relu", bias=False),
            nn.ReLU(),
            linear(score_dim, n_classes, bias=False),
        )
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags and their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``."""
        tiles = self.tiles(x, offsets, self.embed)
        weights = segment_softmax(tiles.map(self.attention).squeeze(1), offsets)  # (n_tiles,)
        parts = widened(tiles.map(self.psi)) * weights[:, None]  # (n_tiles, n_classes)
        logits = segment_sum(parts, offsets) + self.bias  # (n_bags, n_classes)
        return Output(logits, weights, contributions=parts)
