"""Draws and intervals: brute force, known formulas, exact bounds and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mil import metrics, weighted
from mil.clusters import Clusters
from mil.metrics import point
from mil.scores import score, undefined_draws
from mil.statistics import (
    caveats,
    degrees,
    draw_clusters,
    interval,
    mean_interval,
    paired,
    ratio_intervals,
)


def case(n_classes, *, n_patients=30, rows_per_patient=4, seed=0, decimals=1, mixed=False):
    """Rows of patients whose errors are shared; probabilities are rounded so that scores tie."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), rows_per_patient)
    labels = patient % n_classes
    if mixed:
        labels = np.where(
            rng.random(len(labels)) < 0.3, rng.integers(0, n_classes, len(labels)), labels
        )
    logits = (
        rng.normal(size=(len(labels), n_classes))
        + rng.normal(size=(n_patients, n_classes))[patient]
    )
    logits[np.arange(len(labels)), labels] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = np.round(probabilities, decimals) + 1e-3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = np.array([f"P{i:03d}" for i in range(n_patients)], dtype=object)[patient]
    return labels.astype(np.int64), probabilities.argmax(axis=1), probabilities, names


def bootstrap(labels, predicted, probabilities, patients, *, n_draws, seed):
    """Draws of every metric over all classes, those that no draw defines left out."""
    found = score(labels, predicted, probabilities, patients, n_draws=n_draws, seed=seed).overall
    draws = {name: estimate.draws for name, estimate in found.items()}
    return {name: values for name, values in draws.items() if not np.isnan(values).all()}


def right_or_wrong(right, labels):
    """Predictions of two classes that are right where they should be."""
    predicted = np.where(right, labels, 1 - labels)
    return predicted, np.where(np.arange(2) == predicted[:, None], 0.8, 0.2)


def test_every_draw_is_the_metric_with_the_weights_of_its_patients():
    labels, predicted, probabilities, patients = case(3, mixed=True)
    draws = bootstrap(labels, predicted, probabilities, patients, n_draws=25, seed=3)
    assert tuple(draws) == metrics.METRICS
    member = np.unique(patients, return_inverse=True)[1]
    drawn = np.concatenate(list(draw_clusters(labels, patients, n_draws=25, seed=3)))
    for b, weights in enumerate(drawn):
        w = weights[member]
        expected = np.average(labels == predicted, weights=w)
        assert draws["accuracy"][b] == pytest.approx(expected, abs=1e-12)
        loss = -np.log(probabilities[np.arange(len(labels)), labels])
        assert draws["log_loss"][b] == pytest.approx(np.average(loss, weights=w), abs=1e-12)


def test_of_n_patients_of_a_class_one_less_is_drawn_and_weighs_as_n():
    labels, _, _, patients = case(3, n_patients=40)
    kinds = labels[::4]
    drawn = np.concatenate(list(draw_clusters(labels, patients, n_draws=400, seed=0)))
    for k in range(3):
        inside = drawn[:, kinds == k]
        n = inside.shape[1]
        times = inside * (n - 1) / n
        np.testing.assert_allclose(times, np.rint(times), atol=1e-12)
        np.testing.assert_allclose(times.sum(axis=1), n - 1)
    assert drawn.std(axis=0).min() > 0
    assert drawn.mean() == pytest.approx(1, abs=0.02)


def test_patients_of_several_classes_are_drawn_among_themselves():
    labels, _, _, patients = case(3, mixed=True, n_patients=40)
    several = np.array([len(set(labels[patients == p])) > 1 for p in np.unique(patients)])
    drawn = np.concatenate(list(draw_clusters(labels, patients, n_draws=50, seed=0)))
    assert 2 < several.sum() < 38
    np.testing.assert_allclose(drawn[:, several].sum(axis=1), several.sum())


def test_the_variance_of_the_draws_is_not_too_small():
    """20 patients in 4 classes: draws of 5 of 5 have four fifths of the variance."""
    labels = np.repeat(np.arange(4), 5)
    values = np.random.default_rng(0).normal(size=20)
    drawn = np.concatenate(list(draw_clusters(labels, np.arange(20), n_draws=40_000, seed=0)))
    expected = sum(np.var(values[labels == k], ddof=1) * 5 for k in range(4)) / 20**2
    assert np.var(drawn @ values / 20) == pytest.approx(expected, rel=0.03)


def test_draws_do_not_depend_on_block_size_or_row_order(monkeypatch):
    labels, predicted, probabilities, patients = case(3)
    whole = np.concatenate(list(draw_clusters(labels, patients, n_draws=37, seed=5)))
    parts = np.concatenate(list(draw_clusters(labels, patients, n_draws=37, seed=5, block=8)))
    assert np.array_equal(whole, parts)
    expected = bootstrap(labels, predicted, probabilities, patients, n_draws=37, seed=5)
    monkeypatch.setattr(weighted, "_CELLS_PER_BLOCK", 500)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = bootstrap(
        labels[order], predicted[order], probabilities[order], patients[order], n_draws=37, seed=5
    )
    for name, values in expected.items():
        assert values.shape == (37,)
        np.testing.assert_allclose(shuffled[name], values, atol=1e-12)
    other = bootstrap(labels, predicted, probabilities, patients, n_draws=37, seed=6)
    assert not np.array_equal(other["accuracy"], expected["accuracy"])


def test_degrees_of_freedom_are_clusters_minus_strata_where_clusters_are_even():
    labels, _, _, patients = case(3)
    assert degrees(labels, patients) == pytest.approx(30 - 3)
    labels = np.repeat([0, 1], [50, 20])
    assert degrees(labels, np.arange(70)) == pytest.approx(70**2 / (50**2 / 49 + 20**2 / 19))
    assert degrees(np.array([0, 1]), np.array(["a", "b"])) == 0


def test_degrees_of_freedom_of_uneven_clusters_are_those_of_their_variance():
    """Satterthwaite: twice the squared mean of the variance estimate over its variance."""
    sizes = np.array([1, 1, 2, 3, 8, 1, 2, 2, 5, 12])
    strata = np.repeat([0, 1], 5)
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(200_000, 10)) * sizes
    found = 5 * (sums[:, :5].var(axis=1, ddof=1) + sums[:, 5:].var(axis=1, ddof=1))
    rows = np.repeat(np.arange(10), sizes)
    expected = 2 * found.mean() ** 2 / found.var()
    assert degrees(strata[rows], rows) == pytest.approx(expected, rel=0.03)


def test_the_interval_is_the_percentile_one_unless_told_otherwise():
    draws = np.random.default_rng(0).normal(size=100_001)
    assert interval(draws) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    wide = interval(draws, 10)
    assert wide == pytest.approx((stats.t.ppf(0.025, 10), stats.t.ppf(0.975, 10)), abs=0.03)
    assert interval(draws, 10, level=0.5) == pytest.approx(
        (stats.t.ppf(0.25, 10), stats.t.ppf(0.75, 10)), abs=0.02
    )
    low, high = interval(draws, acceleration=-0.1)
    assert low < -1.96 < high < 1.96  # skewed to the left: both ends go there


def test_bca_is_that_of_scipy_where_nothing_is_tied_and_little_is_few():
    """200 exponential values: skewed, one stratum, counting below the value works."""
    values = np.random.default_rng(1).exponential(size=200)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    found = mean_interval(
        values, np.zeros(200, dtype=np.int64), np.arange(200), n_draws=20_000, seed=0
    )
    width = expected.high - expected.low
    assert found["value"] == pytest.approx(values.mean())
    assert found["ci_low"] == pytest.approx(expected.low, abs=0.03 * width)
    assert found["ci_high"] == pytest.approx(expected.high, abs=0.03 * width)


def test_acceleration_is_that_of_the_known_influence():
    labels, predicted, probabilities, patients = case(3, n_patients=25)
    found = score(labels, predicted, probabilities, patients, n_draws=5, seed=0)
    right = (labels == predicted).reshape(25, 4).sum(axis=1)
    u = np.concatenate([right[k::3] - right[k::3].mean() for k in range(3)])
    expected = (u**3).sum() / (u**2).sum() ** 1.5 / 6
    assert found.overall["accuracy"].acceleration == pytest.approx(expected)


def test_very_many_patients_are_left_out_in_groups():
    labels, _, _, patients = case(3, n_patients=1000)
    clusters = Clusters(labels, patients)
    left = np.concatenate(list(clusters.left_out(64)))
    assert 390 <= len(left) <= 400
    assert ((left == 0).sum(axis=0) == 1).all()  # everybody once
    np.testing.assert_allclose(left.sum(axis=1), 1000)
    values = np.random.default_rng(0).exponential(size=1000)
    u = np.concatenate([values[k::3] - values[k::3].mean() for k in range(3)])
    expected = (u**3).sum() / (u**2).sum() ** 1.5 / 6
    assert clusters.acceleration((left @ values)[:, None])[0] == pytest.approx(expected, rel=0.35)


def test_all_right_has_an_exact_bound_and_not_an_interval_of_no_width():
    labels = np.arange(30) % 2
    predicted, probabilities = right_or_wrong(np.ones(30), labels)
    found = score(labels, predicted, probabilities, np.arange(30), n_draws=50, seed=0)
    exact = stats.binomtest(30, 30).proportion_ci(method="exact")
    for name in ("accuracy", "balanced_accuracy"):
        described = found.overall[name].describe()
        assert described["ci_low"] == pytest.approx(exact.low)
        assert described["ci_high"] == 1.0
    half = stats.binomtest(15, 15).proportion_ci(method="exact").low
    assert found.by_class[1]["sensitivity"].describe()["ci_low"] == pytest.approx(half)
    # 15 disjoint pairs of a slide of either class, all in order.
    assert found.overall["auroc"].describe()["ci_low"] == pytest.approx(half)
    assert found.overall["log_loss"].describe()["ci_low"] is None
    wrong, p = right_or_wrong(np.zeros(30), labels)
    none = score(labels, wrong, p, np.arange(30), n_draws=50, seed=0).overall["accuracy"]
    assert none.describe()["ci_high"] == pytest.approx(1 - exact.low)


def test_slides_of_a_patient_count_once_in_the_exact_bound():
    labels = np.arange(30) % 2
    patients = labels + 2 * (np.arange(30) // 6)  # 10 patients with 3 slides
    predicted, probabilities = right_or_wrong(np.ones(30), labels)
    found = score(labels, predicted, probabilities, patients, n_draws=50, seed=0)
    exact = stats.binomtest(10, 10).proportion_ci(method="exact")
    assert found.overall["accuracy"].describe()["ci_low"] == pytest.approx(exact.low)


def test_a_mean_over_rows_has_the_interval_of_the_accuracy():
    labels, predicted, probabilities, patients = case(3, mixed=True)
    whole = score(labels, predicted, probabilities, patients, n_draws=300, seed=4)
    found = mean_interval(labels == predicted, labels, patients, n_draws=300, seed=4)
    assert found == pytest.approx(whole.overall["accuracy"].describe())
    none = mean_interval(np.array([]), np.array([]), np.array([]), n_draws=9, seed=0)
    assert set(none.values()) == {None}
    same = mean_interval(np.full(120, 0.3), labels, patients, n_draws=9, seed=0)
    assert (same["value"], same["ci_low"]) == (pytest.approx(0.3), None)


def test_many_shares_of_one_cohort_have_the_interval_of_each():
    labels, _, _, patients = case(3)
    right = np.random.default_rng(0).random((4, 120)) < [[0.5], [0.7], [0.9], [1.0]]
    drawn = np.concatenate(list(draw_clusters(labels, patients, n_draws=200, seed=1)))
    sums = right.reshape(4, 30, 4).sum(axis=2).T.astype(float)
    ends = ratio_intervals(sums, np.full(30, 4.0), drawn @ sums / 120, labels, patients)
    for values, end in zip(right, ends, strict=True):
        found = mean_interval(values, labels, patients, n_draws=200, seed=1)
        assert end == pytest.approx((found["ci_low"], found["ci_high"]))


def test_a_metric_that_many_draws_do_not_define_has_no_interval():
    """One slide is called 'b', of one patient: a third of the draws have no call to judge."""
    labels = np.arange(40) % 2
    predicted = np.zeros(40, dtype=np.int64)
    predicted[1] = 1
    probabilities = np.where(np.arange(2) == predicted[:, None], 0.8, 0.2)
    found = score(labels, predicted, probabilities, np.arange(40), n_draws=500, seed=0)
    ppv = found.by_class[1]["ppv"]
    assert ppv.undefined == pytest.approx((1 - 1 / 20) ** 19, abs=0.06)
    assert ppv.describe() == {"value": 1.0, "ci_low": None, "ci_high": None}
    said = undefined_draws({"vote": found, "tiles": None}, ["a", "b"])
    assert said == [
        "1 value(s) have no interval, because they are undefined in more than 5 % of the draws: "
        "vote ppv 'b'"
    ]
    predicted[[3, 5, 7, 9]] = 1  # five calls: 0.6 % of the draws have none
    found = score(labels, predicted, probabilities, np.arange(40), n_draws=500, seed=0)
    assert 0 < found.by_class[1]["ppv"].undefined < 0.02
    assert "leave out draws (5 % at most)" in undefined_draws({"vote": found}, ["a", "b"])[0]


def test_sites_with_all_classes_are_one_stratum():
    labels, predicted, probabilities, _ = case(3, n_patients=40)
    sites = np.arange(160) // 4 // 4  # ten sites of four patients
    assert degrees(labels, sites) == pytest.approx(9)
    found = score(labels, predicted, probabilities, sites, n_draws=200, seed=0)
    low, high = (found.overall["auroc"].describe()[end] for end in ("ci_low", "ci_high"))
    assert low < found.overall["auroc"].value < high


def covered(n_patients, n_classes, *, trials=250):
    """Share of intervals that hold the truth: uneven, correlated rows; by patients and by rows."""
    rng, truth = np.random.default_rng(0), 0.7
    held = {"patients": 0, "rows": 0}
    for trial in range(trials):
        patients = np.repeat(np.arange(n_patients), rng.integers(1, 30, n_patients))
        labels = patients % n_classes
        chance = rng.beta(1.4, 0.6, n_patients)  # mean 0.7, correlation a third
        right = rng.random(len(patients)) < chance[patients]
        for name, clusters in (("patients", patients), ("rows", np.arange(len(patients)))):
            found = mean_interval(right, labels, clusters, n_draws=400, seed=trial)
            held[name] += found["ci_low"] <= truth <= found["ci_high"]
    return held["patients"] / trials, held["rows"] / trials


@pytest.mark.parametrize(("n_patients", "n_classes"), [(30, 2), (24, 4)])
def test_intervals_of_few_uneven_patients_hold_the_truth_where_rows_do_not(n_patients, n_classes):
    by_patient, by_row = covered(n_patients, n_classes)
    assert 0.92 <= by_patient <= 0.985  # 250 cohorts: 0.95 to two standard errors
    assert by_row < 0.75


def test_interval_of_independent_rows_matches_the_binomial_one():
    n, share = 400, 0.8
    labels = np.arange(n) % 2
    predicted = np.where(np.arange(n) < share * n, labels, 1 - labels)
    probabilities = np.where(np.arange(2) == predicted[:, None], 0.9, 0.1)
    draws = bootstrap(labels, predicted, probabilities, np.arange(n), n_draws=4000, seed=0)
    half = 1.96 * np.sqrt(share * (1 - share) / n)
    assert interval(draws["accuracy"]) == pytest.approx((share - half, share + half), abs=0.006)


def test_shuffled_labels_have_an_area_of_one_half():
    labels, predicted, probabilities, patients = case(3, n_patients=300, rows_per_patient=2)
    shuffled = np.random.default_rng(1).permutation(300)[np.repeat(np.arange(300), 2)] % 3
    value = point(shuffled, predicted, probabilities)["auroc"]
    draws = bootstrap(shuffled, predicted, probabilities, patients, n_draws=300, seed=0)
    low, high = interval(draws["auroc"])
    assert value == pytest.approx(0.5, abs=0.06)
    assert low < 0.5 < high
    assert point(labels, predicted, probabilities)["auroc"] > high


def test_a_method_paired_with_itself_does_not_differ():
    labels, predicted, probabilities, patients = case(3)
    draws = [
        bootstrap(labels, predicted, probabilities, patients, n_draws=99, seed=0)["auroc"]
        for _ in range(2)
    ]
    found = paired(*draws, 0.0, 27)
    assert found == {"difference": 0.0, "ci_low": 0.0, "ci_high": 0.0, "p": pytest.approx(1.0)}


def test_pairing_sees_what_unpaired_intervals_hide():
    """One method is right wherever the other is, and on six slides more."""
    labels = np.arange(120) % 2
    right_b = np.arange(120) < 72
    right_a = np.arange(120) < 78
    draws = []
    for right in (right_a, right_b):
        predicted = np.where(right, labels, 1 - labels)
        probabilities = np.where(np.arange(2) == predicted[:, None], 0.9, 0.1)
        draws.append(
            bootstrap(labels, predicted, probabilities, np.arange(120), n_draws=999, seed=0)[
                "accuracy"
            ]
        )
    result = paired(*draws, 6 / 120)
    assert 0 < result["ci_low"] < result["difference"] < result["ci_high"]
    assert 2 / 1000 <= result["p"] < 0.05
    assert interval(draws[0])[0] < interval(draws[1])[1]
    swapped = paired(draws[1], draws[0], -6 / 120)
    assert swapped["p"] == result["p"]
    assert swapped["ci_low"] == pytest.approx(-result["ci_high"])


def test_p_is_never_zero():
    assert paired(np.ones(99), np.zeros(99), 1.0)["p"] == pytest.approx(2 / 100)
    few = paired(np.ones(99), np.zeros(99), 1.0, 8)["p"]
    assert few == pytest.approx(2 * stats.t.cdf(stats.norm.ppf(1 / 100), 8))


def test_p_is_the_level_at_which_the_interval_reaches_zero():
    draws = np.random.default_rng(3).normal(0.9, 1, size=20_001)
    for df in (np.inf, 12):
        p = paired(draws, np.zeros_like(draws), 0.9, df)["p"]
        assert interval(draws, df, level=1 - p)[0] == pytest.approx(0, abs=0.005)


def test_equal_up_to_rounding_is_equal():
    noise = np.where(np.arange(100) % 2, 1e-16, -1e-16)
    assert paired(noise, np.zeros(100), 0.0, 20)["p"] == pytest.approx(1.0)


def test_a_class_without_rows_makes_macro_averages_undefined():
    labels, predicted, probabilities, patients = case(3)
    keep = labels != 1
    args = labels[keep], predicted[keep], probabilities[keep], patients[keep]
    undefined = {"balanced_accuracy", "auroc", "average_precision", "f1_macro"}
    assert set(bootstrap(*args, n_draws=20, seed=0)) == set(metrics.METRICS) - undefined
    found = score(*args, n_draws=20, seed=0)
    for name in undefined:
        assert set(found.overall[name].describe().values()) == {None}
    assert any("'b'" in text for text in caveats(args[0], args[3], ["a", "b", "c"]))


def test_caveats_name_what_is_weak():
    labels, _, _, patients = case(2, n_patients=40)
    assert caveats(labels, patients, ["a", "b"]) == []
    few = patients < "P019"
    assert len(caveats(labels[few], patients[few], ["a", "b"])) == 1
    assert "only 19 patient(s)" in caveats(labels[few], patients[few], ["a", "b"])[0]
    some = (labels == 0) | (patients < "P008")
    (said,) = caveats(labels[some], patients[some], ["a", "b"])
    assert said.startswith("1 of 2 classes have fewer than 20 patients, 'b' has 4")
    single = (labels == 0) | (patients == "P001")
    assert any(
        "no other patient" in text for text in caveats(labels[single], patients[single], ["a", "b"])
    )
    assert "only 10 site(s)" in caveats(labels, np.arange(160) // 16, ["a", "b"], "site")[0]


def test_a_single_patient_has_no_interval_and_that_is_said():
    labels, predicted = np.array([0, 1, 0]), np.array([0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    patients = np.array(["NA"] * 3, dtype=object)
    found = score(labels, predicted, probabilities, patients, n_draws=5, seed=0)
    expected = {"value": pytest.approx(2 / 3), "ci_low": None, "ci_high": None}
    assert found.overall["accuracy"].describe() == expected
    assert len(caveats(labels, patients, ["a", "b"])) == 2
