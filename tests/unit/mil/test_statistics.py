"""Metrics and intervals against scikit-learn with weights, brute force and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from mil import statistics
from mil.statistics import bootstrap, caveats, draw_clusters, interval, paired, point


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


def reference(labels, predicted, probabilities, weight=None):
    """Every metric from scikit-learn alone; the calibration error from its definition."""
    n_classes = probabilities.shape[1]
    weight = np.ones(len(labels)) if weight is None else weight
    if n_classes == 2:
        auroc = metrics.roc_auc_score(labels, probabilities[:, 1], sample_weight=weight)
    else:
        areas = [
            metrics.roc_auc_score(labels == k, probabilities[:, k], sample_weight=weight)
            for k in range(n_classes)
        ]
        auroc = np.mean(areas)
    confidence = probabilities.max(axis=1)
    ece = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high) & (weight > 0)
        if inside.any():
            w = weight[inside]
            accuracy = np.average(labels[inside] == predicted[inside], weights=w)
            ece += (
                w.sum() / weight.sum() * abs(accuracy - np.average(confidence[inside], weights=w))
            )
    classes = range(n_classes)
    return {
        "accuracy": metrics.accuracy_score(labels, predicted, sample_weight=weight),
        "balanced_accuracy": metrics.balanced_accuracy_score(
            labels, predicted, sample_weight=weight
        ),
        "auroc": auroc,
        "f1_macro": metrics.f1_score(
            labels,
            predicted,
            average="macro",
            labels=classes,
            zero_division=0,
            sample_weight=weight,
        ),
        "log_loss": metrics.log_loss(labels, probabilities, labels=classes, sample_weight=weight),
        "ece": ece,
    }


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_point_values_are_those_of_scikit_learn(n_classes):
    labels, predicted, probabilities, _ = case(n_classes)
    values = point(labels, predicted, probabilities)
    assert tuple(values) == statistics.METRICS
    assert values == pytest.approx(reference(labels, predicted, probabilities), abs=1e-12)
    if n_classes > 2:
        ovr = metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert values["auroc"] == pytest.approx(ovr, abs=1e-12)


@pytest.mark.parametrize(("n_classes", "mixed"), [(2, False), (2, True), (3, False), (4, True)])
def test_every_draw_equals_scikit_learn_with_sample_weight(n_classes, mixed):
    labels, predicted, probabilities, patients = case(n_classes, mixed=mixed)
    predicted = np.where(np.arange(len(labels)) % 7 == 0, (predicted + 1) % n_classes, predicted)
    draws = bootstrap(labels, predicted, probabilities, patients, n_draws=25, seed=3)
    _, member = np.unique(patients, return_inverse=True)
    drawn = np.concatenate(list(draw_clusters(labels, patients, n_draws=25, seed=3)))
    assert set(draws) == set(statistics.METRICS)
    for b, counts in enumerate(drawn):
        expected = reference(labels, predicted, probabilities, counts[member].astype(float))
        assert {name: draws[name][b] for name in draws} == pytest.approx(expected, abs=1e-10)


def test_every_draw_equals_the_metric_on_repeated_rows():
    labels, predicted, probabilities, patients = case(3, n_patients=12)
    draws = bootstrap(labels, predicted, probabilities, patients, n_draws=10, seed=1)
    names = np.unique(patients)
    for b, counts in enumerate(
        np.concatenate(list(draw_clusters(labels, patients, n_draws=10, seed=1)))
    ):
        rows = np.concatenate(
            [
                np.flatnonzero(patients == name)
                for name, m in zip(names, counts, strict=True)
                for _ in range(m)
            ]
        )
        expected = point(labels[rows], predicted[rows], probabilities[rows])
        assert {name: draws[name][b] for name in draws} == pytest.approx(expected, abs=1e-10)


def test_draws_keep_the_size_and_classes_of_every_stratum():
    labels, _, _, patients = case(3, mixed=True, n_patients=40)
    names, member = np.unique(patients, return_inverse=True)
    kinds = [frozenset(labels[member == c]) for c in range(len(names))]
    drawn = np.concatenate(list(draw_clusters(labels, patients, n_draws=200, seed=0)))
    for kind in set(kinds):
        inside = [c for c, other in enumerate(kinds) if other == kind]
        assert (drawn[:, inside].sum(axis=1) == len(inside)).all()
    free = [c for c, kind in enumerate(kinds) if kinds.count(kind) > 1]
    assert drawn[:, free].std(axis=0).min() > 0
    assert drawn[:, free].mean() == pytest.approx(1, abs=0.05)


def test_draws_do_not_depend_on_block_size_or_row_order(monkeypatch):
    labels, predicted, probabilities, patients = case(3)
    whole = np.concatenate(list(draw_clusters(labels, patients, n_draws=37, seed=5)))
    parts = np.concatenate(list(draw_clusters(labels, patients, n_draws=37, seed=5, block=8)))
    assert np.array_equal(whole, parts)
    expected = bootstrap(labels, predicted, probabilities, patients, n_draws=37, seed=5)
    monkeypatch.setattr(statistics, "_CELLS_PER_BLOCK", 500)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = bootstrap(
        labels[order], predicted[order], probabilities[order], patients[order], n_draws=37, seed=5
    )
    for name, values in expected.items():
        assert values.shape == (37,)
        np.testing.assert_allclose(shuffled[name], values, atol=1e-12)
    other = bootstrap(labels, predicted, probabilities, patients, n_draws=37, seed=6)
    assert not np.array_equal(other["accuracy"], expected["accuracy"])


def test_interval_of_clustered_data_covers_where_drawing_rows_does_not():
    """40 patients with 25 rows that are all right or all wrong: 40 observations, not 1,000."""
    rng = np.random.default_rng(0)
    truth, covered = 0.7, {"patients": 0, "rows": 0}
    patients = np.repeat(np.arange(40), 25)
    labels = patients % 2
    for trial in range(60):
        right = (rng.random(40) < truth)[patients]
        predicted = np.where(right, labels, 1 - labels)
        probabilities = np.where(np.arange(2) == predicted[:, None], 0.8, 0.2)
        for name, clusters in (("patients", patients), ("rows", np.arange(1000))):
            draws = bootstrap(labels, predicted, probabilities, clusters, n_draws=200, seed=trial)
            low, high = interval(draws["accuracy"])
            covered[name] += low <= truth <= high
    assert covered["patients"] >= 50
    assert covered["rows"] <= 30


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
    assert paired(*draws, 0.0) == {"difference": 0.0, "ci_low": 0.0, "ci_high": 0.0, "p": 1.0}


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


def test_a_class_without_rows_makes_macro_averages_undefined():
    labels, predicted, probabilities, patients = case(3)
    keep = labels != 1
    args = labels[keep], predicted[keep], probabilities[keep]
    values = point(*args)
    undefined = {"balanced_accuracy", "auroc", "f1_macro"}
    assert {name for name, value in values.items() if value is None} == undefined
    draws = bootstrap(*args, patients[keep], n_draws=20, seed=0)
    assert set(draws) == set(statistics.METRICS) - undefined
    one = labels == 0
    assert point(labels[one], predicted[one], probabilities[one])["auroc"] is None
    assert any("'b'" in text for text in caveats(args[0], patients[keep], ["a", "b", "c"]))


def test_a_certain_mistake_costs_a_finite_log_loss():
    labels, predicted = np.array([0, 1]), np.array([0, 0])
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0]])
    values = point(labels, predicted, probabilities)
    draws = bootstrap(labels, predicted, probabilities, np.array(["a", "b"]), n_draws=3, seed=0)
    assert values["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps) / 2)
    np.testing.assert_allclose(draws["log_loss"], values["log_loss"])


@pytest.mark.parametrize("n_bins_edge", range(8, 16))
def test_confidence_on_a_bin_edge_belongs_to_the_lower_bin(n_bins_edge):
    """Votes of 15 tiles fall on edges; a row just above one must not share the bin of it."""
    edge = np.linspace(0, 1, 16)[n_bins_edge]
    above = min(edge + 1e-9, 1.0)
    confidence = np.array([edge, above])
    labels, predicted = np.array([0, 1]), np.array([0, 0])
    probabilities = np.column_stack([confidence, 1 - confidence])
    shared = edge == 1.0
    expected = abs(1 - 2 * edge) / 2 if shared else (abs(1 - edge) + above) / 2
    assert statistics.calibration_error(labels, predicted, probabilities) == pytest.approx(expected)


def test_caveats_name_what_is_weak():
    labels, _, _, patients = case(2, n_patients=30)
    assert caveats(labels, patients, ["a", "b"]) == []
    few = patients < "P019"
    assert len(caveats(labels[few], patients[few], ["a", "b"])) == 1
    assert "only 19 patient(s)" in caveats(labels[few], patients[few], ["a", "b"])[0]
    single = (labels == 0) | (patients == "P001")
    assert any(
        "no other patient" in text for text in caveats(labels[single], patients[single], ["a", "b"])
    )


def test_a_single_patient_gives_an_interval_of_no_width_and_says_so():
    labels, predicted = np.array([0, 1, 0]), np.array([0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    patients = np.array(["NA"] * 3, dtype=object)
    draws = bootstrap(labels, predicted, probabilities, patients, n_draws=5, seed=0)
    assert interval(draws["accuracy"]) == pytest.approx((2 / 3, 2 / 3))
    assert len(caveats(labels, patients, ["a", "b"])) == 2
