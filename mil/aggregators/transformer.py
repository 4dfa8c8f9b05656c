"""A plain small transformer over the tiles of a bag."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.aggregators.contract import AGGREGATORS, Aggregator, Output, check_sizes, linear
from mil.aggregators.self_attention import (
    LayerNorm,
    SelfAttention,
    check_heads,
    join,
    within_budget,
)

__all__ = ["Transformer"]

_MLP = 2  # width of the inner layer of a block, in widths of a token


class _Block(nn.Module):
    """``t + attention(t)``, then ``t + MLP(norm(t))``."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, n_heads, dropout)
        self.mlp = nn.Sequential(
            LayerNorm(width),
            linear(width, _MLP * width, activation="relu"),
            nn.GELU(),
            linear(_MLP * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """``(n_tokens, width)`` to the same."""
        tokens = tokens + self.attention(tokens, offsets)
        made: Tensor = tokens + self.mlp(tokens)
        return made

    def of_class_token(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The class tokens ``(n_bags, width)`` behind this block, and their attention."""
        received, attention = self.attention.of_class_token(tokens, offsets)
        bags = tokens[: len(received)] + received
        return bags + self.mlp(bags), attention


@AGGREGATORS.register("transformer")
class Transformer(Aggregator):
    """A transformer encoder over the tiles of a bag, without positions.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, equations 1 to 4, with
    tiles for patches: tokens ``t = [c; ReLU(W x_k + b)]`` with a learned class token c; in each
    block ``t += MSA(LN(t))`` and ``t += MLP(LN(t))``; logits are linear in ``LN(c)`` after the last
    block. Vanilla self-attention over tiles, as in Wagner et al., "Transformer-based biomarker
    prediction from colorectal cancer histology", Cancer Cell 2023.

    ``attention`` is that of the class token in the last block, averaged over the heads, without the
    share of the class token itself, scaled to sum to 1 in each bag.

    Deviations: no position embedding, so the order of tiles cannot matter; queries, keys and values
    have no bias; the inner layer of the MLP is twice and not four times as wide as a token; the
    last block is computed for the class token only, with the same result.

    Memory is linear in tiles, time of all blocks but the last is quadratic in the tiles of a bag.
    All tokens of a batch are kept, whatever the ``budget``; beyond it blocks are made anew for the
    backward pass.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of a token.
        n_layers: Number of blocks. One block is attention pooling with a learned query.
        n_heads: Heads of attention, a divisor of ``hidden``.
        dropout: On what attention and MLP add to a token.

    Raises:
        InputError: An argument lies outside its range.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int = 256,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(
            n_classes=n_classes,
            dropout=dropout,
            dim=dim,
            hidden=hidden,
            n_layers=n_layers,
            n_heads=n_heads,
        )
        check_heads(hidden=hidden, n_heads=n_heads)
        super().__init__(dim, n_classes)
        self.embed = nn.Sequential(linear(dim, hidden, activation="relu"), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(hidden))
        self.blocks = nn.ModuleList(_Block(hidden, n_heads, dropout) for _ in range(n_layers - 1))
        self.last = _Block(hidden, n_heads, dropout)
        self.norm = LayerNorm(hidden)
        self.classifier = linear(hidden, n_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags and weigh their tiles: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``."""
        embedded = self.tiles(x, offsets, self.embed).map(nn.Identity())  # (n_tiles, hidden)
        tokens = join(self.class_token, embedded, len(offsets) - 1)  # (n_tokens, hidden)
        streams = len(x) > self.budget
        for block in self.blocks:
            tokens = within_budget(block, tokens, offsets, streams=streams)
        bags, attention = within_budget(
            self.last.of_class_token, tokens, offsets, streams=streams
        )  # (n_bags, hidden), (n_tiles,)
        return Output(self.classifier(self.norm(bags)), attention)
