"""Point values and weighted values of every metric against scikit-learn alone, to 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from mil import metrics
from mil.metrics import calibration_error, per_class, point
from mil.weighted import Weighted
from splits.errors import InputError


def case(n_classes, *, n_clusters=30, rows_each=4, seed=0, decimals=1):
    """Rows whose errors are shared within clusters; probabilities are rounded: scores tie."""
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(n_clusters), rows_each)
    labels = np.where(
        rng.random(len(member)) < 0.3,
        rng.integers(0, n_classes, len(member)),
        member % n_classes,
    )
    logits = rng.normal(size=(len(labels), n_classes))
    logits += rng.normal(size=(n_clusters, n_classes))[member]
    logits[np.arange(len(labels)), labels] += 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = np.round(p, decimals) + 1e-3
    p /= p.sum(axis=1, keepdims=True)
    predicted = p.argmax(axis=1)
    predicted = np.where(np.arange(len(labels)) % 7 == 0, (predicted + 1) % n_classes, predicted)
    return labels.astype(np.int64), predicted, p, member


def reference(labels, predicted, p, order, weight=None):
    """Every metric from scikit-learn; the calibration error from its definition."""
    k = p.shape[1]
    w = np.ones(len(labels)) if weight is None else weight
    areas = [sk.roc_auc_score(labels == c, p[:, c], sample_weight=w) for c in range(k)]
    precisions = [
        sk.average_precision_score(labels == c, p[:, c], sample_weight=w) for c in range(k)
    ]
    confidence, ece = p.max(axis=1), 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high) & (w > 0)
        if inside.any():
            right = np.average(labels[inside] == predicted[inside], weights=w[inside])
            sure = np.average(confidence[inside], weights=w[inside])
            ece += w[inside].sum() / w.sum() * abs(right - sure)
    return {
        "accuracy": sk.accuracy_score(labels, predicted, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted, sample_weight=w),
        "auroc": areas[1] if k == 2 else np.mean(areas),
        "average_precision": np.mean(precisions),
        "f1_macro": sk.f1_score(labels, predicted, average="macro", sample_weight=w),
        "log_loss": sk.log_loss(labels, p, labels=range(k), sample_weight=w),
        "brier": k * sk.mean_squared_error(np.eye(k)[labels], p, sample_weight=w),
        "ece": ece,
        "kappa_quadratic": sk.cohen_kappa_score(
            labels, predicted, labels=order, weights="quadratic", sample_weight=w
        ),
    }


def reference_of(labels, predicted, p, c, weight=None):
    """One class against the rest, from scikit-learn."""
    truth, called = labels == c, predicted == c
    return {
        "sensitivity": sk.recall_score(truth, called, sample_weight=weight),
        "specificity": sk.recall_score(truth, called, pos_label=False, sample_weight=weight),
        "ppv": sk.precision_score(truth, called, sample_weight=weight),
        "average_precision": sk.average_precision_score(truth, p[:, c], sample_weight=weight),
        "auroc": sk.roc_auc_score(truth, p[:, c], sample_weight=weight),
    }


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_point_values_are_those_of_scikit_learn(n_classes):
    labels, predicted, p, _ = case(n_classes)
    order = list(np.random.default_rng(1).permutation(n_classes))
    values = point(labels, predicted, p, order)
    assert tuple(values) == (*metrics.METRICS, metrics.ORDERED)
    assert values == pytest.approx(reference(labels, predicted, p, order), abs=1e-9)
    assert set(point(labels, predicted, p)) == set(metrics.METRICS)
    if n_classes > 2:
        ovr = sk.roc_auc_score(labels, p, multi_class="ovr", average="macro")
        assert values["auroc"] == pytest.approx(ovr, abs=1e-9)
    for c, found in enumerate(per_class(labels, predicted, p)):
        assert tuple(found) == metrics.PER_CLASS
        assert found == pytest.approx(reference_of(labels, predicted, p, c), abs=1e-9)


def test_the_brier_score_sums_over_classes():
    labels, predicted, p, _ = case(2)
    usual = sk.brier_score_loss(labels, p[:, 1])
    assert point(labels, predicted, p)["brier"] == pytest.approx(2 * usual, abs=1e-9)
    assert point(np.array([0, 1]), np.array([1, 0]), np.eye(2)[::-1])["brier"] == 2.0


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_weighted_values_are_those_of_scikit_learn_with_sample_weight(n_classes):
    labels, predicted, p, member = case(n_classes, seed=n_classes)
    order = list(range(n_classes))[::-1]
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 4, size=(20, 30)) * (30 / 29)
    values, by_class = Weighted(labels, predicted, p, member, order).values(weights)
    for b, w in enumerate(weights):
        expected = reference(labels, predicted, p, order, w[member])
        assert {name: values[name][b] for name in values} == pytest.approx(expected, abs=1e-9)
        for c in range(n_classes):
            expected = reference_of(labels, predicted, p, c, w[member])
            found = {name: by_class[name][b, c] for name in by_class}
            assert found == pytest.approx(expected, abs=1e-9)


def test_whole_weights_are_repeated_rows():
    labels, predicted, p, member = case(3, n_clusters=12)
    counts = np.random.default_rng(2).integers(0, 3, size=(8, 12))
    values, by_class = Weighted(labels, predicted, p, member).values(counts.astype(float))
    for b, w in enumerate(counts):
        rows = np.repeat(np.arange(len(labels)), w[member])
        expected = point(labels[rows], predicted[rows], p[rows])
        assert {name: values[name][b] for name in values} == pytest.approx(expected, abs=1e-9)
        for c, one in enumerate(per_class(labels[rows], predicted[rows], p[rows])):
            assert {n: by_class[n][b, c] for n in by_class} == pytest.approx(one, abs=1e-9)


def test_what_has_no_rows_is_undefined_and_not_averaged():
    labels, predicted, p, member = case(3)
    keep = labels != 1
    args = labels[keep], predicted[keep], p[keep]
    averaged = {"balanced_accuracy", "auroc", "average_precision", "f1_macro"}
    assert {name for name, value in point(*args).items() if value is None} == averaged
    missing = {name for name, value in per_class(*args)[1].items() if value is None}
    assert missing == {"sensitivity", "average_precision", "auroc"}
    values, by_class = Weighted(*args, member[keep]).values(np.ones((1, member[keep].max() + 1)))
    assert {name for name in values if np.isnan(values[name][0])} == averaged
    assert {name for name in by_class if np.isnan(by_class[name][0, 1])} == missing
    assert not np.isnan(by_class["specificity"]).any()


def test_without_a_call_there_is_no_predictive_value():
    labels = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    found = per_class(labels, np.zeros(4, dtype=np.int64), p)[1]
    assert found["ppv"] is None
    assert (found["sensitivity"], found["specificity"], found["auroc"]) == (0.0, 1.0, 1.0)


def test_one_class_alone_has_no_area_and_no_kappa():
    labels = np.zeros(5, dtype=np.int64)
    p = np.tile([0.8, 0.2], (5, 1))
    values = point(labels, labels, p, order=[0, 1])
    assert (values["accuracy"], values["auroc"], values["kappa_quadratic"]) == (1.0, None, None)
    drawn, _ = Weighted(labels, labels, p, np.arange(5), [0, 1]).values(np.ones((2, 5)))
    assert np.isnan(drawn["kappa_quadratic"]).all()


def test_constant_scores_have_an_area_of_one_half_and_the_precision_of_chance():
    labels = np.array([0, 0, 0, 1, 2, 2])
    p = np.full((6, 3), 1 / 3)
    values = point(labels, np.zeros(6, dtype=np.int64), p)
    assert values["auroc"] == 0.5
    assert values["average_precision"] == pytest.approx(1 / 3)
    drawn, _ = Weighted(labels, np.zeros(6, dtype=np.int64), p, np.arange(6)).values(
        np.ones((1, 6))
    )
    assert drawn["auroc"][0] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_probability_that_is_no_number_is_refused(bad):
    labels, predicted, p, member = case(3)
    p[4, 1] = bad
    for call in (
        lambda: point(labels, predicted, p),
        lambda: per_class(labels, predicted, p),
        lambda: Weighted(labels, predicted, p, member),
    ):
        with pytest.raises(InputError, match=r"not finite, the first is row 4"):
            call()


def test_a_certain_mistake_costs_a_finite_log_loss():
    labels, predicted = np.array([0, 1]), np.array([0, 0])
    p = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert point(labels, predicted, p)["log_loss"] == pytest.approx(-np.log(metrics.EPSILON) / 2)


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
    assert calibration_error(labels, predicted, probabilities) == pytest.approx(expected)
