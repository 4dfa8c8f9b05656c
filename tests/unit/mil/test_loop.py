"""The training loop: resume is exact, validation chooses, modes are right, schedules as torch's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

from mil import checkpoint, loop
from mil.devices import memory
from mil.loop import SCHEDULES, Batches, Budget, fit
from mil.seeds import generator
from splits.errors import InputError


class Probe(nn.Module):
    """A network with dropout and batch norm that remembers the mode it was called in."""

    def __init__(self) -> None:
        super().__init__()
        # Convolutions in channels last, as encoders are trained.
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 4, 2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(32, 2),
        ).to(memory_format=torch.channels_last)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.layers(x)


class StopHereError(Exception):
    pass


class Some(NamedTuple):
    """A batch."""

    x: Tensor
    y: Tensor
    slide_ids: tuple[str, ...] = ("a slide",)


def train(
    folder: Path,
    *,
    epochs: int = 6,
    stop_at: tuple[int, int] | None = None,
    poison: tuple[int, int] | None = None,
    scores: Sequence[tuple[float, float]] | None = None,
    **budget: object,
) -> Probe:
    """Three steps an epoch; stops, or meets a NaN, at an epoch and step.

    ``scores`` stand for what validation gives each epoch: its loss and accuracy.
    """
    torch.manual_seed(0)
    model = Probe()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()

    def stream(epoch: int, start: int) -> Iterator[Some]:
        order = torch.from_numpy(generator(0, epoch).permutation(48))
        for step, rows in enumerate(order.split(16)):
            if (epoch, step) == stop_at:
                raise StopHereError
            if step >= start:
                bad = (epoch, step) == poison
                slides = tuple(f"slide {row}" for row in rows.tolist())
                yield Some(x[rows] * (torch.nan if bad else 1), y[rows], slides)

    told = iter(scores or ())

    def validate(model: nn.Module) -> dict[str, float]:
        logits = model(x[48:])
        if scores is not None:
            return dict(zip(("val_loss", "val_accuracy"), next(told), strict=True))
        return {
            "val_loss": float(nn.functional.cross_entropy(logits, y[48:])),
            "val_accuracy": float((logits.argmax(1) == y[48:]).float().mean()),
        }

    fit(
        model,
        folder,
        budget=Budget(epochs=epochs, lr=0.05, weight_decay=0.01, **budget),  # type: ignore[arg-type]
        fabric=Fabric(accelerator="cpu", devices=1),
        batches=lambda epoch, start: Batches(3, stream(epoch, start)),
        loss=lambda m, b: nn.functional.cross_entropy(m(b.x), b.y),
        validate=validate,
        seed=3,
        digests={"data": "1", "epochs": str(epochs)},
        card={"a": 1},
        lower="the batch",
    )
    return model


@pytest.fixture
def always_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_COST_SHARE", 0.0)


@pytest.mark.usefixtures("always_saving")
@pytest.mark.parametrize("stop_at", [(0, 0), (0, 1), (2, 2), (3, 0), (5, 2)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, optimizer: str, stop_at: tuple[int, int]
) -> None:
    train(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(StopHereError):
        train(tmp_path / "cut", optimizer=optimizer, stop_at=stop_at)
    assert not (tmp_path / "cut" / "card.json").exists()
    resumed = train(tmp_path / "cut", optimizer=optimizer)
    same_end(tmp_path / "whole", tmp_path / "cut")
    steps_before = 3 * stop_at[0] + stop_at[1]
    assert resumed.modes.count((True, True)) == 18 - steps_before, "it did not go on where it was"


def test_steps_since_the_last_checkpoint_are_made_again(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(StopHereError):
        train(tmp_path / "cut", stop_at=(4, 1))
    assert not (tmp_path / "cut" / "checkpoint").exists(), "30 seconds are not over"
    train(tmp_path / "cut")
    same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("always_saving")
def test_a_checkpoint_cut_short_is_said_and_left_alone(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(StopHereError):
        train(tmp_path / "cut", stop_at=(3, 0))
    path = tmp_path / "cut" / "checkpoint" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="from the beginning"):
        train(tmp_path / "cut")
    same_end(tmp_path / "whole", tmp_path / "cut")


def same_end(whole: Path, cut: Path) -> None:
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    ends = [load_file(folder / "checkpoint" / "last.safetensors") for folder in (whole, cut)]
    assert set(ends[0]) == set(ends[1])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    logs = [pd.read_csv(folder / "log.csv").drop(columns="seconds") for folder in (whole, cut)]
    pd.testing.assert_frame_equal(*logs)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path, stop_at=(0, 0))
    assert not again.modes
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_stale_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    train(tmp_path / "a", epochs=2)
    shutil.copytree(tmp_path / "a" / "checkpoint", tmp_path / "b" / "checkpoint")
    train(tmp_path / "b", epochs=3)
    assert len(pd.read_csv(tmp_path / "b" / "log.csv")) == 3
    train(tmp_path / "c", epochs=3)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "bc"]
    assert weights[0] == weights[1]


def test_modes_and_gradients(tmp_path: Path) -> None:
    modes = set(train(tmp_path, epochs=2).modes)
    assert modes == {(True, True), (False, False)}


def test_the_best_epoch_by_validation_is_kept(tmp_path: Path) -> None:
    train(tmp_path)
    log = pd.read_csv(tmp_path / "log.csv")
    chosen = log.loc[log["best"] == 1, "epoch"].max()
    ranked = log.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    assert ranked.index[0] == chosen


@pytest.mark.parametrize(("criterion", "kept"), [("val_loss", 2), ("val_accuracy", 1)])
def test_the_criterion_may_be_the_loss_alone(tmp_path: Path, criterion: str, kept: int) -> None:
    scores = [(0.9, 0.5), (0.8, 0.9), (0.4, 0.7), (0.6, 0.8)]
    train(tmp_path, epochs=4, scores=scores, criterion=criterion)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log.loc[log["best"] == 1, "epoch"].max() == kept


def test_no_epoch_of_the_burn_in_is_kept(tmp_path: Path) -> None:
    train(tmp_path, burn_in=0.5)
    log = pd.read_csv(tmp_path / "log.csv")
    assert not log["best"][:3].any()
    late = log[3:].sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    assert log.loc[log["best"] == 1, "epoch"].max() == late.index[0]


def test_patience(tmp_path: Path) -> None:
    train(tmp_path, epochs=200, patience=2)
    log = pd.read_csv(tmp_path / "log.csv")
    assert len(log) < 200
    assert len(log) - 1 - log.loc[log["best"] == 1, "epoch"].max() == 2


def test_divergence_names_the_batch_and_its_slides(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch 1 of epoch 2 is nan \(slides slide \d+, .*…\)"):
        train(tmp_path, poison=(2, 1))
    assert not (tmp_path / "card.json").exists()


def test_out_of_memory_says_what_to_lower() -> None:
    with pytest.raises(InputError, match=r"out of memory .*: lower the batch"), memory("the batch"):
        torch.empty(10**16)
    with pytest.raises(RuntimeError, match="mat1"), memory("the batch"):
        torch.zeros(2, 2) @ torch.zeros(3, 3)


def test_events_are_those_of_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    row = {"epoch": 0, "train_loss": 1.5, "best": 1}
    for epoch in range(3):
        loop._write_events(tmp_path, {**row, "epoch": epoch, "train_loss": 1.5 - epoch})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [
        (0, 1.5),
        (1, 0.5),
        (2, -0.5),
    ]


def torch_rates(build: object, n: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_agree_with_torch() -> None:
    schedulers = torch.optim.lr_scheduler
    step = SCHEDULES.create("step", epochs=60, step_size=15, gamma=0.05)
    wanted = torch_rates(lambda o: schedulers.StepLR(o, 15, 0.05), 60)
    assert [step(e + 0.5) for e in range(60)] == pytest.approx(wanted)
    cosine = SCHEDULES.create("cosine", epochs=40)
    wanted = torch_rates(lambda o: schedulers.CosineAnnealingLR(o, 40), 40)
    assert [cosine(e) for e in range(40)] == pytest.approx(wanted)
    warm = SCHEDULES.create("cosine", epochs=40, warmup=0.25)
    wanted = torch_rates(
        lambda o: schedulers.SequentialLR(
            o,
            [schedulers.LinearLR(o, 0.01, total_iters=10), schedulers.CosineAnnealingLR(o, 30)],
            milestones=[10],
        ),
        40,
    )
    assert [warm(e) for e in range(40)] == pytest.approx(wanted)
    with pytest.raises(InputError, match="warmup is 1"):
        SCHEDULES.create("cosine", epochs=40, warmup=1)
    n = 101  # torch counts its last step as the end of the cycle
    one = SCHEDULES.create("onecycle", epochs=n - 1)
    wanted = torch_rates(
        lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=n, cycle_momentum=False), n
    )
    assert [one(e) for e in range(n)] == pytest.approx(wanted, abs=0.05)
