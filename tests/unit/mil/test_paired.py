"""Paired tests against statsmodels, DeLong by its definition, and enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from mil.metrics import METRICS
from mil.paired import TESTS, area_parts, area_test, compare, exact_test, holm
from mil.plan_cohort import ranks
from mil.scores import score
from splits.errors import InputError


def outcomes(n, seed, a=0.8, b=0.7):
    rng = np.random.default_rng(seed)
    return rng.random(n) < a, rng.random(n) < b


def scores_of(n_classes, *, n_clusters, rows_each, seed, mixed=False):
    """Labels, clusters and the scores of two methods that fail alike, with ties."""
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(n_clusters), rows_each)
    labels = rng.integers(0, n_classes, len(member)) if mixed else member % n_classes
    shared = rng.normal(size=(n_clusters, n_classes))[member]
    found = []
    for gain in (1.0, 0.6):
        logits = shared + rng.normal(size=(len(member), n_classes))
        logits[np.arange(len(member)), labels] += gain
        p = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 2) + 1e-6
        found.append(p / p.sum(axis=1, keepdims=True))
    return labels.astype(np.int64), member, *found


# --- McNemar ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 60, 400])
def test_with_one_slide_a_patient_it_is_the_exact_test_of_statsmodels(n):
    for seed in range(8):
        a, b = outcomes(n, seed)
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
        expected = mcnemar(table, exact=True).pvalue
        assert exact_test(a, b, np.arange(n)) == pytest.approx(expected, abs=1e-9)


def test_with_clusters_it_counts_every_choice_of_signs():
    rng = np.random.default_rng(4)
    for seed in range(6):
        a, b = outcomes(24, seed)
        clusters = rng.integers(0, 9, 24)
        d = np.array([(a[clusters == c] * 1 - b[clusters == c] * 1).sum() for c in range(9)])
        sums = [np.dot(signs, d) for signs in product((-1, 1), repeat=9)]
        expected = np.mean(np.abs(sums) >= abs(d.sum()))
        assert exact_test(a, b, clusters) == pytest.approx(expected, abs=1e-9)


def test_methods_that_no_cluster_tells_apart_have_a_level_of_one():
    a, _ = outcomes(20, 0)
    assert exact_test(a, a, np.arange(20)) == 1.0
    # In each patient one slide is won and one lost.
    assert exact_test(np.array([1, 0, 1, 0]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == 1.0


def test_the_clustered_test_keeps_its_level_where_mcnemars_does_not():
    patient = np.repeat(np.arange(40), 6)
    chance = ranks(patient, 0.6, 400, np.random.default_rng(0))
    found = {"patients": 0, "slides": 0}
    for row in chance:
        a, b = row < 0.2, row > 0.8  # only the first is right, or only the second, as often
        found["patients"] += exact_test(a, b, patient) <= 0.05
        found["slides"] += exact_test(a, b, np.arange(len(patient))) <= 0.05
    assert found["patients"] / 400 == pytest.approx(0.05, abs=0.03)
    assert found["slides"] / 400 > 0.15


# --- DeLong -------------------------------------------------------------------------------------


def wins(x, y):
    return float(x > y) + 0.5 * float(x == y)


def delong(truth, score_a, score_b):
    """By definition, from every pair (DeLong et al. 1988, equations 4 to 6)."""
    theta, v10, v01 = [], [], []
    for s in (score_a, score_b):
        pairs = np.array([[wins(x, y) for y in s[~truth]] for x in s[truth]])
        theta.append(pairs.mean())
        v10.append(pairs.mean(axis=1))
        v01.append(pairs.mean(axis=0))
    s10, s01 = np.cov(v10), np.cov(v01)
    contrast = np.array([1, -1])
    variance = contrast @ (s10 / truth.sum() + s01 / (~truth).sum()) @ contrast
    z = (theta[0] - theta[1]) / np.sqrt(variance)
    return theta[0] - theta[1], np.sqrt(variance), 2 * stats.norm.sf(abs(z))


def obuchowski(truth, score_a, score_b, clusters):
    """By definition (Obuchowski 1997, equations 4 and 5), with loops."""
    names = np.unique(clusters)
    x_sums, y_sums = [], []
    m, n = truth.sum(), (~truth).sum()
    for s in (score_a, score_b):
        pairs = np.array([[wins(x, y) for y in s[~truth]] for x in s[truth]])
        theta = pairs.mean()
        x, y = pairs.mean(axis=1) - theta, pairs.mean(axis=0) - theta
        x_sums.append([x[clusters[truth] == c].sum() for c in names])
        y_sums.append([y[clusters[~truth] == c].sum() for c in names])
    x, y = np.subtract(*x_sums), np.subtract(*y_sums)
    i10 = len(np.unique(clusters[truth]))
    i01 = len(np.unique(clusters[~truth]))
    i = len(names)
    s10 = i10 / ((i10 - 1) * m) * np.sum(x * x)
    s01 = i01 / ((i01 - 1) * n) * np.sum(y * y)
    s11 = i / (i - 1) * np.sum(x * y)
    return np.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))


def error(result):
    return (result["ci_high"] - result["ci_low"]) / 2 / stats.norm.ppf(0.975)


@pytest.mark.parametrize("seed", range(4))
def test_with_one_slide_a_patient_it_is_delongs_test(seed):
    labels, member, a, b = scores_of(2, n_clusters=40, rows_each=1, seed=seed)
    found = area_test(area_parts(labels, a, member), area_parts(labels, b, member))
    difference, se, p = delong(labels == 1, a[:, 1], b[:, 1])
    assert found["difference"] == pytest.approx(difference, abs=1e-9)
    assert error(found) == pytest.approx(se, abs=1e-9)
    assert found["p"] == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("mixed", [False, True])
def test_with_clusters_it_is_obuchowskis(mixed):
    labels, member, a, b = scores_of(2, n_clusters=15, rows_each=4, seed=3, mixed=mixed)
    found = area_test(area_parts(labels, a, member), area_parts(labels, b, member))
    expected = obuchowski(labels == 1, a[:, 1], b[:, 1], member)
    assert error(found) == pytest.approx(expected, abs=1e-9)


def test_the_macro_area_varies_as_that_of_every_pair_of_classes():
    """Brute force: influence of a slide on the mean of one-vs-rest areas, from every pair."""
    labels, member, a, b = scores_of(3, n_clusters=24, rows_each=1, seed=1)
    influence = np.zeros(24)
    for sign, s in ((1, a), (-1, b)):
        for k in range(3):
            of, rest = np.flatnonzero(labels == k), np.flatnonzero(labels != k)
            pairs = np.array([[wins(s[i, k], s[j, k]) for j in rest] for i in of])
            for where, values in ((of, pairs.mean(axis=1)), (rest, pairs.mean(axis=0))):
                influence[where] += sign * (values - pairs.mean()) / len(where) / 3
    # Slides are drawn within their class: the variance is that of three samples.
    variance = sum((labels == c).sum() * np.var(influence[labels == c], ddof=1) for c in range(3))
    found = area_test(area_parts(labels, a, member), area_parts(labels, b, member))
    expected = sk.roc_auc_score(labels, a, multi_class="ovr") - sk.roc_auc_score(
        labels, b, multi_class="ovr"
    )
    assert found["difference"] == pytest.approx(expected, abs=1e-9)
    assert error(found) == pytest.approx(np.sqrt(variance), abs=1e-9)


def test_delong_agrees_with_the_paired_bootstrap():
    labels, member, a, b = scores_of(3, n_clusters=150, rows_each=2, seed=5)
    scores = {
        name: score(labels, p.argmax(axis=1), p, member, n_draws=2000, seed=0)
        for name, p in (("a", a), ("b", b))
    }
    draws = scores["a"].overall["auroc"].draws - scores["b"].overall["auroc"].draws
    found = area_test(area_parts(labels, a, member), area_parts(labels, b, member))
    assert error(found) == pytest.approx(draws.std(), rel=0.08)


def test_what_delong_cannot_say_is_none():
    labels, member, a, b = scores_of(2, n_clusters=12, rows_each=1, seed=0)
    same = area_test(area_parts(labels, a, member), area_parts(labels, a, member))
    assert same == {"difference": 0.0, "ci_low": None, "ci_high": None, "p": 1.0}
    perfect, worst = np.eye(2)[labels], np.eye(2)[1 - labels]
    apart = area_test(area_parts(labels, perfect, member), area_parts(labels, worst, member))
    assert apart == {"difference": 1.0, "ci_low": None, "ci_high": None, "p": None}
    alone = labels * 0  # one class only
    undefined = area_test(area_parts(alone, a, member), area_parts(alone, b, member))
    assert set(undefined.values()) == {None}
    one = np.where(labels == 1, 99, member)  # all slides of a class are of one patient
    found = area_test(area_parts(labels, a, one), area_parts(labels, b, one))
    assert found["p"] is None
    assert found["difference"] is not None
    with pytest.raises(InputError, match="clusters and classes"):
        area_test(area_parts(labels, a, member), area_parts(labels[:-1], b[:-1], member[:-1]))


# --- Holm, and all together ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 105])
def test_holm_is_that_of_statsmodels(n):
    p = np.random.default_rng(n).random(n) ** 3
    np.testing.assert_allclose(holm(list(p)), multipletests(p, method="holm")[1], atol=1e-12)


def test_a_test_that_was_not_possible_does_not_count():
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([]) == []


def three_methods(n_clusters=30, rows_each=2):
    labels, member, a, b = scores_of(3, n_clusters=n_clusters, rows_each=rows_each, seed=2)
    probabilities = {"vote": b, "same": b, "abmil": a}
    scores = {
        name: score(labels, p.argmax(axis=1), p, member, n_draws=200, seed=0)
        for name, p in probabilities.items()
    }
    right = {name: p.argmax(axis=1) == labels for name, p in probabilities.items()}
    return scores, right, probabilities, labels, member


def test_every_pair_is_tested_in_every_way_and_corrected_within_each():
    scores, right, probabilities, labels, member = three_methods()
    rows = compare(scores, right, probabilities, labels, member)
    pairs = [("same", "vote"), ("abmil", "vote"), ("abmil", "same")]
    expected = [(*pair, m, test) for test, of in TESTS.items() for m in of for pair in pairs]
    assert [(r["a"], r["b"], r["metric"], r["test"]) for r in rows] == expected
    assert {m for of in TESTS.values() for m in of} <= set(METRICS)
    for start in range(0, len(rows), 3):
        family = rows[start : start + 3]
        assert [r["p_holm"] for r in family] == holm([r["p"] for r in family])
    by = {(r["a"], r["metric"], r["test"]): r for r in rows if r["b"] == "vote"}
    accuracy = right["abmil"].mean() - right["vote"].mean()
    for test in ("bootstrap", "mcnemar"):
        assert by["abmil", "accuracy", test]["difference"] == pytest.approx(accuracy)
    boot, area = by["abmil", "auroc", "bootstrap"], by["abmil", "auroc", "delong"]
    assert boot["difference"] == pytest.approx(area["difference"], abs=1e-9)
    assert boot["ci_low"] == pytest.approx(area["ci_low"], abs=0.03)


def test_methods_that_agree_everywhere_may_still_differ_on_other_slides():
    scores, right, probabilities, labels, member = three_methods()
    rows = compare(scores, right, probabilities, labels, member)
    row = next(r for r in rows if (r["a"], r["b"], r["test"]) == ("same", "vote", "bootstrap"))
    assert (row["difference"], row["p"]) == (0.0, pytest.approx(1.0))
    # Of 30 patients none saw them differ: exact bound of a share of 0.
    bound = 1 - 0.025 ** (1 / 30)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((-bound, bound))
