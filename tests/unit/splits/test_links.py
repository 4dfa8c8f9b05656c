import numpy as np
import pytest

from splits.content.links import Links, compose, inverse, join, turned, vector_turned
from splits.content.nearest import _index, nearest

TURNS = range(8)
PICTURE = np.arange(12).reshape(3, 4)


@pytest.mark.parametrize("first", TURNS)
@pytest.mark.parametrize("second", TURNS)
def test_composed_turns_equal_one_after_the_other(first: int, second: int) -> None:
    step_by_step = turned(turned(PICTURE, first), second)
    np.testing.assert_array_equal(turned(PICTURE, compose(first, second)), step_by_step)


@pytest.mark.parametrize("turn", TURNS)
def test_the_inverse_undoes_a_turn(turn: int) -> None:
    np.testing.assert_array_equal(turned(turned(PICTURE, turn), inverse(turn)), PICTURE)


@pytest.mark.parametrize("turn", TURNS)
def test_a_vector_turns_with_the_picture(turn: int) -> None:
    marked = np.zeros((5, 5))
    marked[2, 2 + 1] = 1  # one step right of the centre
    marked[2 + 2, 2] = 2  # two steps down
    after = turned(marked, turn)
    for value, vector in ((1, (1, 0)), (2, (0, 2))):
        row, column = np.argwhere(after == value)[0] - 2
        moved = vector_turned(np.array(vector, np.float32), turn)
        assert tuple(moved) == (column, row)


@pytest.mark.parametrize("turn", TURNS)
def test_a_pair_in_either_order_is_one_link(turn: int) -> None:
    # Tile 3 is tile 1 turned and moved; seen from tile 3, tile 1 is turned and moved back.
    offset = np.array([1.0, 0.25], np.float32)
    link = Links.make("seam", [(1, 3)], [0.9], [turn], [offset])
    back = inverse(turn)
    other = Links.make("seam", [(3, 1)], [0.9], [back], [-vector_turned(offset, back)])
    for name in ("pairs", "turn"):
        np.testing.assert_array_equal(getattr(link, name), getattr(other, name))
    np.testing.assert_allclose(link.offset, other.offset)


def test_links_of_several_searches_are_joined_and_chosen() -> None:
    parts = [Links.make("seam", [(0, 1)], [0.5]), Links.make("duplicate", [(4, 2)], [0.7])]
    both = join(parts)
    assert len(both) == 2
    assert both[both.score > 0.6].pairs.tolist() == [[2, 4]]
    assert len(join([])) == 0


def test_the_nearest_are_those_of_a_full_search() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3000, 8)).astype(np.float32)
    queries = vectors[:2500] + 0.01
    rows, distances = nearest(vectors, queries, 3)
    full = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(rows, np.argsort(full, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :3], atol=1e-4)


def test_the_approximate_index_finds_nearly_all_of_them() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(5000, 16)).astype(np.float32)
    exact, _ = nearest(vectors, vectors, 5)
    found, distances = _index(vectors, vectors, 5)
    assert (found[:, 0] == np.arange(5000)).mean() > 0.99
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, found, strict=True)]) > 0.95
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("n", [1, 5, 6, 383, 385, 1000])
def test_the_nearest_of_few_vectors(n: int) -> None:
    random = np.random.default_rng(n)
    vectors = random.normal(size=(n, 4)).astype(np.float32)
    queries = random.normal(size=(40, 4)).astype(np.float32)
    rows, _ = nearest(vectors, queries, 6)
    full = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(rows, np.argsort(full, axis=1)[:, :6])


def test_the_approximate_index_repeats_itself() -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
    for one, two in zip(_index(vectors, vectors, 5), _index(vectors, vectors, 5), strict=True):
        np.testing.assert_array_equal(one, two)


def test_nothing_is_near_in_an_empty_set() -> None:
    rows, distances = nearest(np.empty((0, 4), np.float32), np.ones((2, 4), np.float32), 5)
    assert rows.shape == distances.shape == (2, 0)
