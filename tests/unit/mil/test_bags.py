from __future__ import annotations

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
        ({"a": [0, 1]}, {"b": 0}, "'a' has no label"),
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
