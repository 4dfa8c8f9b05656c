"""How far probabilities can be believed, and what abstaining gains: ``calibration.json``.

Temperatures, thresholds and sets of a fold are fitted on the validation slides of that fold and
applied to its test slides. No validation slide of another fold is used: in k-fold validation that
is a test slide here (:mod:`mil.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from mil import metrics, statistics
from mil.calibration import (
    FloatArray,
    IntArray,
    apply_threshold,
    fit_temperature,
    fit_threshold,
    reliability_bins,
    require_validation,
    temper,
)
from mil.conformal import answer, n_needed, of_truth, risk_coverage, score_threshold, scores
from mil.predictions import class_indices, method_names, probabilities_of
from splits.artifacts import write_json, write_table
from splits.errors import InputError

__all__ = ["assess", "write"]

_MANY = "a threshold decides between two classes; of {} the most probable one is called"


def write(
    run: Path,
    *,
    predictions: pd.DataFrame,
    validation: pd.DataFrame | None,
    labels: pd.Series,
    patients: pd.Series,
    classes: Sequence[str],
    level: float,
    n_draws: int,
    seed: int,
    digests: Mapping[str, str],
) -> None:
    """Write ``calibration.json`` and, where there are validation rows, ``answers.parquet``.

    Args:
        run: Where to.
        predictions: As the further arguments, see :func:`assess`.
        validation: None where the predictions have no validation rows.
        labels: Of test slides.
        patients: Of test and validation slides.
        classes: Class names.
        level: Of the conformal sets.
        n_draws: Bootstrap draws.
        seed: Of the draws.
        digests: What the files are made from.
    """
    found, answers = assess(
        predictions, validation, labels, patients, classes, level=level, n_draws=n_draws, seed=seed
    )
    if answers is None:  # never leave the file of an earlier run beside the new one
        (run / "answers.parquet").unlink(missing_ok=True)
    else:
        write_table(run / "answers.parquet", answers, digests)
    write_json(run / "calibration.json", found, digests)


def assess(
    predictions: pd.DataFrame,
    validation: pd.DataFrame | None,
    labels: pd.Series,
    patients: pd.Series,
    classes: Sequence[str],
    *,
    level: float = 0.9,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Calibration before and after temperature, conformal sets, risk against coverage.

    Risk and coverage, and the sets, are those of the probabilities as the method says them. Sets
    do not use tempered ones: the temperature knows the validation slides, and would make them
    unlike the test slides.

    Args:
        predictions: Test rows of slides, ``slide_id, fold, part, method, predicted, p_<class>…``.
        validation: Validation rows, with ``label``; None where there are none.
        labels: Label by test slide.
        patients: Patient by slide, of test and validation slides.
        classes: Class names.
        level: Share of slides whose set shall hold the true class, between 0 and 1.
        n_draws: Bootstrap draws over patients.
        seed: Of the draws.

    Returns:
        The content of ``calibration.json``; and a row a test slide and method: ``slide_id, fold,
        method, label, predicted, answer, set, p_<class>…``, these being the tempered ones. The
        table is None without validation rows.

    Raises:
        InputError: The level is not between 0 and 1, or test rows are given as validation.
    """
    if validation is not None:
        require_validation(validation)
    if not 0 < level < 1:
        message = f"level is {level}: allowed is more than 0 and less than 1"
        raise InputError(message)
    result: dict[str, Any] = {
        "validation": validation is not None,
        "methods": {},
        "conformal": {},
        "risk_coverage": {},
        "aurc": {},
        "thresholds": {
            "note": None if len(classes) == 2 else _MANY.format(len(classes)),
            "methods": {},
        },
    }
    answers = []
    for method in method_names(predictions):
        rows = predictions[predictions["method"] == method].reset_index(drop=True)
        test = _Test.of(rows, labels, patients, classes, n_draws, seed)
        described: dict[str, Any] = {
            "temperature": [],
            "before": test.losses(test.said),
            "reliability": reliability_bins(test.right, test.said.max(1)),
        }
        curve = risk_coverage(test.right, test.said.max(1))
        result["methods"][method] = described
        result["risk_coverage"][method] = curve["curve"]
        result["aurc"][method] = {"value": curve["aurc"], "best": curve["aurc_best"]}
        if validation is None:
            continue
        of_method = validation[validation["method"] == method]
        fitted = _Fitted.of(test, of_method, patients, classes, level)
        described["temperature"] = fitted.temperatures
        described["after"] = test.losses(fitted.tempered)
        described["change"] = test.change(fitted.tempered)
        described["reliability_after"] = reliability_bins(test.right, fitted.tempered.max(1))
        result["conformal"][method] = _sets(test, fitted, level)
        if len(classes) == 2:
            result["thresholds"]["methods"][method] = {
                "folds": fitted.thresholds,
                "balanced_accuracy": _balanced(test.truth, fitted.called),
                "argmax": _balanced(test.truth, test.predicted),
            }
        answers.append(_answers(rows, labels, classes, fitted))
    return result, pd.concat(answers, ignore_index=True) if answers else None


@dataclass(frozen=True)
class _Test:
    """The test slides of one method.

    Attributes:
        fold: Fold of each, ``(n,)``.
        truth: Class index, ``(n,)``, and ``predicted`` that of the method.
        said: Probabilities of the method, ``(n, n_classes)``.
        patients: Patient of each, ``(n,)``.
        n_draws: Bootstrap draws over patients, and their ``seed``.
    """

    fold: IntArray
    truth: IntArray
    predicted: IntArray
    said: FloatArray
    patients: npt.NDArray[np.object_]
    n_draws: int
    seed: int

    @classmethod
    def of(
        cls,
        rows: pd.DataFrame,
        labels: pd.Series,
        patients: pd.Series,
        classes: Sequence[str],
        n_draws: int,
        seed: int,
    ) -> _Test:
        return cls(
            fold=rows["fold"].to_numpy(dtype=np.int64),
            truth=class_indices(labels[rows["slide_id"]], classes),
            predicted=class_indices(rows["predicted"], classes),
            said=probabilities_of(rows, classes),
            patients=patients[rows["slide_id"]].to_numpy(dtype=object),
            n_draws=n_draws,
            seed=seed,
        )

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        equal: npt.NDArray[np.bool_] = self.truth == self.predicted
        return equal

    def losses(self, probabilities: FloatArray) -> dict[str, dict[str, float | None]]:
        """The proper scores with their intervals, and the calibration error without one.

        The bootstrap adds noise to every bin and the error is a sum of absolute values, so an
        interval of it would lie above the value.
        """
        error = metrics.calibration_error(self.truth, self.predicted, probabilities)
        return {
            **self._means(metrics.losses(self.truth, probabilities)),
            "ece": {"value": error, "ci_low": None, "ci_high": None},
        }

    def change(self, probabilities: FloatArray) -> dict[str, dict[str, float | None]]:
        """What a loss has become less what it was, slide by slide."""
        before, after = (metrics.losses(self.truth, p) for p in (self.said, probabilities))
        return self._means([now - was for was, now in zip(before, after, strict=True)])

    def _means(self, losses: Sequence[FloatArray]) -> dict[str, dict[str, float | None]]:
        columns = np.column_stack(losses)
        found = statistics.means(
            columns, self.truth, self.patients, n_draws=self.n_draws, seed=self.seed
        )
        names = ("log_loss", "brier")
        return {name: mean.describe() for name, mean in zip(names, found, strict=True)}


@dataclass(frozen=True)
class _Fitted:
    """What the validation slides of each fold make of its test slides.

    Attributes:
        temperatures: ``fold, value, n_val`` a fold; the value is None without validation slides.
        thresholds: The same, of a probability; with two classes.
        sets: ``fold, n_calibration_patients, threshold, note`` a fold.
        tempered: Probabilities of the test slides, ``(n, n_classes)``.
        called: Their class by threshold, ``(n,)``; that of the method where there is none.
        held: Their sets, ``(n, n_classes)``.
    """

    temperatures: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    sets: list[dict[str, Any]]
    tempered: FloatArray
    called: IntArray
    held: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        test: _Test,
        validation: pd.DataFrame,
        patients: pd.Series,
        classes: Sequence[str],
        level: float,
    ) -> _Fitted:
        held = np.ones(test.said.shape, dtype=np.bool_)
        made = cls([], [], [], test.said.copy(), test.predicted.copy(), held)
        for fold in np.unique(test.fold):
            rows = validation[validation["fold"] == fold]
            made.add(int(fold), rows, test, patients, classes, level)
        return made

    def add(
        self,
        fold: int,
        rows: pd.DataFrame,
        test: _Test,
        patients: pd.Series,
        classes: Sequence[str],
        level: float,
    ) -> None:
        """Fit on the validation rows of one fold and apply to its test slides."""
        mine, n_val = test.fold == fold, len(rows)
        temperature = fit_temperature(rows, classes, patients) if n_val else None
        self.temperatures.append({"fold": fold, "value": temperature, "n_val": n_val})
        if temperature is not None:
            self.tempered[mine] = temper(test.said[mine], temperature)
        if len(classes) == 2:
            threshold = fit_threshold(rows, classes, patients) if n_val else None
            self.thresholds.append({"fold": fold, "value": threshold, "n_val": n_val})
            if threshold is not None:
                self.called[mine] = apply_threshold(test.said[mine], threshold)
        of_true = of_truth(rows, classes)
        units = patients[rows["slide_id"]].to_numpy(dtype=object)
        n_patients = len(set(units))
        highest, note = score_threshold(of_true, units, level), None
        if highest is None:
            note = (
                f"{n_patients} validation patient(s), and a set at level {level:g} needs "
                f"{n_needed(level)} to leave a class out: all classes are in every set (the "
                f"highest level that so many allow is {n_patients / (n_patients + 1):.2f})"
            )
        else:
            self.held[mine] = scores(test.said[mine]) <= highest
        self.sets.append(
            {
                "fold": fold,
                "n_calibration_patients": n_patients,
                "threshold": highest,
                "note": note,
            }
        )


def _sets(test: _Test, fitted: _Fitted, level: float) -> dict[str, Any]:
    """Measured coverage and size of the sets, and how good the sure answers are."""
    mean = partial(statistics.mean_interval, n_draws=test.n_draws, seed=test.seed)
    covered = fitted.held[np.arange(len(test.truth)), test.truth]
    size = fitted.held.sum(axis=1)
    sure = size == 1
    names, first, code = np.unique(
        test.patients.astype(str), return_index=True, return_inverse=True
    )
    of_patients = np.bincount(code, covered) / np.bincount(code)
    too_few = [entry["fold"] for entry in fitted.sets if entry["threshold"] is None]
    return {
        "level": level,
        "coverage": mean(covered, test.truth, test.patients),
        # What is promised is about one slide of a new patient.
        "coverage_of_patients": mean(of_patients, test.truth[first], names),
        "mean_set_size": float(size.mean()),
        "n_slides": len(size),
        "n_not_sure": int((~sure).sum()),
        "n_empty": int((size == 0).sum()),
        "n_too_few": int(np.isin(test.fold, too_few).sum()),
        "accuracy_when_sure": mean(covered[sure], test.truth[sure], test.patients[sure]),
        "folds": fitted.sets,
    }


def _answers(
    rows: pd.DataFrame, labels: pd.Series, classes: Sequence[str], fitted: _Fitted
) -> pd.DataFrame:
    names = np.array(classes, dtype=object)
    table = rows[["slide_id", "fold", "method", "predicted"]].copy()
    table.insert(3, "label", labels[rows["slide_id"]].to_numpy(dtype=object))
    table["answer"] = answer(fitted.held, classes)
    table["set"] = [names[held].tolist() for held in fitted.held]
    for i, name in enumerate(classes):
        table[f"p_{name}"] = fitted.tempered[:, i]
    return table


def _balanced(truth: IntArray, called: IntArray) -> float | None:
    both = len(np.unique(truth)) == 2
    return float(balanced_accuracy_score(truth, called)) if both else None
