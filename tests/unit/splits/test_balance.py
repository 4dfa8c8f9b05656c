from __future__ import annotations

import itertools
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from splits import balance
from splits.errors import InputError


def _amounts(n_groups: int, seed: int) -> npt.NDArray[np.float64]:
    """Slides of four classes and heavy-tailed tiles of groups of which a third is mixed."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_groups, 4))
    counts[np.arange(n_groups), rng.choice(4, n_groups, p=[0.4, 0.3, 0.2, 0.1])] = 1
    mixed = np.flatnonzero(rng.random(n_groups) < 0.3)
    counts[mixed, rng.choice(4, len(mixed))] += 1
    tiles = counts.sum(axis=1) * np.exp(rng.normal(5, 1, n_groups))
    return np.column_stack([counts, tiles])


def _exhaustive(features: npt.NDArray[np.float64], shares: list[float]) -> float:
    """The optimum by trying every assignment without an empty part."""
    scaled = features / features.sum(axis=0)
    best = np.inf
    for part in itertools.product(range(len(shares)), repeat=len(features)):
        if len(set(part)) == len(shares):
            error = sum(
                ((scaled[np.array(part) == k].sum(axis=0) - share) ** 2).sum()
                for k, share in enumerate(shares)
            )
            best = min(best, float(error))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shares", [[0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.7, 0.15, 0.15]])
def test_small_tables_reach_the_optimum(seed: int, shares: list[float]) -> None:
    features = np.random.default_rng(seed).gamma(1.0, size=(8, 3))
    part = balance.assign(features, shares, seed=0)
    assert balance.cost(features, shares, part) <= _exhaustive(features, shares) * 1.01 + 1e-12


def test_cost_is_the_squared_error_of_the_shares() -> None:
    features = np.array([[2.0], [1.0], [1.0]])
    assert balance.cost(features, [0.5, 0.5], [0, 1, 1]) == pytest.approx(0)
    assert balance.cost(features, [1, 1], [0, 0, 1]) == pytest.approx(2 * 0.25**2)


@settings(max_examples=40, deadline=None)
@example(n_groups=11, n_parts=2, seed=2203)
@example(n_groups=38, n_parts=2, seed=48064)
@example(n_groups=16, n_parts=2, seed=186617)
@given(n_groups=st.integers(3, 40), n_parts=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_no_part_is_empty_and_random_is_never_better(
    n_groups: int, n_parts: int, seed: int
) -> None:
    n_parts = min(n_parts, n_groups)
    features = _amounts(n_groups, seed)
    part = balance.assign(features, np.ones(n_parts), seed=seed)
    assert set(part) == set(range(n_parts))
    assert _is_not_beaten(features, n_parts, part, seed)


def _is_not_beaten(
    features: npt.NDArray[np.float64], n_parts: int, part: npt.NDArray[np.int64], seed: int
) -> bool:
    """Whether none of 20 random deals is better."""
    rng = np.random.default_rng(seed)
    others = [rng.permutation(np.arange(len(part)) % n_parts) for _ in range(20)]
    best = min(balance.cost(features, np.ones(n_parts), other) for other in others)
    return balance.cost(features, np.ones(n_parts), part) <= best + 1e-9


@settings(max_examples=20, deadline=None)
@given(n_groups=st.integers(2, 7), n_parts=st.integers(2, 3), seed=st.integers(0, 10**6))
def test_few_groups_are_dealt_as_well_as_can_be(n_groups: int, n_parts: int, seed: int) -> None:
    n_parts = min(n_parts, n_groups)
    features = _amounts(n_groups, seed)
    pins = np.full(n_groups, -1)
    pins[0] = n_parts - 1
    part = balance.assign(features, np.arange(1, n_parts + 1), seed=seed, fixed=pins)
    assert part[0] == n_parts - 1
    costs = [
        balance.cost(features, np.arange(1, n_parts + 1), other)
        for other in itertools.product(range(n_parts), repeat=n_groups)
        if other[0] == n_parts - 1 and set(other) == set(range(n_parts))
    ]
    assert balance.cost(features, np.arange(1, n_parts + 1), part) <= min(costs) + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    n_parts=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_every_class_reaches_as_many_parts_as_it_has_groups(
    counts: list[int], n_parts: int, seed: int
) -> None:
    label = np.repeat(np.arange(len(counts)), counts)
    if len(label) < n_parts:
        return
    classes = np.eye(len(counts))[label]
    # Sizes pull against the classes, so that only the repair can bring them everywhere.
    sizes = np.random.default_rng(seed).pareto(1.0, (len(label), 1)) + 0.01
    part = balance.assign(sizes, np.ones(n_parts), seed=seed, classes=classes)
    for column, count in enumerate(counts):
        assert len(set(part[label == column])) == min(count, n_parts)


def test_mixed_groups_can_be_led_around() -> None:
    # Each class is in three groups; only {a, b}, {c, d}, ... one pairing serves all three parts.
    classes = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]])
    part = balance.assign(np.ones((6, 1)), np.ones(3), seed=0, classes=classes)
    assert all(set(part[classes[:, column] > 0]) == {0, 1, 2} for column in range(3))


def test_fixed_groups_stay() -> None:
    features = _amounts(30, 1)
    fixed = np.full(30, -1)
    fixed[[3, 8, 20]] = [2, 0, 2]
    part = balance.assign(features, np.ones(3), seed=0, fixed=fixed)
    assert part[[3, 8, 20]].tolist() == [2, 0, 2]


def test_same_seed_same_result_and_other_seed_other_search() -> None:
    features = _amounts(600, 0)
    first = balance.assign(features, np.ones(5), seed=1)
    assert np.array_equal(first, balance.assign(features, np.ones(5), seed=1))
    assert not np.array_equal(first, balance.assign(features, np.ones(5), seed=2))


def test_ten_thousand_groups() -> None:
    features = _amounts(10_000, 0)
    start = time.process_time()
    part = balance.assign(features, np.ones(5), seed=0, classes=features[:, :4])
    assert time.process_time() - start < 5  # 0.3 s where nothing else runs
    shares = np.stack([features[part == k].sum(axis=0) for k in range(5)]) / features.sum(axis=0)
    points = 100 * np.abs(shares - 0.2).max(axis=0)
    assert points[:4].max() <= 0.05
    assert points[4] <= 0.1


@pytest.mark.parametrize("bad", [np.array([[1.0], [-1.0]]), np.array([[1.0], [np.nan]])])
def test_bad_amounts_are_refused(bad: npt.NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="finite and not negative"):
        balance.assign(bad, [0.5, 0.5], seed=0)


def test_more_parts_than_groups_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 group\(s\) cannot fill 3 parts"):
        balance.assign(np.ones((2, 1)), np.ones(3), seed=0)
