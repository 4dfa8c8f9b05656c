"""Intervals that know their data: whole patients are drawn, with the same draws for every method.

Tiles of a slide and slides of a patient are not independent, so an interval that draws rows is too
narrow. Here clusters (patients, or sites) are drawn with replacement and bring all their rows along
(Davison & Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8; Field & Welsh,
*J. R. Stat. Soc. B* 69, 2007). Four things make the interval hold for 30 patients, too; what each
of them does to the coverage is measured in ``docs/statistics.md``:

- strata by class, each with one draw less than it has clusters, and weights to match, so that the
  variance of the draws is not too small (Rao & Wu, *J. Am. Stat. Assoc.* 83, 1988);
- quantiles of *t* for those of the normal (Hesterberg, *Am. Stat.* 69, 2015), with
  degrees of freedom that count uneven clusters for what they are worth (:func:`degrees`);
- a shift for skewness, as in BCa (Efron, *J. Am. Stat. Assoc.* 82, 1987);
- where every draw gives the same share, 0 or 1, an exact bound instead of no width.

A draw is a vector of weights, one a cluster (:mod:`mil.weighted`). The point values are those of
:mod:`mil.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from mil.clusters import Clusters, effective

__all__ = [
    "LEVEL",
    "MIN_CLUSTERS",
    "Estimate",
    "Method",
    "caveats",
    "degrees",
    "draw_clusters",
    "exact",
    "interval",
    "mean_interval",
    "means",
    "paired",
    "ratio_intervals",
]

LEVEL: Final = 0.95
MIN_CLUSTERS: Final = 20
# An interval over the draws in which a metric is defined leaves out no more than its own tails.
_MAX_UNDEFINED: Final = 1 - LEVEL
_EQUAL: Final = 1e-12
_BLOCK: Final = 256

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Method = Literal["bca", "percentile"]
Described = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with all that its interval is made from.

    Attributes:
        value: Of :mod:`mil.metrics`; ``None`` if undefined.
        draws: Bootstrap draws, ``(n_draws,)``; NaN in draws in which it is undefined.
        acceleration: A sixth of the skewness of the influence of clusters on it.
        df: Degrees of freedom of its variance.
        n_effective: For shares and areas: so many independent clusters carry it; else ``None``.
    """

    value: float | None
    draws: FloatArray
    acceleration: float
    df: float
    n_effective: float | None

    @property
    def undefined(self) -> float:
        """Share of the draws in which the metric is undefined."""
        return float(np.mean(np.isnan(self.draws)))

    @property
    def often_undefined(self) -> bool:
        """In more than 5 % of the draws: the others are no interval of it."""
        return self.value is None or self.undefined > _MAX_UNDEFINED

    def describe(self, method: Method = "bca") -> Described:
        """``value``, ``ci_low``, ``ci_high``: the ends are ``None`` where there is no interval.

        There is none where the value is undefined, or is so in more than 5 % of the draws; and
        where all draws are equal, unless it is a share or an area of exactly 0 or 1.
        """
        low, high = self._ends(method)
        return {"value": self.value, "ci_low": low, "ci_high": high}

    def _ends(self, method: Method) -> tuple[float | None, float | None]:
        if self.value is None or self.often_undefined:
            return None, None
        if _all_equal(self.draws):
            if self.n_effective is None or not _at_an_end(self.value):
                return None, None
            return exact(self.value, self.n_effective)
        shift = self.acceleration if method == "bca" else 0.0
        return interval(self.draws, self.df, acceleration=shift)


def draw_clusters(
    labels: IntArray, clusters: npt.NDArray[Any], *, n_draws: int, seed: int, block: int = _BLOCK
) -> Iterator[FloatArray]:
    """Draw whole clusters with replacement, within strata by class.

    Clusters that hold one class form a stratum a class; those that hold several form one together.
    Of ``n`` clusters of a stratum ``n - 1`` are drawn, each with the weight ``n / (n - 1)``: then
    the variance of the draws is that of the statistic, where ``n`` of ``n`` gives ``(n - 1) / n``
    of it (Rao & Wu 1988). A cluster alone in its stratum is in every draw with weight 1, and the
    interval misses its share of the variance (:func:`caveats` says so).

    Args:
        labels: True classes, ``(n,)``.
        clusters: Cluster (patient) of each row, ``(n,)``, of any sortable type.
        n_draws: Number of draws.
        seed: Draws depend on it and on the classes of the sorted clusters, never on row order,
            predictions or ``block``; equal arguments give equal draws, which pairs two methods.
        block: Draws a block.

    Yields:
        Weight of each cluster, in sorted order: ``(at most block, n_clusters)``.
    """
    return Clusters(labels, clusters).draws(n_draws, seed, block)


def degrees(
    labels: IntArray, clusters: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
) -> float:
    """Degrees of freedom of the variance of a mean over rows.

    Satterthwaite's, for the variance between clusters of the same stratum, where the part of a
    cluster in the mean has a standard deviation in proportion to its rows (Bell & McCaffrey,
    *Surv. Methodol.* 28, 2002): with ``s`` the squared number of rows,
    ``(sum s)**2 / sum over strata of (sum s**2 (1 - 1/(n-1)**2) + (sum s)**2 / (n-1)**2)``.
    With equal clusters it is clusters minus strata, with uneven ones less. 0 where no stratum has
    two clusters.

    Args:
        labels: True classes, ``(n,)``.
        clusters: Cluster of each row, ``(n,)``.
        weights: Weight of each row in the mean, ``(n,)``; by default all the same.
    """
    rows = Clusters(labels, clusters)
    return rows.degrees(rows.sums(weights))


def interval(
    draws: FloatArray, df: float = np.inf, *, level: float = LEVEL, acceleration: float = 0.0
) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, widened for few clusters and shifted for skewness.

    The ends are the quantiles at ``Phi(a + (a + s) / (1 - a (a + s)))`` with ``s`` the quantile of
    *t* and ``a`` the acceleration: BCa (Efron 1987) with *t* for the normal, and with a median
    bias of ``a``, which it is for a mean to the same order (DiCiccio & Efron, *Stat. Sci.* 11,
    1996, section 4): counting draws below the value, as usual, fails where shares are tied.
    With the defaults it is the plain percentile interval.

    Args:
        draws: ``(n_draws,)``; draws that are NaN are left out.
        df: Degrees of freedom (:func:`degrees`); under 1 they are taken as 1.
        level: Nominal coverage.
        acceleration: A sixth of the skewness of the influence of clusters.
    """
    low, high = np.quantile(draws[~np.isnan(draws)], _levels(df, level, acceleration))
    return float(low), float(high)


def mean_interval(
    values: npt.NDArray[Any],
    labels: IntArray,
    clusters: npt.NDArray[Any],
    *,
    n_draws: int,
    seed: int,
) -> Described:
    """Mean of a value a row, with the interval that every metric has.

    Args:
        values: ``(n,)``, such as "right" (0 or 1), or a difference.
        labels: True classes, ``(n,)``, for the strata.
        clusters: Patient of each row, ``(n,)``.
        n_draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        ``value``, ``ci_low``, ``ci_high``; ``None`` without rows, and for the ends where all draws
        are equal (a mean of 0 or 1 over zeros and ones has its exact bound).
    """
    column = np.asarray(values, dtype=np.float64)[:, None]
    return means(column, labels, clusters, n_draws=n_draws, seed=seed)[0].describe()


def means(
    values: npt.NDArray[Any],
    labels: IntArray,
    clusters: npt.NDArray[Any],
    *,
    n_draws: int,
    seed: int,
    shares: bool | None = None,
) -> list[Estimate]:
    """Mean of each column over rows, all with the same draws.

    Args:
        values: ``(n, n_columns)``; NaN does not count, and a mean over no row is undefined.
        labels: True classes, ``(n,)``, for the strata.
        clusters: Patient of each row, ``(n,)``.
        n_draws: Number of draws.
        seed: Seed of the draws.
        shares: The means are shares or areas, which have an exact bound at 0 and 1; by default
            those of columns of zeros and ones are.
    """
    given = np.asarray(values, dtype=np.float64)
    if len(given) == 0:
        none = Estimate(None, np.full(n_draws, np.nan), 0.0, 0.0, None)
        return [none] * given.shape[1]
    rows = Clusters(labels, clusters)
    counted = np.isfinite(given)
    sums, sizes = (
        np.column_stack([rows.sums(column) for column in of.T])
        for of in (np.where(counted, given, 0.0), counted)
    )
    drawn, left = (
        np.concatenate([_ratio(block, sums, sizes) for block in weights])
        for weights in (rows.draws(n_draws, seed, _BLOCK), rows.left_out(_BLOCK))
    )
    value = _ratio(np.ones((1, rows.n)), sums, sizes)[0]
    acceleration = rows.acceleration(left)
    found = []
    for j, column in enumerate(given.T):
        share = bool(np.isin(column, (0, 1)).all()) if shares is None else shares
        found.append(
            Estimate(
                value=float(value[j]) if counted[:, j].any() else None,
                draws=drawn[:, j],
                acceleration=float(acceleration[j]),
                df=rows.degrees(sizes[:, j]),
                n_effective=effective(sizes[:, j]) if share else None,
            )
        )
    return found


def ratio_intervals(
    sums: FloatArray,
    sizes: FloatArray,
    draws: FloatArray,
    labels: IntArray,
    clusters: npt.NDArray[Any],
) -> FloatArray:
    """Intervals of shares, as ``mean_interval`` gives them, for many outcomes of one cohort.

    Args:
        sums: What is counted, a cluster each, ``(n_clusters, n_outcomes)``.
        sizes: Of how many, ``(n_clusters,)``.
        draws: Of the shares, ``(n_draws, n_outcomes)``.
        labels: True classes of the rows, ``(n,)``, for the strata.
        clusters: Cluster of each row, ``(n,)``.

    Returns:
        Ends, ``(n_outcomes, 2)``; both are the value where the draws are equal and it is not 0
        or 1.
    """
    rows = Clusters(labels, clusters)
    values = sums.sum(axis=0) / sizes.sum()
    left = next(rows.left_out(len(sizes)))
    acceleration = rows.acceleration((left @ sums) / (left @ sizes)[:, None])
    df, n_effective = rows.degrees(sizes), effective(sizes)
    ends = []
    for value, column, a in zip(values, draws.T, acceleration, strict=True):
        if _all_equal(column) and _at_an_end(value):
            ends.append(exact(value, n_effective))
        else:
            ends.append(interval(column, df, acceleration=a))
    return np.array(ends)


def paired(
    draws_a: FloatArray, draws_b: FloatArray, difference: float, df: float = np.inf
) -> dict[str, float]:
    """Compare two methods on the same slides.

    Args:
        draws_a: Draws of a metric for the first method, ``(n_draws,)``.
        draws_b: Draws for the second method, *of the same patients in the same order*.
        difference: Observed value of the first minus that of the second.
        df: Degrees of freedom (:func:`degrees`).

    Returns:
        ``difference``, ``ci_low``, ``ci_high`` (95 %, percentile with quantiles of *t*) and ``p``,
        the two-sided level at which this interval just reaches zero, with the ``+ 1`` that keeps a
        Monte Carlo test from claiming zero (Davison & Hinkley 1997, equation 4.11).
    """
    differences = draws_a - draws_b
    differences = differences[~np.isnan(differences)]
    # Weights are no whole numbers: what is equal is so up to rounding.
    tail = min(int(np.sum(differences <= _EQUAL)), int(np.sum(differences >= -_EQUAL)))
    low, high = interval(differences, df)
    share = min(0.5, (1 + tail) / (len(differences) + 1))
    p = float(2 * student.cdf(norm.ppf(share), max(df, 1.0)))
    return {"difference": difference, "ci_low": low, "ci_high": high, "p": p}


def caveats(
    labels: IntArray,
    clusters: npt.NDArray[Any],
    classes: Sequence[str],
    unit: str = "patient",
) -> list[str]:
    """What a reader must know before believing the numbers; one sentence each.

    Args:
        labels: True classes, ``(n,)``.
        clusters: Patient of each row, ``(n,)``.
        classes: Name of each class.
        unit: What a cluster is.
    """
    rows = Clusters(labels, clusters)
    found = []
    held = {name: len(np.unique(rows.member[labels == k])) for k, name in enumerate(classes)}
    absent = [name for name, n in held.items() if n == 0]
    if absent:
        found.append(
            f"no test slide of class {', '.join(map(repr, absent))}: averages over classes "
            "(balanced_accuracy, auroc, average_precision and f1_macro) are undefined"
        )
    few = {name: n for name, n in held.items() if 0 < n < MIN_CLUSTERS}
    if rows.n < MIN_CLUSTERS:
        found.append(
            f"only {rows.n} {unit}(s): an interval from fewer than {MIN_CLUSTERS} is a rough guide"
        )
    elif few:
        fewest = min(few, key=lambda name: few[name])
        found.append(
            f"{len(few)} of {len(classes)} classes have fewer than {MIN_CLUSTERS} {unit}s, "
            f"{fewest!r} has {few[fewest]}: what is said of one of them, or averaged over classes, "
            "is a rough guide"
        )
    alone = rows.n_alone
    if alone:
        found.append(
            f"{alone} {unit}(s) with a class (or mix of classes) that no other "
            f"{unit} has: they are in every draw, and intervals miss their share of the variance"
        )
    return found


def _levels(df: float, level: float, acceleration: float) -> FloatArray:
    tail = float(student.ppf((1 + level) / 2, max(df, 1.0)))
    shifted = acceleration + np.array([-tail, tail])
    # Few and very skewed clusters can turn the sign of the divisor: then the end is the extreme.
    divisor = np.maximum(1 - acceleration * shifted, 1e-9)
    return np.asarray(norm.cdf(acceleration + shifted / divisor), dtype=np.float64)


def exact(value: float, n: float) -> tuple[float, float]:
    """Clopper-Pearson bound of a share of 0 or 1 of ``n``, an effective number of clusters.

    Korn & Graubard, *Surv. Methodol.* 24, 1998. The number is that of clusters, not of rows: where
    all are right, how alike the rows of a cluster are cannot be seen, so they count once.
    """
    off = float(1 - ((1 - LEVEL) / 2) ** (1 / n))
    return (1 - off, 1.0) if value > 0.5 else (0.0, off)


def _ratio(weights: FloatArray, sums: FloatArray, sizes: FloatArray) -> FloatArray:
    """Weighted means ``(n_weights, n_columns)``; NaN where nothing counts."""
    top, bottom = weights @ sums, weights @ sizes
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _all_equal(draws: FloatArray) -> bool:
    return bool(np.nanmax(draws) - np.nanmin(draws) < _EQUAL)


def _at_an_end(value: float) -> bool:
    return min(abs(value), abs(1 - value)) < _EQUAL
