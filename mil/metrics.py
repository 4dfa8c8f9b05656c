"""What is measured: point values of every metric, from scikit-learn where it has them.

Labels and predictions are indices ``0 … n_classes - 1``. Nothing is averaged over what is not
there: a macro average needs rows of every class, and a metric without a value is ``None``.

``mil.weighted`` has the same metrics for thousands of weightings of the rows at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from splits.errors import InputError

__all__ = [
    "EPSILON",
    "METRICS",
    "ORDERED",
    "PER_CLASS",
    "areas_averaged",
    "calibration_error",
    "calibration_gaps",
    "check",
    "confidence_bins",
    "losses",
    "per_class",
    "point",
]

METRICS: Final = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "f1_macro",
    "log_loss",
    "brier",
    "ece",
)
"""Metrics of every table."""
ORDERED: Final = "kappa_quadratic"
"""The metric that only ordered classes have."""
PER_CLASS: Final = ("sensitivity", "specificity", "ppv", "average_precision", "auroc")
"""Metrics of one class against the rest."""
EPSILON: Final = float(np.finfo(np.float64).eps)
"""Probabilities are clipped here for the log loss, as in scikit-learn: a vote share of 0 for the
true class costs 36.04 nats."""
_N_BINS: Final = 15

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def point(
    labels: IntArray,
    predicted: IntArray,
    probabilities: FloatArray,
    order: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """Value of every metric.

    Args:
        labels: True classes, ``(n,)``.
        predicted: Predicted classes, ``(n,)``; given apart from the probabilities because ties of
            a vote are not broken by the smallest index.
        probabilities: ``(n, n_classes)``, rows sum to 1, ``n_classes >= 2``.
        order: Classes from lowest to highest; with it ``kappa_quadratic`` is there, too.

    Returns:
        Metric to value. ``auroc`` and ``average_precision`` are the unweighted means over classes
        of one against the rest (the area of two classes is that of the second); ``log_loss`` is in
        nats; ``brier`` is the sum of squares over classes (Brier, *Mon. Weather Rev.* 78, 1950: 0
        to 2, with two classes twice the usual value). ``None`` where a class has no row and the
        metric averages over classes, or where agreement cannot differ from chance (kappa).

    Raises:
        InputError: A probability is not finite, or the arrays do not fit together.
    """
    check(labels, predicted, probabilities)
    n_classes = probabilities.shape[1]
    classes = np.arange(n_classes)
    values: dict[str, float | None] = {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": None,
        "auroc": None,
        "average_precision": None,
        "f1_macro": None,
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=classes)),
        "brier": float(losses(labels, probabilities)[1].mean()),
        "ece": calibration_error(labels, predicted, probabilities),
    }
    if len(np.unique(labels)) == n_classes:
        areas = [metrics.roc_auc_score(labels == k, probabilities[:, k]) for k in classes]
        precisions = [
            metrics.average_precision_score(labels == k, probabilities[:, k]) for k in classes
        ]
        values["balanced_accuracy"] = float(metrics.balanced_accuracy_score(labels, predicted))
        values["auroc"] = float(np.mean(areas[areas_averaged(n_classes)]))
        values["average_precision"] = float(np.mean(precisions))
        values["f1_macro"] = float(
            metrics.f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)
        )
    if order is not None:
        values[ORDERED] = _kappa(labels, predicted, order)
    return values


def per_class(
    labels: IntArray, predicted: IntArray, probabilities: FloatArray
) -> list[dict[str, float | None]]:
    """Value of every metric of :data:`PER_CLASS`, a class each, one against the rest.

    Arguments and errors are those of :func:`point`.

    Returns:
        For each class: sensitivity (recall), specificity (recall of the rest), ppv (precision of
        its calls), average precision and area under the curve; ``None`` where there is nothing to
        divide by: no row of the class, no row of the rest, no call.
    """
    check(labels, predicted, probabilities)
    found = []
    for k in range(probabilities.shape[1]):
        truth, called, score = labels == k, predicted == k, probabilities[:, k]
        both = bool(truth.any() and not truth.all())
        found.append(
            {
                "sensitivity": _recall(truth, called),
                "specificity": _recall(~truth, ~called),
                "ppv": _recall(called, truth),  # recall with the roles of truth and call exchanged
                "average_precision": (
                    float(metrics.average_precision_score(truth, score)) if both else None
                ),
                "auroc": float(metrics.roc_auc_score(truth, score)) if both else None,
            }
        )
    return found


def calibration_error(labels: IntArray, predicted: IntArray, probabilities: FloatArray) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al., ICML 2017, equation 3).

    Bins are open below and closed above; the confidence of a row is its largest probability.
    Arguments are those of :func:`point`.
    """
    gaps = calibration_gaps(labels, predicted, probabilities)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(labels))


def calibration_gaps(
    labels: IntArray, predicted: IntArray, probabilities: FloatArray
) -> FloatArray:
    """``correct - confidence`` of each row in the column of its bin, ``(n, 15)``."""
    confidence = probabilities.max(axis=1)
    bins, _ = confidence_bins(confidence)
    gaps = np.zeros((len(labels), _N_BINS))
    gaps[np.arange(len(labels)), bins] = (labels == predicted) - confidence
    return gaps


def confidence_bins(confidence: FloatArray) -> tuple[IntArray, FloatArray]:
    """Bin of each row, ``(n,)``, and the edges of the bins, ``(16,)``: open below, closed above."""
    edges = np.linspace(0, 1, _N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _N_BINS - 1)
    return bins, edges


def losses(labels: IntArray, probabilities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log loss and Brier score of each row, ``(n,)`` each: their means are those of :func:`point`.

    Args:
        labels: True classes, ``(n,)``.
        probabilities: ``(n, n_classes)``.
    """
    of_true = probabilities[np.arange(len(labels)), labels]
    log_loss = -np.log(np.clip(of_true, EPSILON, 1 - EPSILON))
    brier = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)
    return log_loss, brier


def areas_averaged(n_classes: int) -> slice:
    """Classes whose area is averaged: with two, both are the same up to rounding."""
    return slice(1, 2) if n_classes == 2 else slice(n_classes)


def check(labels: IntArray, predicted: IntArray, probabilities: FloatArray) -> None:
    """Refuse what has no metric.

    Raises:
        InputError: No rows, arrays of different length, fewer than two classes, or a probability
            that is not finite.
    """
    if not len(labels) == len(predicted) == len(probabilities) > 0:
        message = (
            f"{len(labels)} labels, {len(predicted)} predictions and {len(probabilities)} rows of "
            "probabilities: one of each a row, and at least one row, is needed"
        )
        raise InputError(message)
    if probabilities.shape[1] < 2:
        message = f"{probabilities.shape[1]} class(es): at least 2 are needed"
        raise InputError(message)
    wrong = ~np.isfinite(probabilities).all(axis=1)
    if wrong.any():
        message = (
            f"{int(wrong.sum())} row(s) with probabilities that are not finite, "
            f"the first is row {int(np.flatnonzero(wrong)[0])}"
        )
        raise InputError(message)


def _recall(truth: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_]) -> float | None:
    return float(metrics.recall_score(truth, called)) if truth.any() else None


def _kappa(labels: IntArray, predicted: IntArray, order: Sequence[int]) -> float | None:
    """Cohen's kappa with squared weights (Cohen, *Psychol. Bull.* 70, 1968)."""
    with warnings.catch_warnings():  # one class alone: 0/0, which is said by None
        warnings.simplefilter("ignore")
        value = metrics.cohen_kappa_score(labels, predicted, labels=order, weights="quadratic")
    return float(value) if np.isfinite(value) else None
