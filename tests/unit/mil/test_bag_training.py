"""Aggregators in training: losses beside them, sampling, seeds, streaming, exact resume."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mil import aggregators, checkpoint, devices, encode
from mil.aggregators import INSTANCE_LOSSES, contract, create_loss
from mil.bag_training import Objective, check, class_weights, fit_fold
from mil.cohort import Fold
from mil.config import Aggregator, Compute, Config, Data, Mil
from mil.data.bags import Bags, Batch
from mil.data.store import Features, open_features, save_features
from mil.phantom import Phantom
from splits.artifacts import read_json
from splits.errors import InputError

SIZES = [3, 40, 70, 1, 55, 60, 45, 80, 66, 52, 48, 59]
CLAM = Aggregator(name="clam_sb", args={"hidden": 8, "attention_dim": 4}, instance_loss={"k": 2})
DIM = 6


class StopHereError(Exception):
    pass


def cohort(folder: Path, dtype: type = np.float16) -> tuple[Features, Fold]:
    """Twelve slides as a memory map; a third of the tiles of class 1 are far out on one axis."""
    rng = np.random.default_rng(0)
    slides = [f"s{i:02d}" for i in range(len(SIZES))]
    labels = {slide: int(i % 3 == 2) for i, slide in enumerate(slides)}
    slide_of = np.repeat(np.array(slides, dtype=object), SIZES)
    target = np.array([labels[slide] for slide in slide_of])
    x = rng.normal(size=(len(slide_of), DIM))
    x[:, 0] += 4 * ((rng.random(len(x)) < 0.3) & (target == 1))
    path = folder / f"{np.dtype(dtype)}.npy"
    save_features(path, x.astype(np.float16).astype(dtype))
    fold = Fold(
        number=0,
        classes=["no", "yes"],
        slides={"train": slides[:8], "val": slides[8:10], "test": slides[10:]},
        labels=labels,
        group_of={slide: slide for slide in slides},
        patient_of={slide: slide for slide in slides},
        rows_by_slide={slide: np.flatnonzero(slide_of == slide) for slide in slides},
        tile_ids=np.array([f"t{i}" for i in range(len(x))], dtype=object),
        slide_of=slide_of,
        identity="",
        split="a split",
    )
    return open_features(path), fold


def train(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: Aggregator = CLAM,
    *,
    dtype: type = np.float16,
    stop_after: int | None = None,
    **mil: Any,
) -> Path:
    """Fit one aggregator in float32 and give its folder; may stop before a batch."""
    run.mkdir(exist_ok=True)
    features, fold = cohort(run, dtype)
    monkeypatch.setattr(encode, "bag_features", lambda *_: (features, "a digest"))
    settings = {"aggregators": (choice,), "epochs": 6, "batch_tiles": 130, "lr": 0.01, **mil}
    compute = Compute(precision="float32", threads=1)
    config = Config(data=Data(phantom=Phantom()), mil=Mil(**settings), compute=compute)
    fabric = devices.fabric(compute, processes=1)
    with monkeypatch.context() as patch:
        if stop_after is not None:
            made, whole = itertools.count(), Bags.batch

            def batch(bags: Bags, *args: Any, **kwargs: Any) -> Batch:
                if next(made) == stop_after:
                    raise StopHereError
                return whole(bags, *args, **kwargs)

            patch.setattr(Bags, "batch", batch)
        fit_fold(run, config, fold, fabric, str)
    return run / "aggregators" / choice.name / "fold0"


@pytest.mark.parametrize("stop_after", [1, 9, 17])
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_COST_SHARE", 0.0)
    options = {"bag_dropout": 0.3, "max_tiles": 50, "balance": True, "warmup": 0.2}
    whole = train(tmp_path / "whole", monkeypatch, **options)
    with pytest.raises(StopHereError):
        train(tmp_path / "cut", monkeypatch, stop_after=stop_after, **options)
    assert not (tmp_path / "cut" / "aggregators" / "clam_sb" / "fold0" / "card.json").exists()
    cut = train(tmp_path / "cut", monkeypatch, **options)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    ends = [load_file(folder / "checkpoint" / "last.safetensors") for folder in (whole, cut)]
    assert any(name.startswith("model.instance_loss.") for name in ends[0])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    logs = [pd.read_csv(folder / "log.csv").drop(columns="seconds") for folder in (whole, cut)]
    pd.testing.assert_frame_equal(*logs)


@pytest.mark.parametrize("name", list(INSTANCE_LOSSES))
def test_prediction_needs_nothing_of_the_instance_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    on, off = Aggregator(name=name), Aggregator(name=name, instance_loss=None)
    with_loss = train(tmp_path / "on", monkeypatch, on, epochs=2)
    without = train(tmp_path / "off", monkeypatch, off, epochs=2)
    model = aggregators.create(name, dim=DIM, n_classes=2)
    weights = [load_file(folder / "model.safetensors") for folder in (with_loss, without)]
    for of_run in weights:
        model.load_state_dict(of_run)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    card = read_json(without / "card.json")
    assert card["aggregator"]["instance_loss"] is None


def test_the_lowest_validation_loss_is_kept_and_patience_goes_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(tmp_path, monkeypatch, epochs=40, lr=0.3, burn_in=0.0, patience=4)
    log = pd.read_csv(folder / "log.csv")
    chosen = read_json(folder / "card.json")["chosen_epoch"]
    assert log["val_loss"].idxmin() == chosen
    assert len(log) == min(40, chosen + 5)
    assert len(log) < 40, "it was to overfit"


def test_another_number_of_seeds_adds_models_and_trains_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(tmp_path, monkeypatch, epochs=2)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    train(tmp_path, monkeypatch, epochs=2, seeds=2)
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    second = first.with_name("fold0-seed1")
    assert (second / "card.json").exists()
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert not torch.equal(one["embed.0.weight"], other["embed.0.weight"])
    assert torch.equal(one["mean"], other["mean"])


def test_bags_beyond_the_budget_train_as_bags_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-precision bags stream from the memory map; float32 bags are packed, one in each."""
    abmil = Aggregator(name="abmil", args={"hidden": 8, "attention_dim": 4})
    monkeypatch.setattr(Bags, "plan", lambda _, slides, **__: [[slide] for slide in sorted(slides)])
    packed = train(tmp_path / "packed", monkeypatch, abmil, dtype=np.float32, batch_tiles=100)
    streamed = train(tmp_path / "streamed", monkeypatch, abmil, batch_tiles=30)
    one, other = (load_file(folder / "model.safetensors") for folder in (packed, streamed))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_batch_is_that_of_its_bags_and_of_its_tiles(tmp_path: Path) -> None:
    features, fold = cohort(tmp_path)
    batch = Bags(features, fold.rows_by_slide, fold.labels).batch(["s01", "s02", "s04"])
    torch.manual_seed(0)
    model = aggregators.create("clam_sb", dim=DIM, n_classes=2, **CLAM.args).eval()
    on_tiles = create_loss("clam_sb", model, k=2)
    assert on_tiles is not None
    weight = np.array([0.5, 3.0])
    output = model(batch.x, batch.offsets)
    of_bags = torch.stack(
        [
            weight[label] * -F.log_softmax(logits, 0)[label]
            for logits, label in zip(output.logits, batch.label.tolist(), strict=True)
        ]
    )
    wanted = of_bags.mean() + on_tiles.weight * on_tiles(output, batch.offsets, batch.label)
    torch.testing.assert_close(Objective(model, on_tiles, weight)(batch), wanted)
    torch.testing.assert_close(Objective(model, None, weight)(batch), of_bags.mean())
    # A bag alone keeps its weight.
    alone = Bags(features, fold.rows_by_slide, fold.labels).batch(["s02"])
    weighted, plain = (Objective(model, None, w)(alone).item() for w in (weight, np.ones(2)))
    assert weighted == pytest.approx(3 * plain)


def test_tiles_are_standardised_in_blocks_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, fold = cohort(tmp_path)
    monkeypatch.setattr(contract, "_BLOCK", 50)
    model = aggregators.create("mean", dim=DIM, n_classes=2)
    rows = fold.rows("train")
    assert len(rows) % 50
    for given, used in ((rows, features[rows]), (None, features)):
        model.standardise(features, given)
        wide = used.astype(np.float64)
        np.testing.assert_allclose(model.mean.numpy(), wide.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(model.std.numpy(), wide.std(0), rtol=1e-6)


def test_class_weights_even_the_classes_out(tmp_path: Path) -> None:
    _, fold = cohort(tmp_path)  # of 8 training slides 2 are of class 1
    np.testing.assert_allclose(class_weights(fold), [8 / 2 / 6, 8 / 2 / 2])
    three = replace(fold, classes=["no", "yes", "never"])
    np.testing.assert_allclose(class_weights(three), [8 / 2 / 6, 8 / 2 / 2, 1])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"aggregators": [{"name": "abmill"}]}, "did you mean 'abmil'"),
        ({"aggregators": [{"name": "abmil", "args": {"width": 3}}]}, "'width'"),
        ({"aggregators": [{"name": "abmil", "args": {"hidden": 0}}]}, "hidden is 0"),
        ({"aggregators": [{"name": "abmil", "args": {"dim": 9}}]}, "dim .* follows from the data"),
        ({"aggregators": [{"name": "clam_sb", "instance_loss": {"k": 0}}]}, "k is 0"),
        ({"aggregators": [{"name": "mean"}, {"name": "mean"}]}, "aggregators names 'mean' twice"),
        ({"aggregators": [{"name": "mean", "instance_loss": {"k": 1}}]}, "no instance loss"),
        ({"aggregators": [{"name": "mean", "instance_loss": None}]}, "no instance loss"),
        ({"aggregators": [{"name": "clam_sb", "instance_loss": {"n": 1}}]}, "'n'"),
        ({"votes": [{"name": "noisyor"}]}, "did you mean 'noisy_or'"),
        ({"votes": [{"name": "top_k_mean", "args": {"k": 0}}]}, "k is 0"),
        ({"votes": [{"name": "vote"}, {"name": "vote"}]}, "votes names 'vote' twice"),
    ],
)
def test_wrong_names_and_arguments_are_found_before_any_work(
    section: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check(Mil(**section))


def test_instance_losses_may_be_switched_off() -> None:
    assert list(INSTANCE_LOSSES), "there are none to test"
    check(Mil(aggregators=[{"name": name, "instance_loss": None} for name in INSTANCE_LOSSES]))


def patients(fold: Fold, **of: str) -> Fold:
    return replace(fold, patient_of={**fold.patient_of, **of})


def test_patients_are_bags_of_all_their_slides(tmp_path: Path) -> None:
    _, fold = cohort(tmp_path)
    packed = patients(fold, s00="p", s01="p", s10="q").of_patients()
    assert packed.slides["train"] == ["p", "s02", "s03", "s04", "s05", "s06", "s07"]
    assert packed.slides["test"] == ["q", "s11"]
    np.testing.assert_array_equal(packed.rows_by_slide["p"], np.arange(43))
    assert packed.labels["p"] == 0
    assert set(packed.rows_by_slide) == set(packed.group_of)
    assert set(packed.labels) == set(packed.rows_by_slide) - {"q", "s11"}, "test is sealed"
    with pytest.raises(InputError, match=r"'p' have different labels \(no, yes\).*majority"):
        patients(fold, s01="p", s02="p").of_patients()
    with pytest.raises(InputError, match="slides in several parts, the first is 'p'"):
        patients(fold, s00="p", s10="p").of_patients()
