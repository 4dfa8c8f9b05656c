"""Two methods on the same slides: paired bootstrap, McNemar and DeLong, with Holm's correction.

All three respect patients with several slides. With one slide a patient the second is McNemar's
exact test and the third is DeLong's, to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from mil.metrics import areas_averaged
from mil.scores import Scores
from mil.statistics import LEVEL, Estimate, exact, paired
from splits.errors import InputError

__all__ = ["TESTS", "area_parts", "area_test", "compare", "exact_test", "holm"]

TESTS: Final = {
    "bootstrap": ("accuracy", "balanced_accuracy", "auroc"),
    "mcnemar": ("accuracy",),
    "delong": ("auroc",),
}
"""Tests, and the metrics that each is made for."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Row = dict[str, Any]


def compare(
    scores: Mapping[str, Scores],
    right: Mapping[str, npt.NDArray[np.bool_]],
    probabilities: Mapping[str, FloatArray],
    labels: IntArray,
    clusters: npt.NDArray[Any],
) -> list[Row]:
    """Every pair of methods by every test, the later method minus the earlier.

    Args:
        scores: Method to scores, all with the same draws.
        right: Method to whether it is right, ``(n_slides,)``.
        probabilities: Method to ``(n_slides, n_classes)``.
        labels: True classes, ``(n_slides,)``.
        clusters: Cluster of each slide, ``(n_slides,)``.

    Returns:
        ``a, b, metric, test, difference, ci_low, ci_high, p, p_holm``, a row a pair, metric and
        test. ``None`` where a metric is undefined or a test has nothing to go by. ``p_holm`` is
        corrected within metric and test.
    """
    parts = {name: area_parts(labels, p, clusters) for name, p in probabilities.items()}
    found: list[Row] = []
    for test, of in TESTS.items():
        for metric in of:
            rows: list[Row] = []
            for b, a in combinations(scores, 2):
                pair = scores[a].overall[metric], scores[b].overall[metric]
                if test == "bootstrap":
                    result = _bootstrap(*pair)
                elif test == "mcnemar":
                    p = exact_test(right[a], right[b], clusters)
                    result = {"difference": _difference(*pair), "p": p}
                else:
                    result = area_test(parts[a], parts[b])
                keys = ("difference", "ci_low", "ci_high", "p")
                values = {key: result.get(key) for key in keys}
                rows.append({"a": a, "b": b, "metric": metric, "test": test, **values})
            for row, p_holm in zip(rows, holm([row["p"] for row in rows]), strict=True):
                row["p_holm"] = p_holm
            found += rows
    return found


def exact_test(
    right_a: npt.NDArray[np.bool_], right_b: npt.NDArray[np.bool_], clusters: npt.NDArray[Any]
) -> float:
    """McNemar's exact test for slides in clusters: are two methods equally often right?

    With ``d`` a cluster's slides on which only the first method is right minus those on which only
    the second is, the null hypothesis is that ``d`` and ``-d`` are equally likely in every
    cluster. The two-sided level is the share of all ``2**n`` choices of signs whose sum is at
    least as far from 0 as the observed one, counted by convolution, not by chance. With one slide
    a cluster this is the exact test of McNemar (*Psychometrika* 12, 1947), which takes slides for
    independent; for clusters: Gerard & Schucany, *J. Agric. Biol. Environ. Stat.* 12, 2007.

    Args:
        right_a: Whether the first method is right, ``(n,)``.
        right_b: Whether the second is, on the same slides.
        clusters: Cluster of each slide, ``(n,)``.

    Returns:
        Two-sided level; 1 where no cluster prefers a method.
    """
    member = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    prefers = np.asarray(right_a, dtype=np.float64) - np.asarray(right_b, dtype=np.float64)
    sums = np.rint(np.bincount(member, prefers)).astype(np.int64)
    chance = np.ones(1)  # of every sum from -reach to reach
    for size in np.abs(sums[sums != 0]):
        apart = np.zeros(len(chance) + 2 * size)
        apart[: len(chance)] += chance / 2
        apart[2 * size :] += chance / 2
        chance = apart
    reach = len(chance) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(int(sums.sum()))
    return min(1.0, float(chance[far].sum()))


def area_parts(labels: IntArray, scores: FloatArray, clusters: npt.NDArray[Any]) -> FloatArray:
    """What each cluster's slides of each class add to the area under the curve.

    With ``V10`` of a slide of class ``k`` the share of the rest that it is ranked above, and
    ``V01`` of a slide of the rest the share of class ``k`` that is ranked above it (DeLong et al.,
    *Biometrics* 44, 1988; ties count half; by ranks as in Sun & Xu, *IEEE Signal Process. Lett.*
    21, 2014), the influence of a slide on the macro area is the mean over ``k`` of
    ``(V10 - area) / n_k``, or ``(V01 - area) / (n - n_k)``.

    Args:
        labels: True classes, ``(n,)``.
        scores: ``(n, n_classes)``.
        clusters: Cluster of each slide, ``(n,)``.

    Returns:
        ``(n_clusters + 1, n_classes)``: sums of influence by cluster and by class of the slides,
        centred within a class; NaN where a cluster has no slide of the class. The last row holds
        the macro area. All NaN where a class has no slide.
    """
    n, n_classes = scores.shape
    names, member = np.unique(clusters, return_inverse=True)
    sizes = np.zeros((len(names), n_classes))
    np.add.at(sizes, (member.reshape(-1), labels), 1)
    n_class = sizes.sum(axis=0)
    if np.any(n_class == 0):
        return np.full((len(names) + 1, n_classes), np.nan)
    influence, areas = np.zeros(n), []
    averaged = range(n_classes)[areas_averaged(n_classes)]
    for k in averaged:
        of, rest = labels == k, labels != k
        rank = rankdata(scores[:, k])
        above = (rank[of] - rankdata(scores[of, k])) / rest.sum()
        below = 1 - (rank[rest] - rankdata(scores[rest, k])) / of.sum()
        areas.append(float(above.mean()))
        influence[of] += (above - areas[-1]) / of.sum()
        influence[rest] += (below - areas[-1]) / rest.sum()
    influence /= len(averaged)
    sums = np.zeros_like(sizes)
    np.add.at(sums, (member.reshape(-1), labels), influence)
    centred = np.where(sizes > 0, sums - sizes * (sums.sum(axis=0) / n_class), np.nan)
    return np.vstack([centred, np.full(n_classes, np.mean(areas))])


def area_test(parts_a: FloatArray, parts_b: FloatArray) -> Row:
    """Compare two areas under the curve by their influence.

    The variance of a difference is the sum over classes of ``I_c / (I_c - 1)`` times the squares
    of what clusters add by their slides of the class, ``I_c`` the clusters that have such slides,
    and over pairs of classes of ``I / (I - 1)`` times their products (Obuchowski, *Biometrics* 53,
    1997, here for more than two classes, too). With two classes and one slide a cluster it is the
    variance of DeLong et al. 1988.

    Args:
        parts_a: :func:`area_parts` of the first method, ``(n_clusters + 1, n_classes)``.
        parts_b: Of the second, for the same slides.

    Returns:
        ``difference``, its normal 95 % interval and the two-sided ``p``; ``p`` is 1, and there is
        no interval, where the difference does not vary at all and is 0. All ``None`` where an area
        is undefined or a class has slides of one cluster only.

    Raises:
        InputError: The two do not have the same clusters and classes.
    """
    if parts_a.shape != parts_b.shape:
        message = f"areas over {parts_a.shape} and {parts_b.shape} clusters and classes"
        raise InputError(message)
    apart = parts_a - parts_b
    sums, difference = apart[:-1], float(apart[-1, 0])
    n_clusters = len(sums)
    n_holding = (~np.isnan(sums)).sum(axis=0)
    result: Row = dict.fromkeys(("difference", "ci_low", "ci_high", "p"))
    if np.isnan(difference):
        return result
    result["difference"] = difference
    if np.any(n_holding < 2):
        return result
    filled = np.nan_to_num(sums)
    products = filled.T @ filled  # (n_classes, n_classes)
    own = float((np.diag(products) * n_holding / (n_holding - 1)).sum())
    shared = float(products.sum() - np.trace(products)) * n_clusters / (n_clusters - 1)
    error = float(np.sqrt(max(own + shared, 0.0)))
    if error < 1e-12:
        return {**result, "p": 1.0 if abs(difference) < 1e-12 else None}
    half = float(norm.ppf((1 + LEVEL) / 2)) * error
    p = float(2 * norm.sf(abs(difference) / error))
    return {**result, "ci_low": difference - half, "ci_high": difference + half, "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Levels corrected for their number (Holm, *Scand. J. Stat.* 6, 1979); ``None`` is no test."""
    given = [(p, i) for i, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(given)):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        corrected[i] = largest
    return corrected


def _difference(a: Estimate, b: Estimate) -> float | None:
    return None if a.value is None or b.value is None else a.value - b.value


def _bootstrap(a: Estimate, b: Estimate) -> Row:
    difference = _difference(a, b)
    if difference is None or a.often_undefined or b.often_undefined:
        return {"difference": difference}
    result: Row = dict(paired(a.draws, b.draws, difference, a.df))
    if result["ci_high"] - result["ci_low"] < 1e-12:  # no cluster tells them apart
        # Shares differ at most by how often the methods do, which is bounded as a share of 0 is.
        n = None if abs(difference) > 1e-12 else a.n_effective
        off = None if n is None else exact(0.0, n)[1]
        result |= {"ci_low": None if off is None else -off, "ci_high": off}
    return result
