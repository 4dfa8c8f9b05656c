"""The embedded tiles of a packed batch: kept where they fit, made again in chunks where not.

Aggregators read their bags through :class:`Tiles` only, so one file decides how rows are worked:

* in blocks of equal height, because on a CPU every new number of rows costs a bfloat16 matrix
  product its set-up once more;
* within a budget of tiles with every embedded row kept for the backward pass; beyond it in chunks
  that are embedded anew whenever they are needed, forward and backward (Chen et al. 2016,
  "Training deep nets with sublinear memory cost"). Results and gradients are the same, memory
  follows the budget and not the bag.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mil.aggregators.segments import segment_ids, segment_max, segment_sum

__all__ = ["Tiles"]

_BLOCK: Final = 1024
"""Rows worked at once."""


class Tiles:
    """The tiles of some bags behind an embedding of each tile.

    Args:
        x: ``(n_tiles, dim)``, of any float type and on any device; a memory map is read in blocks.
        offsets: ``(n_bags + 1,)`` int64, strictly ascending from 0 to ``n_tiles``.
        embed: Works on each row alone, ``(n, dim)`` to ``(n, width)``; dropout is allowed.
        like: A tensor of the device and type that rows are brought to.
        budget: More tiles than this are embedded in chunks and never kept.
        order: ``(n_tiles,)`` int64; tile ``i`` is row ``order[i]`` of ``x``, without a copy of it.
    """

    def __init__(
        self,
        x: Tensor,
        offsets: Tensor,
        embed: Callable[[Tensor], Tensor],
        *,
        like: Tensor,
        budget: int,
        order: Tensor | None = None,
    ) -> None:
        self._x, self._embed, self._like = x, embed, like
        self._order = None if order is None else order.to(x.device)
        self.offsets = offsets
        self._starts = range(0, len(x), _BLOCK)
        # Blocks that are made again draw the same dropout: each has a seed of its own.
        self._seed = int(torch.randint(2**31, ()).item()) if torch.is_grad_enabled() else 0
        self._streams = len(x) > budget
        self._kept = None if self._streams else [self._block(start) for start in self._starts]

    def __len__(self) -> int:
        return len(self._x)

    def map(self, work: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``work`` makes of each embedded tile alone.

        Args:
            work: Rows ``(n, width)`` to ``(n, k)``, with small k: the result is kept.

        Returns:
            ``(n_tiles, k)``.
        """
        return torch.cat([self._on(start, work) for start in self._starts])

    def sum(self, weights: Tensor) -> Tensor:
        """Weighted sum of the embedded tiles of each bag.

        Args:
            weights: ``(n_tiles,)``, or ``(n_tiles, k)`` for k sums at once.

        Returns:
            ``(n_bags, width)``, or ``(n_bags, k, width)``, of the type of ``weights``.
        """
        columns = weights if weights.ndim == 2 else weights[:, None]

        def partial(rows: Tensor, share: Tensor, cuts: Tensor) -> Tensor:
            wide = rows.to(share.dtype)
            sums = [segment_sum(wide, cuts, column.contiguous()) for column in share.unbind(1)]
            return torch.stack(sums, dim=1)  # (n_parts, k, width)

        parts = [
            self._on(start, partial, columns[start : start + _BLOCK], cuts)
            for start, cuts in self._cuts()
        ]
        sums = segment_sum(torch.cat(parts).flatten(1), self._parts())
        sums = sums.view(len(sums), columns.shape[1], -1)
        return sums if weights.ndim == 2 else sums[:, 0]

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
            ``(n_tiles, k)``.
        """

        def products(rows: Tensor, near: Tensor, bag: Tensor) -> Tensor:
            # With the vectors of all bags of a block, then its own: one product, no loop.
            every = F.linear(rows, near.flatten(0, 1)).view(len(rows), *near.shape[:2])
            return every[torch.arange(len(rows), device=rows.device), bag]

        bags, edges, made = segment_ids(self.offsets), self.offsets.tolist(), []
        for start in self._starts:
            stop = min(start + _BLOCK, len(self))
            first, last = bisect_right(edges, start) - 1, bisect_left(edges, stop)
            bag = bags[start:stop] - first
            made.append(self._on(start, products, vectors[first:last], bag))
        return torch.cat(made)

    def max(self) -> Tensor:
        """Maximum of each column over each bag, ``(n_bags, width)``."""
        parts = [self._on(start, segment_max, cuts) for start, cuts in self._cuts()]
        return segment_max(torch.cat(parts), self._parts())

    def rows(self, index: Tensor) -> Tensor:
        """Some embedded tiles, ``(n,)`` int64 to ``(n, width)``, with gradients."""
        if self._kept is None:
            index = index.to(self._x.device)
            index = index if self._order is None else self._order[index]
            return self._embed(self._x[index].to(self._like))
        return torch.cat(self._kept)[index]

    def _on(self, start: int, work: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if self._kept is not None:
            return work(self._kept[start // _BLOCK], *args)

        def again(*args: Tensor) -> Tensor:
            return work(self._block(start), *args)

        if not torch.is_grad_enabled():
            return again(*args)
        made: Tensor = checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False)
        return made

    def _block(self, start: int) -> Tensor:
        block = slice(start, start + _BLOCK)
        rows = self._x[block if self._order is None else self._order[block]].to(self._like)
        if not self._streams or not torch.is_grad_enabled():
            return self._embed(rows)
        devices = [rows.device] if rows.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed + start)
            return self._embed(rows)

    def _cuts(self) -> Iterator[tuple[int, Tensor]]:
        """Each block and the offsets of the parts of bags that lie in it."""
        edges = self.offsets.tolist()
        bag = 0
        for start in self._starts:
            stop = min(start + _BLOCK, len(self))
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
        first, last = self.offsets[:-1] // _BLOCK, (self.offsets[1:] - 1) // _BLOCK
        zero = torch.zeros(1, dtype=torch.int64, device=self.offsets.device)
        return torch.cat([zero, (last - first + 1).cumsum(0)])
