"""The search that deals groups to parts: sums of features as near the wanted shares as possible.

The cost of an assignment is the squared error of every part's sum against its share of the total,
over feature columns that are scaled to a total of one. Squares, and not the largest error: one
group that holds most of a class would let every other term of a minimax go slack. A start (largest
group first, or in turn where groups are many) is improved by single moves and by swaps of two
groups until none helps. Small cohorts, where that ends in local optima, are shaken and improved
again many times. All budgets count steps, never seconds, so a seed gives one result on any machine.
How far the result can be from the best there is, :mod:`splits.optimum` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from splits.errors import InputError

__all__ = ["assign", "cost", "scale"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Score = tuple[int, float]

_TOLERANCE: Final = 1e-13
_ONE_BY_ONE: Final = 5_000  # groups at the most that are dealt one by one, the rest in turn
_JITTER: Final = 0.5  # of the logarithm of a group's squared size, when groups are put in order
_POOL: Final = 450  # groups a part that moves and swaps choose from; of more, a sample
_SWEEPS: Final = 12  # rounds over all pairs of parts, at the most
_SWAPS: Final = 12  # swaps between two parts in a round, at the most
_MOVES: Final = 400  # single moves in a round, at the most
_SHAKEN: Final = ((64, 160), (400, 24), (2_000, 4))  # groups up to which, times shaken
_PERIOD: Final = 1_000  # length of the pattern in which groups are dealt in turn, at the most


def assign(
    features: npt.NDArray[np.floating],
    shares: npt.ArrayLike,
    *,
    seed: int | Sequence[int],
    weights: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
    fixed: npt.ArrayLike | None = None,
    enough: float = 0.0,
) -> Ints:
    """Deal groups to parts so that each part holds its share of every feature.

    The order of the rows breaks ties, so callers sort groups by their id first; the result then
    depends only on the seed and the content. No part stays empty.

    Args:
        features: Non-negative amounts, ``(n_groups, d)``, such as slides per class.
        shares: Wanted share of each part, ``(n_parts,)``, positive; scaled to a total of one.
        seed: Seed of the search.
        weights: Importance of each feature column, ``(d,)``; all one by default.
        classes: Counts or flags, ``(n_groups, n_classes)``, of what must reach every part. A class
            in fewer groups than there are parts reaches as many parts as it has groups, as far as
            groups that hold several classes allow.
        fixed: Part of groups that may not move, ``(n_groups,)``, -1 where free.
        enough: Cost at which the search ends. A few dozen groups have one best assignment, which
            every seed would find; with a cost that is good enough, seeds differ.

    Returns:
        The part of each group, ``(n_groups,)``, in ``0 .. n_parts - 1``.

    Raises:
        InputError: Fewer groups than parts, or amounts that are negative or not finite.
    """
    amounts = np.asarray(features, dtype=np.float64)
    share = np.asarray(shares, dtype=np.float64)
    n_groups, n_parts = len(amounts), len(share)
    if n_groups < n_parts:
        message = f"{n_groups} group(s) cannot fill {n_parts} parts: a part would be empty"
        raise InputError(message)
    if not np.isfinite(amounts).all() or (amounts < 0).any() or (share <= 0).any():
        message = "features must be finite and not negative, shares positive"
        raise InputError(message)
    # A last column of ones makes "no part is empty" one more class that must reach every part.
    held = np.ones((n_groups, 1), dtype=np.bool_)
    if classes is not None:
        held = np.hstack([np.asarray(classes) > 0, held])
    pins = np.full(n_groups, -1) if fixed is None else np.asarray(fixed, dtype=np.int64)
    search = _Search(scale(amounts, weights), share / share.sum(), held, pins)
    # The matrices are small: more threads of BLAS would wait for each other, the more so where
    # other work runs, and their number would decide how sums are rounded.
    with threadpool_limits(limits=1, user_api="blas"):
        return search.best(np.random.default_rng(seed), enough)


def cost(
    features: npt.NDArray[np.floating],
    shares: npt.ArrayLike,
    part: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> float:
    """Squared error of an assignment, as minimised by :func:`assign` (0 is perfect)."""
    share = np.asarray(shares, dtype=np.float64)
    scaled = scale(np.asarray(features, dtype=np.float64), weights)
    error = _sums(scaled, np.asarray(part, dtype=np.int64), len(share))
    error -= np.outer(share / share.sum(), scaled.sum(axis=0))
    return float((error**2).sum())


def scale(amounts: Floats, weights: npt.ArrayLike | None = None) -> Floats:
    """Feature columns with a total of one each (zero where they are empty), times the weights."""
    totals = amounts.sum(axis=0)
    factor = 1 / np.where(totals > 0, totals, 1.0)
    return amounts * (factor if weights is None else factor * np.asarray(weights, np.float64))


def _sums(rows: npt.NDArray[np.number], part: Ints, n_parts: int) -> Floats:
    """Sum of the rows of each part, ``(n_parts, d)``."""
    member = (part[None, :] == np.arange(n_parts)[:, None]).astype(np.float64)
    return np.asarray(member @ rows)


class _Search:
    """One assignment that is built, repaired and improved in place.

    Attributes:
        part: Part of each group, ``(n_groups,)``.
        error: Sum of each part minus its target, ``(n_parts, d)``.
        counts: Groups of each part that hold a class, ``(n_parts, n_classes)``.
    """

    def __init__(
        self, scaled: Floats, share: Floats, held: npt.NDArray[np.bool_], pins: Ints
    ) -> None:
        self.scaled, self.share, self.pins = scaled, share, pins
        self.held = held.astype(np.float64)
        self.free = pins < 0
        self.norm2 = np.asarray(np.einsum("ij,ij->i", scaled, scaled))
        self.target = np.outer(share, scaled.sum(axis=0))
        # Groups that hold the same classes can be swapped without any class leaving a part.
        code = held @ np.random.default_rng(0).integers(1, 2**40, held.shape[1])
        self.signature = np.asarray(code)
        self.wanted = np.minimum(held.sum(axis=0), len(share))
        self.part = pins.copy()  # -1 as long as a group is not dealt
        self.error = np.zeros_like(self.target)
        self.counts = np.zeros((len(share), held.shape[1]))

    def best(self, rng: np.random.Generator, enough: float) -> Ints:
        """The best parts of a start and of all that shaking it leads to."""
        self.start(rng)
        best = self.improve(rng), self.part.copy()
        for _ in range(next((times for most, times in _SHAKEN if len(self.part) <= most), 0)):
            if best[0] <= (0, enough):
                break
            self.shake(best[1], rng)
            score = self.improve(rng)
            if score <= (best[0][0], best[0][1] + _TOLERANCE):
                best = score, self.part.copy()
        return best[1]

    def start(self, rng: np.random.Generator) -> None:
        """Deal the groups one by one, large ones first; of very many, most in turn before that.

        Each goes to the part whose sum then comes nearest to its target.
        """
        rows = np.flatnonzero(self.free)
        if len(rows) > _ONE_BY_ONE:
            rows = self._in_turn(rows)
        error = _sums(self.scaled, self.part, len(self.share)) - self.target
        size = self.norm2[rows] * np.exp(_JITTER * rng.standard_normal(len(rows)))
        for row in rows[np.argsort(-size, kind="stable")]:
            chosen = int(np.argmin(error @ self.scaled[row]))
            self.part[row] = chosen
            error[chosen] += self.scaled[row]

    def shake(self, part: Ints, rng: np.random.Generator) -> None:
        """Start again from ``part`` with a few groups dealt at random."""
        self.part = part.copy()
        rows = np.flatnonzero(self.free)
        moved = rng.permutation(rows)[: int(rng.integers(2, 8))]
        self.part[moved] = rng.integers(0, len(self.share), len(moved))

    def improve(self, rng: np.random.Generator) -> Score:
        """Repair and improve; returns (classes missing from parts, cost)."""
        self._recount()
        self._repair(rng)
        pool = np.flatnonzero(self.free)
        if len(pool) > _POOL * len(self.share):
            pool = np.sort(rng.choice(pool, _POOL * len(self.share), replace=False))
        for _ in range(_SWEEPS):
            improved = self._single_moves(pool)
            for a in range(len(self.share)):
                for b in range(a + 1, len(self.share)):
                    improved |= self._swap(pool, a, b)
            if not improved:
                break
        self._recount()  # rounding errors have added up
        return self._missing(), float((self.error**2).sum())

    def _in_turn(self, rows: Ints) -> Ints:
        """Deal groups of one kind (the same columns filled) in turn, sorted by size.

        Returns:
            Rows that were kept back, of all kinds and sizes, to even out what this leaves uneven.
        """
        filled = self.scaled[rows] > 0
        kind = filled @ np.random.default_rng(0).random(filled.shape[1])
        order = rows[np.lexsort((-self.norm2[rows], kind))]
        late = np.linspace(0, len(order) - 1, _ONE_BY_ONE).astype(np.int64)
        order, kept = np.delete(order, late), order[late]
        pattern = _pattern(self.share)
        # Back and forth, so that no part is always first to choose.
        self.part[order] = np.resize(np.concatenate([pattern, pattern[::-1]]), len(order))
        return kept

    def _recount(self) -> None:
        self.error = _sums(self.scaled, self.part, len(self.share)) - self.target
        self.counts = _sums(self.held, self.part, len(self.share))

    def _missing(self) -> int:
        reached = (self.counts > 0).sum(axis=0)
        return int(np.maximum(self.wanted - reached, 0).sum())

    def _move(self, row: int, to: int) -> None:
        source = self.part[row]
        self.error[source] -= self.scaled[row]
        self.error[to] += self.scaled[row]
        self.counts[source] -= self.held[row]
        self.counts[to] += self.held[row]
        self.part[row] = to

    def _deltas(self, rows: Ints) -> tuple[Floats, Floats]:
        """Change of cost and of missing classes for every move, both ``(len(rows), n_parts)``."""
        dot = self.scaled[rows] @ self.error.T
        here = (np.arange(len(rows)), self.part[rows])
        delta = 2 * (dot - dot[here][:, None]) + 2 * self.norm2[rows][:, None]
        last = self.held[rows] @ (self.counts == 1).T.astype(np.float64)
        missing = last[here][:, None] - self.held[rows] @ (self.counts == 0).T.astype(np.float64)
        delta[here] = missing[here] = np.inf
        return delta, missing

    def _repair(self, rng: np.random.Generator) -> None:
        """Bring every class to every part that it can reach, at the least cost.

        A class can only be stuck behind groups that hold several classes; steps that leave the
        number of missing classes as it is then lead around the obstacle.
        """
        rows = np.flatnonzero(self.free)
        for _ in range(20 + 4 * self._missing()):
            if self._missing() == 0 or len(rows) == 0:
                return
            delta, missing = self._deltas(rows)
            least = missing.min()
            if least < 0:
                move = int(np.argmin(np.where(missing == least, delta, np.inf)))
            else:
                move = int(rng.choice(np.flatnonzero(missing <= max(least, 0))))
            row, to = divmod(move, len(self.share))
            self._move(int(rows[row]), to)

    def _single_moves(self, pool: Ints) -> bool:
        improved = False
        for _ in range(_MOVES):
            delta, missing = self._deltas(pool)
            delta[missing > 0] = np.inf
            best = int(np.argmin(delta)) if len(pool) else 0
            if len(pool) == 0 or delta.flat[best] >= -_TOLERANCE:
                break
            row, to = divmod(best, len(self.share))
            self._move(int(pool[row]), to)
            improved = True
        return improved

    def _swap(self, pool: Ints, a: int, b: int) -> bool:
        """Swap groups of parts ``a`` and ``b`` while that lowers the cost, the best pair first.

        With ``w = v_g - v_h`` the change is ``2 w.(e_b - e_a) + 2 |w|^2``.
        """
        rows_a, rows_b = (pool[self.part[pool] == part] for part in (a, b))
        if len(rows_a) == 0 or len(rows_b) == 0:
            return False
        left, right = self.scaled[rows_a], self.scaled[rows_b]
        product = left @ right.T
        for n_swaps in range(_SWAPS):
            slope = self.error[b] - self.error[a]
            delta = (left @ slope + self.norm2[rows_a])[:, None] - 2 * product
            delta += self.norm2[rows_b] - right @ slope
            # The last group of a class in a part may only be swapped for one of the same classes.
            stays_a = (self.held[rows_a] * (self.counts[a] == 1)).any(axis=1)
            stays_b = (self.held[rows_b] * (self.counts[b] == 1)).any(axis=1)
            if stays_a.any() or stays_b.any():
                alike = self.signature[rows_a][:, None] == self.signature[rows_b][None, :]
                delta[(stays_a[:, None] | stays_b[None, :]) & ~alike] = np.inf
            i, j = divmod(int(np.argmin(delta)), len(rows_b))
            if delta[i, j] >= -_TOLERANCE:
                return n_swaps > 0
            g, h = int(rows_a[i]), int(rows_b[j])
            self._move(g, b)
            self._move(h, a)
            rows_a[i], rows_b[j] = h, g
            left[i], right[j] = self.scaled[h], self.scaled[g]
            product[i], product[:, j] = right @ left[i], left @ right[j]
        return True


def _pattern(share: Floats) -> Ints:
    """Parts in the order in which they are dealt to, each as often as its share asks."""
    n_parts = len(share)
    exact = [n for n in range(n_parts, _PERIOD) if np.allclose(share * n, np.round(share * n))]
    given, pattern = np.zeros(n_parts), []
    for turn in range(exact[0] if exact else _PERIOD):
        part = int(np.argmax(share * (turn + 1) - given))
        given[part] += 1
        pattern.append(part)
    return np.array(pattern)
