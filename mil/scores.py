"""Every metric of one method with what its interval is made from.

Point values are those of :mod:`mil.metrics`, draws those of :mod:`mil.weighted` under the weights
of :mod:`mil.clusters`; :class:`mil.statistics.Estimate` turns them into an interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mil import metrics
from mil.clusters import Clusters, effective
from mil.statistics import Estimate
from mil.weighted import Weighted

__all__ = ["Scores", "estimates", "score", "undefined_draws"]

_SHOWN: Final = 3

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
# A metric and its class; class -1 is all of them together.
_Key = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Scores:
    """Every metric of one method: ``overall``, and a class each (one against the rest)."""

    overall: dict[str, Estimate]
    by_class: list[dict[str, Estimate]]


def score(
    labels: IntArray,
    predicted: IntArray,
    probabilities: FloatArray,
    clusters: npt.NDArray[Any],
    *,
    n_draws: int,
    seed: int,
    order: Sequence[int] | None = None,
) -> Scores:
    """Every metric of :mod:`mil.metrics` with its draws.

    Args:
        labels: True classes, ``(n,)``.
        predicted: Predicted classes, ``(n,)``.
        probabilities: ``(n, n_classes)``.
        clusters: Patient (or site) of each row, ``(n,)``.
        n_draws: Number of draws.
        seed: Seed of the draws; equal labels and clusters give equal draws, which pairs methods.
        order: Classes from lowest to highest, if they have an order.

    Raises:
        InputError: As for :func:`mil.metrics.point`.
    """
    rows = Clusters(labels, clusters)
    weighted = Weighted(labels, predicted, probabilities, rows.member, order)
    points = [
        metrics.point(labels, predicted, probabilities, order),
        *metrics.per_class(labels, predicted, probabilities),
    ]
    return estimates(points, weighted, rows, n_draws=n_draws, seed=seed)


def estimates(
    points: Sequence[Mapping[str, float | None]],
    weighted: Weighted,
    rows: Clusters,
    *,
    n_draws: int,
    seed: int,
) -> Scores:
    """What :func:`score` does once the values are there.

    Args:
        points: Values over all classes, then of each class.
        weighted: The same rows, ready for weights.
        rows: Their clusters.
        n_draws: Number of draws.
        seed: Seed of the draws.
    """
    block = weighted.block
    drawn = _joined(weighted.values(w) for w in rows.draws(n_draws, seed, block))
    left = _joined(weighted.values(w) for w in rows.left_out(block))
    reach = _reach(weighted.confusion)
    n_effective = _n_effective(reach)
    found: list[dict[str, Estimate]] = []
    for k, values in enumerate(points, start=-1):  # -1 is all classes together
        found.append({})
        for name, value in values.items():
            key = (name, k)
            found[-1][name] = Estimate(
                value=value,
                draws=drawn[key],
                acceleration=float(rows.acceleration(left[key][:, None])[0]),
                df=rows.degrees(reach.get(key, reach["accuracy", -1])),
                n_effective=n_effective.get(key),
            )
    return Scores(found[0], found[1:])


def undefined_draws(scored: Mapping[str, Scores | None], classes: Sequence[str]) -> list[str]:
    """Values whose interval is missing or incomplete, because some draws do not define them.

    Args:
        scored: Name to scores, or ``None``.
        classes: Name of each class.

    Returns:
        A sentence for those without interval, and one for those whose interval leaves draws out.
    """
    partly: list[str] = []
    wholly: list[str] = []
    for name, scores in scored.items():
        of = [] if scores is None else [("", scores.overall)]
        of += [] if scores is None else zip(map(repr, classes), scores.by_class, strict=True)
        for where, estimates in of:
            for metric, estimate in estimates.items():
                if estimate.value is not None and estimate.undefined > 0:
                    into = wholly if estimate.often_undefined else partly
                    into.append(" ".join(filter(None, (name, metric, where))))
    found = []
    if wholly:
        found.append(
            f"{len(wholly)} value(s) have no interval, because they are undefined in more than 5 % "
            f"of the draws: {_listed(wholly)}"
        )
    if partly:
        found.append(
            f"{len(partly)} interval(s) leave out draws (5 % at most) in which the value is "
            f"undefined: {_listed(partly)}"
        )
    return found


def _joined(
    blocks: Iterator[tuple[dict[str, FloatArray], dict[str, FloatArray]]],
) -> dict[_Key, FloatArray]:
    """Blocks of :meth:`Weighted.values` as one, by metric and class (-1: all together)."""
    parts: dict[_Key, list[FloatArray]] = {}
    for values, by_class in blocks:
        for name, column in values.items():
            parts.setdefault((name, -1), []).append(column)
        for name, columns in by_class.items():
            for k, column in enumerate(columns.T):
                parts.setdefault((name, k), []).append(column)
    return {key: np.concatenate(columns) for key, columns in parts.items()}


def _reach(confusion: FloatArray) -> dict[_Key, FloatArray]:
    """How much of each metric lies on each cluster; all other metrics weigh rows alike.

    Args:
        confusion: ``(n_clusters, n_classes, n_classes)``.
    """
    of_class, called = confusion.sum(axis=2), confusion.sum(axis=1)  # (n_clusters, n_classes)
    n, total = confusion.sum(axis=(1, 2)), float(confusion.sum())
    n_class = of_class.sum(axis=0)
    share = of_class / np.maximum(n_class, 1)
    found = {("accuracy", -1): n}
    for name in ("balanced_accuracy", "f1_macro", "auroc", "average_precision"):
        found[name, -1] = share.sum(axis=1)
    for k in range(len(n_class)):
        rest = n - of_class[:, k]
        found["sensitivity", k] = of_class[:, k]
        found["specificity", k] = rest
        found["ppv", k] = called[:, k]
        both = share[:, k] + rest / max(total - n_class[k], 1)
        found["auroc", k] = found["average_precision", k] = both
    return found


def _n_effective(reach: Mapping[_Key, FloatArray]) -> dict[_Key, float]:
    """So many independent clusters carry a share; for an area, so many pairs of them.

    Disjoint pairs of a cluster of the class and one of the rest are independent, and each is in
    order with the probability that the area estimates.
    """
    shares = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv")
    found = {key: effective(weights) for key, weights in reach.items() if key[0] in shares}
    pairs = {
        k: min(found["sensitivity", k], found["specificity", k])
        for name, k in reach
        if name == "sensitivity"
    }
    found |= {("auroc", k): n for k, n in pairs.items()}
    found["auroc", -1] = min(pairs.values())
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
