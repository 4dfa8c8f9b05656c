from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_score

from splits.errors import InputError
from splits.splitter import BalancedGroupKFold

Cohort = tuple[np.ndarray, np.ndarray, np.ndarray]


def cohort(seed: int, n_groups: int = 60) -> Cohort:
    """Features, classes and groups of heavy-tailed size, in random order."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.zipf(1.7, n_groups), 40)
    group = np.repeat(np.arange(n_groups), sizes)
    label = np.repeat(rng.integers(0, 3, n_groups), sizes)
    order = rng.permutation(len(group))
    x = rng.normal(size=(len(group), 4)) + label[:, None]
    names = np.array([f"p{number:03d}" for number in group])
    return x[order], label[order], names[order]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n_splits=st.integers(2, 6))
def test_every_sample_is_tested_once_and_no_group_is_cut(seed: int, n_splits: int) -> None:
    x, y, groups = cohort(seed)
    splitter = BalancedGroupKFold(n_splits)
    folds = list(splitter.split(x, y, groups))
    assert len(folds) == splitter.get_n_splits(x, y, groups) == n_splits
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(x)))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == len(x)


def test_the_order_of_the_samples_does_not_matter() -> None:
    x, y, groups = cohort(3)
    order = np.random.default_rng(0).permutation(len(x))
    one = [set(groups[test]) for _, test in BalancedGroupKFold(4).split(x, y, groups)]
    other = [
        set(groups[order][test])
        for _, test in BalancedGroupKFold(4).split(x[order], y[order], groups[order])
    ]
    assert one == other


def imbalance(splitter: object, data: Cohort) -> float:
    """Squared distance of the classes and the size of all folds from an even deal."""
    x, y, groups = data
    total = 0.0
    for _, test in splitter.split(x, y, groups):  # type: ignore[attr-defined]
        classes = np.bincount(y[test], minlength=3) / np.bincount(y, minlength=3)
        total += ((np.append(classes, len(test) / len(y)) - 1 / 5) ** 2).sum()
    return total


def test_classes_and_size_together_are_dealt_more_evenly_than_by_scikit_learn() -> None:
    gains = np.array(
        [
            imbalance(StratifiedGroupKFold(5), data) - imbalance(BalancedGroupKFold(5), data)
            for data in map(cohort, range(20))
        ]
    )
    assert gains.min() >= -1e-12
    assert (gains > 1e-12).mean() >= 0.8  # of the others, both found the best there is


def test_it_works_in_scikit_learn() -> None:
    x, y, groups = cohort(1)
    model = LogisticRegression()
    scores = cross_val_score(model, x, y, groups=groups, cv=BalancedGroupKFold(4))
    assert scores.shape == (4,)
    assert scores.mean() > 0.6
    search = GridSearchCV(model, {"C": [0.1, 1.0]}, cv=BalancedGroupKFold(3))
    assert search.fit(x, y, groups=groups).best_score_ > 0.6


def test_what_cannot_be_split_is_refused() -> None:
    x, y, groups = cohort(0)
    with pytest.raises(InputError, match="groups are needed"):
        next(BalancedGroupKFold(3).split(x, y))
    with pytest.raises(InputError, match="3 values for"):
        next(BalancedGroupKFold(3).split(x, y, groups[:3]))
    with pytest.raises(InputError, match="1 of"):
        next(BalancedGroupKFold(3).split(x, y, [None, *groups[1:]]))
    with pytest.raises(InputError, match="cannot fill 5 parts"):
        next(BalancedGroupKFold(5).split(x[:4], y[:4], list("aabb")))
    with pytest.raises(InputError, match="at least 2"):
        BalancedGroupKFold(1)
