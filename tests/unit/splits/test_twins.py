import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from splits.content.links import Links, join
from splits.content.twins import plant


def texture(seed: int, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(*shape, 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    return np.clip(150 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


TILES = [texture(seed) for seed in range(5)]


def test_every_kind_is_planted_and_numbered_after_the_tiles() -> None:
    twins = plant(np.array([0, 2, 4]), 5, TILES.__getitem__)
    assert sorted(twins.kinds) == ["duplicate"] * 3 + ["seam"] * 3 + ["turned"] * 3
    new = twins.pairs[twins.pairs >= 5]
    assert sorted(new) == list(range(5, 5 + len(twins.pixels)))
    assert set(twins.pairs[twins.pairs < 5]) == {0, 2, 4}


def test_halves_meet_and_their_outer_edges_are_new() -> None:
    twins = plant(np.array([1]), 5, TILES.__getitem__)
    left, right = (twins.pixels[row - 5].mean(axis=2) for row in twins.pairs[2])

    def alike(line: np.ndarray, other: np.ndarray) -> float:
        return float(np.corrcoef(line, other)[0, 1])

    assert alike(left[:, -1], right[:, 0]) > 0.9
    tile = TILES[1].mean(axis=2)
    assert abs(alike(left[:, 0], tile[12:-12, 0])) < 0.6


def test_no_seam_is_planted_where_the_cut_shows_nothing() -> None:
    plain = np.full((64, 64, 3), 230, np.uint8)
    plain[:20, :20] = 90
    assert "seam" not in plant(np.array([0]), 1, [plain].__getitem__).kinds


def test_a_twin_counts_when_the_right_search_finds_it() -> None:
    twins = plant(np.array([0, 1]), 5, TILES.__getitem__)
    none = twins.found(join([]))
    assert none == {kind: {"planted": 2, "found": 0} for kind in ("turned", "duplicate", "seam")}
    rows = [twins.kinds.index("turned"), twins.kinds.index("seam")]
    # A turned copy counts as a duplicate too, a seam only as a seam.
    links = join([Links.make("duplicate", twins.pairs[rows], [1, 1])])
    found = twins.found(links)
    assert (found["turned"]["found"], found["seam"]["found"]) == (1, 0)
    assert twins.found(Links.make("seam", twins.pairs[rows], [1, 1]))["seam"]["found"] == 1


def test_the_sample_is_the_same_each_time_and_blank_sets_plant_nothing() -> None:
    first, second = (plant(np.arange(5), 5, TILES.__getitem__) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first.pixels, second.pixels, strict=True))
    assert len(plant(np.array([], np.int64), 5, TILES.__getitem__).pixels) == 0


@pytest.mark.parametrize("shape", [(9, 9), (40, 90)])
def test_odd_tiles_do_no_harm(shape: tuple[int, int]) -> None:
    assert len(plant(np.array([0]), 1, [texture(0, shape)].__getitem__).pixels) >= 2
