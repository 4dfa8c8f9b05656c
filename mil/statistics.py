"""Metrics and their intervals: a bootstrap that draws whole patients, with the same draws for all.

Tiles of a slide and slides of a patient are not independent, so an interval that draws rows is too
narrow. Here patients are drawn with replacement and bring all their rows along (Davison & Hinkley,
*Bootstrap Methods and their Application*, 1997, section 3.8; Field & Welsh, *J. R. Stat. Soc. B*
69, 2007). A draw is a vector of weights, one a patient, so every metric is computed for a whole
block of draws at once: from sums per patient where it is a function of sums, and from one pass over
the ranked rows for the area under the curve.

Two conventions hold everywhere. Labels and predictions are indices ``0 … n_classes - 1``.
A macro average needs every class: where a class has no row, ``balanced_accuracy``, ``auroc`` and
``f1_macro`` are undefined (``None``), never an average over the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn import metrics

from mil.seeds import generator

__all__ = [
    "METRICS",
    "MIN_CLUSTERS",
    "bootstrap",
    "calibration_error",
    "caveats",
    "draw_clusters",
    "interval",
    "mean_interval",
    "paired",
    "point",
]

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc", "f1_macro", "log_loss", "ece")
MIN_CLUSTERS: Final = 20
_N_BINS: Final = 15
# scikit-learn clips at the same value, so a vote share of 0 for the true class costs 36.04 nats.
_EPS: Final = float(np.finfo(np.float64).eps)
_CELLS_PER_BLOCK: Final = 4_000_000

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def point(
    labels: IntArray, predicted: IntArray, probabilities: FloatArray
) -> dict[str, float | None]:
    """Value of every metric, from scikit-learn where it has it.

    ``auroc`` is the unweighted mean of the one-vs-rest areas (with two classes that of the second,
    as in scikit-learn), ``log_loss`` is in nats and clips probabilities at 2.2e-16.

    Args:
        labels: True classes, ``(n,)``.
        predicted: Predicted classes, ``(n,)``; given apart from the probabilities because ties of
            a vote are not broken by the smallest index.
        probabilities: ``(n, n_classes)``, rows sum to 1, ``n_classes >= 2``.

    Returns:
        Metric to value; ``None`` where a class has no row and the metric averages over classes.
    """
    n_classes = probabilities.shape[1]
    classes = np.arange(n_classes)
    values: dict[str, float | None] = {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": None,
        "auroc": None,
        "f1_macro": None,
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=classes)),
        "ece": calibration_error(labels, predicted, probabilities),
    }
    if _has_every_class(labels, n_classes):
        areas = [
            metrics.roc_auc_score(labels == k, probabilities[:, k]) for k in _scored(n_classes)
        ]
        values["balanced_accuracy"] = float(metrics.balanced_accuracy_score(labels, predicted))
        values["auroc"] = float(np.mean(areas))
        values["f1_macro"] = float(
            metrics.f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)
        )
    return values


def calibration_error(labels: IntArray, predicted: IntArray, probabilities: FloatArray) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al., ICML 2017, equation 3).

    Bins are open below and closed above; the confidence of a row is its largest probability.
    Arguments are those of :func:`point`.
    """
    gaps = _calibration_gaps(labels, predicted, probabilities)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(labels))


def draw_clusters(
    labels: IntArray, clusters: npt.NDArray[Any], *, n_draws: int, seed: int, block: int = 256
) -> Iterator[IntArray]:
    """Draw whole clusters with replacement, within strata of clusters that hold the same classes.

    Strata keep every class in every draw, so that no metric is undefined in some draws only. The
    stratum of a cluster is the *set* of classes among its rows: a patient with slides of two
    classes forms a stratum with others of that kind. A cluster alone in its stratum is in every
    draw once, and the interval misses its share of the variance (:func:`caveats` says so).

    Args:
        labels: True classes, ``(n,)``.
        clusters: Cluster (patient) of each row, ``(n,)``, of any sortable type.
        n_draws: Number of draws.
        seed: Draws depend on it and on the classes of the sorted clusters, never on row order,
            predictions or ``block``; equal arguments give equal draws, which pairs two methods.
        block: Draws a block.

    Yields:
        How often each cluster, in sorted order, was drawn: ``(at most block, n_clusters)``.
    """
    names, member = np.unique(clusters, return_inverse=True)
    strata = _strata(labels, member, len(names))
    streams = [generator(seed, "bootstrap", stratum) for stratum in range(strata.max() + 1)]
    members = [np.flatnonzero(strata == stratum) for stratum in range(len(streams))]
    for start in range(0, n_draws, block):
        n_rows = min(block, n_draws - start)
        drawn = np.zeros((n_rows, len(names)), dtype=np.int64)
        for stream, inside in zip(streams, members, strict=True):
            n = len(inside)
            picks = stream.integers(0, n, size=(n_rows, n)) + n * np.arange(n_rows)[:, None]
            drawn[:, inside] = np.bincount(picks.ravel(), minlength=n_rows * n).reshape(n_rows, n)
        yield drawn


def bootstrap(
    labels: IntArray,
    predicted: IntArray,
    probabilities: FloatArray,
    clusters: npt.NDArray[Any],
    *,
    n_draws: int,
    seed: int,
) -> dict[str, FloatArray]:
    """Every defined metric under the draws of :func:`draw_clusters`.

    Each value equals the metric of :func:`point` on the drawn rows with repetition. Memory is
    bounded whatever ``n`` and ``n_draws`` are (blocks of draws).

    Args:
        labels: True classes, ``(n,)``.
        predicted: Predicted classes, ``(n,)``.
        probabilities: ``(n, n_classes)``.
        clusters: Patient of each row, ``(n,)``.
        n_draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        Metric to values, ``(n_draws,)``; undefined metrics are left out.
    """
    n_classes = probabilities.shape[1]
    names, member = np.unique(clusters, return_inverse=True)
    rows = np.arange(len(labels))
    sum_by_cluster = sparse.csr_array(
        (np.ones(len(labels)), (member, rows)), shape=(len(names), len(labels))
    )
    confusion = sparse.coo_array(
        (np.ones(len(labels)), (member, labels * n_classes + predicted)),
        shape=(len(names), n_classes**2),
    ).toarray()
    loss = -np.log(np.clip(probabilities[rows, labels], _EPS, 1 - _EPS))
    gaps = _calibration_gaps(labels, predicted, probabilities)
    sums = np.column_stack([confusion, sum_by_cluster @ np.column_stack([loss, gaps])])

    complete = _has_every_class(labels, n_classes)
    curves = (
        [_Curve(labels == k, probabilities[:, k], member) for k in _scored(n_classes)]
        if complete
        else []
    )
    widest = max([len(names), *(curve.n_thresholds for curve in curves)])
    block = max(1, min(n_draws, _CELLS_PER_BLOCK // widest))
    parts = []
    for drawn in draw_clusters(labels, clusters, n_draws=n_draws, seed=seed, block=block):
        weights = drawn.astype(np.float64)
        values = _from_sums(weights @ sums, n_classes)
        if complete:
            values["auroc"] = np.mean([curve.area(weights) for curve in curves], axis=0)
        else:
            del values["balanced_accuracy"], values["f1_macro"]
        parts.append(values)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(draws: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws (Davison & Hinkley 1997, section 5.3)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: npt.NDArray[Any],
    labels: IntArray,
    clusters: npt.NDArray[Any],
    *,
    n_draws: int,
    seed: int,
) -> dict[str, float | None]:
    """Mean of a value a row, with the interval that every metric has."""
    if len(values) == 0:
        return dict.fromkeys(("value", "ci_low", "ci_high"))
    given = np.asarray(values, dtype=np.float64)
    _, code = np.unique(clusters, return_inverse=True)
    sums, sizes = np.bincount(code, given), np.bincount(code)
    drawn = draw_clusters(labels, clusters, n_draws=n_draws, seed=seed)
    low, high = interval(np.concatenate([(w @ sums) / (w @ sizes) for w in drawn]))
    return {"value": float(given.mean()), "ci_low": low, "ci_high": high}


def paired(draws_a: FloatArray, draws_b: FloatArray, difference: float) -> dict[str, float]:
    """Compare two methods on the same slides.

    Args:
        draws_a: Draws of a metric for the first method, ``(n_draws,)``.
        draws_b: Draws for the second method, *of the same patients in the same order*.
        difference: Observed value of the first minus that of the second.

    Returns:
        ``difference``, ``ci_low``, ``ci_high`` (95 %, percentile) and ``p``, the two-sided level at
        which the percentile interval just reaches zero, with the ``+ 1`` that keeps a Monte Carlo
        test from claiming zero (Davison & Hinkley 1997, equation 4.11).
    """
    differences = draws_a - draws_b
    tail = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    low, high = interval(differences)
    p = min(1.0, 2 * (1 + tail) / (len(differences) + 1))
    return {"difference": difference, "ci_low": low, "ci_high": high, "p": p}


def caveats(labels: IntArray, clusters: npt.NDArray[Any], classes: Sequence[str]) -> list[str]:
    """What a reader must know before believing the numbers; one sentence each.

    Args:
        labels: True classes, ``(n,)``.
        clusters: Patient of each row, ``(n,)``.
        classes: Name of each class.
    """
    names, member = np.unique(clusters, return_inverse=True)
    found = []
    absent = [name for k, name in enumerate(classes) if not np.any(labels == k)]
    if absent:
        found.append(
            f"no test slide of class {', '.join(map(repr, absent))}: "
            "balanced_accuracy, auroc and f1_macro are undefined"
        )
    if len(names) < MIN_CLUSTERS:
        found.append(
            f"only {len(names)} patient(s): bootstrap intervals are too narrow under {MIN_CLUSTERS}"
        )
    sizes = np.bincount(_strata(labels, member, len(names)))
    if np.any(sizes == 1):
        found.append(
            f"{int(np.sum(sizes == 1))} patient(s) with a class (or mix of classes) that no other "
            "patient has: they are in every draw, and intervals miss their share of the variance"
        )
    return found


class _Curve:
    """One-vs-rest area under the curve for blocks of draws; ties count half (Mann-Whitney)."""

    def __init__(
        self, positive: npt.NDArray[np.bool_], score: FloatArray, member: IntArray
    ) -> None:
        thresholds, rank = np.unique(score, return_inverse=True)
        self.n_thresholds = len(thresholds)
        shape = (self.n_thresholds, int(member.max()) + 1)
        self._positive, self._negative = (
            sparse.csr_array((np.ones(int(kind.sum())), (rank[kind], member[kind])), shape=shape)
            for kind in (positive, ~positive)
        )

    def area(self, weights: FloatArray) -> FloatArray:
        """Areas for cluster weights ``(n_draws, n_clusters)``: ``(n_draws,)``."""
        columns = np.ascontiguousarray(weights.T)
        positive = self._positive @ columns  # (n_thresholds, n_draws)
        negative = self._negative @ columns
        below = np.cumsum(negative, axis=0)
        n_pairs = positive.sum(axis=0) * below[-1]
        below -= negative / 2
        return np.asarray(np.einsum("td,td->d", positive, below) / n_pairs, dtype=np.float64)


def _from_sums(sums: FloatArray, n_classes: int) -> dict[str, FloatArray]:
    """Metrics from ``(n_draws, n_classes**2 + 1 + 15)`` weighted sums: confusion, loss, gaps."""
    confusion = sums[:, : n_classes**2].reshape(-1, n_classes, n_classes)
    loss, gaps = sums[:, n_classes**2], sums[:, n_classes**2 + 1 :]
    total = confusion.sum(axis=(1, 2))
    hits = np.einsum("dkk->dk", confusion)
    n_true, n_predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    # A class without rows gives 0/1 here; the caller drops the macro averages in that case.
    recall = hits / np.maximum(n_true, 1)
    f1 = 2 * hits / np.maximum(n_true + n_predicted, 1)
    return {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": recall.mean(axis=1),
        "f1_macro": f1.mean(axis=1),
        "log_loss": loss / total,
        "ece": np.abs(gaps).sum(axis=1) / total,
    }


def _calibration_gaps(
    labels: IntArray, predicted: IntArray, probabilities: FloatArray
) -> FloatArray:
    """``correct - confidence`` of each row in the column of its bin, ``(n, 15)``."""
    confidence = probabilities.max(axis=1)
    edges = np.linspace(0, 1, _N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _N_BINS - 1)
    gaps = np.zeros((len(labels), _N_BINS))
    gaps[np.arange(len(labels)), bins] = (labels == predicted) - confidence
    return gaps


def _strata(labels: IntArray, member: IntArray, n_clusters: int) -> IntArray:
    """Stratum of each cluster: the set of classes among its rows, numbered in sorted order."""
    holds = np.zeros((n_clusters, int(labels.max()) + 1), dtype=np.bool_)
    holds[member, labels] = True
    return np.asarray(np.unique(holds, axis=0, return_inverse=True)[1], dtype=np.int64).reshape(-1)


def _has_every_class(labels: IntArray, n_classes: int) -> bool:
    return len(np.unique(labels)) == n_classes


def _scored(n_classes: int) -> range:
    """Classes whose one-vs-rest area is averaged: with two, both are the same up to rounding."""
    return range(1, 2) if n_classes == 2 else range(n_classes)
