"""Clusters of rows (patients, or sites) in strata by class: how they are drawn and left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mil.seeds import generator

__all__ = ["Clusters", "effective"]

_MAX_LEFT_OUT: Final = 400

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Clusters:
    """Rows in clusters, clusters in strata.

    Clusters that hold one class form a stratum a class; those that hold several form one together.

    Args:
        labels: True classes, ``(n_rows,)``.
        clusters: Cluster of each row, ``(n_rows,)``, of any sortable type.

    Attributes:
        n: Number of clusters.
        member: Cluster of each row, ``(n_rows,)``, numbered in sorted order.
        strata: Clusters of each stratum.
    """

    def __init__(self, labels: IntArray, clusters: npt.NDArray[Any]) -> None:
        names, member = np.unique(clusters, return_inverse=True)
        self.n = len(names)
        self.member: IntArray = np.asarray(member, dtype=np.int64).reshape(-1)
        low = np.full(self.n, np.iinfo(np.int64).max)
        high = np.full(self.n, -1)
        np.minimum.at(low, self.member, labels)
        np.maximum.at(high, self.member, labels)
        kind = np.where(low == high, low, -1)  # -1: several classes
        self.strata = [np.flatnonzero(kind == k) for k in np.unique(kind)]
        self._groups = list(self._left_out_together())

    @property
    def n_alone(self) -> int:
        """Clusters that are alone in their stratum."""
        return sum(len(inside) == 1 for inside in self.strata)

    def sums(self, values: npt.NDArray[Any] | None = None) -> FloatArray:
        """Sum of a value a row (by default 1) in each cluster, ``(n,)``."""
        return np.bincount(self.member, values, minlength=self.n).astype(np.float64)

    def draws(self, n_draws: int, seed: int, block: int) -> Iterator[FloatArray]:
        """Weights of the clusters, ``(at most block, n)``: :func:`mil.statistics.draw_clusters`."""
        streams = [generator(seed, "bootstrap", h) for h in range(len(self.strata))]
        for start in range(0, n_draws, block):
            n_rows = min(block, n_draws - start)
            weights = np.ones((n_rows, self.n))
            for stream, inside in zip(streams, self.strata, strict=True):
                n = len(inside)
                if n == 1:
                    continue
                picks = stream.integers(0, n, size=(n_rows, n - 1)) + n * np.arange(n_rows)[:, None]
                counts = np.bincount(picks.ravel(), minlength=n_rows * n).reshape(n_rows, n)
                weights[:, inside] = counts * (n / (n - 1))
            yield weights

    def left_out(self, block: int) -> Iterator[FloatArray]:
        """Weights without one cluster at a time; the rest of its stratum fills in.

        Of more than 400 clusters, groups are left out, about 400 in all. A cluster alone in its
        stratum is never left out.

        Yields:
            ``(at most block, n)``; once without rows where nothing can be left out.
        """
        for start in range(0, max(1, len(self._groups)), block):
            part = self._groups[start : start + block]
            weights = np.ones((len(part), self.n))
            for row, (h, group) in enumerate(part):
                n = len(self.strata[h])
                weights[row, self.strata[h]] = n / (n - len(group))
                weights[row, group] = 0
            yield weights

    def acceleration(self, left_out: FloatArray) -> FloatArray:
        """The acceleration of BCa: a sixth of the skewness of the influence of clusters.

        For several samples: Davison & Hinkley 1997, section 5.3.2.

        Args:
            left_out: Statistics under the weights of :meth:`left_out`, ``(n_left_out,
                n_statistics)``; NaN counts as no influence.

        Returns:
            ``(n_statistics,)``.
        """
        stratum = np.array([h for h, _ in self._groups], dtype=np.int64)
        share = np.array([len(group) / len(self.strata[h]) for h, group in self._groups])
        influence = np.zeros_like(left_out)
        for h in np.unique(stratum):
            inside = stratum == h
            values = left_out[inside]
            influence[inside] = (values.mean(axis=0) - values) * (1 - share[inside])[:, None]
        return _skewness(np.nan_to_num(influence)) / 6

    def degrees(self, reach: npt.NDArray[Any]) -> float:
        """Degrees of freedom of a variance between clusters: :func:`mil.statistics.degrees`.

        Args:
            reach: Weight of each cluster in the statistic, ``(n,)``.
        """
        squares = np.asarray(reach, dtype=np.float64) ** 2
        mean, variance = 0.0, 0.0
        for inside in self.strata:
            n, s = len(inside), squares[inside]
            if n > 1:
                off = 1 / (n - 1) ** 2
                mean += float(s.sum())
                variance += float((s**2).sum() * (1 - off) + s.sum() ** 2 * off)
        return mean**2 / variance if variance > 0 else 0.0

    def _left_out_together(self) -> Iterator[tuple[int, IntArray]]:
        for h, inside in enumerate(self.strata):
            n = len(inside)
            n_groups = min(n, max(2, _MAX_LEFT_OUT * n // max(self.n, _MAX_LEFT_OUT)))
            for g in range(n_groups if n > 1 else 0):
                yield h, inside[g::n_groups]


def effective(weights: npt.NDArray[Any]) -> float:
    """Even clusters that uneven ones are worth: ``(sum w)^2 / sum w^2`` (Kish, 1965), or 0."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _skewness(influence: FloatArray) -> FloatArray:
    """``sum u^3 / (sum u^2)^1.5`` of centred influences ``(n, n_statistics)``; 0 without spread."""
    spread = (influence**2).sum(axis=0) ** 1.5
    third = (influence**3).sum(axis=0)
    return np.asarray(np.divide(third, spread, out=np.zeros_like(third), where=spread > 0))
