"""DTFD-MIL: slides are cut into pseudo-bags, and what is distilled from them makes the slide."""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.attention import GatedBranch
from mil.aggregators.contract import (
    AGGREGATORS,
    INSTANCE_LOSSES,
    Aggregator,
    InstanceLoss,
    Output,
    check_sizes,
    class_scores,
    embedding,
    linear,
)
from mil.aggregators.segments import (
    segment_argsort,
    segment_highest,
    segment_ids,
    segment_mean,
    segment_softmax,
    segment_sum,
)
from splits.errors import unknown

__all__ = ["DTFD", "PseudoBagLoss"]

_DISTILL: Final = ("afs", "maxmin")


@AGGREGATORS.register("dtfd")
class DTFD(Aggregator):
    """Double-tier feature distillation MIL.

    Source: Zhang et al., "DTFD-MIL: Double-tier feature distillation multiple instance learning
    for histopathology whole slide image classification", CVPR 2022. The tiles of a slide are dealt
    to M pseudo-bags. Tier 1 is gated attention MIL on each of them, ``h_k = ReLU(W x_k + b)``,
    ``a_k = softmax_k(w^T (tanh(V h_k) * sigmoid(U h_k)))`` over the tiles of the pseudo-bag,
    ``F = sum_k a_k h_k``, scores ``s_c = w_c^T F + b_c``. Tier 2 is gated attention MIL on what is
    distilled from the pseudo-bags, with weights of its own and without a layer before. Tier 1
    learns from :class:`PseudoBagLoss`.

    ``distill="afs"`` takes F (aggregated feature selection, the best in the paper and the default
    of the authors' code). ``distill="maxmin"`` takes tiles: by Grad-CAM on tier 1 a tile has the
    signal ``L_kc = a_k w_c^T h_k`` and the probability ``p_kc = softmax_c(L_kc)``, and for each
    class the tile of highest probability is taken. With two classes these are the tiles of highest
    and lowest positive probability, which is MaxMinS of the paper.

    Attention is what each tile weighs in the end: its share in the distilled features times their
    weight in tier 2. The logits are those of ``sum_k attention_k h_k``.

    Deviations: pseudo-bags are not dealt at random but by rank on a line, so that the order of the
    tiles never counts: tiles are ranked by their projection on a direction and dealt out in turn.
    In training a new direction is drawn on each pass from torch's generator; in evaluation it is
    fixed, drawn with the weights and saved with them. Identical tiles may fall to different
    pseudo-bags and then differ in attention. A bag of fewer than M tiles has fewer pseudo-bags.
    The paper's MaxMinS is for two classes; beyond, see above. Tiles that share the highest
    probability are averaged. The loss of the slide trains tier 1, too, where the authors' code
    keeps it from there: the module learns without its instance loss as well. The first layer has
    a bias. Softmax and sums run in float32 or wider.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the first layer (512 in the authors' code).
        attention_dim: Width of both attention branches (128 in the authors' code).
        n_pseudo: Pseudo-bags of a slide, M (5 for CAMELYON16 and 8 for TCGA in the paper).
        distill: ``"afs"`` or ``"maxmin"``.
        dropout: On each embedded tile.

    Raises:
        InputError: An argument lies outside its range.
    """

    direction: Tensor

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int = 512,
        attention_dim: int = 128,
        n_pseudo: int = 5,
        distill: Literal["afs", "maxmin"] = "afs",
        dropout: float = 0.0,
    ) -> None:
        check_sizes(
            n_classes=n_classes,
            dropout=dropout,
            dim=dim,
            hidden=hidden,
            attention_dim=attention_dim,
            n_pseudo=n_pseudo,
        )
        if distill not in _DISTILL:
            kind = "distillation"
            raise unknown(kind, str(distill), _DISTILL)
        super().__init__(dim, n_classes)
        self.n_pseudo, self.distill = n_pseudo, distill
        self.embed = embedding(dim, hidden, dropout)
        self.tile_attention = GatedBranch(hidden, attention_dim)
        self.tile_classifier = linear(hidden, n_classes)
        self.attention = GatedBranch(hidden, attention_dim)
        self.classifier = linear(hidden, n_classes)
        self.register_buffer("direction", torch.randn(dim))

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags and weigh their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``.

        ``auxiliary`` holds the scores of tier 1, ``(n_pseudo_bags, n_classes)``, and the offsets of
        the bags in that list, ``(n_bags + 1,)``.
        """
        order, pseudo, parts = self._deal(x, offsets)
        tiles = self.tiles(x, pseudo, self.embed, order)
        own = segment_softmax(tiles.map(self.tile_attention).squeeze(1), pseudo)  # (n_tiles,)
        pooled = tiles.sum(own)  # (n_pseudo_bags, hidden)
        if self.distill == "afs":
            share, features = own[:, None], pooled[:, None]
        else:
            share = segment_highest(
                self._evidence(class_scores(tiles, self.tile_classifier), own), pseudo
            )
            features = tiles.pick(share)
        n_kept = features.shape[1]  # of a pseudo-bag
        features, slots = features.flatten(0, 1), parts * n_kept
        weights = segment_softmax(self.attention(features).squeeze(1), slots)
        logits = self.classifier(segment_sum(features.to(weights.dtype), slots, weights))
        of_tile = weights.view(-1, n_kept)[segment_ids(pseudo)]  # (n_tiles, n_kept)
        attention, place = (share * of_tile).sum(1), order.argsort()
        said = (
            None
            if self.training
            else (class_scores(tiles, self.classifier) * attention[:, None])[place]
        )
        tier_1 = (self.tile_classifier(pooled), parts)
        return Output(logits, attention[place], contributions=said, auxiliary=tier_1)

    def _deal(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pseudo-bags: order of the tiles ``(n_tiles,)``, their offsets, and those of the bags."""
        direction = torch.randn_like(self.direction) if self.training else self.direction

        def project(rows: Tensor) -> Tensor:
            return rows @ direction[:, None]

        # Under autocast many tiles would share a place.
        with torch.no_grad(), torch.autocast(direction.device.type, enabled=False):
            place = self.tiles(x, offsets, project).map(nn.Identity()).squeeze(1)  # (n_tiles,)
        ranked = segment_argsort(place, offsets)
        bag = segment_ids(offsets)
        rank = torch.arange(len(bag), device=bag.device) - offsets[bag]
        n_parts = offsets.diff().clamp(max=self.n_pseudo)  # (n_bags,)
        parts = F.pad(n_parts.cumsum(0), (1, 0))  # (n_bags + 1,)
        part = parts[bag] + rank % n_parts[bag]  # (n_tiles,)
        order = ranked[part.argsort(stable=True)]
        return order, F.pad(part.bincount().cumsum(0), (1, 0)), parts

    def _evidence(self, signal: Tensor, own: Tensor) -> Tensor:
        """Log odds of ``p_kc``: its rank, exact where thousands of tiles are near 1 / n_classes."""
        signal = signal * own[:, None]  # (n_tiles, n_classes)
        others = [
            torch.cat([signal[:, :c], signal[:, c + 1 :]], dim=1).logsumexp(1)
            for c in range(self.n_classes)
        ]
        return signal - torch.stack(others, dim=1)


@INSTANCE_LOSSES.register("dtfd")
class PseudoBagLoss(InstanceLoss):
    """Cross entropy of tier 1: each pseudo-bag has the label of its slide.

    Source: Zhang et al. 2022; both tiers weigh the same.

    Deviations: the mean over the pseudo-bags of a slide comes first, so that a slide of fewer
    pseudo-bags counts as much as any other.

    Args:
        aggregator: What the loss is for.
    """

    weight = 1.0

    def __init__(self, aggregator: DTFD) -> None:
        super().__init__()

    def forward(self, output: Output, offsets: Tensor, label: Tensor) -> Tensor:
        """Mean over the bags: ``offsets (n_bags + 1,)``, ``label (n_bags,)`` to a scalar."""
        scores, parts = output.auxiliary
        losses = F.cross_entropy(scores, label[segment_ids(parts)], reduction="none")
        return segment_mean(losses[:, None], parts).mean()
