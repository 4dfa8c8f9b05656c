"""DSMIL: the most telling tile of each class, and attention to the tiles that are like it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    of_winner,
)
from mil.aggregators.segments import segment_highest, segment_max, segment_softmax
from mil.aggregators.tiles import Tiles

__all__ = ["DSMIL", "CriticalInstanceLoss"]


@AGGREGATORS.register("dsmil")
class DSMIL(Aggregator):
    """Dual-stream MIL.

    Source: Li, Li & Eliceiri, "Dual-stream multiple instance learning network for whole slide
    image classification with self-supervised contrastive learning", CVPR 2021, section 3. For each
    class c, the first stream scores the tiles of a bag, ``s_kc = W_0 h_k``, and takes the highest,
    ``max_k s_kc``; the tile that holds it is the critical one, ``h_m``. The second stream weighs
    the tiles by their likeness to it, ``a_kc = softmax_k(<q_k, q_m>)`` with ``q = W_q h``, pools
    ``z_c = sum_k a_kc h_k`` and classifies all classes together by a convolution over them, a
    linear layer on ``(z_1, ..., z_C)``. The first stream learns from :class:`CriticalInstanceLoss`.

    Logits are those of the second stream alone. The authors' first code predicts from it alone,
    too; the paper, and their later code by default, average the scores of both streams.

    Deviations: tiles that share the highest score share the critical place by their mean, where
    the authors' code takes the first of them (and in its first form, for all classes but one, a
    tile of the wrong index); ``<q_k, q_m>`` is divided by the root of ``query_dim``, as in the code
    and not in the paper; q is linear as in the paper and the first code (the later one has a hidden
    layer and a tanh); the linear values ``W_v h`` of the paper are left out, because the layer that
    follows holds every such product (the later code leaves them out, too). Without ``hidden`` the
    given embeddings are taken as they are, as in the paper.

    As q is linear, ``<q_k, q_m>`` equals ``h_k^T W_q^T q_m`` and a term that softmax cancels: each
    tile is multiplied with one vector a class, not with W_q.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of a layer with ReLU on each tile; None for no such layer.
        query_dim: Length of q (128 in the authors' code).
        dropout: On each embedded tile (the authors' code has it on the values alone).

    Raises:
        InputError: An argument lies outside its range.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int | None = None,
        query_dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        width = dim if hidden is None else hidden
        check_sizes(
            n_classes=n_classes, dropout=dropout, dim=dim, hidden=width, query_dim=query_dim
        )
        super().__init__(dim, n_classes)
        self.embed = nn.Dropout(dropout) if hidden is None else embedding(dim, hidden, dropout)
        self.query = linear(width, query_dim)
        self.classifier = linear(n_classes * width, n_classes)
        self.instance = linear(width, n_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags and weigh their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``.

        ``attention`` is that of the class with the highest logit; ``auxiliary`` holds the highest
        tile scores, ``(n_bags, n_classes)``.
        """
        tiles = self.tiles(x, offsets, self.embed)
        scores = class_scores(tiles, self.instance) + self.instance.bias  # (n_tiles, n_classes)
        query = self.query(tiles.pick(segment_highest(scores, offsets)))
        keys = query @ self.query.weight / query.shape[2] ** 0.5  # (n_bags, n_classes, width)
        by_class = segment_softmax(tiles.dot(keys), offsets)  # (n_tiles, n_classes)
        bags = tiles.sum(by_class)  # (n_bags, n_classes, width)
        logits = self.classifier(bags.flatten(1))
        weights = of_winner(by_class, logits, offsets)  # (n_tiles,)
        parts = None if self.training else self._contributions(tiles, by_class)
        return Output(logits, weights, by_class, parts, segment_max(scores, offsets))

    def _contributions(self, tiles: Tiles, by_class: Tensor) -> Tensor:
        n_bags = len(tiles.offsets) - 1
        # A class at a time: all at once would be n_classes ** 2 numbers a tile.
        filters = self.classifier.weight.view(self.n_classes, self.n_classes, -1)
        columns = [
            (tiles.dot(one.expand(n_bags, -1, -1)) * by_class).sum(1) for one in filters.unbind(0)
        ]
        return torch.stack(columns, dim=1)  # (n_tiles, n_classes)


@INSTANCE_LOSSES.register("dsmil")
class CriticalInstanceLoss(InstanceLoss):
    """Cross entropy of the highest tile scores: the loss of DSMIL's first stream.

    Source: Li, Li & Eliceiri 2021; the authors' code gives both streams the weight 0.5.

    Deviations: softmax over exclusive classes, where the authors' code takes a sigmoid a class.

    Args:
        aggregator: What the loss is for.
    """

    weight = 1.0

    def __init__(self, aggregator: DSMIL) -> None:
        super().__init__()

    def forward(self, output: Output, offsets: Tensor, label: Tensor) -> Tensor:
        """Mean over the bags: ``offsets (n_bags + 1,)``, ``label (n_bags,)`` to a scalar."""
        return F.cross_entropy(output.auxiliary, label)
