"""Weak labels: slides count the same, whole slides are judged, processes share a batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mil.cohort import Fold
from mil.config import Config, Data, Encoder, Train
from mil.phantom import Phantom
from mil.tile_training import _mean_and_deviation, _slide_scores, _views, slide_weights

N = 23
SLIDE_OF = np.array(["a"] * 10 + ["b"] * 3 + ["c"] * 6 + ["d"] * 4, dtype=object)
LABELS = {"a": 0, "b": 1, "c": 1, "d": 0}


def fold() -> Fold:
    rows = {name: np.flatnonzero(name == SLIDE_OF) for name in LABELS}
    return Fold(
        number=0,
        classes=["x", "y"],
        slides={"train": ["a", "b", "c"], "val": ["d"], "test": []},
        labels=LABELS,
        group_of={name: name for name in LABELS},
        patient_of={name: name for name in LABELS},
        rows_by_slide=rows,
        tile_ids=np.array([f"t{i}" for i in range(N)], dtype=object),
        slide_of=SLIDE_OF,
        identity="",
        split="",
    )


def config(**train: Any) -> Config:
    return Config(
        data=Data(phantom=Phantom()),
        encoder=Encoder(resize_px=16, image_px=8),
        train=Train(batch_size=5, **train),
    )


TILES = np.random.default_rng(0).integers(0, 256, (N, 2, 16, 16), dtype=np.uint8)


def batches(changed: Config, *, rank: int = 0, size: int = 1, start: int = 0) -> list[Any]:
    process: Any = SimpleNamespace(global_rank=rank, world_size=size)
    return list(_views(changed, fold(), TILES, process, 7, 4, 2, start))


def test_every_slide_weighs_the_same() -> None:
    rows = fold().rows("train")
    weight = slide_weights(fold(), rows)
    sums = [weight[SLIDE_OF[rows] == name].sum() for name in "abc"]
    assert sums == pytest.approx([sums[0]] * 3)
    assert weight.mean() == pytest.approx(1)


@pytest.mark.parametrize("mixup", [0.0, 0.7])
def test_processes_share_each_batch_and_see_the_same_views(mixup: float) -> None:
    whole = batches(config(mixup=mixup))
    parts = [batches(config(mixup=mixup), rank=rank, size=2) for rank in (0, 1)]
    for place, batch in enumerate(whole):
        assert batch.n == len(batch.view)
        for rank in (0, 1):
            of_rank = parts[rank][place]
            assert of_rank.n == batch.n
            assert of_rank.share == batch.share
            for name in ("view", "label", "other", "weight", "other_weight"):
                assert torch.equal(getattr(of_rank, name), getattr(batch, name)[rank::2]), name
    shown = [name for batch in whole for name in batch.slide_ids]
    assert sorted(shown) == sorted(SLIDE_OF[fold().rows("train")]), "each tile comes once an epoch"


def test_a_stream_that_starts_late_goes_on_as_the_whole_one() -> None:
    whole, late = batches(config(mixup=0.7)), batches(config(mixup=0.7), start=2)
    assert len(late) == 2
    for one, other in zip(whole[2:], late, strict=True):
        assert torch.equal(one.view, other.view)
        assert one.share == other.share


def test_mixup_is_a_convex_mixture_of_two_views() -> None:
    alone = batches(config())
    views = torch.cat([batch.view for batch in alone])
    for mixed in batches(config(mixup=0.7)):
        own = next(b.view for b in alone if b.slide_ids == mixed.slide_ids)
        rest = (mixed.view - mixed.share * own) / (1 - mixed.share)
        for partner in rest:
            assert (views - partner).abs().amax((1, 2, 3)).min() < 0.05


def test_validation_is_of_whole_slides() -> None:
    rows = np.arange(N)
    logits = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    scores = _slide_scores(logits, fold(), rows)
    p = torch.softmax(logits.double(), 1).numpy()
    means = {name: p[name == SLIDE_OF].mean(0) for name in LABELS}
    losses = [-np.log(means[name][label]) for name, label in LABELS.items()]
    assert scores["val_loss"] == pytest.approx(np.mean(losses))
    right = [means[name].argmax() == label for name, label in LABELS.items()]
    assert scores["val_accuracy"] == pytest.approx(np.mean(right))
    tiles = [np.mean(p[name == SLIDE_OF].argmax(1) == label) for name, label in LABELS.items()]
    assert scores["val_tile_accuracy"] == pytest.approx(np.mean(tiles))


def test_the_scale_is_of_the_training_tiles_alone() -> None:
    rows = fold().rows("train")
    mean, deviation = _mean_and_deviation(TILES, rows)
    assert mean.numpy() == pytest.approx(TILES[rows].mean((0, 2, 3)), rel=1e-6)
    assert deviation.numpy() == pytest.approx(TILES[rows].std((0, 2, 3)), rel=1e-6)
    other = TILES.copy()
    other[fold().rows("val")] = 0
    assert torch.equal(_mean_and_deviation(other, rows)[0], mean)
