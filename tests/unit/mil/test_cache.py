from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil import pixels as pixels_module
from mil.config import Config, Data, Encoder, Stain
from mil.data import cache
from mil.data.sources import Rows
from mil.pixels import pixels
from splits import tiles as tile_table
from splits.artifacts import write_table
from splits.errors import InputError

N, PX = 300, 12
DIGESTS = {"pixels": "a"}
Usage = namedtuple("Usage", "total used free")


class Source:
    """Tiles whose bytes follow from their row; may be slow, fail or count what is read."""

    def __init__(
        self,
        *,
        slow: float = 0,
        hangs_at: int = N,
        fails_at: int = N,
        error: OSError | None = None,
    ) -> None:
        self.shape = (N, 2, PX, PX)
        self.n_read = 0
        self._slow, self._hangs_at = slow, hangs_at
        self._fails_at, self._error = fails_at, error

    def __len__(self) -> int:
        return N

    def __getitem__(self, rows: Rows) -> np.ndarray:
        wanted = np.arange(N)[rows]
        time.sleep(60 if wanted[-1] >= self._hangs_at else self._slow)
        if self._error is not None and wanted[-1] >= self._fails_at:
            raise self._error
        self.n_read += len(wanted)
        return np.stack([np.random.default_rng(row).bytes(2 * PX * PX) for row in wanted]).view(
            np.uint8
        ).reshape(-1, 2, PX, PX)  # fmt: skip


def file_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "tiles.npy").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps") / "unbroken"
    cache.build(folder, Source(), DIGESTS, threads=2)
    return folder


def test_the_map_holds_the_source_and_is_read_only(unbroken: Path) -> None:
    for in_memory in (True, False):
        tiles = cache.open_map(unbroken, in_memory=in_memory)
        assert (tiles == Source()[:]).all()
        assert type(tiles) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            tiles[0] = 0
    assert json.loads((unbroken / "meta.json").read_text())["shape"] == [N, 2, PX, PX]


def test_progress_counts_every_tile_once_and_what_is_there_is_not_made(tmp_path: Path) -> None:
    told: list[int] = []
    cache.build(tmp_path, Source(), DIGESTS, threads=2, advance=told.append)
    assert sum(told) == N
    again = Source()
    cache.build(tmp_path, again, DIGESTS)
    assert again.n_read == 0


@pytest.mark.parametrize("length", [0, 1, 64, 127, 128, 129, 128 + 288 * 7, 128 + 288 * 99 + 13])
def test_a_build_goes_on_after_the_last_whole_tile(
    tmp_path: Path, unbroken: Path, length: int
) -> None:
    shutil.copy(unbroken / "meta.json", tmp_path)
    whole = (unbroken / "tiles.npy").read_bytes()
    assert len(whole) == 128 + 288 * N
    (tmp_path / "tiles.npy.part").write_bytes(whole[:length])
    source, told = Source(), []
    cache.build(tmp_path, source, DIGESTS, threads=2, advance=told.append)
    assert file_hash(tmp_path) == file_hash(unbroken)
    assert source.n_read == N - max(0, length - 128) // 288
    assert sum(told) == N
    assert not (tmp_path / "tiles.npy.part").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads that it never uses
def test_killed_at_any_moment_it_gives_the_same_bytes(tmp_path: Path, unbroken: Path) -> None:
    fork = multiprocessing.get_context("fork")
    pauses = np.random.default_rng(0).uniform(0.005, 0.12, 8)
    n_killed = 0
    for pause in pauses:
        source = Source(slow=0.03, hangs_at=N - 1)  # never done before it is killed
        child = fork.Process(target=cache.build, args=(tmp_path, source, DIGESTS))
        child.start()
        time.sleep(pause)
        child.kill()
        child.join()
        n_killed += child.exitcode == -signal.SIGKILL
    assert n_killed == len(pauses)
    cache.build(tmp_path, Source(), DIGESTS, threads=2)
    assert file_hash(tmp_path) == file_hash(unbroken)


def _cut(folder: Path) -> None:
    os.truncate(folder / "tiles.npy", 5000)


def _longer(folder: Path) -> None:
    os.truncate(folder / "tiles.npy", 10**6)


def _other_shape(folder: Path) -> None:
    np.save(folder / "tiles.npy", np.zeros((N, 1, 2 * PX, PX), np.uint8))


def _other_digest(folder: Path) -> None:
    meta = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(meta.replace('"a"', '"b"'))


def _newer_version(folder: Path) -> None:
    meta = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(meta.replace('version": 1', 'version": 9'))


def _no_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def _broken_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"digests": ')


@pytest.mark.parametrize(
    "damage",
    [_cut, _longer, _other_shape, _other_digest, _newer_version, _no_meta, _broken_meta],
)
def test_a_map_that_is_not_the_one_asked_for_is_made_anew(
    tmp_path: Path, unbroken: Path, damage: object
) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "map"))
    damage(folder)  # type: ignore[operator]
    # Part of another build must not be taken for the beginning of this one.
    if damage is _other_digest:
        (folder / "tiles.npy.part").write_bytes(bytes(10_000))
    assert not cache.is_whole(folder, (N, 2, PX, PX), DIGESTS)
    source = Source()
    cache.build(folder, source, DIGESTS, threads=2)
    assert source.n_read == N
    assert file_hash(folder) == file_hash(unbroken)


def test_of_two_that_want_a_map_at_once_one_builds_it(tmp_path: Path, unbroken: Path) -> None:
    sources = [Source(slow=0.01), Source(slow=0.01)]
    threads = [
        threading.Thread(target=cache.build, args=(tmp_path, source, DIGESTS)) for source in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(source.n_read for source in sources) == [0, N]
    assert file_hash(tmp_path) == file_hash(unbroken)


def test_a_full_disk_says_what_helps_and_keeps_what_is_written(
    tmp_path: Path, unbroken: Path
) -> None:
    full = Source(fails_at=200, error=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InputError, match=r"No space left.*compute\.cache_dir.*compute\.cache=off"):
        cache.build(tmp_path, full, DIGESTS, threads=1)
    assert not (tmp_path / "tiles.npy").exists()
    source = Source()
    cache.build(tmp_path, source, DIGESTS)
    assert 0 < source.n_read < N
    assert file_hash(tmp_path) == file_hash(unbroken)
    with pytest.raises(PermissionError):
        cache.build(tmp_path / "2", Source(fails_at=0, error=PermissionError(13, "no")), DIGESTS)


SIDE = 32


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An identified run of two slides of 4 x 5 JPEG tiles."""
    rng, rows = np.random.default_rng(0), []
    for slide in "ab":
        (tmp_path / "data" / slide).mkdir(parents=True)
        for x in range(0, 5 * SIDE, SIDE):
            for y in range(0, 4 * SIDE, SIDE):
                name = f"{slide}/{slide}_x{x}_y{y}.jpg"
                light = rng.integers(90, 240, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(light).resize((SIDE, SIDE)).save(tmp_path / "data" / name)
                place = {"x_px": x, "y_px": y, "width_px": SIDE, "height_px": SIDE}
                rows.append({"tile_id": name, "sha256": name, "slide_id": slide, **place})
    table = tile_table.check(pd.DataFrame(rows))
    digests = {"identity": tile_table.identity_digest(table)}
    write_table(tmp_path / "run" / "tiles.parquet", table, digests)
    return tmp_path / "run"


def configured(
    run: Path, *, channels: str = "he", scales: tuple[int, ...] = (1,), **compute: object
) -> Config:
    config = Config(
        data=Data(root=run.parent / "data"),
        stain=Stain(method="none" if channels == "rgb" else "ruifrok"),
        encoder=Encoder(channels=channels, context=scales, resize_px=16, image_px=16),
    )
    return config.model_copy(update={"compute": config.compute.model_copy(update=compute)})


@pytest.mark.parametrize("channels", ["he", "rgb"])
def test_every_way_of_keeping_tiles_gives_the_same_bytes(run: Path, channels: str) -> None:
    seen, digests = set(), set()
    for way in ("off", "disk", "ram", "auto"):
        config = configured(run, channels=channels, scales=(1, 2, 4), cache=way, threads=2)
        made = pixels(run, config)
        assert made.tiles.shape == (40, 3 * (3 if channels == "rgb" else 2), 16, 16)
        assert len(made.tiles) == 40
        rows = np.array([0, 7, 8, 39])
        whole = made.tiles[:]
        assert (made.tiles[rows] == whole[rows]).all()
        assert (made.tiles[5:25] == whole[5:25]).all()
        seen.add(hashlib.sha256(np.ascontiguousarray(whole)).hexdigest())
        digests.add(made.digest)
        assert (run / "cache" / "tiles.npy").exists() == (way != "off")
    assert len(seen) == len(digests) == 1


def test_the_size_and_the_choice_are_said_before_the_cache_is_built(run: Path) -> None:
    said: list[tuple[str, bool]] = []

    def say(line: str) -> None:
        said.append((line, (run / "cache" / "tiles.npy").exists()))

    for way in ("disk", "disk", "off"):
        pixels(run, configured(run, scales=(1, 3), cache=way), say=say)
    lines = [line for line, _ in said]
    assert [there for _, there in said] == [False, True, True]
    assert lines[0].startswith("cache: 40 tiles, 4 x 16 x 16, 41 kB, on disk")
    assert "made before" not in lines[0]
    assert "made before" in lines[1]
    assert "none kept" in lines[2]
    meta = json.loads((run / "cache" / "context-3" / "meta.json").read_text())
    inner, edge, corner = 6 * 9, 10 * 6, 4 * 4  # tiles of a context of 9, in a grid of 4 x 5
    assert meta["covered"] == pytest.approx((inner + edge + corner) / (20 * 9), abs=0.02)
    assert all(f"context 3: {meta['covered']:.0%} covered" in line for line in lines)


def test_runs_share_what_is_the_same_and_nothing_else(run: Path) -> None:
    shared = run.parent / "shared"
    first = pixels(run, configured(run, cache_dir=shared, cache="disk"))
    assert not (run / "cache" / "tiles.npy").exists()
    other = Path(shutil.copytree(run, run.parent / "other"))
    (run.parent / "data").rename(run.parent / "gone")  # nothing is decoded for the other run
    config = configured(run, cache_dir=shared, cache="disk")
    assert pixels(other, config).digest == first.digest
    (run.parent / "gone").rename(run.parent / "data")
    for change in ({"channels": "h"}, {"channels": "rgb"}, {"scales": (1, 2)}):
        pixels(other, configured(run, cache_dir=shared, cache="disk", **change))
    assert len(list(shared.glob("*/tiles.npy"))) == 4
    assert pixels(other, config).digest == first.digest


def test_a_tile_that_breaks_after_the_scan_is_named(run: Path) -> None:
    broken = run.parent / "data" / "b" / "b_x32_y64.jpg"
    streamed = pixels(run, configured(run, cache="off", threads=2)).tiles
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    row = 20 + sorted(path.name for path in broken.parent.iterdir()).index(broken.name)
    assert streamed[np.array([0, 3])].shape[0] == 2
    words = r"tile b/b_x32_y64\.jpg .*cannot be decoded.*skipped\.csv"
    with pytest.raises(InputError, match=words):
        streamed[np.array([0, 3, row])]
    with pytest.raises(InputError, match=words):
        pixels(run, configured(run, channels="rgb", cache="disk"))
    broken.write_bytes(whole)
    pixels(run, configured(run, channels="rgb", cache="disk"))


def test_auto_looks_at_memory_and_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = configured(run), []
    n_bytes = 40 * 2 * 16 * 16

    def words(memory: int, disk: int, asked: Config = config) -> str:
        monkeypatch.setattr(pixels_module, "_free_memory", lambda: memory)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, disk))
        pixels(run, asked, say=said.append)
        return str(said[-1])

    assert "none kept" in words(10**9, n_bytes)
    for way, hint in (("disk", "cache=off"), ("ram", "cache=off")):
        with pytest.raises(InputError, match=hint):
            words(10**9, n_bytes, configured(run, cache=way))
    with pytest.raises(InputError, match="cache=disk"):
        words(n_bytes, 10**9, configured(run, cache="ram"))
    assert "on disk" in words(4 * n_bytes - 1, 2 * n_bytes)
    # What is made already needs no more room.
    assert "in memory" in words(4 * n_bytes, 0)
