from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.aggregators import AGGREGATORS
from mil.aggregators.voting import VOTES, Votes, check_vote, mean_probability, plurality_vote
from mil.predictions import UNTRAINED
from splits.errors import InputError

# Eighths are exact in floating point, so that ties are common and decided without rounding.
EIGHTHS = st.lists(st.integers(0, 8), min_size=2, max_size=2).map(
    lambda cuts: (min(cuts), max(cuts) - min(cuts), 8 - max(cuts))
)
COHORTS = st.lists(st.lists(EIGHTHS, min_size=1, max_size=6), min_size=1, max_size=5)


Bag = list[tuple[int, ...]]


def pack(bags: list[Bag]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, bags)])
    return np.array([tile for bag in bags for tile in bag]) / 8, offsets


Shares = list[Fraction]
RULES = {
    "vote": {},
    "weighted_vote": {},
    "quality_vote": {},
    "mean_probability": {},
    "top_k_mean": {"k": 2},
    "max_probability": {},
    "noisy_or": {},
}
ARGS = [{}, {"abstain_below": 0.625}]
QUALITY = (0, 4, 2, 1, 0, 3)  # quarters, of the tiles of a bag


def quality_of(bags: list[Bag]) -> np.ndarray:
    return np.array([QUALITY[(i + j) % 6] / 4 for i, b in enumerate(bags) for j in range(len(b))])


def call(name: str, tiles: np.ndarray, offsets: np.ndarray, **args: object) -> Votes:
    """A rule, with the quality that only one of them reads."""
    if name != "quality_vote":
        args.pop("quality", None)
    else:
        args.setdefault("quality", np.linspace(0, 1, len(tiles)))
    return VOTES.create(name, probabilities=tiles, offsets=offsets, **RULES[name], **args)


def by_hand(name: str, bag: Bag, quality: list[int], abstain_below: float) -> tuple[Shares, Shares]:
    """One bag, in exact arithmetic: what is counted for each class, and the means of ties."""
    tiles = [
        ([Fraction(p, 8) for p in tile], Fraction(q, 4))
        for tile, q in zip(bag, quality, strict=True)
    ]
    if name == "quality_vote":
        tiles = [t for t in tiles if t[1] > 0] or [(p, Fraction(1)) for p, _ in tiles]
    tiles = [t for t in tiles if max(t[0]) >= abstain_below] or tiles
    columns = list(zip(*(p for p, _ in tiles), strict=True))
    mean = [sum(column) / len(tiles) for column in columns]
    votes = [max(range(3), key=lambda k: (p[k], -k)) for p, _ in tiles]
    confidence = [(3 * max(p) - 1) / 2 for p, _ in tiles]
    weights = {
        "vote": [Fraction(1)] * len(tiles),
        "weighted_vote": confidence if any(confidence) else [Fraction(1)] * len(tiles),
        "quality_vote": [q for _, q in tiles],
    }
    if name in weights:
        counted = [
            sum((w for w, v in zip(weights[name], votes, strict=True) if v == k), Fraction(0))
            for k in range(3)
        ]
    elif name == "noisy_or":
        counted = [1 - math.prod(1 - p for p in column) for column in columns]
    else:
        k = {"top_k_mean": 2, "max_probability": 1}.get(name, len(tiles))
        counted = [sum(sorted(column)[-k:]) / min(k, len(tiles)) for column in columns]
    return counted, mean


def test_every_rule_has_a_reference_and_a_name_of_its_own() -> None:
    assert set(RULES) == set(VOTES) == set(UNTRAINED)
    assert not set(VOTES) & set(AGGREGATORS)


@pytest.mark.parametrize("args", ARGS, ids=["all tiles", "some abstain"])
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(bags=COHORTS)
def test_rules_equal_exact_arithmetic_bag_by_bag(
    name: str, args: dict[str, float], bags: list[Bag]
) -> None:
    tiles, offsets = pack(bags)
    quality = quality_of(bags)
    said = call(name, tiles, offsets, quality=quality, **args)
    for i, bag in enumerate(bags):
        own = [round(4 * q) for q in quality[offsets[i] : offsets[i + 1]]]
        counted, mean = by_hand(name, bag, own, args.get("abstain_below", 0.0))
        share = [float(c / sum(counted)) for c in counted]
        np.testing.assert_allclose(said.probabilities[i], share, atol=1e-14)
        # Products of a noisy-or are logarithms in the code: only equal tiles tie there exactly.
        if name != "noisy_or" or sorted(counted)[-1] - sorted(counted)[-2] > Fraction(1, 10**6):
            assert said.predicted[i] == max(range(3), key=lambda k: (counted[k], mean[k], -k))


@pytest.mark.parametrize("args", ARGS, ids=["all tiles", "some abstain"])
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300))
def test_the_order_of_tiles_changes_not_one_bit(
    name: str, args: dict[str, float], seed: int, n_tiles: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles, quality = rng.dirichlet(np.ones(4), size=n_tiles), rng.random(n_tiles)
    offsets, order = np.array([0, n_tiles]), rng.permutation(n_tiles)
    one = call(name, tiles, offsets, quality=quality, **args)
    other = call(name, tiles[order], offsets, quality=quality[order], **args)
    np.testing.assert_array_equal(one.predicted, other.predicted)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("args", ARGS, ids=["all tiles", "some abstain"])
@pytest.mark.parametrize("name", RULES)
def test_a_bag_does_not_depend_on_its_neighbours(name: str, args: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    tiles = rng.dirichlet(np.ones(3), size=30).astype(np.float32)
    quality = rng.random(30).round()
    offsets = np.array([0, 1, 12, 30])
    packed = call(name, tiles, offsets, quality=quality, **args)
    for i in range(3):
        cut = slice(offsets[i], offsets[i + 1])
        own = np.array([0, cut.stop - cut.start])
        alone = call(name, tiles[cut], own, quality=quality[cut], **args)
        assert packed.predicted[i] == alone.predicted[0]
        np.testing.assert_array_equal(packed.probabilities[i], alone.probabilities[0])
    np.testing.assert_allclose(packed.probabilities.sum(axis=1), 1)
    assert packed.predicted.dtype == np.int64


def test_blank_tiles_do_not_vote_unless_all_are_blank() -> None:
    tiles = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    quality, offsets = np.array([0.0, 0.0, 0.5, 0.0, 0.0]), np.array([0, 3, 5])
    said = call("quality_vote", tiles, offsets, quality=quality)
    assert said.probabilities.tolist() == [[0, 1], [0.5, 0.5]]
    assert said.predicted.tolist() == [1, 0]  # of two blank tiles the means are 0.6 and 0.4
    assert said.all_counted is not None
    assert said.all_counted.tolist() == [False, True]
    with pytest.raises(InputError, match="quality is a number from 0 to 1"):
        call("quality_vote", tiles, offsets, quality=quality + 1)


def test_abstaining_tiles_are_absent_unless_all_abstain() -> None:
    tiles = np.array([[0.55, 0.45], [0.55, 0.45], [0.1, 0.9], [0.6, 0.4], [0.45, 0.55]])
    said = call("vote", tiles, np.array([0, 3, 5]), abstain_below=0.7)
    assert said.probabilities.tolist() == [[0, 1], [0.5, 0.5]]
    assert said.all_counted is not None
    assert said.all_counted.tolist() == [False, True]


def test_noisy_or_still_tells_classes_apart_where_all_probabilities_are_one() -> None:
    tiles = np.tile([[0.3, 0.45, 0.25]], (2000, 1))
    said = call("noisy_or", tiles, np.array([0, 2000]))
    assert said.probabilities[0].tolist() == [1 / 3] * 3
    assert said.predicted.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("votes", {}, "unknown vote 'votes'; did you mean 'vote'"),
        ("vote", {"k": 3}, "unknown argument of vote 'vote' 'k'"),
        ("vote", {"abstain_below": 1.5}, "abstain_below is 1.5"),
        ("top_k_mean", {"k": 0}, "k is 0"),
        ("top_k_mean", {"k": 2.5}, "k is 2.5"),
        ("quality_vote", {"quality": [1]}, "comes from the tiles"),
    ],
)
def test_wrong_settings_are_refused(name: str, args: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_vote(name, **args)


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


@pytest.mark.parametrize("name", RULES)
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
    name: str, tiles: list[list[float]], offsets: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        call(name, np.array(tiles), np.array(offsets))
