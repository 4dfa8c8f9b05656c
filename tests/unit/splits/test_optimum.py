"""The bound of the exact solver against all assignments, and the search against the bound."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from splits import balance, optimum


def _features(n_groups: int, seed: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    classes = np.eye(3)[rng.integers(0, 3, n_groups)] * rng.integers(1, 4, (n_groups, 1))
    return np.column_stack([classes, np.exp(rng.normal(4, 1, n_groups))])


def _least(features: npt.NDArray[np.float64], n_parts: int) -> float:
    classes = features[:, :3] > 0
    wanted = [min(n_parts, int(held.sum())) for held in classes.T]
    best = np.inf
    for deal in itertools.product(range(n_parts), repeat=len(features)):
        part = np.array(deal)
        reached = [len(set(part[held])) for held in classes.T]
        if len(set(deal)) == n_parts and reached == wanted:
            best = min(best, balance.cost(features, np.ones(n_parts), part))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_groups", "n_parts"), [(7, 3), (9, 2)])
def test_the_bound_is_below_and_the_result_at_the_best_of_all(
    seed: int, n_groups: int, n_parts: int
) -> None:
    features = _features(n_groups, seed)
    known = optimum.best(features, np.ones(n_parts), classes=features[:, :3])
    least = _least(features, n_parts)
    assert known.bound <= least + 1e-9
    assert known.cost == pytest.approx(balance.cost(features, np.ones(n_parts), known.part))
    assert known.cost <= least * (1 + optimum.CLOSE) + optimum.NEGLIGIBLE


def test_the_search_is_within_a_hundredth_of_what_is_proved() -> None:
    n_proved = 0
    for seed in range(4):
        features = _features(20, seed)
        known = optimum.best(features, np.ones(3), classes=features[:, :3])
        part = balance.assign(features, np.ones(3), seed=1, classes=features[:, :3])
        found = balance.cost(features, np.ones(3), part)
        assert found <= known.enough
        if known.proved:
            n_proved += 1
            assert found <= max(known.bound * (1 + optimum.CLOSE) ** 2, optimum.NEGLIGIBLE)
    assert n_proved >= 2


def test_unequal_shares_are_bounded_too() -> None:
    features, shares = _features(7, 0), np.array([0.7, 0.15, 0.15])
    known = optimum.best(features, shares)
    costs = [
        balance.cost(features, shares, deal)
        for deal in itertools.product(range(3), repeat=7)
        if len(set(deal)) == 3
    ]
    assert known.bound <= min(costs) + 1e-9
    assert known.cost <= min(costs) * (1 + optimum.CLOSE) + optimum.NEGLIGIBLE


def test_without_rounds_nothing_is_claimed() -> None:
    known = optimum.best(_features(12, 0), np.ones(3), rounds=0)
    assert known.bound == 0
    assert not known.proved
