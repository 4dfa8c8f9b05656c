"""Which candidate a fold selected, and what the choice was worth: tables and files, no model.

:mod:`mil.select` trains the candidates and writes ``selection/fold<k>.json``. Here is the rule by
which the scores decide, and the comparison of the score inside, which the choice has seen and which
therefore flatters, with the score on test slides, which nothing had seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil import metrics
from mil.config import Candidate
from mil.predictions import class_indices, probabilities_of
from splits.artifacts import read_json, write_json
from splits.errors import InputError

__all__ = ["RULE", "SELECTED", "Criterion", "chosen", "decide", "record_of", "score", "write"]

SELECTED: Final = "selected"
"""The method of the chosen candidates in the tables of a run."""
RULE: Final = (
    "The first candidate that is not worse than the best mean score by more than one standard "
    "error of their difference over the inner folds."
)
Criterion = Literal["log_loss", "balanced_accuracy", "auroc"]
_LOWER_IS_BETTER: Final = ("log_loss",)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def score(criterion: Criterion, labels: Ints, predicted: Ints, probabilities: Floats) -> float:
    """The criterion on slides that were held out inside; arguments as `mil.metrics.point`.

    Raises:
        InputError: It is not defined, because a class has no slide there.
    """
    value = metrics.point(labels, predicted, probabilities)[criterion]
    if value is None:
        message = (
            f"select.criterion={criterion} needs slides of every class in each part that is held "
            "out inside, and one has none of some class: ask for a smaller split.inner, or for "
            "select.criterion=log_loss"
        )
        raise InputError(message)
    return value


def decide(scores: Floats, criterion: Criterion) -> tuple[int, npt.NDArray[np.bool_]]:
    """The winner, and who is as good as the best.

    The one-standard-error rule (Breiman, Friedman, Olshen & Stone, *Classification and Regression
    Trees*, 1984, section 3.4.3), with the standard error of the paired difference: all candidates
    are scored on the same slides, and what is hard for one is hard for all.

    Args:
        scores: ``(n_candidates, n_inner_folds)``, at least two folds.
        criterion: What they are.

    Returns:
        Index of the first that is as good as the best, and for each whether it is.
    """
    merit = -scores if criterion in _LOWER_IS_BETTER else scores
    behind = merit[merit.mean(axis=1).argmax()] - merit  # (n_candidates, n_inner_folds)
    error = behind.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    as_good = behind.mean(axis=1) <= error
    return int(as_good.argmax()), as_good


def record_of(run: Path, fold: int) -> Path:
    """Where a fold keeps its choice."""
    return run / "selection" / f"fold{fold}.json"


def chosen(run: Path, fold: int) -> Candidate:
    """The candidate that a fold selected.

    Raises:
        InputError: It has not selected yet.
    """
    path = record_of(run, fold)
    if not path.exists():
        message = f"fold {fold} has not selected a method yet: run `slidewise train {run}` first"
        raise InputError(message)
    record = read_json(path)
    return Candidate.model_validate(record["candidates"][record["winner"]]["candidate"])


def write(
    run: Path,
    predictions: pd.DataFrame,
    labels: pd.Series,
    classes: Sequence[str],
    digests: Mapping[str, str],
) -> None:
    """``selection.json``; none where no method ``selected`` is among the predictions.

    Args:
        run: Run folder, with ``selection/fold<k>.json``.
        predictions: Test rows of ``predictions.parquet``.
        labels: Slide -> class name, of the test slides.
        classes: Class names in the order of the probabilities.
        digests: What evaluation was made from.
    """
    path = run / "selection.json"
    rows = predictions[(predictions["method"] == SELECTED) & (predictions["part"] == "test")]
    folds = sorted(int(fold) for fold in rows["fold"].unique())
    if not folds or not record_of(run, folds[0]).exists():
        path.unlink(missing_ok=True)
        return
    records = {fold: read_json(record_of(run, fold)) for fold in folds}
    write_json(path, summary(records, rows, labels, classes), digests)


def summary(
    records: Mapping[int, Mapping[str, Any]],
    rows: pd.DataFrame,
    labels: pd.Series,
    classes: Sequence[str],
) -> dict[str, Any]:
    """What each fold compared and chose, with the score inside beside the score outside.

    Args:
        records: Fold -> content of ``selection/fold<k>.json``.
        rows: Test rows of the method ``selected``.
        labels: Slide -> class name.
        classes: Class names in the order of the probabilities.

    Returns:
        The content of ``selection.json``. ``inner`` and ``outer`` are means over the folds;
        ``optimism`` is how much better the first looks, in units of the criterion.
    """
    first = next(iter(records.values()))
    criterion: Criterion = first["criterion"]
    folds = []
    for number, record in records.items():
        tested = rows[rows["fold"] == number]
        candidates = [
            {key: each[key] for key in ("name", "scores", "mean", "within_one_se")}
            for each in record["candidates"]
        ]
        means = [each["mean"] for each in candidates]
        best = min(means) if criterion in _LOWER_IS_BETTER else max(means)
        folds.append(
            {
                "fold": number,
                "chosen": candidates[record["winner"]]["name"],
                "inner": means[record["winner"]],
                "inner_best": best,
                "outer": _outer(criterion, tested, labels, classes),
                "n_test": len(tested),
                "candidates": candidates,
            }
        )
    inner = float(np.mean([fold["inner"] for fold in folds]))
    outside = [fold["outer"] for fold in folds]
    outer = None if None in outside else float(np.mean(outside))
    gap = None if outer is None else inner - outer
    names = [fold["chosen"] for fold in folds]
    return {
        "criterion": criterion,
        "higher_is_better": criterion not in _LOWER_IS_BETTER,
        "rule": RULE,
        "inner_folds": len(first["candidates"][0]["scores"]),
        "candidates": [
            {
                "name": each["name"],
                "n_chosen": names.count(each["name"]),
                "candidate": each["candidate"],
            }
            for each in first["candidates"]
        ],
        "folds": folds,
        "inner": inner,
        "outer": outer,
        "optimism": -gap if gap is not None and criterion in _LOWER_IS_BETTER else gap,
    }


def _outer(
    criterion: Criterion, rows: pd.DataFrame, labels: pd.Series, classes: Sequence[str]
) -> float | None:
    """The criterion on the test slides of one fold; None where a class has none there."""
    return metrics.point(
        class_indices(labels[rows["slide_id"]], classes),
        class_indices(rows["predicted"], classes),
        probabilities_of(rows, classes),
    )[criterion]
