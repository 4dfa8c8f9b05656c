from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.data.bags import Bags
from mil.data.store import open_features, save_features
from splits.errors import InputError


def cohort(sizes: list[int], *, seed: int = 0) -> tuple[Bags, np.ndarray, dict[str, np.ndarray]]:
    """Slides with interleaved rows, except the first, whose rows are consecutive."""
    rng = np.random.default_rng(seed)
    n_tiles = sum(sizes)
    features = np.arange(n_tiles * 3, dtype=np.float32).reshape(n_tiles, 3)
    rows = np.concatenate([np.arange(sizes[0]), sizes[0] + rng.permutation(n_tiles - sizes[0])])
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    by_slide = {f"{i:02d}": np.sort(part) for i, part in enumerate(parts)}
    labels = {slide: i % 3 for i, slide in enumerate(by_slide)}
    return Bags(features, by_slide, labels), features, by_slide


def test_a_batch_holds_the_rows_and_labels_of_its_slides_in_the_order_asked() -> None:
    bags, features, by_slide = cohort([4, 1, 6, 3])
    batch = bags.batch(["02", "00", "03"])
    assert batch.slide_ids == ("02", "00", "03")
    assert batch.x.dtype == torch.float32
    assert batch.offsets.tolist() == [0, 6, 10, 13]
    assert batch.label.tolist() == [2, 0, 0]
    for dtype in (batch.offsets.dtype, batch.label.dtype, batch.rows.dtype):
        assert dtype == torch.int64
    for i, slide in enumerate(batch.slide_ids):
        cut = slice(*batch.offsets[i : i + 2].tolist())
        np.testing.assert_array_equal(batch.rows[cut].numpy(), by_slide[slide])
    np.testing.assert_array_equal(batch.x.numpy(), features[batch.rows.numpy()])


def test_a_batch_is_a_copy_and_half_precision_is_widened(tmp_path: Path) -> None:
    source = np.linspace(-1, 1, 24, dtype=np.float16).reshape(8, 3)
    save_features(tmp_path / "f.npy", source)
    mapped = open_features(tmp_path / "f.npy")
    bags = Bags(mapped, {"a": np.arange(5), "b": np.arange(5, 8)}, {"a": 0, "b": 1})
    batch = bags.batch(["b", "a"])
    np.testing.assert_array_equal(batch.x.numpy(), source[[5, 6, 7, 0, 1, 2, 3, 4]])
    batch.x.zero_()
    np.testing.assert_array_equal(mapped, source)


def test_a_bag_beyond_the_budget_is_a_view_of_the_memory_map(tmp_path: Path) -> None:
    source = np.arange(60, dtype=np.float16).reshape(20, 3)
    save_features(tmp_path / "f.npy", source)
    mapped = open_features(tmp_path / "f.npy")
    rows = {"a": np.arange(2, 12), "b": np.r_[0:2, 12:20]}
    bags = Bags(mapped, rows, {"a": 0, "b": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        streamed = bags.batch(["a"], max_tiles=9)
    assert streamed.streams
    assert np.shares_memory(streamed.x.numpy(), mapped)
    assert streamed.to("meta").x is streamed.x
    # Rows that lie apart are copied, but in the type of the file.
    apart = bags.batch(["b"], max_tiles=9)
    assert apart.x.dtype == torch.float16
    np.testing.assert_array_equal(apart.x.numpy(), source[rows["b"]])
    for packed in (bags.batch(["a"], max_tiles=10), bags.batch(["a", "b"], max_tiles=9)):
        assert packed.x.dtype == torch.float32
        assert not packed.streams
    kinds = [b.streams for b in bags.batches(["a", "b"], max_tiles=9)]
    assert kinds == [True, True]


def test_batches_read_ahead_from_a_memory_map_are_the_same(tmp_path: Path) -> None:
    source = np.random.default_rng(0).normal(size=(3000, 7)).astype(np.float32)
    save_features(tmp_path / "f.npy", source)
    rows = {f"{i:02}": np.arange(i * 100, i * 100 + 100) for i in range(29)}
    rows["98"], rows["99"] = np.arange(2901, 3000), np.array([2900])
    labels = dict.fromkeys(rows, 0)
    mapped = open_features(tmp_path / "f.npy")
    for features in (mapped, mapped[:]):  # a view of a map has other places
        bags = Bags(features, rows, labels)
        plan = bags.plan(bags.slide_ids, max_tiles=250)
        for batch, slides in zip(bags.packed(plan), plan, strict=True):
            assert batch.slide_ids == tuple(slides)
            np.testing.assert_array_equal(batch.x.numpy(), source[batch.rows.numpy()])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    dropout=st.floats(0, 0.99),
    most=st.one_of(st.none(), st.integers(1, 20)),
)
def test_a_sample_is_part_of_each_bag_and_knows_its_places(
    sizes: list[int], dropout: float, most: int | None
) -> None:
    _, features, by_slide = cohort(sizes)
    places = {slide: np.column_stack([rows, -rows]) for slide, rows in by_slide.items()}
    labels = {slide: i % 3 for i, slide in enumerate(by_slide)}
    bags = Bags(features, by_slide, labels, places)
    slides = list(bags.slide_ids)
    sample = bags.sampled(slides[1:], 7, dropout=dropout, most=most)
    assert sample.n_tiles("00") == sizes[0], "it was not to be sampled"
    for slide, size in zip(slides[1:], sizes[1:], strict=True):
        batch = sample.batch([slide])
        n_kept = max(1, size - int(dropout * size))
        assert len(batch.x) == (n_kept if most is None else min(n_kept, most))
        rows = batch.rows.numpy()
        assert set(rows) <= set(by_slide[slide])
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(batch.x.numpy(), features[rows])
        assert batch.positions is not None
        np.testing.assert_array_equal(batch.positions.numpy(), np.column_stack([rows, -rows]))
        assert bags.n_tiles(slide) == size, "the bags themselves changed"


def test_what_is_drawn_follows_from_seed_and_slide_alone() -> None:
    bags, _, _ = cohort([40, 40, 40])

    def drawn(slides: list[str], seed: int) -> list[int]:
        return bags.sampled(slides, seed, dropout=0.5).batch(["01"]).rows.tolist()

    assert drawn(["01"], 1) == drawn(["02", "01", "00"], 1)
    assert drawn(["01"], 1) != drawn(["01"], 2)


def test_slides_with_and_without_positions_never_share_a_batch() -> None:
    sizes = [2, 3, 2, 4, 1, 3]
    _, features, by_slide = cohort(sizes)
    labels = dict.fromkeys(by_slide, 0)
    placed = {s: np.zeros((len(by_slide[s]), 2), dtype=np.int64) for s in ("00", "02", "05")}
    bags = Bags(features, by_slide, labels, placed)
    batches = list(bags.batches(bags.slide_ids, max_tiles=7))
    assert [b.slide_ids for b in batches] == [("00", "02", "05"), ("01", "03"), ("04",)]
    assert [b.positions is None for b in batches] == [False, True, True]
    assert [len(b.positions) for b in batches if b.positions is not None] == [7]
    with pytest.raises(InputError, match="'01' has no positions"):
        bags.batch(["00", "01"])
    with pytest.raises(InputError, match=r"'00' has positions of shape \(3, 2\) and 2 tiles"):
        Bags(features, by_slide, labels, {"00": np.zeros((3, 2))})


def test_moving_a_batch_keeps_everything() -> None:
    batch = cohort([2, 3])[0].batch(["01"])
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.x, moved.offsets, moved.label, moved.rows)} == {"meta"}
    assert moved.slide_ids == batch.slide_ids
    assert moved.x.shape == batch.x.shape


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    max_tiles=st.integers(1, 20),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_batches_hold_every_slide_once_within_the_budget(
    sizes: list[int], max_tiles: int, seed: int | None
) -> None:
    bags, _, _ = cohort(sizes)
    generator = None if seed is None else np.random.default_rng(seed)
    batches = list(bags.batches(bags.slide_ids, max_tiles=max_tiles, generator=generator))
    order = [slide for batch in batches for slide in batch.slide_ids]
    assert sorted(order) == list(bags.slide_ids)
    if seed is None:
        assert order == list(bags.slide_ids)
    for batch in batches:
        assert len(batch.x) <= max_tiles or len(batch) == 1
        assert len(batch.x) == sum(bags.n_tiles(slide) for slide in batch.slide_ids)
    for one, following in pairwise(batches):
        assert len(one.x) + bags.n_tiles(following.slide_ids[0]) > max_tiles


def test_a_slide_beyond_the_budget_is_alone_and_whole() -> None:
    bags, _, _ = cohort([2, 50, 2, 2])
    batches = list(bags.batches(bags.slide_ids, max_tiles=5))
    assert [batch.slide_ids for batch in batches] == [("00",), ("01",), ("02", "03")]
    assert len(batches[1].x) == 50


def test_shuffling_depends_on_the_seed_and_not_on_the_order_given() -> None:
    bags, _, _ = cohort([1] * 20)

    def order(slides: list[str], seed: int) -> list[str]:
        generator = np.random.default_rng(seed)
        batches = bags.batches(slides, max_tiles=3, generator=generator)
        return [slide for batch in batches for slide in batch.slide_ids]

    slides = list(bags.slide_ids)
    assert order(slides, 1) == order(slides[::-1], 1)
    assert order(slides, 1) != order(slides, 2)
    assert order(slides, 1) != slides


def test_successive_epochs_of_one_generator_differ() -> None:
    bags, _, _ = cohort([1] * 20)
    generator = np.random.default_rng(0)
    epochs = [
        [b.slide_ids for b in bags.batches(bags.slide_ids, max_tiles=3, generator=generator)]
        for _ in range(2)
    ]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("rows", "labels", "words"),
    [
        ({"a": [0, 1], "NA": []}, {"a": 0, "NA": 1}, "'NA' has no tiles"),
        ({"a": [0, 1], "b": [2, 9]}, {"a": 0, "b": 1}, "'b' has tile row 9.*0 to 3"),
        ({"a": [-1, 1]}, {"a": 0}, "'a' has tile row -1"),
        ({"a": [1, 0]}, {"a": 0}, "'a' must be ascending"),
        ({"a": [1, 1]}, {"a": 0}, "'a' must be ascending"),
        ({"a": [0.0, 1.0]}, {"a": 0}, "'a' must be ascending integers"),
        ({"a": [0, 1], "b": [1, 2]}, {"a": 0, "b": 1}, "row 1 is in two slides: 'a' and 'b'"),
        ({"a": [0, 1]}, {"a": -1}, "label -1"),
        ({"a": [0, 1]}, {"a": "tumour"}, "label 'tumour'"),
    ],
)
def test_bags_that_cannot_be_are_refused(
    rows: dict[str, list[float]], labels: dict[str, int], words: str
) -> None:
    arrays = {slide: np.array(of_slide) for slide, of_slide in rows.items()}
    with pytest.raises(InputError, match=words):
        Bags(np.zeros((4, 2), dtype=np.float32), arrays, labels)


def test_a_bag_without_a_label_is_packed_and_its_label_raises() -> None:
    rows = {"a": np.array([0, 1]), "b": np.array([2])}
    bags = Bags(np.zeros((3, 2), dtype=np.float32), rows, {"a": 1})
    assert bags.batch(["a"]).label.tolist() == [1]
    for packed in (bags.batch(["b"]), bags.batch(["a", "b"]).to("cpu")):
        with pytest.raises(InputError, match="labels of test slides are sealed"):
            _ = packed.label


def test_wrong_requests_are_refused_before_the_first_batch() -> None:
    bags, _, _ = cohort([2, 3, 4])
    with pytest.raises(InputError, match="unknown slide '2'; did you mean '02'"):
        bags.batch(["2"])
    with pytest.raises(InputError, match="no slides"):
        bags.batch([])
    with pytest.raises(InputError, match="unknown slide 'x'"):
        bags.batches(["00", "x"], max_tiles=5)
    with pytest.raises(InputError, match="no slides"):
        bags.batches([], max_tiles=5)
    with pytest.raises(InputError, match="max_tiles is 0"):
        bags.batches(["00"], max_tiles=0)
    with pytest.raises(InputError, match="'01' is given more than once"):
        bags.batches(["00", "01", "01"], max_tiles=5)
