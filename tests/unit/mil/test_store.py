from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from mil.data import store
from splits.errors import InputError


def features(dtype: type = np.float32, n_tiles: int = 1100, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n_tiles, dim)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_saved_is_read_back_as_a_read_only_memory_map(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "features" / "fold0.npy"
    given = features(dtype)
    store.save_features(path, given)
    found = store.open_features(path, n_tiles=len(given))
    assert isinstance(found, np.memmap)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, given)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    assert [p.name for p in path.parent.iterdir()] == ["fold0.npy"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_located(
    tmp_path: Path, dtype: type, value: float
) -> None:
    path = tmp_path / "fold0.npy"
    bad = features(dtype)
    bad[1050, 3] = value
    with pytest.raises(InputError, match="row 1050, column 3"):
        store.save_features(path, bad)
    assert list(tmp_path.iterdir()) == []
    np.save(path, bad)
    with pytest.raises(InputError, match="row 1050, column 3"):
        store.open_features(path)


def test_the_largest_and_smallest_finite_values_pass(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float32):
        info = np.finfo(dtype)
        edge = np.array([[info.max, info.min, info.smallest_subnormal, -0.0]], dtype=dtype)
        store.save_features(tmp_path / "edge.npy", edge)
        np.testing.assert_array_equal(store.open_features(tmp_path / "edge.npy"), edge)


def test_a_refused_matrix_leaves_the_former_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "fold0.npy"
    good = features()
    store.save_features(path, good)
    with pytest.raises(InputError):
        store.save_features(path, np.full_like(good, np.nan))
    np.testing.assert_array_equal(store.open_features(path), good)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 2)), "float64"),
        (np.zeros((3, 2), dtype=np.int64), "int64"),
        (np.zeros(3, dtype=np.float32), r"\(3,\)"),
        (np.zeros((0, 2), dtype=np.float32), r"\(0, 2\)"),
        (np.zeros((2, 3, 4), dtype=np.float16), r"\(2, 3, 4\)"),
    ],
)
def test_other_shapes_and_types_are_refused_both_ways(
    tmp_path: Path, array: np.ndarray, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        store.save_features(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array)
    with pytest.raises(InputError, match=r"b\.npy"):
        store.open_features(tmp_path / "b.npy")


def test_files_that_are_no_matrix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        store.open_features(tmp_path / "absent.npy")
    whole = io.BytesIO()
    np.save(whole, features())
    archive = io.BytesIO()
    np.savez(archive, features())
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in (
        b"",
        b"slide,label\n",
        whole.getvalue()[:-100],
        archive.getvalue(),
        pickled.getvalue(),
    ):
        path = tmp_path / "bad.npy"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npy"):
            store.open_features(path)


def test_rows_must_match_the_tile_table(tmp_path: Path) -> None:
    store.save_features(tmp_path / "a.npy", features(n_tiles=7))
    with pytest.raises(InputError, match="7 rows and the tile table 8"):
        store.open_features(tmp_path / "a.npy", n_tiles=8)
