"""Softmax attention among the tokens of each bag: every tile and one class token a bag.

Tokens of packed bags are one matrix ``(n_tokens, width)``: the class token of every bag first, then
the tiles in their order, then some rows that belong to nobody and only round the number of rows up.
So whatever treats rows alone (norms, linear layers) runs once for all bags, and only attention goes
bag by bag.

A classifier reads the class token alone. The last layer therefore asks only what the class token
attends to: the same numbers as a whole layer would give it, for time linear in tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mil.aggregators.contract import linear
from splits.errors import InputError

__all__ = ["LayerNorm", "SelfAttention", "check_heads", "cut", "join", "within_budget"]

T = TypeVar("T")

_ROUND: Final = 256
"""Numbers of tokens are multiples of this: on a CPU every new number of rows costs a bfloat16
matrix product its set-up once more."""


def join(class_token: Tensor, tiles: Tensor, n_bags: int) -> Tensor:
    """Tokens ``(n_tokens, width)`` of a class token ``(width,)`` and tiles ``(n_tiles, width)``."""
    class_tokens = class_token.to(tiles.dtype).expand(n_bags, -1)
    n_spare = -(n_bags + len(tiles)) % _ROUND
    return torch.cat([class_tokens, tiles, tiles.new_zeros(n_spare, tiles.shape[1])])


def cut(rows: Tensor, sizes: list[int]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Rows of tokens as class tokens ``(1, ...)``, bags of tiles ``(size, ...)`` and the spare."""
    # One `split` and no slices: the gradient of a slice is as large as what it was cut from.
    n_bags = len(sizes)
    lengths = [1] * n_bags + sizes
    parts = torch.split(rows, [*lengths, len(rows) - sum(lengths)])
    return parts[:n_bags], parts[n_bags:-1], parts[-1]


class LayerNorm(nn.LayerNorm):
    """Layer norm in the type of its weights.

    In bfloat16, torch sums the gradient of the weights over all tokens in bfloat16: on 4,000 tokens
    it was off by half.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(n, width)`` to the same."""
        return super().forward(x.to(self.weight.dtype))


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention within each bag, without its residual sum.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, equation 1 and section 3.2.2:
    ``softmax(Q K^T / sqrt(d)) V`` in each head; the norm goes before, as in Dosovitskiy et al.,
    "An image is worth 16x16 words", ICLR 2021, equation 2.

    Queries, keys and values have no bias: that of the keys would never learn, since softmax cancels
    it. Products are of the type that autocast asks for, softmax is float32 or wider.

    Args:
        width: Of a token.
        n_heads: A divisor of ``width``.
        dropout: On what a token receives.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = LayerNorm(width)
        self.qkv = linear(width, 3 * width, bias=False)
        self.out = linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """What every token receives from the tokens of its bag.

        Args:
            tokens: ``(n_tokens, width)``.
            offsets: ``(n_bags + 1,)`` of the tiles.

        Returns:
            ``(n_tokens, width)``.
        """
        sizes = offsets.diff().tolist()
        normed = self.norm(tokens)
        qkv = self.qkv(normed).view(len(tokens), 3, self.n_heads, -1)
        ones, tiles, spare = cut(qkv, sizes)
        normed_ones, normed_tiles, _ = cut(normed, sizes)
        bags = [
            self.attend(torch.cat([one, rest]), normed_one, normed_rest)
            for one, rest, normed_one, normed_rest in zip(
                ones, tiles, normed_ones, normed_tiles, strict=True
            )
        ]
        parts = [torch.split(bag, [1, len(bag) - 1]) for bag in bags]
        mixed = torch.cat([one for one, _ in parts] + [rest for _, rest in parts])
        mixed = torch.cat([mixed, spare[:, 0].flatten(1)])
        made: Tensor = self.dropout(self.out(mixed))
        return made

    def attend(self, qkv: Tensor, *normed: Tensor) -> Tensor:
        """Attention in one bag, its class token first.

        Args:
            qkv: ``(n, 3, n_heads, width / n_heads)``.
            normed: ``(n, width)`` in parts, what they were made from.

        Returns:
            ``(n, width)``.
        """
        q, k, v = (one.transpose(0, 1)[None] for one in qkv.unbind(1))  # (1, n_heads, n, width')
        mixed = F.scaled_dot_product_attention(q, k, v)  # never holds the n x n weights
        return mixed[0].transpose(0, 1).flatten(1)

    def of_class_token(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """What the class token alone receives, and from where.

        Keys and values are not computed: with one query in each head,
        ``q . (W_k x) = (W_k^T q) . x`` and ``sum_i a_i W_v x_i = W_v sum_i a_i x_i``.

        Args:
            tokens: ``(n_tokens, width)``.
            offsets: ``(n_bags + 1,)`` of the tiles.

        Returns:
            ``(n_bags, width)``, and attention ``(n_tiles,)``: mean weight over the heads without
            the share of the class token itself, scaled to sum to 1 in each bag.
        """
        sizes = offsets.diff().tolist()
        with torch.autocast(tokens.device.type, enabled=False):
            normed = self.norm(tokens)
            class_tokens, tiles, _ = cut(normed, sizes)
            of_class = torch.cat(class_tokens)  # (n_bags, width)
            w_q, w_k, w_v = self.qkv.weight.view(3, self.n_heads, -1, tokens.shape[1]).unbind()
            q = torch.einsum("hdw,bw->bhd", w_q, of_class) * w_q.shape[1] ** -0.5
            asked = torch.einsum("hdw,bhd->bhw", w_k, q)  # (n_bags, n_heads, width)
            own = torch.einsum("bhw,bw->bh", asked, of_class)
            bags = zip(asked.unbind(), own.unbind(), tiles, strict=True)
            found = [_weigh(*bag) for bag in bags]
            pooled = torch.stack([sums for sums, _, _ in found])  # (n_bags, n_heads, width)
            rest = 1 - torch.stack([mass for _, mass, _ in found])  # (n_bags, n_heads)
            pooled = pooled + rest[:, :, None] * of_class[:, None]
            received = torch.einsum("hdw,bhw->bhd", w_v, pooled).flatten(1)
            made = self.dropout(self.out(received))
        return made, torch.cat([attention for _, _, attention in found])


def _weigh(asked: Tensor, own: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of one class token to the tiles of its bag.

    Args:
        asked: ``(n_heads, width)``, a query in the space of tokens.
        own: ``(n_heads,)`` score of the class token itself.
        tiles: ``(n, width)``.

    Returns:
        Weighted sum of the tiles ``(n_heads, width)``, their share ``(n_heads,)``, and their
        weights averaged over the heads ``(n,)``, with sum 1.
    """
    scores = tiles @ asked.T  # (n, n_heads)
    total = scores.logsumexp(0)
    log_share = total - torch.logaddexp(total, own)  # (n_heads,)
    weights = (scores - total).exp()  # (n, n_heads), with sum 1 in each head
    share = log_share.exp()
    # In logarithms: where the class token leaves next to nothing to the tiles, 0 / 0 is no weight.
    attention = weights @ log_share.softmax(0)
    return share[:, None] * (weights.T @ tiles), share, attention


def within_budget(layer: Callable[..., T], *args: Tensor, streams: bool) -> T:
    """What a layer makes; where it ``streams``, made anew for the backward pass and not kept."""
    if streams and torch.is_grad_enabled():
        made: T = checkpoint(layer, *args, use_reentrant=False)
        return made
    return layer(*args)


def check_heads(*, hidden: int, n_heads: int) -> None:
    """Refuse a number of heads that does not divide the width.

    Raises:
        InputError: It does not; the message lists what does.
    """
    if hidden % n_heads:
        fit = [n for n in range(1, min(hidden, 64) + 1) if hidden % n == 0]
        message = f"n_heads is {n_heads}, allowed is a divisor of hidden ({hidden}): {fit}"
        raise InputError(message)
