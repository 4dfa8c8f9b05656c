"""Temperatures and thresholds: what is fitted on validation slides after training.

Guo et al., *On calibration of modern neural networks*, ICML 2017: the logits are divided by one
number. Predictions have probabilities, and ``softmax(z / T)`` is ``p ** (1 / T)`` scaled to sum 1,
so the same works for vote shares. It changes how sure a method says it is, never its class.

Everything here takes rows of the validation part and refuses others. It also takes those of *one*
fold: pooling validation rows over folds looks tempting where folds have six slides each, but with
k folds a test slide of one fold validates another, and its label would be in its own temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.metrics import confidence_bins
from mil.predictions import class_indices, probabilities_of
from splits.errors import InputError

__all__ = [
    "FLOOR",
    "apply_threshold",
    "fit_temperature",
    "fit_threshold",
    "patient_weights",
    "reliability_bins",
    "require_validation",
    "temper",
]

FLOOR: Final = 1e-3
"""Smallest probability that is tempered. Vote shares are 0 for a class without a tile, and 0 stays
0 at every temperature: one such slide would cost an infinite loss."""
_PRIOR_SD: Final = 0.5
_LARGEST: Final = 20.0
_TESTED: Final = (
    "what is tuned on test slides cannot be judged by them any more: temperatures, thresholds and "
    "conformal sets are fitted on validation slides"
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def require_validation(table: pd.DataFrame) -> None:
    """Refuse rows that are not of the validation part.

    Args:
        table: Slide predictions with the column ``part``.

    Raises:
        InputError: There are test or training rows, or rows that do not say what they are.
    """
    if "part" not in table.columns:
        message = f"rows to fit on lack the column part, which says that they validate: {_TESTED}"
        raise InputError(message)
    parts = table["part"].astype(str)
    for part in sorted(set(parts) - {"val"}):
        why = _TESTED
        if part == "train":
            why = "a model is surer of slides that it was trained on than of any other"
        message = f"fitting on {(parts == part).sum()} row(s) of the {part} part is refused: {why}"
        raise InputError(message)


def fit_temperature(table: pd.DataFrame, classes: Sequence[str], patients: pd.Series) -> float:
    """The temperature of one method in one fold.

    Minimises, over log T, the log loss of the tempered probabilities plus ``(log T)^2 / (2 s^2)``
    with s = 0.5: the most probable T where its logarithm is believed to lie about 0, a factor of
    e^0.5 = 1.6 being one standard deviation. Each patient weighs as one observation, however many
    slides it has. Without the second term T is 0 wherever all validation slides are right, and
    unbounded where more are wrong than chance would have it; a fold has few enough of them for
    both (``benchmarks/temperature.py`` compares). It fades as patients grow in number.

    Args:
        table: Validation rows: ``slide_id, fold, part, method, label, p_<class>…``.
        classes: Class names.
        patients: Patient by slide.

    Returns:
        T; above 1 the method was too sure.

    Raises:
        InputError: As :func:`require_validation`; or rows of several folds or methods, or none.
    """
    _require_one_fold(table)
    log_p = np.log(_floored(probabilities_of(table, classes)))
    truth = class_indices(table["label"], classes)
    weight = patient_weights(patients[table["slide_id"]].to_numpy(dtype=object))
    low, high = -np.log(_LARGEST), np.log(_LARGEST)
    # The penalised loss may have two valleys: each grid is as fine as the next one is wide.
    for _ in range(4):
        grid = np.linspace(low, high, 101)
        scaled = log_p[None] / np.exp(grid)[:, None, None]  # (n_grid, n, n_classes)
        loss = np.logaddexp.reduce(scaled, axis=2) - scaled[:, np.arange(len(truth)), truth]
        penalised = loss @ weight + grid**2 / (2 * _PRIOR_SD**2)
        best, step = grid[int(penalised.argmin())], grid[1] - grid[0]
        low, high = best - step, best + step
    return float(np.exp(best))


def temper(probabilities: FloatArray, temperature: float) -> FloatArray:
    """``p ** (1 / T)`` scaled to sum 1, ``(n, n_classes)``; below the floor p counts as the floor.

    The order of the classes stays, but for classes that are both below :data:`FLOOR`.
    """
    scaled = np.log(_floored(probabilities)) / temperature
    tempered: FloatArray = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1)[:, None])
    return tempered


def fit_threshold(table: pd.DataFrame, classes: Sequence[str], patients: pd.Series) -> float | None:
    """The probability of the second class from which on it is called, with two classes.

    It has the highest balanced accuracy on the validation slides, each patient weighing the same;
    of several that do, the one next to 0.5 is taken.

    Args:
        table: As for :func:`fit_temperature`.
        classes: Class names.
        patients: Patient by slide.

    Returns:
        The threshold; None where the validation slides are of one class.

    Raises:
        InputError: There are more than two classes, or as :func:`fit_temperature`.
    """
    _require_one_fold(table)
    if len(classes) != 2:
        message = (
            f"a threshold decides between two classes, and there are {len(classes)}: their highest "
            "probability decides"
        )
        raise InputError(message)
    second = probabilities_of(table, classes)[:, 1]
    positive = (table["label"] == classes[1]).to_numpy(dtype=bool)
    if positive.all() or not positive.any():
        return None
    weight = patient_weights(patients[table["slide_id"]].to_numpy(dtype=object))
    edges = np.unique(np.r_[0.0, second, 1.0])
    # 0.5 itself is a candidate, so that a threshold moves only where that helps.
    thresholds = np.r_[0.5, (edges[:-1] + edges[1:]) / 2]
    order = np.argsort(second)
    at = np.searchsorted(second[order], thresholds)  # rows below each threshold
    missed = np.r_[0.0, np.cumsum((weight * positive)[order])]
    rejected = np.r_[0.0, np.cumsum((weight * ~positive)[order])]
    sensitivity, specificity = 1 - missed[at] / missed[-1], rejected[at] / rejected[-1]
    accuracy = (sensitivity + specificity) / 2
    best = thresholds[accuracy >= accuracy.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def apply_threshold(probabilities: FloatArray, threshold: float) -> IntArray:
    """Class index of each row, ``(n,)``, of probabilities ``(n, 2)``."""
    return (probabilities[:, 1] >= threshold).astype(np.int64)


def reliability_bins(right: npt.NDArray[np.bool_], confidence: FloatArray) -> list[dict[str, Any]]:
    """What a reliability diagram draws: 15 bins of equal width, those without a slide left out.

    The expected calibration error is the mean over slides of ``|accuracy - confidence|`` of the
    bins (Guo et al. 2017, equation 3).

    Args:
        right: Whether the predicted class is the true one, ``(n,)``.
        confidence: Highest probability, ``(n,)``.

    Returns:
        ``low, high, n, confidence, accuracy`` a bin, open below and closed above.
    """
    bins, edges = confidence_bins(confidence)
    return [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "n": int((bins == k).sum()),
            "confidence": float(confidence[bins == k].mean()),
            "accuracy": float(right[bins == k].mean()),
        }
        for k in np.unique(bins)
    ]


def patient_weights(patients: npt.NDArray[Any]) -> FloatArray:
    """One over the number of rows of the same patient, ``(n,)``: each patient weighs 1."""
    _, code, counts = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    weights: FloatArray = 1.0 / counts[code]
    return weights


def _require_one_fold(table: pd.DataFrame) -> None:
    require_validation(table)
    for column in ("fold", "method"):
        found = sorted(set(table[column].astype(str)))
        if len(found) != 1:
            message = (
                f"{len(found)} {column}s to fit on ({', '.join(found[:4])}): exactly one is "
                "allowed, because a slide that validates one fold is tested in another"
            )
            raise InputError(message)


def _floored(probabilities: FloatArray) -> FloatArray:
    raised: FloatArray = np.maximum(probabilities, FLOOR)
    return raised
