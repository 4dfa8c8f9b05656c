from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splits.content.links import Links, components, compose, inverse, join, vector_turned
from splits.content.mosaic import Assembly, assemble
from splits.content.squares import in_squares

SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Grids:
    """Tiles at random places of their slides, each in a turn of its own."""

    slide: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int64]
    place: npt.NDArray[np.float32]

    def link(self, first: int, second: int, kind: str = "seam", score: float = 0.5) -> Links:
        """The true link of two tiles of one slide."""
        to_first = inverse(int(self.turn[first]))
        turn = compose(int(self.turn[second]), to_first)
        offset = vector_turned(self.place[second] - self.place[first], to_first)
        return Links.make(kind, [(first, second)], [score], [turn], [offset])

    def lay(self, first: int, second: int, step: tuple[float, float], score: float) -> Links:
        """A false seam that lays the second tile beside the first, wherever it belongs."""
        place = self.place.copy()
        place[second] = place[first] + np.array(step, np.float32)
        return Grids(self.slide, self.turn, place).link(first, second, score=score)

    def seams(self, random: np.random.Generator) -> Links:
        """All seams, with random scores and in a random order."""
        at = {
            (s, *p): i for i, (s, p) in enumerate(zip(self.slide, self.place.tolist(), strict=True))
        }
        found = [
            self.link(tile, at[slide, x + dx, y + dy], score=random.uniform(0.5, 1))
            for (slide, x, y), tile in at.items()
            for dx, dy in ((1, 0), (0, 1))
            if (slide, x + dx, y + dy) in at
        ]
        return join(found)[random.permutation(len(found))]

    def tile(self, slide: int, x: float, y: float) -> int:
        """The tile at a place."""
        return int(np.flatnonzero((self.slide == slide) & (self.place == (x, y)).all(axis=1))[0])


def grids(random: np.random.Generator, *shapes: tuple[int, int], kept: float = 1.0) -> Grids:
    rows = [
        (slide, x, y)
        for slide, (width, height) in enumerate(shapes)
        for x in range(width)
        for y in range(height)
        if random.random() < kept
    ]
    shuffled = np.array(rows, np.int64).reshape(-1, 3)[random.permutation(len(rows))]
    turns = random.integers(0, 8, len(rows))
    return Grids(shuffled[:, 0], turns, shuffled[:, 1:].astype(np.float32))


def false_seam(first: int, second: int, score: float = 1.0, turn: int = 0) -> Links:
    return Links.make("seam", [(first, second)], [score], [turn], [(1, 0)])


def check_placed(found: Assembly, truth: Grids) -> None:
    """Each frame equals the truth up to one turn and one shift."""
    for frame in np.unique(found.frame):
        tiles = np.flatnonzero(found.frame == frame)
        if len(tiles) == 1:
            assert found.turn[tiles[0]] == -1
            assert np.isnan(found.place[tiles[0]]).all()
            continue
        assert len(np.unique(truth.slide[tiles])) == 1
        assert found.turn[tiles[0]] == 0
        assert (found.place[tiles].min(axis=0) == 0).all()
        whole = compose(inverse(int(truth.turn[tiles[0]])), 0)
        for tile in tiles:
            assert found.turn[tile] == compose(int(truth.turn[tile]), whole)
            moved = vector_turned(truth.place[tile] - truth.place[tiles[0]], whole)
            np.testing.assert_allclose(found.place[tile] - found.place[tiles[0]], moved, atol=0.01)


def check_exclusive(found: Assembly) -> None:
    assert (found.used.astype(int) + found.held + found.cut == 1).all()
    assert all(found.component[found.frame == f].std() == 0 for f in np.unique(found.frame))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_full_grids_come_back_whole_in_any_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = [tuple(random.integers(2, 8, 2)) for _ in range(3)]
    truth = grids(random, *shapes)
    found = assemble(len(truth.slide), truth.seams(random))
    assert found.used.all()
    assert found.contradictions == []
    _, first = np.unique(truth.slide, return_index=True)
    np.testing.assert_array_equal(found.component, np.argsort(np.argsort(first))[truth.slide])
    check_placed(found, truth)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_grids_with_holes_are_placed_as_they_were(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = grids(random, (9, 9), (6, 12), (3, 3), kept=0.7)
    links = truth.seams(random)
    n = len(truth.slide)
    found = assemble(n, links)
    assert not found.cut.any()
    check_placed(found, truth)
    check_exclusive(found)
    sizes = np.bincount(found.component)
    ends = found.component[links.pairs[found.held]]
    assert (sizes[ends] > 1).all()
    assert (ends[:, 0] != ends[:, 1]).all()
    # With a second cue nothing is missing.
    both = assemble(n, links, agree=np.ones(len(links), np.bool_))
    assert both.used.all()
    np.testing.assert_array_equal(both.component, renumbered(components(n, links.pairs)))
    check_placed(both, truth)


def renumbered(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Labels in the order of their first appearance."""
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes]


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_false_seams_never_merge_slides_or_hide_their_true_seams(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = grids(random, (4, 4), (3, 5), (5, 3))
    true = truth.seams(random)
    # One false seam for each two slides, stronger than every true one.
    false = [
        false_seam(
            random.choice(np.flatnonzero(truth.slide == a)),
            random.choice(np.flatnonzero(truth.slide == b)),
            turn=int(random.integers(8)),
        )
        for a, b in ((0, 1), (1, 2))
    ]
    links = join([true, *false])
    found = assemble(len(truth.slide), links)
    np.testing.assert_array_equal(found.used, np.arange(len(links)) < len(true))
    np.testing.assert_array_equal(found.held, np.arange(len(links)) >= len(true))
    check_placed(found, truth)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_false_seams_within_a_slide_are_cut(seed: int, n_false: int) -> None:
    random = np.random.default_rng(seed)
    truth = grids(random, (6, 6))
    true = truth.seams(random)
    pairs = random.permutation(36)[: 2 * n_false].reshape(-1, 2)
    known = set(map(tuple, true.pairs.tolist()))
    false = [false_seam(a, b) for a, b in np.sort(pairs, axis=1).tolist() if (a, b) not in known]
    links = join([true, *false])
    found = assemble(36, links)
    np.testing.assert_array_equal(found.cut, np.arange(len(links)) >= len(true))
    assert sorted(c.link for c in found.contradictions) == np.flatnonzero(found.cut).tolist()
    assert {c.reason for c in found.contradictions} <= {"cycle"}
    assert [c.tiles for c in found.contradictions] == [
        tuple(links.pairs[c.link]) for c in found.contradictions
    ]
    check_placed(found, truth)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_true_seams_close_squares_and_false_ones_do_not(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = grids(random, (4, 3), (2, 5), (1, 6))
    true = truth.seams(random)
    on_a_line = truth.slide[true.pairs[:, 0]] == 2
    np.testing.assert_array_equal(in_squares(len(truth.slide), true), ~on_a_line)
    # A false seam at a free edge: the right side of the last column.
    end, other = truth.tile(0, 3, 1), truth.tile(1, 0, 2)
    false = truth.lay(end, other, (1, 0), 1.0)
    found = in_squares(len(truth.slide), join([true, false]))
    np.testing.assert_array_equal(found, [*~on_a_line, False])


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_the_order_of_the_links_does_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = grids(random, (6, 6), (6, 6), kept=0.6)
    n = len(truth.slide)
    ends = random.integers(0, n, (12, 2))
    false = [false_seam(a, b, 0.75, int(random.integers(8))) for a, b in ends if a != b]
    copies = [
        Links.make("duplicate", [(a, b)], [0.9]) for a, b in random.integers(0, n, (3, 2)) if a != b
    ]
    links = join([truth.seams(random), *false, *copies])
    agree = random.random(len(links)) < 0.3
    order = random.permutation(len(links))
    one = assemble(n, links, agree=agree)
    other = assemble(n, links[order], agree=agree[order])
    check_exclusive(one)
    for name in ("component", "frame", "turn", "place"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("used", "held", "cut"):
        np.testing.assert_array_equal(getattr(one, name)[order], getattr(other, name))


def test_where_seams_are_rare_each_needs_a_second_cue() -> None:
    random = np.random.default_rng(0)
    truth = grids(random, (1, 2), (1, 2), (2, 2))
    links = truth.seams(random)
    agree = truth.slide[links.pairs[:, 0]] == 0
    found = assemble(len(truth.slide), links, agree=agree, lone=False)
    # One pair looks alike, one does not, and the square confirms itself.
    held = truth.slide[links.pairs[:, 0]] == 1
    np.testing.assert_array_equal(found.held, held)
    np.testing.assert_array_equal(found.used, ~held)


def test_two_slides_need_two_seams_that_agree_or_one_that_looks_right() -> None:
    random = np.random.default_rng(0)
    truth = grids(random, (6, 3))
    left = truth.place[:, 0] < 3
    links = truth.seams(random)
    across = np.flatnonzero(left[links.pairs[:, 0]] != left[links.pairs[:, 1]])
    within = np.setdiff1d(np.arange(len(links)), across)
    one = links[np.append(within, across[0])]
    alone = assemble(18, one)
    assert alone.component.max() == 1
    assert np.flatnonzero(alone.held).tolist() == [len(within)]
    looks = np.arange(len(one)) == len(within)
    assert assemble(18, one, agree=looks).component.max() == 0
    assert assemble(18, links[np.append(within, across[:2])]).component.max() == 0
    # A second seam between the halves that lays them otherwise is no cue for the first.
    first, second = (int(t) for t in links.pairs[across[1]])
    other = join([one, false_seam(first, second, turn=int(links.turn[across[1]]) ^ 1)])
    apart = assemble(18, other)
    assert apart.component.max() == 1
    assert np.flatnonzero(apart.held).tolist() == [len(within), len(within) + 1]


def test_a_lone_tile_between_two_slides_belongs_to_the_stronger_and_merges_nothing() -> None:
    random = np.random.default_rng(1)
    truth = grids(random, (3, 3), (3, 3), (2, 1))
    lone, copy = truth.tile(2, 0, 0), truth.tile(2, 1, 0)
    weak, strong = truth.tile(0, 2, 2), truth.tile(1, 2, 0)
    seams = truth.seams(random)
    seams = seams[(seams.pairs != copy).all(axis=1)]
    to_weak = truth.lay(weak, lone, (1, 0), 0.6)
    found = assemble(20, join([seams, to_weak, truth.lay(strong, lone, (1, 0), 0.7)]))
    assert found.component[lone] == found.component[strong] != found.component[weak]
    assert np.flatnonzero(found.held).tolist() == [len(seams)]
    # A copy of the lone tile whose geometry is not known does not bridge them either.
    tie = Links.make("duplicate", [(lone, copy)], [1.0])
    again = assemble(20, join([seams, to_weak, truth.lay(strong, copy, (1, 0), 0.7), tie]))
    assert again.component[lone] == again.component[copy] == again.component[strong]
    assert again.component[strong] != again.component[weak]


def test_two_strips_grow_tile_by_tile_and_one_seam_does_not_join_them() -> None:
    random = np.random.default_rng(2)
    truth = grids(random, (6, 1), (1, 5))
    strips = truth.seams(random)
    # From the strongest seam of each strip outwards the scores fall: each grows by single tiles.
    far = np.abs(truth.place[strips.pairs].mean(axis=1)).sum(axis=1)
    strips = Links(strips.pairs, strips.kind, 1 - far / 10, strips.turn, strips.offset)
    false = truth.lay(truth.tile(0, 2, 0), truth.tile(1, 0, 2), (0, 1), 0.3)
    found = assemble(11, join([strips, false]))
    np.testing.assert_array_equal(found.component, renumbered(truth.slide))
    assert np.flatnonzero(found.held).tolist() == [len(strips)]
    # By a chain of single tiles they are not joined either, whichever of its seams are stronger.
    chain = grids(random, (9, 2))
    keep = (chain.place[:, 1] == 0) | (np.abs(chain.place[:, 0] - 4) > 2)
    chain = Grids(chain.slide[keep], chain.turn[keep], chain.place[keep])
    for _ in range(10):
        alone = assemble(len(chain.slide), chain.seams(random))
        assert alone.held.any()
        assert alone.component[chain.tile(0, 0, 0)] != alone.component[chain.tile(0, 8, 0)]


def test_copies_share_a_place_and_are_not_several_tiles() -> None:
    random = np.random.default_rng(3)
    truth = grids(random, (3, 3), (3, 3))
    edge, other = truth.tile(0, 2, 1), truth.tile(1, 0, 1)
    copied = Grids(
        np.append(truth.slide, [0, 0]),
        np.append(truth.turn, [5, 2]),
        np.concatenate([truth.place, truth.place[[edge] * 2]]),
    )
    stack = join([truth.seams(random), *(copied.link(edge, i, "turned") for i in (18, 19))])
    found = assemble(20, stack)
    check_placed(found, copied)
    assert (found.place[[18, 19]] == found.place[edge]).all()
    # The same false seam seen from a tile and from its copies is one cue.
    false = [copied.lay(i, other, (1, 0), 0.9) for i in (edge, 18, 19)]
    thrice = assemble(20, join([stack, *false]))
    assert thrice.component[edge] != thrice.component[other]
    assert np.flatnonzero(thrice.held).tolist() == [len(stack) + i for i in range(3)]
    # A tile and its copy, tied to nothing else, grow onto a slide by one seam.
    pair = [copied.link(18, 19, "turned"), copied.lay(edge, 18, (1, 0), 0.9)]
    grown = assemble(20, join([truth.seams(random), *pair]))
    assert grown.used.all()
    assert (grown.place[18] == grown.place[19]).all()


def test_two_tiles_never_share_a_place() -> None:
    random = np.random.default_rng(4)
    truth = grids(random, (3, 3), (1, 1))
    corner, beside, intruder = truth.tile(0, 2, 2), truth.tile(0, 1, 2), truth.tile(1, 0, 0)
    false = truth.lay(beside, intruder, (1, 0), 0.1)
    links = truth.seams(random)
    found = assemble(10, join([links, false]))
    assert np.flatnonzero(found.cut).tolist() == [len(links)]
    (clash,) = found.contradictions
    assert (clash.link, clash.reason) == (len(links), "collision")
    assert clash.tiles == (min(corner, intruder), max(corner, intruder))
    assert found.component[intruder] != found.component[corner]
    # An overlap is sure that the tissue is one: it ties the tile, as a frame of its own.
    overlaps = [
        truth.link(beside, corner, "overlap", 0.9),
        Links.make("overlap", false.pairs, false.score, false.turn, false.offset),
    ]
    kept = assemble(10, join([links, *overlaps]))
    assert kept.used.all()
    assert kept.component[intruder] == kept.component[corner]
    assert kept.frame[intruder] != kept.frame[corner]
    assert [found.reason for found in kept.contradictions] == ["collision"]


def test_overlaps_are_placed_between_the_lattice_points_and_may_be_inexact() -> None:
    place = np.array([(0, 0), (0.5, 0), (1, 0), (1, 0.75), (1.5, 0)], np.float32)
    truth = Grids(np.zeros(5, np.int64), np.arange(5), place)
    pairs = [(0, 1), (1, 2), (2, 3), (2, 4), (1, 4)]
    exact = join([*(truth.link(a, b, "overlap") for a, b in pairs), truth.link(0, 2)])
    found = assemble(5, exact)
    assert found.used.all()
    check_placed(found, truth)
    noisy = Links(exact.pairs, exact.kind, exact.score, exact.turn, exact.offset + 0.01)
    assert assemble(5, noisy).used.all()
    wrong = join([exact, Links.make("overlap", [(3, 4)], [0.1], [0], [(0.5, 0.5)])])
    assert np.flatnonzero(assemble(5, wrong).cut).tolist() == [len(exact)]


def test_a_copy_without_geometry_ties_two_frames_into_one_component() -> None:
    random = np.random.default_rng(5)
    truth = grids(random, (2, 3), (3, 2))
    link = Links.make("duplicate", [(truth.tile(0, 0, 0), truth.tile(1, 0, 0))], [0.8])
    tied = join([truth.seams(random), link])
    found = assemble(12, tied)
    assert found.component.max() == 0
    np.testing.assert_array_equal(found.frame, renumbered(truth.slide))
    check_placed(found, truth)
    # The copy is a cue beside a seam between the two: it puts them onto one lattice.
    seam = truth.lay(truth.tile(0, 1, 1), truth.tile(1, 0, 1), (1, 0), 0.6)
    both = assemble(12, join([tied, seam]))
    assert both.used.all()
    assert both.frame.max() == 0


@pytest.mark.parametrize("n_tiles", [0, 1, 4])
def test_tiles_without_links_stay_alone(n_tiles: int) -> None:
    found = assemble(n_tiles, join([]))
    assert found.component.tolist() == found.frame.tolist() == list(range(n_tiles))
    assert (found.turn == -1).all()
    assert np.isnan(found.place).all()
    assert len(found.used) == 0
