"""The scikit-learn face: scikit-learn's own checks, and bags with a planted signal."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from mil.aggregators import AGGREGATORS
from mil.classifier import SlideClassifier
from splits.errors import InputError

FAST = SlideClassifier(epochs=40, lr=1e-2, args={"hidden": 32, "attention_dim": 32})


def planted(n_bags: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Bags of noise of 1 to 12 tiles; in every second one a tile at a random place is shifted."""
    rng = np.random.default_rng(seed)
    bags = [rng.normal(size=(rng.integers(1, 13), 6)) for _ in range(n_bags)]
    y = np.arange(n_bags) % 2
    places = [int(rng.integers(len(bag))) for bag in bags]
    for bag, label, place in zip(bags, y, places, strict=True):
        bag[place, :3] += 4 * label
    return bags, y, places


# Every check passes, so there is nothing to expect to fail.
@parametrize_with_checks([FAST])
def test_the_checks_of_scikit_learn(estimator: SlideClassifier, check: Any) -> None:
    check(estimator)


def test_a_planted_tile_is_learned_and_found() -> None:
    bags, y, places = planted(120)
    held, truth, held_places = planted(80, seed=1)
    names = np.array(["benign", "malignant"])
    model = SlideClassifier().fit(bags, names[y])
    assert (model.predict(held) == names[truth]).mean() > 0.9
    assert roc_auc_score(truth, model.predict_proba(held)[:, 1]) > 0.95
    weights = model.attention(held)
    for bag, label, place, attention in zip(held, truth, held_places, weights, strict=True):
        assert attention.shape == (len(bag),)
        assert attention.sum() == pytest.approx(1)
        if label:
            assert attention.argmax() == place
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert places  # of the training bags: never shown to the model


def test_shuffled_labels_are_at_chance() -> None:
    bags, y, _ = planted(120)
    shuffled = np.random.default_rng(3).permutation(y)
    scores = cross_val_score(FAST, bags, shuffled, cv=6)
    assert abs(scores.mean() - 0.5) < 0.15


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_every_aggregator_fits_and_survives_a_pickle(name: str) -> None:
    bags, y, _ = planted(12)
    model = SlideClassifier(name, epochs=2).fit(bags, y)
    said = model.predict_proba(bags)
    np.testing.assert_allclose(said.sum(axis=1), 1)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(bags), said)
    weights = model.attention(bags)
    assert weights is None or [len(w) for w in weights] == [len(b) for b in bags]


def test_the_seed_alone_decides_and_the_generator_of_torch_is_left_alone() -> None:
    bags, y, _ = planted(30)
    small = clone(FAST).set_params(epochs=8, batch_tiles=40, args={"dropout": 0.3})
    torch.manual_seed(1)
    one = clone(small).fit(bags, y).predict_proba(bags)
    state = torch.get_rng_state()
    other = clone(small).fit(bags, y).predict_proba(bags)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(one, other)
    third = clone(small).set_params(seed=1).fit(bags, y).predict_proba(bags)
    assert not np.allclose(one, third)


def test_a_bag_says_the_same_in_any_company_and_batch() -> None:
    bags, y, _ = planted(30)
    model = clone(FAST).fit(bags, y)
    alone = np.concatenate([model.predict_proba([bag]) for bag in bags])
    np.testing.assert_allclose(model.predict_proba(bags), alone, rtol=0, atol=1e-12)
    model.set_params(batch_tiles=10)
    np.testing.assert_allclose(model.predict_proba(bags[::-1])[::-1], alone, rtol=0, atol=1e-12)


def test_bags_come_in_many_forms() -> None:
    rng = np.random.default_rng(0)
    block, y = rng.normal(size=(8, 5, 3)), [0, 1] * 4
    model = clone(FAST).set_params(epochs=2).fit(block, y)
    said = model.predict_proba(list(block))
    ragged = np.empty(8, dtype=object)
    ragged[:] = list(block)
    for same in (block, ragged, tuple(block), [b.tolist() for b in block], torch.tensor(block)):
        np.testing.assert_array_equal(model.predict_proba(same), said)


def test_settings_are_chosen_by_grid_search_within_a_pipeline() -> None:
    bags, y, _ = planted(40)
    double = FunctionTransformer(lambda given: [2 * bag for bag in given])
    search = GridSearchCV(
        make_pipeline(double, FAST), {"slideclassifier__epochs": [1, 40]}, cv=2, refit=True
    ).fit(bags, y)
    assert search.best_params_ == {"slideclassifier__epochs": 40}


def test_classes_of_few_bags_weigh_more_where_balanced() -> None:
    same = np.ones((50, 1, 3))  # nothing to learn but how frequent the classes are
    rare = np.arange(50) < 10
    for weight, share in [(None, 0.2), ("balanced", 0.5), ({False: 1, True: 2}, 1 / 3)]:
        model = clone(FAST).set_params(lr=0.1, epochs=80, class_weight=weight).fit(same, rare)
        assert model.predict_proba(same[:1])[0, 1] == pytest.approx(share, abs=0.02)


GOOD = np.ones((3, 2))


@pytest.mark.parametrize(
    ("bags", "y", "says"),
    [
        ([GOOD, np.ones((0, 2))], [0, 1], "bag 1 has no tiles"),
        ([GOOD, np.array([[1.0, np.nan]])], [0, 1], "bag 1 contains NaN or infinity, in tile 0"),
        ([GOOD, np.ones((3, 4))], [0, 1], "bag 1 has 4 features and bag 0 has 2"),
        ([GOOD, np.ones(2)], [0, 1], r"bag 1 has shape \(2,\)"),
        ([GOOD, np.array([["a", "b"]])], [0, 1], "bag 1 has shape"),
        ([GOOD, 1e300 * GOOD], [0, 1], "too large for dtype"),
        ([GOOD, GOOD], [0, 1, 1], "2 bags and 3 labels"),
        ([GOOD, GOOD], [1, 1], "one class"),
        ([GOOD, GOOD], None, "target y is None"),
        ([GOOD, GOOD], [0.5, 1.2], "Unknown label type"),
        ([], [], "no bags"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(bags: Any, y: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SlideClassifier().fit(bags, y)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"aggregator": "abmill"}, "did you mean 'abmil'"),
        ({"args": {"hiden": 3}}, "did you mean 'hidden'"),
        ({"instance_loss": {"k": 2}}, "no instance loss"),
        ({"epochs": 0}, "epochs is 0, allowed"),
        ({"lr": 0.0}, "lr is 0.0, allowed"),
        ({"warmup": 1.0}, "warmup is 1.0, allowed"),
        ({"batch_tiles": 0}, "batch_tiles is 0, allowed"),
        ({"lr": 1e30, "epochs": 5}, "diverged in epoch"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(settings: dict[str, Any], says: str) -> None:
    bags, y, _ = planted(6)
    with pytest.raises(InputError, match=says):
        SlideClassifier(**settings).fit(bags, y)


def test_other_features_than_in_training_are_refused() -> None:
    bags, y, _ = planted(6)
    model = clone(FAST).fit(bags, y)
    with pytest.raises(ValueError, match="X has 5 features, but SlideClassifier is expecting 6"):
        model.predict([bag[:, :5] for bag in bags])
