"""Classify each tile, take the highest score: the one method here that keeps the MIL assumption."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.aggregators.contract import AGGREGATORS, Aggregator, Output, check_sizes, linear
from splits.errors import InputError

__all__ = ["MaxInstance"]


@AGGREGATORS.register("max_instance")
class MaxInstance(Aggregator):
    """Maximum operator at the level of tiles, for a class of slides that have nothing to show.

    Source: the instance-level network of Wang et al., "Revisiting multiple instance neural
    networks", Pattern Recognition 74 (2018), mi-Net with max pooling. Each tile is scored,
    ``s_kc = w_c^T ReLU(W x_k + b) + b_c``, and the slide takes ``max_k s_kc``. One class is the
    ``negative`` one (normal, benign) and has the logit 0: a slide is of it unless some tile says
    otherwise, and no tile can speak for it. So the standard assumption of multiple-instance
    learning holds by construction: another tile never makes a slide more negative.

    Deviations: one hidden layer instead of three; classes beyond two, each with its own maximum.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of the layer with ReLU on each tile; None for no such layer.
        negative: Index of the class without evidence of its own; classes are sorted by name.
        dropout: On each embedded tile.

    Raises:
        InputError: An argument lies outside its range.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int | None = 128,
        negative: int = 0,
        dropout: float = 0.0,
    ) -> None:
        width = dim if hidden is None else hidden
        check_sizes(n_classes=n_classes, dropout=dropout, dim=dim, hidden=width)
        if not isinstance(negative, int) or not 0 <= negative < n_classes:
            message = (
                f"negative is {negative!r}, allowed is a class index from 0 to {n_classes - 1}"
            )
            raise InputError(message)
        super().__init__(dim, n_classes)
        self.negative = negative
        self.embed = (
            nn.Dropout(dropout)
            if hidden is None
            else nn.Sequential(
                linear(dim, hidden, activation="relu"), nn.ReLU(), nn.Dropout(dropout)
            )
        )
        self.classifier = linear(width, n_classes - 1)

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``; no attention."""
        tiles = self.tiles(x, offsets, lambda rows: self.classifier(self.embed(rows)))
        highest = tiles.max()  # (n_bags, n_classes - 1)
        before, after = highest[:, : self.negative], highest[:, self.negative :]
        return Output(torch.cat([before, highest.new_zeros(len(highest), 1), after], dim=1))
