"""Sets that hold the true class as often as they say, with patients as the unit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc

from mil.conformal import (
    NOT_SURE,
    answer,
    in_set,
    n_needed,
    p_values,
    risk_coverage,
    score_threshold,
)


def cohort(rng, n_patients, sizes):
    """Scores of true classes: patients differ more than slides of one patient do."""
    n = rng.choice(sizes, size=n_patients)
    patient = np.repeat(np.arange(n_patients), n)
    hard = rng.normal(size=n_patients) - 0.05 * n  # patients of few slides are harder
    return hard[patient] + 0.3 * rng.normal(size=len(patient)), patient


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 2 / 3])
@pytest.mark.parametrize("n_patients", [3, 9, 10, 19, 40])
def test_the_threshold_and_the_p_values_say_the_same(level, n_patients):
    of_true, patient = cohort(np.random.default_rng(n_patients), n_patients, [1, 2, 3, 7])
    new = np.r_[of_true, np.random.default_rng(1).normal(size=50), -99, 99].reshape(-1, 1)
    held = in_set(p_values([(of_true, patient)], [new]), level)[:, 0]
    threshold = score_threshold(of_true, patient, level)
    assert (threshold is None) == (n_patients < n_needed(level))
    expected = np.ones(len(new), bool) if threshold is None else new[:, 0] <= threshold
    np.testing.assert_array_equal(held, expected)


def test_p_values_are_those_of_the_formula():
    of_true, patient = cohort(np.random.default_rng(0), 12, [1, 2, 5])
    new = np.array([[of_true[3], 0.1, 2.0], [-5.0, 5.0, of_true[0]]])
    for at in np.ndindex(new.shape):
        beyond = sum(np.mean(of_true[patient == k] >= new[at]) for k in range(12))
        said = p_values([(of_true, patient)], [new])[at]
        assert said == pytest.approx((1 + beyond) / 13, abs=1e-12)


def test_one_slide_a_patient_is_split_conformal():
    of_true = np.random.default_rng(0).random(99)
    # The ceil((n + 1) * level)-th smallest score: Vovk, Gammerman & Shafer 2005.
    assert score_threshold(of_true, np.arange(99), 0.9) == np.sort(of_true)[89]


@pytest.mark.parametrize(("level", "n"), [(0.9, 9), (0.95, 19), (0.8, 4), (0.5, 1), (0.99, 99)])
def test_too_few_patients_leave_no_class_out(level, n):
    assert n_needed(level) == n
    for n_slides in (1, 50):
        few, enough = (np.repeat(np.arange(k), n_slides) for k in (n - 1, n))
        if n > 1:
            assert score_threshold(np.zeros(len(few)), few, level) is None
        assert score_threshold(np.zeros(len(enough)), enough, level) == 0.0


def test_coverage_holds_for_a_slide_of_a_new_patient_and_not_with_slides_as_units():
    rng, covered, naive = np.random.default_rng(0), [], []
    for _ in range(2000):
        of_true, patient = cohort(rng, 12, [1, 10, 20])
        one = rng.permutation(np.flatnonzero(patient == 11))[0]
        known = patient < 11
        for found, unit in ((covered, patient), (naive, np.arange(len(patient)))):
            found.append(of_true[one] <= score_threshold(of_true[known], unit[known], 0.9))
    # 11 patients: from 0.9 to 0.9 + 1/12; the standard error of 2000 draws is 0.007.
    assert 0.88 <= np.mean(covered) <= 1.0
    assert np.mean(naive) < 0.88


def test_over_folds_every_patient_counts_once_and_only_its_own_model_is_compared():
    a = (np.array([0.1, 0.2]), np.array(["p", "q"], dtype=object))
    b = (np.array([10.1, 10.3]), np.array(["p", "r"], dtype=object))
    new = [np.array([[0.15]]), np.array([[10.2]])]
    # Patient p: below in both; q and r: above. (1 + 0 + 1 + 1) / 4.
    assert p_values([a, b], new)[0, 0] == pytest.approx(0.75)
    # A fold without validation slides says nothing.
    none = (np.array([]), np.array([], dtype=object))
    assert p_values([a, none], new)[0, 0] == pytest.approx(2 / 3)


def test_not_sure_is_everything_but_one_class():
    held = np.array([[True, False], [True, True], [False, False], [False, True]])
    assert answer(held, ["x", "y"]) == ["x", NOT_SURE, NOT_SURE, "y"]


def test_risk_and_coverage_against_a_loop():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(60), rng.random(60) < 0.7
    found = risk_coverage(right, confidence)
    risks = []
    for k, point in enumerate(found["curve"], 1):
        kept = np.argsort(-confidence)[:k]
        risks.append(1 - right[kept].mean())
        assert (point["coverage"], point["risk"]) == (k / 60, pytest.approx(risks[-1]))
        assert point["threshold"] == confidence[kept].min()
    assert found["aurc"] == pytest.approx(np.mean(risks))
    perfect = risk_coverage(right, right.astype(float))
    assert perfect["aurc"] == pytest.approx(perfect["aurc_best"])
    assert found["aurc_best"] == pytest.approx(perfect["aurc"])
    assert found["aurc_best"] < found["aurc"]
    x, y = ([p[name] for p in found["curve"]] for name in ("coverage", "risk"))
    assert auc(x, y) == pytest.approx(found["aurc"], abs=0.02)


def test_equal_confidence_is_one_point_whatever_the_order():
    right = np.array([True, False, True, False])
    found = [risk_coverage(np.array(r), np.full(4, 0.5)) for r in (right, right[::-1])]
    assert found[0] == found[1]
    assert found[0]["curve"] == [{"coverage": 1.0, "risk": 0.5, "threshold": 0.5}]
    assert found[0]["aurc"] == 0.5


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    rng = np.random.default_rng(0)
    found = risk_coverage(rng.random(5000) < 0.8, rng.random(5000))
    assert len(found["curve"]) == 200
    assert found["curve"][0]["coverage"] == 1 / 5000
    assert found["curve"][-1]["coverage"] == 1.0
