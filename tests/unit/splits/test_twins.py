import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from splits.content.links import Links, join
from splits.content.twins import plant_copies, plant_seams


def texture(seed: int, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(*shape, 1))
    smooth = gaussian_filter(noise, (3, 3, 0))
    return np.clip(150 + np.array([25, 35, 20]) * smooth / smooth.std(), 0, 255).astype(np.uint8)


TILES = [texture(seed) for seed in range(5)]


def test_copies_are_numbered_after_the_tiles() -> None:
    twins = plant_copies(np.array([0, 2, 4]), 5, TILES.__getitem__)
    assert sorted(twins.kinds) == ["duplicate"] * 3 + ["turned"] * 3
    assert sorted(twins.pairs[:, 1]) == list(range(5, 5 + len(twins.pixels)))
    assert set(twins.pairs[:, 0]) == {0, 2, 4}


def alike(line: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(line, other)[0, 1])


@pytest.mark.parametrize(("apart", "least"), [(-2, 0.95), (0, 0.9), (2, 0.7)])
def test_halves_lie_as_the_tiles_do_and_their_outer_edges_are_new(apart: int, least: float) -> None:
    twins = plant_seams(np.array([1]), 5, TILES.__getitem__, apart_px=apart)
    assert twins.pairs.tolist() == [[5, 6]]
    left, right = (pixels.mean(axis=2) for pixels in twins.pixels)
    # The last line before the cut is found again -apart lines into the other half.
    lines = [alike(left[:, -1], right[:, at]) for at in range(5)]
    assert max(lines) > least
    assert np.argmax(lines) == max(-apart - 1, 0)
    tile = TILES[1].mean(axis=2)
    assert len(left) == len(tile)
    assert abs(alike(left[:, 0], tile[:, 0])) < 0.6


def test_no_seam_is_planted_where_the_cut_shows_nothing() -> None:
    plain = np.full((64, 64, 3), 230, np.uint8)
    plain[:20, :20] = 90
    assert len(plant_seams(np.array([0]), 1, [plain].__getitem__).kinds) == 0


def test_a_twin_counts_when_the_right_search_finds_it() -> None:
    rows = np.array([0, 1])
    copies = plant_copies(rows, 5, TILES.__getitem__)
    halves = plant_seams(rows, 9, TILES.__getitem__)
    none = {kind: {"planted": 2, "found": 0} for kind in ("turned", "duplicate")}
    assert copies.found(join([])) == none
    # A turned copy counts as a duplicate too, a seam only as a seam.
    pairs = np.stack([copies.pairs[copies.kinds.index("turned")], halves.pairs[0]])
    links = Links.make("duplicate", pairs, [1, 1])
    assert copies.found(links)["turned"]["found"] == 1
    assert halves.found(links)["seam"]["found"] == 0
    # So does one that is tied to its tile through another copy.
    tile, twin = copies.pairs[1].tolist()
    through = Links.make("duplicate", [(tile, 4), (4, twin)], [1, 1])
    assert copies.found(through)[copies.kinds[1]]["found"] == 1
    assert halves.found(Links.make("seam", pairs, [1, 1]))["seam"]["found"] == 1


def test_the_sample_is_the_same_each_time_and_blank_sets_plant_nothing() -> None:
    for plant in (plant_copies, plant_seams):
        first, second = (plant(np.arange(5), 5, TILES.__getitem__) for _ in range(2))
        assert all((a == b).all() for a, b in zip(first.pixels, second.pixels, strict=True))
        assert len(plant(np.array([], np.int64), 5, TILES.__getitem__).pixels) == 0


@pytest.mark.parametrize("shape", [(9, 9), (40, 90)])
def test_odd_tiles_do_no_harm(shape: tuple[int, int]) -> None:
    tiles = [texture(0, shape)]
    assert len(plant_copies(np.array([0]), 1, tiles.__getitem__).pixels) == 2
    assert len(plant_seams(np.array([0]), 1, tiles.__getitem__).pixels) in {0, 2}
