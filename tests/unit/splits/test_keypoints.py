from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from splits.content.candidates import candidate_pairs
from splits.content.keypoints import find_duplicates
from splits.content.landmarks import MIRROR, N_LANDMARKS, SIGN_BYTES, landmarks
from splits.content.links import KINDS, Links, components, turned
from splits.images import read_image

BREAST = Path(__file__).resolve().parents[4] / "shared/data/ucsb_breast"
SIDE = 160


def texture(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Blobs of several sizes, like nuclei in stroma."""
    noise = np.random.default_rng(seed).normal(size=(2, *shape, 1))
    fine, coarse = gaussian_filter(noise[0], (2, 2, 0)), gaussian_filter(noise[1], (5, 5, 0))
    grey = fine / fine.std() + coarse / coarse.std()
    return np.clip(150 + np.array([25, 35, 20]) * grey, 13, 255).astype(np.uint8)


def saved(pixels: np.ndarray) -> np.ndarray:
    _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))


def altered(
    pixels: np.ndarray, degrees: float, zoom: float = 1.1, border: int = cv2.BORDER_REFLECT
) -> np.ndarray:
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, zoom)
    pixels = np.ascontiguousarray(pixels)
    return saved(cv2.warpAffine(pixels, matrix, (width, height), borderMode=border))


def search(tiles: list[np.ndarray], known: np.ndarray | None = None) -> Links:
    return find_duplicates(np.stack([landmarks(tile) for tile in tiles]), tiles.__getitem__, known)


TILES = [texture(seed) for seed in range(12)]


@pytest.mark.parametrize("border", [cv2.BORDER_REFLECT, cv2.BORDER_CONSTANT])
def test_altered_copies_are_found_and_nothing_else(border: int) -> None:
    copies = [
        altered(tile[:, ::-1] if row % 2 else tile, 4 * row - 22, 1.15, border)
        for row, tile in enumerate(TILES)
    ]
    links = search([*TILES, *copies])
    assert links.pairs.tolist() == [[row, row + 12] for row in range(12)]
    assert {KINDS[kind] for kind in links.kind} == {"duplicate"}
    assert (links.turn == -1).all()
    assert np.isnan(links.offset).all()
    assert links.score.min() > 0.8


def test_copies_resized_to_another_shape_are_found() -> None:
    copies = [cv2.resize(altered(tile, 15), (112, 100)) for tile in TILES[:4]]
    assert search([*TILES, *copies]).pairs.tolist() == [[row, row + 12] for row in range(4)]


@pytest.mark.parametrize("turn", range(8))
def test_an_overlap_has_its_turn_and_offset(turn: int) -> None:
    large = texture(100, (300, 300))
    first, second = large[40:200, 20:180], large[60:220, 100:260]
    links = search([*TILES, first, saved(np.ascontiguousarray(turned(second, turn)))])
    assert links.pairs.tolist() == [[12, 13]]
    assert KINDS[links.kind[0]] == "overlap"
    np.testing.assert_array_equal(
        turned(turned(np.arange(4).reshape(2, 2), turn), int(links.turn[0])), [[0, 1], [2, 3]]
    )
    np.testing.assert_allclose(links.offset[0], [0.5, 0.125], atol=0.02)


def test_neighbours_that_share_no_area_are_not_linked() -> None:
    large = texture(101, (2 * SIDE, 2 * SIDE))
    tiles = [large[y : y + SIDE, x : x + SIDE] for y in (0, SIDE) for x in (0, SIDE)]
    assert len(search(tiles)) == 0


def test_a_tile_of_another_size_is_not_an_overlap() -> None:
    tile = TILES[0]
    links = search([*TILES, cv2.resize(tile[20:140, 20:140], (SIDE, SIDE))])
    assert [KINDS[kind] for kind in links.kind] == ["duplicate"]


def test_equal_black_corners_or_marks_link_nothing() -> None:
    cornered = [altered(tile, 20, 1.0, cv2.BORDER_CONSTANT) for tile in TILES]
    marked = [tile.copy() for tile in TILES]
    for tile in marked:
        cv2.putText(tile, "100 um x40", (20, 150), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1)
    assert len(search(cornered)) == 0
    assert len(search(marked)) == 0


def test_one_regular_pattern_links_no_different_tissue() -> None:
    # Every tile carries the same lattice, as a sensor's or a screen's, over tissue of its own.
    rows, columns = np.mgrid[:SIDE, :SIDE]
    lattice = (12 * np.sin(rows * np.pi / 4) * np.sin(columns * np.pi / 4))[:, :, None]
    tiles = [np.clip(tile + lattice, 13, 255).astype(np.uint8) for tile in TILES]
    assert len(search(tiles)) == 0


def test_glass_has_no_landmarks() -> None:
    noise = np.random.default_rng(0).normal(0, 2, (SIDE, SIDE, 3))
    light = np.linspace(225, 240, SIDE)[None, :, None]
    for glass in (np.full((SIDE, SIDE, 3), 255.0), light + noise):
        assert not landmarks(saved(np.clip(glass, 0, 255).astype(np.uint8))).any()


def test_many_copies_form_one_component() -> None:
    copies = [altered(TILES[5], degrees, 1.1) for degrees in np.linspace(-24, 24, 30)]
    component = components(42, search([*TILES, *copies]).pairs)
    assert len(set(component[[5, *range(12, 42)]])) == 1
    assert len(set(component)) == 12


def test_known_pairs_are_not_read_again() -> None:
    tiles = [*TILES, altered(TILES[2], 10), altered(TILES[8], 10)]
    marks = np.stack([landmarks(tile) for tile in tiles])
    read: list[int] = []

    def reader(row: int) -> np.ndarray:
        read.append(row)
        return tiles[row]

    links = find_duplicates(marks, reader, np.array([[12, 2]]))
    assert links.pairs.tolist() == [[8, 13]]
    assert sorted(read) == [8, 13]


def test_landmarks_of_the_mirror_image_follow_from_the_bytes() -> None:
    here, there = landmarks(TILES[0]), landmarks(np.ascontiguousarray(TILES[0][:, ::-1]))
    assert here.nbytes <= 768
    signs = here[:, :SIGN_BYTES] ^ MIRROR
    differ = np.unpackbits(signs[:, None] ^ there[None, :, :SIGN_BYTES], axis=2).sum(axis=2)
    assert np.mean(differ.min(axis=1) <= 8) > 0.9
    assert np.mean(np.diag(here[:, -1:] > 0)) == 1 or len(here) == N_LANDMARKS


def test_candidates_are_the_same_each_time_and_none_of_nothing() -> None:
    tiles = [*TILES, altered(TILES[2], 10)]
    marks = np.stack([landmarks(tile) for tile in tiles])
    first, second = candidate_pairs(marks), candidate_pairs(marks)
    assert all((one == other).all() for one, other in zip(first, second, strict=True))
    assert first[0].tolist() == [[2, 12]]
    for n_tiles in (0, 1, 5):
        assert len(candidate_pairs(np.zeros_like(marks[:n_tiles]))[0]) == 0
        assert len(find_duplicates(np.zeros_like(marks[:n_tiles]), tiles.__getitem__)) == 0


def test_tissue_is_found_again_and_only_there() -> None:
    if not BREAST.is_dir():
        pytest.skip("../shared/data is not here")
    tiles = []
    for path in sorted(BREAST.glob("*.tif"))[::12]:
        image = read_image(path)
        tiles += [image[y : y + 250, x : x + 250] for y in (0, 400) for x in (0, 300)]
    rng = np.random.default_rng(0)
    copies = [altered(tile, rng.uniform(-25, 25), rng.uniform(1, 1.2)) for tile in tiles]
    n = len(tiles)
    links = search([*tiles, *copies])
    assert n == 20
    assert links.pairs.tolist() == [[row, row + n] for row in range(n)]
