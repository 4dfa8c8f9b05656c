"""Sums, means, maxima and softmax over the bags of a packed batch, without a loop over bags.

A *segment* is the run of rows ``offsets[i]:offsets[i + 1]``. ``offsets`` is ``(n_bags + 1,)``
int64, from 0 to the number of rows and strictly ascending, which ``mil.data.bags`` guarantees; it
is not checked here, because that would stall a GPU on every batch. Everything has gradients and
runs on any device.

Sums and their gradients are matrix products of blocks of rows with a small matrix that says which
row belongs to which segment. A block is widened to float32 while it lies in the cache of a core:
bfloat16 rows are summed exactly and never stand in memory twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "segment_argsort",
    "segment_dot",
    "segment_highest",
    "segment_ids",
    "segment_logsumexp",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "widened",
]

_BLOCK: Final = 512
"""Rows of a block: 1 MB of float32 where a row has 512 columns, half of a core's cache."""


def widened(values: Tensor) -> Tensor:
    """``values`` in float32 or wider, also under autocast.

    Sums of thousands of half-precision values would be off by whole percents.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def segment_ids(offsets: Tensor) -> Tensor:
    """The bag of each row: ``(n_bags + 1,)`` to ``(n_tiles,)`` int64."""
    bags = torch.arange(len(offsets) - 1, device=offsets.device)  # (n_bags,)
    return torch.repeat_interleave(bags, offsets.diff())  # (n_tiles,)


def segment_argsort(values: Tensor, offsets: Tensor) -> Tensor:
    """The rows of each segment from the lowest to the highest value.

    Args:
        values: ``(n_tiles,)``; equal values stay in the order of their rows.
        offsets: ``(n_bags + 1,)``.

    Returns:
        ``(n_tiles,)`` int64: rows of segment ``i`` at ``offsets[i]:offsets[i + 1]``.
    """
    order = values.argsort(stable=True)  # (n_tiles,)
    return order[segment_ids(offsets)[order].argsort(stable=True)]


def segment_sum(values: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the rows of each segment, each times its weight where weights are given.

    Args:
        values: ``(n_tiles, width)``; rows beyond the last segment do not count.
        offsets: ``(n_bags + 1,)``.
        weights: ``(n_tiles,)``, or ``(n_tiles, k)`` for k sums at once.

    Returns:
        ``(n_bags, width)``, or ``(n_bags, k, width)``; in float32 or wider.
    """
    if weights is None:
        weights = torch.ones(len(values), device=values.device)
    columns = weights if weights.ndim == 2 else weights[:, None]
    wide = torch.promote_types(widened(columns[:0]).dtype, values.dtype)
    sums: Tensor = _Sum.apply(values, columns.to(wide), offsets)
    return sums if weights.ndim == 2 else sums[:, 0]


def segment_dot(values: Tensor, offsets: Tensor, vectors: Tensor) -> Tensor:
    """Products of each row with the vectors of its segment.

    Args:
        values: ``(n_tiles, width)``; rows beyond the last segment have no product.
        offsets: ``(n_bags + 1,)``.
        vectors: ``(n_bags, k, width)``.

    Returns:
        ``(n_tiles, k)``, in float32 or wider.
    """
    wide = torch.promote_types(widened(vectors[:0]).dtype, values.dtype)
    products: Tensor = _Dot.apply(values, vectors.to(wide), offsets)
    return products


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Mean of the rows of each segment: ``(n_tiles, width)`` to ``(n_bags, width)``."""
    return segment_sum(values, offsets) / offsets.diff()[:, None]


def segment_max(values: Tensor, offsets: Tensor) -> Tensor:
    """Maximum of each column in each segment: ``(n_tiles, width)`` to ``(n_bags, width)``.

    Rows that share the maximum share its gradient, whatever their order.
    """
    return torch.segment_reduce(values, "max", offsets=offsets, axis=0)


def segment_logsumexp(values: Tensor, offsets: Tensor) -> Tensor:
    """``log sum exp`` of each column in each segment, in float32 or wider.

    The maximum of the segment is taken off first, so that no value is too large for ``exp``.

    Args:
        values: ``(n_tiles, width)``.
        offsets: ``(n_bags + 1,)``.

    Returns:
        ``(n_bags, width)``.
    """
    values = widened(values)
    highest = segment_max(values.detach(), offsets)  # (n_bags, width)
    exponents = (values - highest[segment_ids(offsets)]).exp()  # (n_tiles, width)
    return highest + segment_sum(exponents, offsets).log()


def segment_highest(scores: Tensor, offsets: Tensor) -> Tensor:
    """Which row has the highest score of its segment: 1 there and 0 elsewhere, without gradient.

    Rows that share the maximum share the 1, whatever their order.

    Args:
        scores: ``(n_tiles, k)``.
        offsets: ``(n_bags + 1,)``.

    Returns:
        ``(n_tiles, k)``, each column summing to 1 in each segment.
    """
    bag, scores = segment_ids(offsets), scores.detach()
    first = (scores == segment_max(scores, offsets)[bag]).to(scores.dtype)  # (n_tiles, k)
    return first / torch.segment_reduce(first, "sum", offsets=offsets, axis=0)[bag]


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax within each segment, in float32 or wider.

    The maximum of the segment is taken off first, so that no score is too large for ``exp``.

    Args:
        scores: ``(n_tiles,)`` or ``(n_tiles, k)``.
        offsets: ``(n_bags + 1,)``.

    Returns:
        As ``scores``, each column summing to 1 in each segment.
    """
    scores = widened(scores)
    bag = segment_ids(offsets)  # (n_tiles,)
    highest = torch.segment_reduce(scores.detach(), "max", offsets=offsets)  # (n_bags,)
    exponents = (scores - highest[bag]).exp()  # (n_tiles,)
    total = torch.segment_reduce(exponents, "sum", offsets=offsets)  # (n_bags,)
    return exponents / total[bag]  # (n_tiles,)


class _Sum(torch.autograd.Function):
    """``sum_i w_ic v_i`` over each segment; values in any float type, weights wide."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        ctx.blocks = _blocks(offsets)
        ctx.save_for_backward(values, weights)
        return _sum(ctx.blocks, values, weights, len(offsets) - 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weights = ctx.saved_tensors
        of_values, of_weights, _ = ctx.needs_input_grad
        return (
            _spread(ctx.blocks, weights, grad, values) if of_values else None,
            _dot(ctx.blocks, values, grad) if of_weights else None,
            None,
        )


class _Dot(torch.autograd.Function):
    """``u_bc^T v_i`` for each row i of segment b; values in any float type, vectors wide."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
        ctx.blocks = _blocks(offsets)
        ctx.save_for_backward(values, vectors)
        return _dot(ctx.blocks, values, vectors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, vectors = ctx.saved_tensors
        of_values, of_vectors, _ = ctx.needs_input_grad
        return (
            _spread(ctx.blocks, grad, vectors, values) if of_values else None,
            _sum(ctx.blocks, values, grad, len(vectors)) if of_vectors else None,
            None,
        )


class _Block(NamedTuple):
    """Rows and the segments that reach into them."""

    rows: slice
    near: slice
    member: Tensor | None
    """``(n, n_near, 1)``: which segment a row lies in; None where there is one only."""

    def shared(self, weights: Tensor) -> Tensor:
        """Weights ``(n_tiles, k)`` of the rows in each segment, ``(n, n_near * k)``."""
        share = weights[self.rows]
        return share if self.member is None else (share[:, None] * self.member).flatten(1)

    def own(self, every: Tensor) -> Tensor:
        """Products with all segments ``(n, n_near * k)`` to those with its own, ``(n, k)``."""
        if self.member is None:
            return every
        return (every.reshape(*self.member.shape[:2], -1) * self.member).sum(1)


def _blocks(offsets: Tensor) -> list[_Block]:
    edges = offsets.tolist()
    bag = segment_ids(offsets)
    blocks = []
    for start in range(0, edges[-1], _BLOCK):
        rows = slice(start, min(start + _BLOCK, edges[-1]))
        near = slice(bisect_right(edges, start) - 1, bisect_left(edges, rows.stop))
        member = None
        if near.stop - near.start > 1:
            ids = torch.arange(near.start, near.stop, device=bag.device)
            member = (bag[rows, None] == ids)[:, :, None]
        blocks.append(_Block(rows, near, member))
    return blocks


def _sum(blocks: list[_Block], values: Tensor, weights: Tensor, n_segments: int) -> Tensor:
    sums = weights.new_zeros(n_segments, weights.shape[1], values.shape[1])
    with torch.autocast(values.device.type, enabled=False):
        for block in blocks:
            near = sums[block.near].flatten(0, 1)  # a view, (n_near * k, width)
            near.addmm_(block.shared(weights).T, values[block.rows].to(weights.dtype))
    return sums


def _dot(blocks: list[_Block], values: Tensor, vectors: Tensor) -> Tensor:
    products = vectors.new_empty(blocks[-1].rows.stop, vectors.shape[1])
    with torch.autocast(values.device.type, enabled=False):
        for block in blocks:
            near = vectors[block.near].flatten(0, 1)  # (n_near * k, width)
            # Few vectors on the left: that way round the product is four times as fast.
            every = (near @ values[block.rows].to(vectors.dtype).T).T
            products[block.rows] = block.own(every)
    return products


def _spread(blocks: list[_Block], weights: Tensor, vectors: Tensor, like: Tensor) -> Tensor:
    """``sum_c w_ic u_bc`` for each row i of segment b, of the shape and type of ``like``."""
    made = torch.empty_like(like)
    made[blocks[-1].rows.stop :] = 0
    weights, vectors = weights.to(like.dtype), vectors.to(like.dtype)
    with torch.autocast(like.device.type, enabled=False):
        for block in blocks:
            near = vectors[block.near].flatten(0, 1)  # (n_near * k, width)
            torch.mm(block.shared(weights), near, out=made[block.rows])
    return made
