"""Temperatures and thresholds: planted ones are found, few patients are believed little."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score

from mil.calibration import (
    FLOOR,
    apply_threshold,
    fit_temperature,
    fit_threshold,
    patient_weights,
    probabilities_of,
    reliability_bins,
    temper,
)
from mil.metrics import calibration_error
from splits.errors import InputError

CLASSES = ["a", "NA", "p_x"]


def validation(said, truth, classes=CLASSES, **columns):
    table = pd.DataFrame(said, columns=[f"p_{name}" for name in classes])
    ids = [f"s{i}" for i in range(len(said))]
    label = np.array(classes, dtype=object)[truth]
    given = {"slide_id": ids, "fold": 0, "part": "val", "method": "m", "label": label}
    return table.assign(**{**given, **columns})


def alone(table):
    return pd.Series(table["slide_id"].array, index=table["slide_id"].array)


def planted(n, too_sure, seed=0):
    """Said probabilities that are ``too_sure`` times as sure as the truth is drawn by."""
    rng = np.random.default_rng(seed)
    z = rng.normal(scale=1.5, size=(n, 3))
    truth = (softmax(z, axis=1).cumsum(1) < rng.random(n)[:, None]).sum(1)
    return too_sure * z, truth


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found(too_sure):
    z, truth = planted(4000, too_sure)
    table = validation(softmax(z, axis=1), truth)
    assert fit_temperature(table, CLASSES, alone(table)) == pytest.approx(too_sure, rel=0.1)


def test_it_is_the_minimum_that_another_optimiser_finds():
    z, truth = planted(40, 1.7)
    said = np.maximum(softmax(z, axis=1), FLOOR)
    patients = pd.Series([f"p{i // 3}" for i in range(40)], index=[f"s{i}" for i in range(40)])
    weight = 1 / patients.map(patients.value_counts()).to_numpy()

    def penalised(log_t):
        loss = -log_softmax(np.log(said) / np.exp(log_t), axis=1)[np.arange(40), truth]
        return (weight * loss).sum() + log_t**2 / (2 * 0.5**2)

    found = minimize_scalar(penalised, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    table = validation(softmax(z, axis=1), truth)
    assert fit_temperature(table, CLASSES, patients) == pytest.approx(np.exp(found.x), abs=1e-5)


def test_six_slides_that_are_all_right_or_all_wrong_do_not_run_away():
    said = np.tile([0.7, 0.2, 0.1], (6, 1))
    right, wrong = (validation(said, np.full(6, k)) for k in (0, 2))
    assert 0.3 < fit_temperature(right, CLASSES, alone(right)) < 1
    assert 1 < fit_temperature(wrong, CLASSES, alone(wrong)) < 6


def test_a_patient_with_many_slides_weighs_as_one():
    z, truth = planted(20, 2.0)
    table = validation(softmax(z, axis=1), truth)
    again = pd.concat([table, *[table.iloc[[0]]] * 50], ignore_index=True)
    again["slide_id"] = [f"s{i}" for i in range(len(again))]
    patients = alone(again)
    patients.iloc[20:] = "s0"
    assert fit_temperature(again, CLASSES, patients) == pytest.approx(
        fit_temperature(table, CLASSES, alone(table)), abs=1e-9
    )
    assert fit_temperature(again, CLASSES, alone(again)) != pytest.approx(
        fit_temperature(table, CLASSES, alone(table)), abs=0.05
    )
    np.testing.assert_allclose(patient_weights(np.array(["x", "y", "x"])), [0.5, 1, 0.5])


def test_tempering_is_softmax_of_scaled_logits_and_keeps_the_class():
    said = softmax(planted(200, 0.5)[0], axis=1)
    z = np.log(said)
    assert said.min() > FLOOR
    np.testing.assert_allclose(temper(said, 2.5), softmax(z / 2.5, axis=1), atol=1e-12)
    np.testing.assert_allclose(temper(said, 1.0), said, atol=1e-12)
    for temperature in (0.05, 20.0):
        np.testing.assert_array_equal(temper(said, temperature).argmax(1), said.argmax(1))


def test_vote_shares_of_zero_become_small_and_stay_finite():
    shares = np.array([[1.0, 0, 0], [0, 0.5, 0.5]])
    soft = temper(shares, 1.0)
    np.testing.assert_allclose(soft[0], [1 / 1.002, FLOOR / 1.002, FLOOR / 1.002])
    np.testing.assert_allclose(soft.sum(1), 1)
    table = validation(shares, [2, 0])
    assert np.isfinite(fit_temperature(table, CLASSES, alone(table)))


@pytest.mark.parametrize("fit", [fit_temperature, fit_threshold])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": "test"}, r"2 row\(s\) of the test part is refused: what is tuned on test"),
        ({"part": ["val", "test"]}, r"1 row\(s\) of the test part is refused"),
        ({"part": "train"}, "train part is refused: a model is surer"),
        ({"fold": [0, 1]}, r"2 folds to fit on \(0, 1\).*validates one fold is tested in another"),
        ({"method": ["m", "vote"]}, "2 methods to fit on"),
    ],
)
def test_other_rows_than_validation_rows_of_one_fold_are_refused(fit, change, words):
    table = validation([[0.5, 0.5], [0.4, 0.6]], [0, 1], ["a", "b"], **change)
    with pytest.raises(InputError, match=words):
        fit(table, ["a", "b"], alone(table))
    with pytest.raises(InputError, match="lack the column part"):
        fit(table.drop(columns="part"), ["a", "b"], alone(table))


def binary(p, truth):
    return validation(np.stack([1 - np.asarray(p), p], axis=1), truth, ["no", "yes"])


def test_the_threshold_is_the_best_of_all_by_balanced_accuracy():
    rng = np.random.default_rng(1)
    truth = (rng.random(60) < 0.2).astype(int)
    p = np.clip(0.15 + 0.15 * truth + 0.1 * rng.normal(size=60), 0.01, 0.99)
    table = binary(p, truth)
    threshold = fit_threshold(table, ["no", "yes"], alone(table))
    said = probabilities_of(table, ["no", "yes"])
    mine = balanced_accuracy_score(truth, apply_threshold(said, threshold))
    every = [balanced_accuracy_score(truth, p >= t) for t in [0, *p, *(p + 1e-9)]]
    assert mine == pytest.approx(max(every))
    assert mine > balanced_accuracy_score(truth, said.argmax(1)) + 0.1


def test_a_threshold_stays_at_one_half_where_nothing_is_gained():
    table = binary([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert fit_threshold(table, ["no", "yes"], alone(table)) == 0.5
    one = binary([0.1, 0.2], [0, 0])
    assert fit_threshold(one, ["no", "yes"], alone(one)) is None


def test_a_threshold_is_for_two_classes():
    table = validation([[0.5, 0.3, 0.2]], [0])
    with pytest.raises(InputError, match="between two classes, and there are 3"):
        fit_threshold(table, CLASSES, alone(table))


def test_the_bins_of_the_diagram_add_up_to_the_calibration_error():
    z, truth = planted(500, 2.0)
    said = softmax(z, axis=1)
    bins = reliability_bins(said.argmax(1) == truth, said.max(1))
    assert sum(b["n"] for b in bins) == 500
    assert all(b["low"] < b["confidence"] <= b["high"] for b in bins)
    gap = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 500
    assert gap == pytest.approx(calibration_error(truth, said.argmax(1), said), abs=1e-12)
