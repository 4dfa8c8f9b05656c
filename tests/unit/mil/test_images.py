from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mil.data.images import ahead, decode, in_threads, resize_tile
from splits import images
from splits.errors import InputError
from splits.images import UnreadableTileError, read_image, read_tile


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Structures of several sizes in two stains."""
    rng = np.random.default_rng(seed)
    density = np.full((side, side, 2), 0.3)
    for px in (6, 16, 64):
        noise = rng.normal(size=(side // px, side // px, 2))
        density += 0.12 * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    light = np.exp(-np.clip(density, 0, None) @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]))
    return np.round(245 * light).astype(np.uint8)


def jpeg(path: Path, side: int, **more: object) -> Path:
    Image.fromarray(texture(side)).save(path, "JPEG", quality=90, **more)
    return path


@pytest.mark.parametrize(
    ("side", "size", "decoded"),
    [
        (512, 256, 256),
        (512, 64, 64),
        (512, 100, 256),
        (512, 128, 128),
        (512, 129, 512),
        (512, 224, 512),
        (500, 250, 250),
        (501, 250, 501),
        (64, 128, 64),
    ],
)
def test_the_rule_of_scaled_decoding(tmp_path: Path, side: int, size: int, decoded: int) -> None:
    path = jpeg(tmp_path / "t.jpg", side)
    assert read_image(path, enough_px=size).shape == (decoded, decoded, 3)
    assert read_image(path).shape == (side, side, 3)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_scaled_decoding_is_within_a_grey_level(tmp_path: Path, options: dict[str, object]) -> None:
    path = jpeg(tmp_path / "t.jpg", 512, **options)
    full = read_image(path)
    for size in (256, 128, 64):
        part = 512 // size
        area = full.reshape(size, part, size, part, 3).mean(axis=(1, 3))
        assert np.abs(decode(tmp_path, "t.jpg", size) - area).mean() < 1
    for size in (112, 60):
        plain = resize_tile(full, size).astype(float)
        assert np.abs(decode(tmp_path, "t.jpg", size) - plain).mean() < 1


def test_an_oblong_jpeg_loses_its_ends_alike(tmp_path: Path) -> None:
    Image.fromarray(texture(512)[:256]).save(tmp_path / "t.jpg", quality=95)
    got = decode(tmp_path, "t.jpg", 128).astype(float)
    middle = read_image(tmp_path / "t.jpg")[:, 128:384].astype(float)
    assert np.abs(got - middle.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))).mean() < 1


def test_what_is_refused_at_full_size_is_refused_at_half(tmp_path: Path) -> None:
    whole = jpeg(tmp_path / "whole.jpg", 512).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(texture(512)).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(texture(512)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "no.jpg").write_bytes(b"\xff\xd8 nothing")
    for name in ("cut", "grey", "cmyk", "no", "missing"):
        said = []
        for size in (None, 256):
            with pytest.raises(UnreadableTileError) as error:
                read_image(tmp_path / f"{name}.jpg", enough_px=size)
            said.append(str(error.value).split("(")[0])
        assert said[0] == said[1]


def test_transparency_lies_on_white_at_any_size(tmp_path: Path) -> None:
    clear = np.zeros((64, 64, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "t.png")
    assert (read_image(tmp_path / "t.png", enough_px=32) == 255).all()


def test_a_tile_that_can_no_longer_be_read_is_named(tmp_path: Path) -> None:
    whole = jpeg(tmp_path / "t.jpg", 256).read_bytes()
    (tmp_path / "t.jpg").write_bytes(whole[:2000])
    with pytest.raises(InputError, match=r"tile t\.jpg .*truncated.*scan again.*skipped\.csv"):
        decode(tmp_path, "t.jpg", 128)


def test_an_image_is_decoded_once_for_all_its_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = texture(256)
    Image.fromarray(pixels).save(tmp_path / "f.png")
    read: list[Path] = []

    def slow(path: Path) -> np.ndarray:
        read.append(path)
        time.sleep(0.05)
        return read_image(path)

    monkeypatch.setattr(images, "_recent", images._Recent(2, 1 << 20))
    recent = images._recent
    monkeypatch.setattr(images, "read_image", slow)
    names = [f"f.png#xywh={x},{y},64,64" for y in range(0, 256, 64) for x in range(0, 256, 64)]
    tiles = list(in_threads(lambda name: read_tile(tmp_path, name), names, 4))
    assert len(read) == 1
    assert (tiles[5] == pixels[64:128, 64:128]).all()
    # An image that changed is another one; one that fails is not remembered.
    Image.fromarray(255 - pixels[:192]).save(tmp_path / "f.png")
    assert (recent(tmp_path / "f.png") == 255 - pixels[:192]).all()
    (tmp_path / "f.png").write_bytes(b"broken")
    with pytest.raises(UnreadableTileError):
        recent(tmp_path / "f.png")
    assert len(recent._images) == 2
    # Above the limit of bytes the last image alone is kept.
    Image.fromarray(texture(1024)).save(tmp_path / "g.png")
    recent(tmp_path / "g.png")
    assert [key[0].name for key in recent._images] == ["g.png"]


def test_work_after_an_error_is_not_begun() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            message = "three"
            raise ValueError(message)
        return item

    with pytest.raises(ValueError, match="three"):
        list(in_threads(work, range(1000), 2))
    assert len(begun) < 20


def test_ahead_keeps_the_order_and_stays_a_few_items_before() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            made.append(item)
            yield item

    got = []
    for item in ahead(items(), 3):
        got.append(item)
        assert len(made) <= len(got) + 4
    assert got == list(range(50))
    assert list(ahead([], 3)) == []
    # Leaving early ends the thread.
    before = threading.active_count()
    source = ahead(iter(range(10**9)), 2)
    assert next(source) == 0
    source.close()
    assert threading.active_count() == before


def test_ahead_raises_an_error_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        message = "lost"
        raise InputError(message)

    made = ahead(items(), 4)
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(InputError, match="lost"):
        next(made)
