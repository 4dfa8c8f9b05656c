"""Plans against binomial and clustered formulas, and the evaluator's own bootstrap."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mil import statistics
from mil.plan import plan
from mil.plan_cohort import Expected, evaluated, even_cohort, ranks, resized, table_cohort
from mil.plan_tables import tables
from mil.plan_trial import Trial, formula_power
from mil.scores import score
from splits.errors import InputError

EVEN = {"slides": 120, "patients": 60, "classes": 2}


def trial(slides, patients, expected, *, classes=2, n_cohorts=300, n_draws=1000, seed=0):
    cohort = even_cohort(slides=slides, patients=patients, classes=classes)
    return Trial(cohort, expected, seed, n_cohorts, n_draws)


def mean_width(one):
    low, high = one.intervals().T
    return (high - low).mean()


def coverage(one):
    low, high = one.intervals().T
    return np.mean((low <= one.truth + 1e-12) & (one.truth <= high + 1e-12))


def anova_correlation(right):
    """Analysis of variance estimate, ``(n_patients, m)`` (Ridout et al., Biometrics 55, 1999)."""
    n, m = right.shape
    between = m * np.var(right.mean(axis=1), ddof=1)
    within = np.sum((right - right.mean(axis=1, keepdims=True)) ** 2) / (n * (m - 1))
    return (between - within) / (between + (m - 1) * within)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 1.0])
def test_slides_of_a_patient_are_beta_binomial(correlation):
    m, p = 4, 0.7
    patient = np.repeat(np.arange(20_000), m)
    right = ranks(patient, correlation, 1, np.random.default_rng(1))[0].reshape(-1, m) < p
    assert anova_correlation(right) == pytest.approx(correlation, abs=0.015)
    counts = np.bincount(right.sum(axis=1), minlength=m + 1) / len(right)
    if correlation == 0:
        expected = stats.binom.pmf(np.arange(m + 1), m, p)
    elif correlation == 1:
        expected = np.array([1 - p, 0, 0, 0, p])
    else:
        t = (1 - correlation) / correlation
        expected = stats.betabinom.pmf(np.arange(m + 1), m, p * t, (1 - p) * t)
    np.testing.assert_allclose(counts, expected, atol=0.012)


def test_the_interval_is_the_one_that_evaluate_prints():
    one = trial(70, 40, Expected(0.7), classes=3, n_cohorts=3, n_draws=500, seed=5)
    label, patient = one.test.label, one.test.patient
    for cohort in range(3):
        predicted = np.where(one.right[cohort], label, (label + 1) % 3)
        scores = score(label, predicted, np.eye(3)[predicted], patient, n_draws=500, seed=5)
        found = scores.overall["accuracy"].describe()
        assert one.intervals()[cohort] == pytest.approx((found["ci_low"], found["ci_high"]))


def test_the_test_is_the_one_that_evaluate_prints():
    one = trial(200, 100, Expected(0.7), n_cohorts=5, n_draws=400)
    label, patient = one.test.label, one.test.patient
    preferred = one.preferred(0.15)
    found = []
    for cohort in range(5):
        draws = []
        for wins in (1, -1):  # both right, or both wrong, elsewhere: it cancels
            predicted = np.where(preferred[cohort] == wins, label, 1 - label)
            draws.append(
                score(label, predicted, np.eye(2)[predicted], patient, n_draws=400, seed=0)
                .overall["accuracy"]
                .draws
            )
        df = statistics.degrees(label, patient)
        found.append(statistics.paired(*draws, 0.0, df)["p"] <= 0.05)
    assert one.power(0.15) == pytest.approx(np.mean(found))


@pytest.mark.parametrize("patients", [60, 200])
@pytest.mark.parametrize("slides_each", [1, 3])
def test_intervals_cover(patients, slides_each):
    one = trial(patients * slides_each, patients, Expected(0.7), n_cohorts=1500)
    assert 0.93 <= coverage(one) <= 0.97


def test_twenty_patients_of_four_classes_are_covered_too():
    one = trial(60, 20, Expected(0.7), classes=4, n_cohorts=1500)
    assert 0.93 <= coverage(one) <= 0.97


@pytest.mark.parametrize(
    ("slides", "patients", "correlation"), [(200, 200, 0.3), (600, 200, 0.5), (500, 150, 0.2)]
)
def test_width_agrees_with_the_clustered_standard_error(slides, patients, correlation):
    p = 0.75
    one = trial(slides, patients, Expected(p, correlation=correlation))
    sizes = np.unique(one.test.patient, return_counts=True)[1]
    # Kish, with unequal sizes: 1 + r (sum of squares / sum - 1).
    effect = 1 + correlation * ((sizes**2).sum() / sizes.sum() - 1)
    assert one.design_effect == pytest.approx(effect)
    se = np.sqrt(p * (1 - p) * effect / slides)
    assert mean_width(one) == pytest.approx(2 * 1.96 * se, rel=0.05)
    assert np.std(one.right.mean(axis=1)) == pytest.approx(se, rel=0.1)


def test_widths_shrink_with_the_root_of_the_number_of_patients():
    narrow, wide = (mean_width(trial(2 * n, n, Expected(0.7))) for n in (400, 100))
    assert wide / narrow == pytest.approx(2, rel=0.05)


def test_correlation_one_counts_a_patient_once():
    alike = trial(400, 100, Expected(0.7, correlation=1.0))
    assert alike.test.n_slides / alike.design_effect == pytest.approx(100)
    assert mean_width(alike) == pytest.approx(mean_width(trial(100, 100, Expected(0.7))), rel=0.04)


def test_correlation_zero_is_the_binomial():
    one = trial(400, 100, Expected(0.7, correlation=0.0))
    assert one.design_effect == pytest.approx(1)
    assert mean_width(one) == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 400), rel=0.05)
    naive = one.naive()
    assert naive.width == pytest.approx(mean_width(one), rel=0.05)
    assert 0.93 <= naive.coverage <= 0.97


def test_the_naive_calculation_promises_too_much():
    one = trial(800, 100, Expected(0.7, correlation=0.5), n_cohorts=1000)
    assert one.naive().coverage < 0.75 < 0.92 < coverage(one)
    assert one.naive().false_alarm > 0.2
    assert one.power(0.0) < 0.08


@pytest.mark.parametrize("slides", [150, 450])
def test_power_without_a_difference_is_the_level(slides):
    found = trial(slides, 150, Expected(0.7), n_cohorts=2000, n_draws=500).power(0.0)
    assert found == pytest.approx(0.05, abs=0.016)


def test_smallest_difference_of_singletons_is_mcnemars():
    n, q = 400, 0.2
    one = trial(n, n, Expected(0.7, discordance=q), n_cohorts=600).precision().smallest_difference
    # Connor 1987 solved by steps, apart from the module's root finder.
    d = np.linspace(0.001, q, 20_000)
    needed = ((1.95996 * np.sqrt(q) + 0.84162 * np.sqrt(q - d**2)) / d) ** 2
    assert one == pytest.approx(d[np.argmax(needed <= n)], rel=0.07)


def test_power_rises_with_the_difference_and_falls_with_the_correlation():
    loose, tight = (trial(600, 150, Expected(0.7, correlation=r)) for r in (0.0, 0.8))
    curve = [loose.power(d) for d in (0.0, 0.05, 0.1, 0.15)]
    assert curve == sorted(curve)
    assert tight.power(0.08) < loose.power(0.08) - 0.2


@pytest.mark.parametrize("difference", [0.0, 0.1, 0.3])
def test_outcomes_have_the_stated_difference_and_discordance(difference):
    expected = Expected((0.9, 0.5), discordance=0.15)
    one = trial(4000, 4000, expected, n_cohorts=20, n_draws=1)
    preferred = one.preferred(difference).astype(float)
    assert preferred.mean() == pytest.approx(difference, abs=0.006)
    assert np.abs(preferred).mean() == pytest.approx(max(0.15, difference), abs=0.006)
    inside = one.ranks < one.p[one.test.label]  # the mean accuracy of the two is the expected one
    first = np.where(preferred > 0, 1, np.where(preferred < 0, 0, inside))
    second = np.where(preferred > 0, 0, np.where(preferred < 0, 1, inside))
    assert (first.mean() + second.mean()) / 2 == pytest.approx(0.7, abs=0.01)


def test_a_holdout_tests_that_share_and_folds_test_all():
    cohort = even_cohort(slides=400, patients=200, classes=4)
    part = evaluated(cohort, 0.2)
    assert (part.n_patients, part.n_slides) == (40, 80)
    assert np.bincount(part.label).tolist() == [20] * 4
    whole, held = (
        plan(cohort, one, n_cohorts=200, n_draws=500)
        for one in (Expected(0.7), Expected(0.7, holdout=0.2))
    )
    assert held.now.width / whole.now.width == pytest.approx(np.sqrt(5), rel=0.08)
    assert (held.fold_sd, held.folds, whole.folds) == (None, None, 5)


def test_folds_differ_by_chance_as_binomials_do():
    found = plan(
        even_cohort(slides=500, patients=500), Expected(0.7, folds=10), n_cohorts=200, n_draws=200
    ).fold_sd
    # The mean of the standard deviation of 10 normal values is 0.9727 of the true one.
    assert found == pytest.approx(0.9727 * np.sqrt(0.21 / 50), rel=0.05)


def test_needs_are_reached_where_they_are_simulated():
    cohort = even_cohort(slides=200, patients=100, classes=2)
    found = plan(cohort, Expected(0.7), width=0.09, difference=0.08, n_draws=500)
    width, difference = found.needs
    assert width.simulated == pytest.approx(0.09, rel=0.03)
    assert difference.simulated == pytest.approx(0.8, abs=0.07)
    assert width.slides == 2 * width.patients
    # Any number of slides of 100 patients: 2 * 1.96 * sqrt(0.3 * 0.21 / 100) = 0.098.
    assert width.slides_of_same_patients is None
    enough = plan(cohort, Expected(0.7), width=0.13, n_cohorts=100, n_draws=500).needs[0]
    more = trial(enough.slides_of_same_patients, 100, Expected(0.7))
    assert mean_width(more) == pytest.approx(0.13, rel=0.06)


def test_twice_the_patients_helps_more_than_twice_their_slides():
    found = plan(even_cohort(**EVEN), Expected(0.7, correlation=0.5), n_cohorts=200, n_draws=500)
    assert found.doubled_patients.width < found.doubled_slides.width < found.now.width
    assert found.doubled_slides.slides == found.doubled_patients.slides == 240
    assert found.doubled_patients.width == pytest.approx(found.now.width / np.sqrt(2), rel=0.05)


def test_the_smallest_class_has_the_width_of_its_slides():
    cohort = even_cohort(slides=400, patients=400, classes=3, shares=[0.1, 0.6, 0.3])
    found = plan(cohort, Expected((0.6, 0.9, 0.8)), n_cohorts=200, n_draws=500)
    assert (found.smallest_class, found.smallest_class_slides) == ("1", 40)
    assert found.smallest_class_width == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 40), rel=0.07)
    assert found.accuracy == pytest.approx(0.06 + 0.54 + 0.24)


def test_a_table_gives_its_own_sizes_whatever_its_order_and_ids():
    table = pd.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(60)],
            "patient_id": ["NA"] * 9 + ["05"] * 3 + [f"{i}E" for i in range(24) for _ in range(2)],
            "label": ["b"] * 8 + ["a"] + ["a"] * 3 + ["a", "a", "b", "b"] * 12,
        }
    )
    cohort = table_cohort(table)
    sizes = sorted(np.bincount(cohort.patient), reverse=True)
    assert sizes == [9, 3] + [2] * 24
    assert np.bincount(cohort.label).tolist() == [28, 32]
    shuffled = table.sample(frac=1, random_state=3).assign(
        patient_id=lambda t: "x" + t["patient_id"]
    )
    small = {"n_cohorts": 50, "n_draws": 100}
    first, second = (
        plan(table_cohort(t), Expected((0.6, 0.8)), **small) for t in (table, shuffled)
    )
    assert first == second
    assert first.design_effect > 1.3
    assert any("no other patient has" in line for line in first.warnings)


def test_equal_arguments_give_equal_plans_and_the_seed_matters():
    small = {"n_cohorts": 50, "n_draws": 100, "width": 0.2, "difference": 0.1}
    first, again, other = (
        plan(even_cohort(**EVEN), Expected(0.7), seed=seed, **small) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert json.loads(json.dumps(first.as_dict()))["now"]["width"] == first.now.width
    for _, columns, rows in tables(first):
        assert rows
        assert all(len(row) == len(columns) for row in rows)


def test_resizing_keeps_the_kinds_of_patients():
    cohort = even_cohort(slides=300, patients=200, classes=4)
    for n in (50, 333, 400):
        other = resized(cohort, patients=n)
        assert other.n_patients == n
        assert other.n_slides == pytest.approx(1.5 * n, abs=1)
        shares = np.bincount(other.label) / other.n_slides
        np.testing.assert_allclose(shares, 0.25, atol=0.02)
    twice = resized(cohort, slides_factor=2)
    assert np.bincount(twice.patient).tolist() == (2 * np.bincount(cohort.patient)).tolist()


def test_what_limits_a_plan_is_said():
    found = plan(
        even_cohort(slides=30, patients=12, classes=4), Expected(0.2), n_cohorts=50, n_draws=100
    )
    said = " ".join(found.warnings)
    for part in (
        "only 12 patient(s)",
        "4 class(es) have fewer patients than the 5 folds, '1' has 3",
        "not above chance",
    ):
        assert part in said
    assert not plan(even_cohort(slides=400, patients=200), Expected(0.7), n_draws=500).warnings


def test_classes_of_one_patient_give_a_warning_and_no_crash():
    table = pd.DataFrame({"patient_id": [f"P{i}" for i in range(30)], "label": range(30)})
    found = plan(table_cohort(table), Expected(0.7), width=0.2, n_cohorts=50, n_draws=100)
    assert found.now.width == 0
    assert found.now.coverage < 0.5
    assert any("they are in every draw" in line for line in found.warnings)
    assert len(found.warnings) < 6
    assert found.needs[0].patients >= 20


def test_a_difference_that_nothing_can_see_is_none():
    found = plan(
        even_cohort(slides=8, patients=8), Expected(0.9, folds=2), n_cohorts=100, n_draws=200
    )
    assert found.now.smallest_difference is None
    assert tables(found)[0][2][3][1:] == ("none", "none")
    assert formula_power(0.18, 0.09, 8) < 0.8


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: even_cohort(slides=10, patients=11), "11 patients have 10 slides"),
        (lambda: even_cohort(slides=0, patients=0), "at least 1 of each"),
        (lambda: even_cohort(slides=9, patients=9, classes=1), "classes is 1: at least 2"),
        (lambda: even_cohort(slides=9, patients=9, shares=[0.5, 0.6]), "sum to 1.1"),
        (lambda: even_cohort(slides=9, patients=9, shares=[1.5, -0.5]), "one positive share"),
        (lambda: even_cohort(slides=9, patients=9, shares=[0.5, float("nan")]), "class shares"),
        (lambda: even_cohort(slides=9, patients=9, classes=3, shares=[0.5, 0.5]), "for 3 classes"),
        (lambda: even_cohort(slides=9, patients=3, shares=[0.95, 0.05]), "class 2 gets no patient"),
        (lambda: even_cohort(slides=10**6, patients=9), "simulated up to"),
        (lambda: Expected(85), "such as 0.85 for 85 %"),
        (lambda: Expected(-0.1), "between 0 and 1"),
        (lambda: Expected((0.5, 1.0)), "both ends excluded"),
        (lambda: Expected(float("nan")), "accuracy is nan"),
        (lambda: Expected(0.7, correlation=1.2), "correlation is 1.2"),
        (lambda: Expected(0.7, discordance=0.0), "discordance is 0"),
        (lambda: Expected(0.7, holdout=20), "such as 0.2 for 20 %"),
        (lambda: Expected(0.7, folds=1), "at least 2 are needed"),
        (lambda: Expected(0.7, folds=5, holdout=0.2), "exclude each other"),
        (lambda: plan(even_cohort(**EVEN), Expected(0.7, folds=61)), "give at most 60"),
        (lambda: plan(even_cohort(**EVEN), Expected((0.7, 0.6, 0.5))), "3 accuracies for 2"),
        (lambda: plan(even_cohort(**EVEN), Expected(0.9, discordance=0.3)), "at most 0.2"),
        (lambda: plan(even_cohort(**EVEN), Expected(0.7), width=10), "width is 10"),
        (lambda: plan(even_cohort(**EVEN), Expected(0.9), difference=0.5), "differ by at most 0.2"),
        (lambda: plan(even_cohort(**EVEN), Expected(0.7), n_draws=0), "at least 1 of each"),
        (lambda: plan(even_cohort(**EVEN), Expected(0.7, holdout=0.001)), "nobody to test"),
        (lambda: table_cohort(pd.DataFrame({"patient_id": ["a"]})), "no column label"),
        (
            lambda: table_cohort(pd.DataFrame({"patient_id": ["a", "b"], "label": ["x", ""]})),
            "1 slide(s) without label",
        ),
        (
            lambda: table_cohort(pd.DataFrame({"patient_id": ["a", "b"], "label": ["x", "x"]})),
            "has 1 class(es)",
        ),
    ],
)
def test_bad_input_is_said_clearly(call, text):
    with pytest.raises(InputError) as caught:
        call()
    assert text in str(caught.value)
