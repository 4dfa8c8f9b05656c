"""The embedded tiles of a packed batch: kept where they fit, made again in chunks where not.

Aggregators read their bags through :class:`Tiles` only, so one file decides how rows are worked:

* a batch within the budget of tiles is embedded at once, and the embedded rows are kept for the
  backward pass;
* a larger one is worked in chunks that are embedded anew whenever they are needed, forward and
  backward (Chen et al. 2016, "Training deep nets with sublinear memory cost"). Results and
  gradients are the same, memory follows the chunk and not the bag;
* the number of rows is rounded up to one of few sizes, because on a CPU every new number costs a
  bfloat16 matrix product its set-up once more. Nothing that is made of the rows beyond leaves this
  file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mil.aggregators.segments import (
    segment_dot,
    segment_ids,
    segment_logsumexp,
    segment_max,
    segment_sum,
    widened,
)

__all__ = ["Tiles"]

_BLOCK: Final = 1024
"""Rows of a chunk."""
_READ: Final = 256
"""Rows that are standardised at once: they stay in the cache of a core."""


class Tiles:
    """The tiles of some bags behind an embedding of each tile.

    Args:
        x: ``(n_tiles, dim)``, of any float type and on any device; a memory map is read in blocks.
        offsets: ``(n_bags + 1,)`` int64, strictly ascending from 0 to ``n_tiles``.
        embed: Works on each row alone, ``(n, dim)`` to ``(n, width)``; dropout is allowed. Under
            autocast rows come in its type.
        mean: ``(dim,)``, taken off each row; rows are brought to its device and type.
        std: ``(dim,)``, what each row is then divided by.
        budget: More tiles than this are embedded in chunks and never kept.
        order: ``(n_tiles,)`` int64; tile ``i`` is row ``order[i]`` of ``x``, without a copy of it.
    """

    def __init__(
        self,
        x: Tensor,
        offsets: Tensor,
        embed: Callable[[Tensor], Tensor],
        *,
        mean: Tensor,
        std: Tensor,
        budget: int,
        order: Tensor | None = None,
    ) -> None:
        self._x, self._embed = x, embed
        self._order = None if order is None else order.to(x.device)
        self._scale = 1 / std
        self._shift = -mean * self._scale
        self.offsets = offsets
        self._streams = len(x) > budget
        self._height = _BLOCK if self._streams else len(x)
        self._starts = range(0, len(x), self._height)
        # Chunks that are made again draw the same dropout: each has a seed of its own.
        self._seed = int(torch.randint(2**31, ()).item()) if torch.is_grad_enabled() else 0
        self._kept = None if self._streams else embed(self._read(0, len(x), self._order))

    def __len__(self) -> int:
        return len(self._x)

    def map(self, work: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``work`` makes of each embedded tile alone.

        Args:
            work: Rows ``(n, width)`` to ``(n, k)``, with small k: the result is kept.

        Returns:
            ``(n_tiles, k)``.
        """
        return _joined([self._on(start, work)[: self._n(start)] for start in self._starts])

    def sum(self, weights: Tensor) -> Tensor:
        """Weighted sum of the embedded tiles of each bag.

        Args:
            weights: ``(n_tiles,)``, or ``(n_tiles, k)`` for k sums at once.

        Returns:
            ``(n_bags, width)``, or ``(n_bags, k, width)``, in float32 or wider.
        """
        parts = _joined(
            [
                self._on(start, segment_sum, cuts, weights[start : start + self._height])
                for start, cuts in self._cuts()
            ]
        )
        if not self._streams:
            return parts
        return segment_sum(parts.flatten(1), self._parts()).view(-1, *parts.shape[1:])

    def pick(self, weights: Tensor) -> Tensor:
        """As :meth:`sum`, for weights that are mostly zero: only the other tiles are read.

        Where the batch streams they draw a dropout of their own, as in :meth:`rows`.

        Args:
            weights: ``(n_tiles, k)``, without gradient.

        Returns:
            ``(n_bags, k, width)``.
        """
        tile, column = weights.nonzero().unbind(1)  # (n_picked,)
        if self._streams and len(tile) > _BLOCK:
            return self.sum(weights)
        n_bags, k = len(self.offsets) - 1, weights.shape[1]
        share = weights[tile, column]  # (n_picked,)
        rows = self.rows(tile).to(share.dtype) * share[:, None]
        slot = segment_ids(self.offsets)[tile] * k + column  # (n_picked,)
        sums = rows.new_zeros(n_bags * k, rows.shape[1]).index_add(0, slot, rows)
        return sums.view(n_bags, k, -1)

    def dot(self, vectors: Tensor) -> Tensor:
        """Products of each embedded tile with the vectors of its bag.

        Args:
            vectors: ``(n_bags, k, width)``.

        Returns:
            ``(n_tiles, k)``, in float32 or wider.
        """
        bags = segment_ids(self.offsets)
        return _joined(
            [
                self._on(start, segment_dot, cuts, vectors[bags[start] :][: len(cuts) - 1])
                for start, cuts in self._cuts()
            ]
        )

    def max(self) -> Tensor:
        """Maximum of each column over each bag, ``(n_bags, width)``."""
        return self._reduced(segment_max)

    def logsumexp(self, sharpness: float) -> Tensor:
        """``1/r log sum_k exp(r h_k)`` of each column over the tiles of each bag.

        Args:
            sharpness: The r of the equation, above 0.

        Returns:
            ``(n_bags, width)``, in float32 or wider.
        """

        def reduction(rows: Tensor, cuts: Tensor) -> Tensor:
            return segment_logsumexp(sharpness * widened(rows), cuts) / sharpness

        return self._reduced(reduction)

    def rows(self, index: Tensor) -> Tensor:
        """Some embedded tiles, ``(n,)`` int64 to ``(n, width)``, with gradients."""
        if self._kept is not None:
            return self._kept[index]
        where = index.to(self._x.device)
        where = where if self._order is None else self._order[where]
        return self._embed(self._read(0, len(index), where))[: len(index)]

    def _reduced(self, reduction: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Something that can be taken over the parts of a bag and then over what they gave."""

        def of_real(rows: Tensor, cuts: Tensor) -> Tensor:
            return reduction(rows[: cuts[-1]], cuts)

        parts = _joined([self._on(start, of_real, cuts) for start, cuts in self._cuts()])
        return reduction(parts, self._parts()) if self._streams else parts

    def _on(self, start: int, work: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if self._kept is not None:
            return work(self._kept, *args)

        def again(*args: Tensor) -> Tensor:
            return work(self._chunk(start), *args)

        if not torch.is_grad_enabled():
            return again(*args)
        made: Tensor = checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False)
        return made

    def _chunk(self, start: int) -> Tensor:
        rows = self._read(start, start + self._n(start), self._order)
        if not torch.is_grad_enabled():
            return self._embed(rows)
        devices = [rows.device] if rows.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed + start)
            return self._embed(rows)

    def _n(self, start: int) -> int:
        return min(self._height, len(self) - start)

    def _read(self, start: int, stop: int, where: Tensor | None) -> Tensor:
        """Standardised rows, or those at ``where[start:stop]``, and zeros up to a rounded number.

        They come in the type of autocast where that is on: a matrix product would cast them.
        """
        device, wide = self._shift.device, self._shift.dtype
        half = torch.is_autocast_enabled(device.type)
        kind = torch.get_autocast_dtype(device.type) if half else wide
        made = torch.empty(_rounded(stop - start), len(self._shift), dtype=kind, device=device)
        made[stop - start :] = 0
        for first in range(start, stop, _READ):
            block = slice(first, min(first + _READ, stop))
            rows = self._x[block if where is None else where[block]].to(device, wide)
            place = made[first - start : block.stop - start]
            place.copy_(torch.addcmul(self._shift, rows, self._scale))
        return made

    def _cuts(self) -> Iterator[tuple[int, Tensor]]:
        """Each chunk and the offsets of the parts of bags that lie in it."""
        edges = self.offsets.tolist()
        bag = 0
        for start in self._starts:
            stop = start + self._n(start)
            cuts = [0]
            while edges[bag + 1] < stop:
                bag += 1
                cuts.append(edges[bag] - start)
            cuts.append(stop - start)
            if edges[bag + 1] == stop:
                bag += 1
            yield start, torch.tensor(cuts, device=self.offsets.device)

    def _parts(self) -> Tensor:
        """Offsets of the bags in the list of their parts, ``(n_bags + 1,)``."""
        first, last = self.offsets[:-1] // self._height, (self.offsets[1:] - 1) // self._height
        return F.pad((last - first + 1).cumsum(0), (1, 0))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rounded(n: int) -> int:
    """Up to a multiple of 64 and of 1/32 of the next power of two: at most 6 % more of many."""
    step = max(64, (1 << (n - 1).bit_length()) // 32)
    return -(-n // step) * step
