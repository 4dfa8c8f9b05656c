"""Sets of classes that hold the true one as often as asked, and when not to answer.

Slides of one patient resemble each other, so the unit that is exchangeable with a new one is the
patient. With K validation patients of n_k slides each, slide i of which has the score s_ki = 1 - p
of its true class, the p-value of class y for a new slide x is ::

    p_y = (1 + sum_k (1 / n_k) sum_i [s_ki >= s(x, y)]) / (K + 1)

and the set at level 1 - alpha holds every class with p_y > alpha. That is hierarchical conformal
prediction (Lee, Barber & Willett, arXiv:2306.06342, HCP): where patients are exchangeable, one
slide of a new patient has its true class in the set with probability of at least the level, in
samples of any size and whatever the model. It needs no random slide of each patient, as
subsampling once does (Dunn, Wasserman & Ramdas, *JASA* 118, 2023), and with one slide a patient it
is split conformal prediction with the score of Sadinle, Lei & Wasserman (*JASA* 114, 2019), which
gave the smallest sets of those compared (``benchmarks/conformal.py``).

The smallest p-value is 1 / (K + 1). With fewer patients than ``1 / alpha - 1`` no class is ever
left out: the only valid set is that of all classes, and it is what is given.

The answer is "not sure" unless the set holds exactly one class. An empty set is possible, and at a
level below the accuracy it has to be: nothing seen in validation was as unlike its class as this.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.calibration import FloatArray, patient_weights
from mil.predictions import class_indices, probabilities_of

__all__ = [
    "NOT_SURE",
    "answer",
    "in_set",
    "n_needed",
    "of_truth",
    "p_values",
    "risk_coverage",
    "score_threshold",
    "scores",
]

NOT_SURE: Final = "not sure"
_ROUNDING: Final = 1e-9
"""1 - 0.9 is a bit below 0.1, and sums of 1 / n_k are no whole numbers to the last bit."""
_MOST_POINTS: Final = 200

Mask = npt.NDArray[np.bool_]


def scores(probabilities: FloatArray) -> FloatArray:
    """How unlike each class a slide is: ``1 - p``, ``(n, n_classes)``."""
    unlike: FloatArray = 1.0 - probabilities
    return unlike


def of_truth(table: pd.DataFrame, classes: Sequence[str]) -> FloatArray:
    """How unlike its true class each labelled row is, ``(n,)``.

    Args:
        table: Slide predictions with ``label`` and ``p_<class>…``.
        classes: Class names.
    """
    unlike = scores(probabilities_of(table, classes))
    return unlike[np.arange(len(table)), class_indices(table["label"], classes)]


def n_needed(level: float) -> int:
    """Patients from which on a set may leave a class out: 9 at level 0.9, 19 at 0.95."""
    return ceil(1 / (1 - level) - _ROUNDING) - 1


def p_values(
    validation: Sequence[tuple[FloatArray, npt.NDArray[Any]]], new: Sequence[FloatArray]
) -> FloatArray:
    """P-value of each class for new slides, from the validation slides of one or several folds.

    The model of a fold scores its own validation slides and the new ones, and only these are
    compared. Over several folds that is cross-conformal prediction (Vovk, *Ann. Math. Artif.
    Intell.* 74, 2015): every patient that validates anywhere counts, and counts once. What is
    proved for it is a coverage of 1 - 2 alpha (Barber et al., *Ann. Stat.* 49, 2021), what is
    measured is near 1 - alpha. It is for slides outside of the run: a test slide of one fold may
    validate another, and there only its own fold may be given.

    Args:
        validation: A fold each: scores of the true class ``(n_val,)`` and patients ``(n_val,)``.
        new: A fold each, in the same order: scores of all classes ``(n_new, n_classes)``.

    Returns:
        ``(n_new, n_classes)``, from ``1 / (K + 1)`` to 1.
    """
    weight = patient_weights(np.concatenate([patients for _, patients in validation]))
    beyond, start = np.zeros(new[0].shape), 0
    for (of_true, _), of_new in zip(validation, new, strict=True):
        order = np.argsort(of_true, kind="stable")
        own = weight[start : start + len(of_true)][order]
        above = np.r_[np.cumsum(own[::-1])[::-1], 0.0]  # weight at and above each rank
        beyond += above[np.searchsorted(of_true[order], of_new - _ROUNDING, side="left")]
        start += len(of_true)
    values: FloatArray = (1 + beyond) / (round(float(weight.sum())) + 1)
    return values


def in_set(p: FloatArray, level: float) -> Mask:
    """Which classes a set holds, ``(n, n_classes)``, from p-values."""
    held: Mask = p > 1 - level + _ROUNDING
    return held


def score_threshold(of_true: FloatArray, patients: npt.NDArray[Any], level: float) -> float | None:
    """The highest score that the set of one fold admits.

    The quantile at the level of the scores, slide i of patient k weighing 1 / ((K + 1) n_k), with
    the last 1 / (K + 1) at infinity.

    Args:
        of_true: Scores of the true class of the validation slides, ``(n,)``.
        patients: Their patients, ``(n,)``.
        level: Level of the sets.

    Returns:
        None where it is infinite: there are fewer than :func:`n_needed` patients.
    """
    weight = patient_weights(patients)
    order = np.argsort(of_true, kind="stable")
    reached = np.cumsum(weight[order]) / (weight.sum() + 1) >= level - _ROUNDING
    return float(of_true[order][int(reached.argmax())]) if reached.any() else None


def answer(held: Mask, classes: Sequence[str]) -> list[str]:
    """The class of each set that holds exactly one, and "not sure" for all others."""
    return [classes[int(row.argmax())] if row.sum() == 1 else NOT_SURE for row in held.astype(bool)]


def risk_coverage(right: Mask, confidence: FloatArray) -> dict[str, Any]:
    """What abstaining on the least sure slides gains (Geifman & El-Yaniv, NeurIPS 2017).

    Args:
        right: Whether the predicted class is the true one, ``(n,)``.
        confidence: Highest probability as the method says it, ``(n,)``.

    Returns:
        ``curve``: ``coverage, risk, threshold``, the share of slides that are at least so sure and
        their error rate, a point a distinct confidence (at most 200 of them, evenly spaced).
        ``aurc``: the mean of the risk over all coverages 1/n … 1; slides that are equally sure
        stand in an average order. ``aurc_best`` is that of the same errors all ranked last.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], ~right[order]
    _, block, size = np.unique(-sure, return_inverse=True, return_counts=True)
    even = np.bincount(block, wrong)[block] / size[block]
    seen = np.arange(1, len(sure) + 1)
    risk, ends = np.cumsum(even) / seen, np.cumsum(size) - 1
    if len(ends) > _MOST_POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _MOST_POINTS).round().astype(int))]
    curve = [
        {
            "coverage": float(seen[i] / len(sure)),
            "risk": float(risk[i]),
            "threshold": float(sure[i]),
        }
        for i in ends
    ]
    best = np.cumsum(np.sort(wrong)) / seen
    return {"curve": curve, "aurc": float(risk.mean()), "aurc_best": float(best.mean())}
