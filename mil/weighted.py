"""The metrics of :mod:`mil.metrics` for many weightings of the clusters at once.

A draw of the bootstrap is a vector of weights, one a cluster, and every row has the weight of its
cluster. So a metric that is a function of sums over rows comes from one matrix product for a whole
block of draws, and areas under curves from one pass over the ranked rows. Every value is that of
scikit-learn with ``sample_weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mil.metrics import METRICS, ORDERED, areas_averaged, calibration_gaps, check, losses

__all__ = ["Weighted"]

_CELLS_PER_BLOCK: Final = 2_000_000

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Weighted:
    """Rows of one method, summed a cluster, ready for any weights.

    Args:
        labels: True classes, ``(n,)``.
        predicted: Predicted classes, ``(n,)``.
        probabilities: ``(n, n_classes)``.
        member: Cluster of each row, ``(n,)``, ``0 … n_clusters - 1``, each there.
        order: Classes from lowest to highest, or ``None``.

    Attributes:
        confusion: Rows by cluster, true and predicted class, ``(n_clusters, n_classes,
            n_classes)``.
        block: Weightings that one call of :meth:`values` should have, to bound its memory.

    Raises:
        InputError: As for :func:`mil.metrics.point`.
    """

    def __init__(
        self,
        labels: IntArray,
        predicted: IntArray,
        probabilities: FloatArray,
        member: IntArray,
        order: Sequence[int] | None = None,
    ) -> None:
        check(labels, predicted, probabilities)
        self._n_classes = k = probabilities.shape[1]
        n, n_clusters = len(labels), int(member.max()) + 1
        rows = np.arange(n)
        cells = sparse.coo_array(
            (np.ones(n), (member, labels * k + predicted)), shape=(n_clusters, k * k)
        ).toarray()
        self.confusion = cells.reshape(n_clusters, k, k)
        gaps = calibration_gaps(labels, predicted, probabilities)
        by_cluster = sparse.csr_array((np.ones(n), (member, rows)), shape=(n_clusters, n))
        of_rows = np.column_stack([*losses(labels, probabilities), gaps])
        self._sums = np.column_stack([cells, by_cluster @ of_rows])
        self._curves = [_Curve(labels == c, probabilities[:, c], member) for c in range(k)]
        self._place = None if order is None else np.argsort(np.asarray(order)).astype(np.float64)
        widest = max([n_clusters, *(curve.n_thresholds for curve in self._curves)])
        self.block = max(1, _CELLS_PER_BLOCK // widest)

    def values(self, weights: FloatArray) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Every metric under every weighting; NaN where it is undefined.

        Args:
            weights: ``(n_draws, n_clusters)``, not negative.

        Returns:
            Metric to ``(n_draws,)``, and metric of one class against the rest to ``(n_draws,
            n_classes)``.
        """
        k = self._n_classes
        sums = weights @ self._sums
        confusion = sums[:, : k * k].reshape(-1, k, k)
        total = confusion.sum(axis=(1, 2))
        hits = np.einsum("dkk->dk", confusion)
        n_true, n_called = confusion.sum(axis=2), confusion.sum(axis=1)
        rest = total[:, None] - n_true
        columns = np.ascontiguousarray(weights.T)
        areas, precisions = np.stack([c.areas(columns) for c in self._curves], axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = hits / n_true
            by_class = {
                "sensitivity": recall,
                "specificity": (rest - n_called + hits) / rest,
                "ppv": hits / n_called,
                "average_precision": np.where(rest > 0, precisions, np.nan),
                "auroc": areas,
            }
            f1 = np.where(n_true > 0, 2 * hits / (n_true + n_called), np.nan)
        values = {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1),
            "auroc": areas[:, areas_averaged(k)].mean(axis=1),
            "average_precision": by_class["average_precision"].mean(axis=1),
            "f1_macro": f1.mean(axis=1),
            "log_loss": sums[:, k * k] / total,
            "brier": sums[:, k * k + 1] / total,
            "ece": np.abs(sums[:, k * k + 2 :]).sum(axis=1) / total,
        }
        values = {name: values[name] for name in METRICS}
        if self._place is not None:
            values[ORDERED] = _kappa(confusion, self._place)
        return values, by_class


class _Curve:
    """Areas under the curves of one class against the rest, for blocks of draws.

    Area under the receiver operating curve as the Mann-Whitney statistic (ties count half), and
    average precision as the sum of precision times gain in recall over distinct scores. Both are
    sums over the scores of the class alone: of the rest, only how many lie above each is needed.
    """

    def __init__(
        self, positive: npt.NDArray[np.bool_], score: FloatArray, member: IntArray
    ) -> None:
        descending = -score
        thresholds, rank = np.unique(descending[positive], return_inverse=True)
        # The first score of the class that is not above a score of the rest; there may be none.
        place = np.searchsorted(thresholds, descending[~positive])
        ended = np.append(thresholds, np.inf)
        tied = ended[place] == descending[~positive]
        self.n_thresholds = len(thresholds) + 1
        n_clusters = int(member.max()) + 1

        def sums(row: IntArray, cluster: IntArray) -> sparse.csr_array:
            shape = (self.n_thresholds, n_clusters)
            return sparse.csr_array((np.ones(len(row)), (row, cluster)), shape=shape)

        rest = member[~positive]
        self._positive = sums(rank, member[positive])
        self._negative = sums(place, rest)
        self._tied = sums(place[tied], rest[tied]) if tied.any() else None

    def areas(self, columns: FloatArray) -> FloatArray:
        """Both areas for weights ``(n_clusters, n_draws)``: ``(2, n_draws)``, NaN if undefined."""
        positive = self._positive @ columns  # (n_thresholds, n_draws)
        above = np.cumsum(self._negative @ columns, axis=0)  # at least this score
        n_positive, n_negative = positive.sum(axis=0), above[-1].copy()
        ahead = np.einsum("td,td->d", positive, above)
        if self._tied is not None:
            ahead -= np.einsum("td,td->d", positive, self._tied @ columns) / 2
        hits = np.cumsum(positive, axis=0)
        above += hits
        np.divide(hits, above, out=hits, where=above > 0)  # no row yet: no gain in recall
        with np.errstate(divide="ignore", invalid="ignore"):
            area = 1 - ahead / (n_positive * n_negative)
            precision = np.einsum("td,td->d", positive, hits) / n_positive
        return np.stack([area, precision])


def _kappa(confusion: FloatArray, place: FloatArray) -> FloatArray:
    """Quadratic kappa of tables ``(n_draws, n_classes, n_classes)``, classes at these places."""
    squared = np.subtract.outer(place, place) ** 2
    total = confusion.sum(axis=(1, 2))
    found = (confusion * squared).sum(axis=(1, 2))
    chance = np.einsum("di,dj->dij", confusion.sum(axis=2), confusion.sum(axis=1))
    expected = (chance * squared).sum(axis=(1, 2)) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, 1 - found / expected, np.nan))
