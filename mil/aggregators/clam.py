"""CLAM: attention pooling whose most and least attended tiles are told apart by a second loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil.aggregators.attention import GatedABMIL
from mil.aggregators.contract import (
    AGGREGATORS,
    INSTANCE_LOSSES,
    InstanceLoss,
    Output,
    check_sizes,
    linear,
)
from mil.aggregators.segments import segment_argsort, segment_ids
from splits.errors import InputError

__all__ = ["CLAMMB", "CLAMSB", "ClusterLoss"]


class _CLAM(GatedABMIL):
    """Gated ABMIL with CLAM's widths, whose tiles its loss can read."""

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int = 512,
        attention_dim: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim=dim,
            n_classes=n_classes,
            hidden=hidden,
            attention_dim=attention_dim,
            dropout=dropout,
        )

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags and weigh their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``.

        ``auxiliary`` holds the embedded :class:`~mil.aggregators.tiles.Tiles`.
        """
        tiles = self.tiles(x, offsets, self.embed)
        return self._pooled(tiles)._replace(auxiliary=tiles)


@AGGREGATORS.register("clam_sb")
class CLAMSB(_CLAM):
    """Clustering-constrained attention MIL with a single attention branch.

    Source: Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide
    images", Nature Biomedical Engineering 5 (2021), methods. A first layer compresses each tile,
    ``h_k = ReLU(W_1 x_k + b)``. Equation 1 weighs it,
    ``a_k = softmax_k(w^T (tanh(V h_k) * sigmoid(U h_k)))``; equation 2 pools the slide,
    ``z = sum_k a_k h_k``; a linear layer gives the logits. Trained with :class:`ClusterLoss`;
    without it this is gated ABMIL.

    Deviations: dropout acts on the compressed tile only, where the authors' code also has it
    within the attention network; softmax and sum run in float32 or wider, also under autocast.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the compressed tile (512 in the paper).
        attention_dim: Width of the attention network (256 in the paper).
        dropout: On each compressed tile (0.25 in the authors' code).

    Raises:
        InputError: An argument lies outside its range.
    """


@AGGREGATORS.register("clam_mb")
class CLAMMB(_CLAM):
    """Clustering-constrained attention MIL with an attention branch and a classifier a class.

    Source: Lu et al. 2021, as :class:`CLAMSB`, for each class m:
    ``a_km = softmax_k(w_m^T (tanh(V h_k) * sigmoid(U h_k)))`` (equation 1, V and U shared),
    ``z_m = sum_k a_km h_k`` (equation 2), logit ``s_m = c_m^T z_m + b_m``. Trained with
    :class:`ClusterLoss`.

    Deviations: as for :class:`CLAMSB`.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the compressed tile (512 in the paper).
        attention_dim: Width of the attention network (256 in the paper).
        dropout: On each compressed tile (0.25 in the authors' code).

    Raises:
        InputError: An argument lies outside its range.
    """

    _by_class = True


@INSTANCE_LOSSES.register("clam_sb")
@INSTANCE_LOSSES.register("clam_mb")
class ClusterLoss(InstanceLoss):
    """Instance-level clustering: is a tile evidence for its class, or not?

    Source: Lu et al. 2021, methods, "Instance-level clustering". Each class has a linear
    classifier of compressed tiles with two outputs. In each bag the ``k`` tiles that the branch of
    the true class attends to most are called positive and the ``k`` least attended negative. With
    ``subtyping``, where no slide shows two classes, the ``k`` tiles that each other class attends
    to most are negative for that class, and the mean is taken over the classes. The loss of a tile
    with the scores ``s`` and the pseudo-label y is the smooth top-1 SVM loss (Berrada, Zisserman &
    Kumar, "Smooth loss functions for deep top-k classification", ICLR 2018) at temperature 1,
    ``log sum_j exp(margin [j != y] + s_j - s_y)``; with a margin of 0 that is the cross entropy.
    The paper takes the SVM loss; the authors' code takes it with ``--inst_loss svm`` and the cross
    entropy otherwise.

    Deviations: a bag of n tiles gives at most ``n // 2`` tiles to each side, so that no tile is
    called both and a bag of one tile has no loss (the authors' code fails below ``k`` tiles and
    takes tiles twice below ``2 k``). Of tiles with equal attention the order decides, as there.
    Where a batch streams in chunks, picked tiles draw a dropout of their own; elsewhere they are
    the very rows that were pooled.

    Args:
        aggregator: What the loss is for; gives the width and the number of classes.
        k: Tiles on each side (8 in the paper).
        subtyping: Whether attended tiles count against the other classes.
        margin: 1 for the smooth SVM loss of the paper, 0 for the cross entropy.
        bag_weight: Share of the loss of the bags in the whole (0.7 in the paper).

    Raises:
        InputError: An argument lies outside its range.
    """

    def __init__(
        self,
        aggregator: CLAMSB | CLAMMB,
        *,
        k: int = 8,
        subtyping: bool = False,
        margin: float = 1.0,
        bag_weight: float = 0.7,
    ) -> None:
        check_sizes(n_classes=aggregator.n_classes, dropout=0.0, k=k)
        if not isinstance(margin, int | float) or margin < 0:
            message = f"margin is {margin!r}, allowed is a number from 0"
            raise InputError(message)
        if not isinstance(bag_weight, int | float) or not 0 < bag_weight <= 1:
            message = f"bag_weight is {bag_weight!r}, allowed is a number above 0, at most 1"
            raise InputError(message)
        super().__init__()
        self.n_classes, self.k, self.subtyping = aggregator.n_classes, k, subtyping
        self.margin = margin
        self.weight = (1 - bag_weight) / bag_weight
        self.clusters = linear(aggregator.classifier.in_features, 2 * self.n_classes)

    def forward(self, output: Output, offsets: Tensor, label: Tensor) -> Tensor:
        """Mean over the bags: ``offsets (n_bags + 1,)``, ``label (n_bags,)`` to a scalar."""
        passes = self.n_classes if self.subtyping else 1
        parts = [self._pick(output, offsets, label, shift) for shift in range(passes)]
        index, asked, target, share = (torch.cat(column) for column in zip(*parts, strict=True))
        scores = self.clusters(output.auxiliary.rows(index)).unflatten(1, (self.n_classes, 2))
        scores = scores[torch.arange(len(index), device=index.device), asked]  # (n_picked, 2)
        wrong = 1 - F.one_hot(target, 2)  # (n_picked, 2)
        losses = F.cross_entropy(scores + self.margin * wrong, target, reduction="none")
        return (losses * share).sum() / (passes * (len(offsets) - 1))

    def _pick(
        self, output: Output, offsets: Tensor, label: Tensor, shift: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tiles to judge for one class of each bag: the true one, or ``shift`` further.

        Returns:
            Of each picked tile ``(n_picked,)``: row, class, pseudo-label, share in the loss of its
            bag.
        """
        bag, size = segment_ids(offsets), offsets.diff()  # (n_tiles,), (n_bags,)
        of_class = (label + shift) % self.n_classes  # (n_bags,)
        if output.class_attention is None:
            attention = output.attention
        else:
            attention = output.class_attention.gather(1, of_class[bag, None]).squeeze(1)
        assert attention is not None  # both methods weigh tiles
        order = segment_argsort(attention.detach(), offsets)  # (n_tiles,)
        rank = torch.arange(len(bag), device=bag.device) - offsets[bag]  # (n_tiles,)
        k = (size // 2).clamp(max=self.k)[bag]  # (n_tiles,)
        top, bottom = rank >= size[bag] - k, rank < k
        picked = top if shift else top | bottom
        n_picked = k if shift else 2 * k
        target = (top if shift == 0 else torch.zeros_like(top))[picked].long()
        share = 1 / n_picked[picked].to(attention.dtype)
        return order[picked], of_class[bag[picked]], target, share
