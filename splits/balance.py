"""The search that deals groups to parts: sums of features as near the wanted shares as possible.

The cost of an assignment is the squared error of every part's sum against its share of the total,
over feature columns that are scaled to a total of one. Squares, and not the largest error: one
group that holds most of a class would let every other term of a minimax go slack. A greedy start
(largest group first) is improved by single moves and by swaps of two groups; the best of several
starts is kept, or of all assignments where these are few. All budgets count steps, never seconds,
so a seed gives one result on any machine.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from splits.errors import InputError

__all__ = ["assign", "cost"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TOLERANCE: Final = 1e-12
_SAMPLE: Final = 256  # groups a side of a swap search; below it the search is exhaustive
_SWEEPS: Final = 40  # a sweep is one improvement round over all pairs of parts
_GAIN: Final = 0.02  # a sweep over many groups that gains a smaller share of the cost is the last
_MOVES: Final = 400  # single moves a sweep, and for many groups, where swaps do the fine work:
_MOVES_LARGE: Final = 4
_ALL: Final = 15  # binary digits of the number of assignments up to which all are tried
_SMALL: Final = 2_000  # groups up to which many starts are cheap


def assign(
    features: npt.NDArray[np.floating],
    shares: npt.ArrayLike,
    *,
    seed: int,
    weights: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
    fixed: npt.ArrayLike | None = None,
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
    scaled = _scale(amounts, weights)
    # A last column of ones makes "no part is empty" one more class that must reach every part.
    held = np.ones((n_groups, 1), dtype=np.bool_)
    if classes is not None:
        held = np.hstack([np.asarray(classes) > 0, held])
    pins = np.full(n_groups, -1) if fixed is None else np.asarray(fixed, dtype=np.int64)
    search = _Search(scaled, share / share.sum(), held, pins)
    n_starts = 8 if n_groups <= _SMALL else 2
    best: tuple[tuple[int, float], Ints] | None = None
    for start in range(n_starts):
        score = search.run(np.random.default_rng([seed, start]), jitter=0.0 if start == 0 else 0.5)
        if best is None or score < best[0]:
            best = (score, search.part.copy())
    if best is None:  # n_starts is at least 2
        raise AssertionError
    if n_groups * np.log2(n_parts) <= _ALL:
        score, part = search.best_of_all()
        if (score[0], score[1] + _TOLERANCE) < best[0]:
            return part
    return best[1]


def cost(
    features: npt.NDArray[np.floating],
    shares: npt.ArrayLike,
    part: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> float:
    """Squared error of an assignment, as minimised by :func:`assign` (0 is perfect)."""
    share = np.asarray(shares, dtype=np.float64)
    error = _errors(
        _scale(np.asarray(features, dtype=np.float64), weights),
        share / share.sum(),
        np.asarray(part, dtype=np.int64),
    )
    return float((error**2).sum())


def _scale(amounts: Floats, weights: npt.ArrayLike | None) -> Floats:
    totals = amounts.sum(axis=0)
    scaled = amounts / np.where(totals > 0, totals, 1.0)
    return scaled if weights is None else scaled * np.asarray(weights, dtype=np.float64)


def _errors(scaled: Floats, share: Floats, part: Ints) -> Floats:
    """Sum of each part minus its target, ``(n_parts, d)``."""
    return np.asarray(_sums(scaled, part, len(share)) - np.outer(share, scaled.sum(axis=0)))


def _sums(rows: Floats, part: Ints, n_parts: int) -> Floats:
    """Sum of the rows of each part, ``(n_parts, d)``."""
    member = (part[None, :] == np.arange(n_parts)[:, None]).astype(np.float64)
    return np.asarray(member @ rows)


class _Search:
    """One assignment that is built, repaired and improved in place."""

    def __init__(
        self, scaled: Floats, share: Floats, held: npt.NDArray[np.bool_], pins: Ints
    ) -> None:
        self.scaled, self.share, self.pins = scaled, share, pins
        self.held = held.astype(np.float64)
        self.free = pins < 0
        self.norm2 = np.asarray((scaled**2).sum(axis=1))
        # Groups that hold the same classes can be swapped without any class leaving a part.
        self.signature = np.unique(held, axis=0, return_inverse=True)[1].reshape(-1)
        self.wanted = np.minimum(held.sum(axis=0), len(share))
        self.part = np.zeros(len(scaled), dtype=np.int64)
        self.error = np.zeros((len(share), scaled.shape[1]))
        self.counts = np.zeros((len(share), held.shape[1]))

    def run(self, rng: np.random.Generator, jitter: float) -> tuple[int, float]:
        """Start, repair, improve; returns (classes missing from parts, cost)."""
        self._start(rng, jitter)
        self._repair(rng)
        self._improve(rng)
        return self._missing(), float((self.error**2).sum())

    def best_of_all(self) -> tuple[tuple[int, float], Ints]:
        """Score and parts of the best of all assignments: few groups have local optima."""
        n_groups, n_parts = len(self.part), len(self.share)
        number = np.arange(n_parts**n_groups)
        allowed = np.ones(len(number), np.bool_)
        error = np.repeat(-np.outer(self.share, self.scaled.sum(axis=0))[None], len(number), axis=0)
        counts = np.zeros((len(number), n_parts, self.held.shape[1]), np.int16)
        for row in range(n_groups):
            part = number // n_parts**row % n_parts
            allowed &= self.free[row] | (part == self.pins[row])
            error[number, part] += self.scaled[row]
            counts[number, part] += self.held[row].astype(np.int16)
        missing = np.maximum(self.wanted - (counts > 0).sum(axis=1), 0).sum(axis=1)
        cost = (error**2).sum(axis=(1, 2))
        best = int(np.lexsort((cost, missing, ~allowed))[0])
        score = int(missing[best]), float(cost[best])
        return score, best // n_parts ** np.arange(n_groups) % n_parts

    def _start(self, rng: np.random.Generator, jitter: float) -> None:
        """Largest first, each to the part whose sum then comes nearest to its target."""
        key = np.sqrt(self.norm2) * np.exp(jitter * rng.standard_normal(len(self.norm2)))
        target = np.outer(self.share, self.scaled.sum(axis=0))
        error = _sums(self.scaled, self.pins, len(self.share)) - target
        self.part = np.where(self.free, 0, self.pins)
        for row in np.argsort(-key, kind="stable"):
            if self.free[row]:
                chosen = int(np.argmin(error @ self.scaled[row]))
                self.part[row] = chosen
                error[chosen] += self.scaled[row]
        self._recount()

    def _recount(self) -> None:
        self.error = _errors(self.scaled, self.share, self.part)
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

    def _deltas(self) -> tuple[Floats, Floats]:
        """Change of cost and of missing classes for every move, both ``(n_groups, n_parts)``."""
        dot = self.scaled @ self.error.T
        own = np.take_along_axis(dot, self.part[:, None], axis=1)
        delta = 2 * (dot - own) + 2 * self.norm2[:, None]
        last = self.held @ (self.counts == 1).T.astype(np.float64)
        lost = np.take_along_axis(last, self.part[:, None], axis=1)
        missing = lost - self.held @ (self.counts == 0).T.astype(np.float64)
        here = (np.arange(len(self.part)), self.part)
        for table in (delta, missing):
            table[here] = np.inf
            table[~self.free] = np.inf
        return delta, missing

    def _repair(self, rng: np.random.Generator) -> None:
        """Bring every class to every part that it can reach, at the least cost.

        A class can only be stuck behind groups that hold several classes; steps that leave the
        number of missing classes as it is then lead around the obstacle.
        """
        budget = 20 + 4 * self._missing()
        for _ in range(budget):
            if self._missing() == 0 or not self.free.any():
                return
            delta, missing = self._deltas()
            least = missing.min()
            if least < 0:
                row, to = divmod(
                    int(np.argmin(np.where(missing == least, delta, np.inf))), len(self.share)
                )
            else:
                options = np.flatnonzero((missing <= max(least, 0)) & np.isfinite(delta))
                row, to = divmod(int(rng.choice(options)), len(self.share))
            self._move(row, to)

    def _improve(self, rng: np.random.Generator) -> None:
        n_parts = len(self.share)
        small = len(self.part) <= _SAMPLE
        before = np.inf
        for _ in range(_SWEEPS * (5 if small else 1)):
            self._recount()  # also stops rounding errors from adding up
            now = float((self.error**2).sum())
            if not small and now > before * (1 - _GAIN):
                break
            before = now
            improved = self._single_moves(_MOVES if small else _MOVES_LARGE)
            for a in range(n_parts):
                for b in range(a + 1, n_parts):
                    improved |= self._swap(a, b, rng)
            if not improved and small:
                return
        self._recount()

    def _single_moves(self, budget: int) -> bool:
        improved = False
        for _ in range(budget):
            delta, missing = self._deltas()
            delta[missing > 0] = np.inf
            best = int(np.argmin(delta))
            if delta.flat[best] >= -_TOLERANCE:
                break
            self._move(*divmod(best, len(self.share)))
            improved = True
        return improved

    def _swap(self, a: int, b: int, rng: np.random.Generator) -> bool:
        """Swap the two groups of parts ``a`` and ``b`` whose exchange lowers the cost most.

        With ``w = v_g - v_h`` the change is ``2 w.(e_b - e_a) + 2 |w|^2``.
        """
        rows_a, rows_b = self._candidates(a, rng), self._candidates(b, rng)
        if len(rows_a) == 0 or len(rows_b) == 0:
            return False
        left, right = self.scaled[rows_a], self.scaled[rows_b]
        slope = self.error[b] - self.error[a]
        delta = (left @ slope + self.norm2[rows_a])[:, None]
        delta = delta + (self.norm2[rows_b] - right @ slope)[None, :] - 2 * (left @ right.T)
        stays_a = (self.held[rows_a] * (self.counts[a] == 1)).any(axis=1)
        stays_b = (self.held[rows_b] * (self.counts[b] == 1)).any(axis=1)
        if stays_a.any() or stays_b.any():
            alike = self.signature[rows_a][:, None] == self.signature[rows_b][None, :]
            delta[(stays_a[:, None] | stays_b[None, :]) & ~alike] = np.inf
        best = int(np.argmin(delta))
        if delta.flat[best] >= -_TOLERANCE:
            return False
        i, j = divmod(best, len(rows_b))
        self._move(int(rows_a[i]), b)
        self._move(int(rows_b[j]), a)
        return True

    def _candidates(self, part: int, rng: np.random.Generator) -> Ints:
        rows = np.flatnonzero((self.part == part) & self.free)
        if len(rows) <= _SAMPLE:
            return rows
        return np.asarray(np.sort(rng.choice(rows, _SAMPLE, replace=False)))
