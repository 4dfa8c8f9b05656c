from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from splits.content.edges import EDGES, N_SAMPLES, Edges, edge_lines
from splits.content.links import Links, compose, inverse, turned, vector_turned
from splits.content.seams import find_seams
from splits.images import read_image

DEEPZOOM = Path(__file__).resolve().parents[4] / "shared/data/wsi/deepzoom"
Image = npt.NDArray[np.uint8]
Place = tuple[int, int, int]  # field, column, row


def _field(seed: int, side: int = 384) -> Image:
    """Stained tissue, so to say: blobs of several sizes in three channels."""
    random = np.random.default_rng(seed)
    shades = np.zeros((side, side, 3), np.float32)
    for sigma, weight in ((2, 14), (5, 20), (14, 25)):
        noise = random.normal(size=(side, side, 3)).astype(np.float32)
        noise += 2 * random.normal(size=(side, side, 1)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
        shades += weight * smooth / smooth.std()
    shades += np.array([190, 140, 180], np.float32)
    return np.clip(shades, 0, 255).astype(np.uint8)


def _cut(n_fields: int = 6, side: int = 64, gap: int = 0) -> dict[Place, Image]:
    step = side + gap
    tiles = {}
    for seed in range(n_fields):
        field = _field(seed)
        for row in range((len(field) - side) // step + 1):
            for col in range((len(field) - side) // step + 1):
                y, x = row * step, col * step
                tiles[seed, col, row] = field[y : y + side, x : x + side]
    return tiles


def _jpeg(tile: Image, quality: int) -> Image:
    _, code = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Image = cv2.imdecode(code, cv2.IMREAD_COLOR)
    return decoded


def _search(tiles: list[Image], same: npt.NDArray[np.int64] | None = None) -> Links:
    return find_seams(np.stack([edge_lines(tile) for tile in tiles]), same=same)


def _neighbours(places: list[Place]) -> set[tuple[int, int]]:
    row = {place: number for number, place in enumerate(places)}
    beside = [((f, c, r), ((f, c + 1, r), (f, c, r + 1))) for f, c, r in places]
    return {
        (min(row[a], row[b]), max(row[a], row[b]))
        for a, others in beside
        for b in others
        if b in row
    }


def _found(links: Links) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in links.pairs}


def _shuffled(tiles: dict[Place, Image], seed: int = 0) -> tuple[list[Place], list[Image]]:
    places = [list(tiles)[row] for row in np.random.default_rng(seed).permutation(len(tiles))]
    return places, [tiles[place] for place in places]


def test_lines_of_a_turned_tile_are_those_of_the_tile() -> None:
    tile = _field(0)[:100, :140]
    lines = edge_lines(tile)
    assert lines.nbytes <= 900
    mirrored = edge_lines(turned(tile, 4))
    left, right = EDGES.index("left"), EDGES.index("right")
    np.testing.assert_array_equal(mirrored[left], lines[right])
    np.testing.assert_array_equal(mirrored[0], lines[0][::-1])
    np.testing.assert_array_equal(edge_lines(turned(tile, 2))[0], lines[2][::-1])


@pytest.mark.parametrize("change", ["none", "jpeg", "gain", "resize", "enlarge"])
def test_all_seams_of_upright_tiles_are_found_and_no_other(change: str) -> None:
    random = np.random.default_rng(1)
    places, tiles = _shuffled(_cut())
    if change == "jpeg":
        tiles = [_jpeg(tile, 75) for tile in tiles]
    elif change == "gain":
        gains = random.uniform(0.93, 1.07, (len(tiles), 3))
        tiles = [
            np.clip(tile * gain, 0, 255).astype(np.uint8)
            for tile, gain in zip(tiles, gains, strict=True)
        ]
    elif change == "resize":
        tiles = [cv2.resize(tile, (90, 90), interpolation=cv2.INTER_AREA) for tile in tiles]
    elif change == "enlarge":
        tiles = [cv2.resize(tile, (256, 256), interpolation=cv2.INTER_CUBIC) for tile in tiles]
    links = _search(tiles)
    true = _neighbours(places)
    assert _found(links) <= true
    assert len(links) >= 0.99 * len(true)
    assert ((links.score > 0) & (links.score <= 1)).all()
    moves = [np.subtract(places[b][1:], places[a][1:]) for a, b in links.pairs]
    np.testing.assert_array_equal(links.offset, moves)
    assert (links.turn == 0).all()


def test_a_tile_that_was_enlarged_is_read_at_half_its_size() -> None:
    def half(tile: Image) -> Image:
        return cv2.resize(tile, (128, 128), interpolation=cv2.INTER_AREA)

    field = _field(0)
    enlarged = cv2.resize(field[:64, :64], (256, 256), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(edge_lines(enlarged), edge_lines(half(enlarged)))
    scanned = field[:256, :256]
    assert (edge_lines(scanned) != edge_lines(half(scanned))).mean() > 0.3


def test_turned_tiles_are_found_with_their_turn() -> None:
    places, tiles = _shuffled(_cut())
    turns = np.random.default_rng(2).integers(8, size=len(tiles)).tolist()
    links = _search([turned(tile, turn) for tile, turn in zip(tiles, turns, strict=True)])
    true = _neighbours(places)
    assert _found(links) <= true
    assert len(links) >= 0.98 * len(true)
    for (a, b), turn, offset in zip(links.pairs, links.turn, links.offset, strict=True):
        assert turn == compose(inverse(turns[b]), turns[a])
        move = np.subtract(places[b][1:], places[a][1:]).astype(np.float32)
        np.testing.assert_array_equal(offset, vector_turned(move, turns[a]))


def test_tiles_that_share_a_line_or_leave_a_gap() -> None:
    for gap in (-2, 1):
        places, tiles = _shuffled(_cut(gap=gap))
        true = _neighbours(places)
        found = _found(_search(tiles))
        assert found <= true
        assert len(found) >= 0.95 * len(true), gap


def test_tiles_without_neighbours_are_not_linked() -> None:
    lone = {place: tile for place, tile in _cut(n_fields=12).items() if sum(place[1:]) % 2 == 0}
    places, tiles = _shuffled(lone)
    assert not _neighbours(places)
    assert len(_search(tiles)) == 0


def test_copies_do_not_hide_a_seam() -> None:
    places, tiles = _shuffled(_cut(n_fields=4))
    copies = [turned(_jpeg(tile, 90), 5) for tile in tiles]
    same = np.tile(np.arange(len(tiles)), 2)
    links = _search(tiles + copies, same)
    true = _neighbours(places)
    assert _found(links) <= true
    assert len(links) >= 0.99 * len(true)
    assert len(_search(tiles + copies)) == 0  # and an unknown copy is no neighbour


def test_blank_tiles_link_nothing() -> None:
    glass = np.full((64, 64, 3), 243, np.uint8)
    noise = np.random.default_rng(3).normal(0, 2, (20, 64, 64, 3))
    tiles = [np.clip(glass + n, 0, 255).astype(np.uint8) for n in noise]
    assert len(_search([*tiles, glass, glass])) == 0
    places, tissue = _shuffled(_cut(n_fields=2))
    assert _found(_search(tissue + tiles)) == _found(_search(tissue))
    assert _neighbours(places)


def test_small_and_empty_sets() -> None:
    tiles = _cut(n_fields=1)
    assert len(find_seams(np.empty((0, 6, N_SAMPLES, 4), np.uint8))) == 0
    assert len(_search([tiles[0, 0, 0]])) == 0
    assert len(_search([tiles[0, 0, 0][:4]] * 3)) == 0
    pair = _search([tiles[0, 1, 0], tiles[0, 0, 0]])
    assert pair.offset.tolist() in ([], [[-1, 0]])


def test_the_same_input_gives_the_same_links() -> None:
    _, tiles = _shuffled(_cut(n_fields=3))
    one, two = _search(tiles), _search(tiles)
    np.testing.assert_array_equal(one.pairs, two.pairs)
    np.testing.assert_array_equal(one.score, two.score)


def test_the_index_of_large_sets_finds_the_same_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tiles = _shuffled(_cut())
    exact = _found(_search(tiles))
    monkeypatch.setattr("splits.content.nearest.EXACT_PAIRS", 0)
    assert len(_found(_search(tiles)) ^ exact) <= 0.01 * len(exact)


def test_the_gain_of_a_channel_changes_a_line_little() -> None:
    tile = _field(0)[:64, :64]
    dim = np.rint(tile * (0.9, 1.0, 0.95)).astype(np.uint8)
    both = np.stack([edge_lines(tile), edge_lines(dim)])
    edges = Edges.of(both, np.arange(2), 0.6)
    lines = edges.levelled(np.arange(8))
    error = np.abs(lines[:4] - lines[4:]).mean(axis=(1, 2))
    assert (error < 0.1 * np.abs(lines[:4]).mean(axis=(1, 2))).all()


@pytest.mark.skipif(not DEEPZOOM.exists(), reason="needs ../shared/data/wsi/deepzoom")
def test_a_deep_zoom_slide_is_put_together() -> None:
    levels = [path for path in DEEPZOOM.glob("*_files/*") if path.is_dir()]
    paths = sorted(max(levels, key=lambda path: int(path.name)).iterdir())
    assert len(paths) == 462
    paths = [paths[row] for row in np.random.default_rng(0).permutation(len(paths))]
    places = np.array([[int(part) for part in path.stem.split("_")] for path in paths])
    tiles = [read_image(path) for path in paths]
    links = _search(tiles)
    moves = places[links.pairs[:, 1]] - places[links.pairs[:, 0]]
    np.testing.assert_array_equal(links.offset, moves)
    assert len(links) > 300
