import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from splits.content.copies import coefficients, find_turned
from splits.content.links import Links, components, turned


def texture(seed: int, side: int = 96) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    smooth = gaussian_filter(noise, (4, 4, 0))
    return np.clip(150 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def saved(pixels: np.ndarray, quality: int = 75) -> np.ndarray:
    _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))


def search(tiles: list[np.ndarray]) -> Links:
    return find_turned(np.stack([coefficients(tile) for tile in tiles]), tiles.__getitem__)


TILES = [texture(seed) for seed in range(30)]


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_copy_is_found_with_its_turn(turn: int) -> None:
    copy = cv2.resize(saved(np.ascontiguousarray(turned(TILES[7], turn))), (81, 81))
    links = search([*TILES, np.clip(copy * 1.07, 0, 255).astype(np.uint8)])
    assert links.pairs.tolist() == [[7, 30]]
    # The turn brings the copy back into the frame of the first.
    back = turned(copy, int(links.turn[0])).mean(axis=2).ravel()
    original = cv2.resize(TILES[7], (81, 81)).mean(axis=2).ravel()
    assert np.corrcoef(back, original)[0, 1] > 0.9
    assert links.score[0] > 0.9
    assert links.offset.tolist() == [[0, 0]]


def test_more_copies_than_neighbours_form_one_component() -> None:
    rng = np.random.default_rng(0)
    copies = [
        saved(np.ascontiguousarray(turned(TILES[3], rng.integers(8))), int(rng.integers(60, 96)))
        for _ in range(50)
    ]
    tiles = [*TILES, *copies]
    component = components(len(tiles), search(tiles).pairs)
    assert len(set(component[[3, *range(30, 80)]])) == 1
    assert len(set(component)) == 30


def test_glass_links_nothing() -> None:
    rng = np.random.default_rng(0)
    light = np.linspace(225, 235, 96)[None, :, None]
    glass = [
        np.clip(light + rng.normal(0, 1, (96, 96, 3)), 0, 255).astype(np.uint8) for _ in range(10)
    ]
    white = [np.full((96, 96, 3), 255, np.uint8)] * 3
    assert len(search([*glass, *white])) == 0


def test_tiles_of_one_kind_are_no_copies() -> None:
    # A bright half and a dark one give many tiles nearly the same hash.
    step = np.where(np.arange(96) < 48, 60, -60)[None, :, None]
    tiles = [np.clip(tile.astype(int) * 0.6 + 60 + step, 0, 255).astype(np.uint8) for tile in TILES]
    assert len(search(tiles)) == 0


def test_equal_black_corners_are_no_copies() -> None:
    tiles = []
    for tile in TILES:
        matrix = cv2.getRotationMatrix2D((48, 48), 22, 1.0)
        faint = np.clip(225 + (tile.astype(int) - 150) // 30, 0, 255).astype(np.uint8)
        tiles.append(cv2.warpAffine(faint, matrix, (96, 96)))
    assert len(search(tiles)) == 0


def test_a_spot_in_one_corner_of_the_glass_is_no_copy() -> None:
    rows, columns = np.mgrid[:96, :96]
    corner = np.hypot(rows - 96, columns)[:, :, None]
    tiles = []
    for tile in TILES:
        spot = corner + (tile[..., :1].astype(float) - 150) / 8 < 24
        tiles.append(np.where(spot, tile // 2, 235 + (tile % 5)).astype(np.uint8))
    assert len(search(tiles)) == 0


def test_a_shifted_tile_is_no_copy() -> None:
    large = texture(99, 192)
    assert len(search([large[:96, :96], large[:96, 48:144], large[:96, 96:]])) == 0


def test_few_bytes_are_kept_and_one_tile_alone_is_no_error() -> None:
    assert coefficients(TILES[0]).nbytes <= 128
    assert len(search(TILES[:1])) == 0
