"""Reading images and building the tile table, planted faults included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splits.errors import InputError
from splits.images import UnreadableTileError, image_of, read_image, read_tile, window_of
from splits.scan import label_of, list_folder, scan


def tile(seed: int, size: tuple[int, int] = (20, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def test_pixels_come_back_exactly(tmp_path: Path) -> None:
    save(tmp_path / "a.png", tile(0))
    assert (read_image(tmp_path / "a.png") == tile(0)).all()


def test_transparent_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255
    save(tmp_path / "a.png", pixels)
    read = read_image(tmp_path / "a.png")
    assert (read[:2] == 0).all()
    assert (read[2:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I", "F", "I;16"])
def test_images_without_stain_colours_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in {"CMYK", "F", "I"} else "a.png")
    if mode == "I;16":
        save(path, np.full((9, 9), 40_000, dtype=np.uint16))
    else:
        save(path, tile(0), mode)
    with pytest.raises(UnreadableTileError):
        read_image(path)


def test_scan_keeps_good_tiles_and_lists_the_rest(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "lung" / f"{i}.png", tile(i))
    save(tmp_path / "lung" / "odd.png", tile(7, (20, 30)))
    save(tmp_path / "lung" / "grey.png", tile(8), "L")
    whole = (tmp_path / "lung" / "0.png").read_bytes()
    (tmp_path / "lung" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "lung" / "empty.jpg").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("a,b\n")
    table, skipped = scan(list_folder(tmp_path))
    assert list(table["tile_id"]) == [f"lung/{i}.png" for i in range(6)]
    assert set(table["slide_label"]) == {"lung"}
    named = {name for _, name, _ in skipped}
    odd = {"lung/odd.png", "lung/grey.png", "lung/cut.png", "lung/empty.jpg", "labels.csv"}
    assert named == odd
    assert all(cause for _, _, cause in skipped)


def test_lossless_copy_has_the_same_hash(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png", tile(0))
    save(tmp_path / "a" / "y.bmp", tile(0))
    save(tmp_path / "a" / "z.png", tile(1))
    table, _ = scan(list_folder(tmp_path))
    hashes = table["sha256"].tolist()
    assert hashes[0] == hashes[1] != hashes[2]


def test_cut_tiles_keep_coordinates_and_cover_the_image(tmp_path: Path) -> None:
    image = tile(3, (50, 70))
    save(tmp_path / "a" / "slide#1.tif", image)
    table, skipped = scan(list_folder(tmp_path), tile_px=20)
    assert len(table) == 2 * 3
    for row in table.itertuples():
        assert image_of(row.tile_id) == "a/slide#1.tif"
        assert window_of(row.tile_id) == (row.x_px, row.y_px, 20, 20)
        window = image[row.y_px : row.y_px + 20, row.x_px : row.x_px + 20]
        assert (read_tile(tmp_path, row.tile_id) == window).all()
    assert "10 px at the right and 10 px at the bottom" in skipped[0][2]


def test_many_sizes_need_a_decision(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "a" / f"{i}.png", tile(i, (20 + i, 20)))
    with pytest.raises(InputError, match="mixed_sizes=resize"):
        scan(list_folder(tmp_path))
    table, skipped = scan(list_folder(tmp_path), mixed_sizes="resize")
    assert len(table) == 6
    assert not skipped


def test_missing_and_empty_roots(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no image"):
        list_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="no usable tile"):
        scan(list_folder(tmp_path))


@pytest.mark.parametrize(
    ("rule", "name", "label"),
    [
        ("folder", "lung/a.png", "lung"),
        ("folder", "train/lung/slide/a.png", "lung"),
        ("folder", "a.png", None),
        ("none", "lung/a.png", None),
        (r"_(?P<label>benign|malignant)\d", "ytma10_benign1_ccd.tif", "benign"),
        (r"_(?P<label>benign|malignant)\d", "other.tif", None),
    ],
)
def test_labels(rule: str, name: str, label: str | None) -> None:
    assert label_of(rule)(name) == label


@pytest.mark.parametrize("rule", ["(", "no group", "folders"])
def test_broken_label_rules(rule: str) -> None:
    with pytest.raises(InputError):
        label_of(rule)
