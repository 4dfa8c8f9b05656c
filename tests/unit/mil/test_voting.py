from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.aggregators.voting import Votes, mean_probability, plurality_vote
from splits.errors import InputError

# Eighths are exact in floating point, so that ties are common and decided without rounding.
EIGHTHS = st.lists(st.integers(0, 8), min_size=2, max_size=2).map(
    lambda cuts: (min(cuts), max(cuts) - min(cuts), 8 - max(cuts))
)
COHORTS = st.lists(st.lists(EIGHTHS, min_size=1, max_size=6), min_size=1, max_size=5)


def pack(bags: list[list[tuple[int, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, bags)])
    return np.array([tile for bag in bags for tile in bag]) / 8, offsets


def by_hand(bag: list[tuple[int, ...]]) -> tuple[int, list[Fraction], int, list[Fraction]]:
    """One bag, in exact arithmetic: winner and shares of the vote, then of the mean."""
    classes = range(3)
    votes = Counter(max(classes, key=lambda k: (tile[k], -k)) for tile in bag)
    share = [Fraction(votes[k], len(bag)) for k in classes]
    mean = [Fraction(sum(tile[k] for tile in bag), 8 * len(bag)) for k in classes]
    vote_winner = max(classes, key=lambda k: (votes[k], mean[k], -k))
    return vote_winner, share, max(classes, key=lambda k: (mean[k], -k)), mean


@settings(max_examples=150, deadline=None)
@given(COHORTS)
def test_both_rules_equal_exact_arithmetic_bag_by_bag(bags: list[list[tuple[int, ...]]]) -> None:
    vote, mean = plurality_vote(*pack(bags)), mean_probability(*pack(bags))
    for i, bag in enumerate(bags):
        vote_winner, share, mean_winner, mean_share = by_hand(bag)
        assert vote.predicted[i] == vote_winner
        np.testing.assert_allclose(vote.probabilities[i], [float(p) for p in share], atol=1e-15)
        np.testing.assert_allclose(
            mean.probabilities[i], [float(p) for p in mean_share], atol=1e-15
        )
        # Means such as 1/3 are rounded, so a winner is only checked where it is clear.
        if sorted(mean_share)[-1] - sorted(mean_share)[-2] > Fraction(1, 1000):
            assert mean.predicted[i] == mean_winner


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_the_order_of_tiles_changes_not_one_bit(seed: int, n_tiles: int) -> None:
    rng = np.random.default_rng(seed)
    tiles = rng.dirichlet(np.ones(4), size=n_tiles)
    offsets = np.array([0, n_tiles])
    for rule in (plurality_vote, mean_probability):
        one, other = rule(tiles, offsets), rule(tiles[rng.permutation(n_tiles)], offsets)
        np.testing.assert_array_equal(one.predicted, other.predicted)
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("rule", [plurality_vote, mean_probability])
def test_a_bag_does_not_depend_on_its_neighbours(rule: object) -> None:
    rng = np.random.default_rng(3)
    tiles = rng.dirichlet(np.ones(3), size=30).astype(np.float32)
    offsets = np.array([0, 1, 12, 30])
    packed: Votes = rule(tiles, offsets)  # type: ignore[operator]
    for i in range(3):
        part = tiles[offsets[i] : offsets[i + 1]]
        alone: Votes = rule(part, np.array([0, len(part)]))  # type: ignore[operator]
        assert packed.predicted[i] == alone.predicted[0]
        np.testing.assert_array_equal(packed.probabilities[i], alone.probabilities[0])
    np.testing.assert_allclose(packed.probabilities.sum(axis=1), 1)
    assert packed.predicted.dtype == np.int64


def test_a_tie_of_votes_goes_to_the_higher_mean_then_to_the_lower_class() -> None:
    sure_of_1 = np.array([[0.6, 0.4], [0.1, 0.9]])
    vote = plurality_vote(sure_of_1, np.array([0, 2]))
    assert vote.probabilities.tolist() == [[0.5, 0.5]]
    assert vote.predicted.tolist() == [1]
    even = np.array([[0.25, 0.75], [0.75, 0.25]])
    assert plurality_vote(even, np.array([0, 2])).predicted.tolist() == [0]
    # A class without a vote does not win on its mean.
    third = np.array([[0.55, 0.0, 0.45], [0.0, 0.55, 0.45]])
    vote = plurality_vote(third, np.array([0, 2]))
    assert vote.predicted.tolist() == [0]
    assert mean_probability(third, np.array([0, 2])).predicted.tolist() == [2]


def test_vote_and_mean_disagree_where_a_minority_is_sure() -> None:
    tiles = np.array([[0.51, 0.49], [0.51, 0.49], [0.0, 1.0]])
    assert plurality_vote(tiles, np.array([0, 3])).predicted.tolist() == [0]
    assert mean_probability(tiles, np.array([0, 3])).predicted.tolist() == [1]


def test_float16_probabilities_pass_and_the_mean_still_sums_to_one() -> None:
    tiles = np.random.default_rng(0).dirichlet(np.ones(30), size=500).astype(np.float16)
    mean = mean_probability(tiles, np.array([0, 200, 500]))
    assert all(math.isclose(total, 1) for total in mean.probabilities.sum(axis=1))


@pytest.mark.parametrize("rule", [plurality_vote, mean_probability])
@pytest.mark.parametrize(
    ("tiles", "offsets", "words"),
    [
        ([[0.5, 0.5]], [0, 1, 1], "at least one tile"),
        ([[0.5, 0.5]], [0, 2], "number of tiles, 1"),
        ([[0.5, 0.5]], [0], "number of tiles, 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [1, 2], "from 0"),
        ([[0.5, 0.6]], [0, 1], "tile 0"),
        ([[0.5, 0.5], [-0.5, 1.5]], [0, 2], "tile 1"),
        ([[0.5, 0.5], [np.nan, 1.0]], [0, 2], "tile 1"),
        ([[1.0], [1.0]], [0, 2], "2 classes"),
        ([0.5, 0.5], [0, 2], "n_tiles, n_classes"),
    ],
)
def test_what_is_no_vote_is_refused(
    rule: object, tiles: list[list[float]], offsets: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        rule(np.array(tiles), np.array(offsets))  # type: ignore[operator]
