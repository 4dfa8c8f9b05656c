import numpy as np
import pytest

from splits.content.gaps import gap_share
from splits.content.links import Links, compose, inverse, vector_turned
from splits.content.mosaic import Assembly, assemble


def grid(
    places: list[tuple[int, int]], turns: list[int] | None = None
) -> tuple[Assembly, dict[tuple[int, int], int]]:
    """Tiles on a lattice, each perhaps turned, with all their seams."""
    own = turns or [0] * len(places)
    row = {place: number for number, place in enumerate(places)}
    pairs, turn, offset = [], [], []
    for (x, y), first in row.items():
        for step in ((1, 0), (0, 1)):
            second = row.get((x + step[0], y + step[1]))
            if second is not None:
                # Turns bring a tile into the lattice; the link sees the second from the first.
                back = inverse(own[first])
                pairs.append((first, second))
                turn.append(compose(own[second], back))
                offset.append(vector_turned(np.array(step, np.float32), back))
    links = Links.make("seam", pairs, np.full(len(pairs), 0.9), turn, offset)
    return assemble(len(places), links), row


FULL = [(x, y) for x in range(5) for y in range(4)]


@pytest.mark.parametrize("n_turns", [1, 8])
def test_a_full_rectangle_has_no_gap_and_a_hole_has_four_sides(n_turns: int) -> None:
    def turns(n: int) -> list[int]:
        return np.random.default_rng(1).integers(0, n_turns, n).tolist()

    tissue = np.ones((20, 4), bool)
    assert gap_share(grid(FULL, turns(20))[0], tissue) == 0
    holed = [place for place in FULL if place != (2, 1)]
    # 2 x 31 edges look inwards in the full grid; four of those of the hole are gone.
    assert gap_share(grid(holed, turns(19))[0], tissue[:19]) == pytest.approx(4 / 58)


def test_tissue_that_ends_in_glass_is_no_gap() -> None:
    holed = [place for place in FULL if place != (2, 1)]
    assembly, row = grid(holed)
    tissue = np.ones((19, 4), bool)
    for place, side in (((2, 0), 2), ((3, 1), 3), ((2, 2), 0), ((1, 1), 1)):
        tissue[row[place], side] = False
    assert gap_share(assembly, tissue) == 0


def test_the_side_that_counts_turns_with_the_tile() -> None:
    holed = [place for place in FULL if place != (2, 1)]
    turns = [0] * 19
    turns[holed.index((2, 0))] = 1
    assembly, row = grid(holed, turns)
    tissue = np.ones((19, 4), bool)
    tissue[row[(2, 0)], 1] = False
    whole = gap_share(grid(holed)[0], np.ones((19, 4), bool))
    # The edge without tissue, at the right of the stored tile, lies at the top of the lattice
    # after a quarter turn: on the outline, where nothing was missing anyway.
    assert gap_share(assembly, tissue) == pytest.approx(whole)


def test_tiles_without_a_place_are_all_gap() -> None:
    assert gap_share(assemble(3, Links.make("seam", [], [])), np.ones((3, 4), bool)) == 1
