"""The one training loop, for encoders and aggregators: explicit, resumable, test out of reach.

It sees training batches and a function that scores validation; nothing else. All randomness of an
epoch follows from the seed and the epoch's number, and schedules are functions of progress, so a
run resumed at its last finished epoch makes the same updates as one that was never stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mil.registry import Registry
from mil.seeds import derive
from splits.artifacts import FORMAT_VERSION, atomic, is_current, write_csv, write_json
from splits.errors import InputError

__all__ = ["OPTIMIZERS", "SCHEDULES", "Batches", "Budget", "fit", "load_weights", "save_weights"]

B = TypeVar("B")
Schedule = Callable[[float], float]

OPTIMIZERS: Final[Registry[torch.optim.Optimizer]] = Registry("optimizer")
SCHEDULES: Final[Registry[Schedule]] = Registry("schedule")


@OPTIMIZERS.register("sgd")
def _sgd(params: Any, lr: float, weight_decay: float, momentum: float = 0.9) -> Any:
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, momentum=momentum)


@OPTIMIZERS.register("adamw")
def _adamw(params: Any, lr: float, weight_decay: float) -> Any:
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)


@SCHEDULES.register("constant")
def _constant(epochs: int) -> Schedule:
    return lambda _: 1.0


@SCHEDULES.register("step")
def _step(epochs: int, step_size: int, gamma: float) -> Schedule:
    """As ``torch.optim.lr_scheduler.StepLR``."""
    return lambda epoch: gamma ** (int(epoch) // step_size)


@SCHEDULES.register("cosine")
def _cosine(epochs: int) -> Schedule:
    """Half a cosine from the learning rate to 0 (Loshchilov & Hutter 2017, no restarts)."""
    return lambda epoch: 0.5 * (1 + np.cos(np.pi * min(epoch / epochs, 1.0)))


@SCHEDULES.register("onecycle")
def _onecycle(epochs: int, warm: float = 0.3) -> Schedule:
    """One cycle (Smith & Topin 2018): cosine up from 1/25 over ``warm``, then down to 1e-4 / 25."""

    def factor(epoch: float) -> float:
        progress = epoch / epochs
        rising = progress < warm
        share = progress / warm if rising else (progress - warm) / (1 - warm)
        start, end = (1 / 25, 1.0) if rising else (1.0, 1e-4 / 25)
        return float(end + (start - end) * 0.5 * (1 + np.cos(np.pi * min(share, 1.0))))

    return factor


@dataclass(frozen=True)
class Batches(Generic[B]):
    """The batches of an epoch: how many, and the stream that makes them one at a time."""

    n: int
    stream: Iterable[B]


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train."""

    epochs: int
    lr: float
    weight_decay: float
    optimizer: str = "adamw"
    optimizer_args: Mapping[str, Any] | None = None
    schedule: str = "cosine"
    schedule_args: Mapping[str, Any] | None = None
    patience: int | None = None
    burn_in: float = 0.0


def fit(
    model: nn.Module,
    folder: Path,
    *,
    budget: Budget,
    fabric: Fabric,
    batches: Callable[[int], Batches[B]],
    loss: Callable[[nn.Module, B], Tensor],
    validate: Callable[[nn.Module], Mapping[str, float]],
    seed: int,
    digests: Mapping[str, str],
    card: Mapping[str, Any],
    after_epoch: Callable[[str], object] | None = None,
) -> None:
    """Train ``model`` in place and leave it with the weights of the best epoch.

    Writes ``model.safetensors`` (best epoch), ``log.csv``, ``checkpoint/`` and, when
    done, ``card.json``. With a card of the same digests it only loads the weights; with a
    checkpoint of the same digests it goes on after the last finished epoch.

    Args:
        model: Trained in place, on the fabric's device.
        folder: Such as ``encoder/fold0``.
        budget: Epochs, optimiser and schedule.
        fabric: Device and precision.
        batches: Epoch number -> training batches, the same for the same number.
        loss: Mean loss of a batch.
        validate: Called in eval mode and without gradients; the epoch of the highest
            ``val_accuracy`` is kept, among equals the one of the lowest ``val_loss``.
        seed: Everything random follows from it.
        digests: Of all inputs.
        card: What a user of the weights must know.
        after_epoch: Called with one line a finished epoch.

    Raises:
        InputError: The loss is not finite: training has diverged.
    """
    weights = folder / "model.safetensors"
    if is_current(folder / "card.json", digests) and weights.exists():
        load_weights(model, weights)
        return
    torch.manual_seed(derive(seed, "start"))
    schedule = SCHEDULES.create(
        budget.schedule, epochs=budget.epochs, **(budget.schedule_args or {})
    )
    optimizer = OPTIMIZERS.create(
        budget.optimizer,
        params=[p for p in model.parameters() if p.requires_grad],
        lr=budget.lr,
        weight_decay=budget.weight_decay,
        **(budget.optimizer_args or {}),
    )
    wrapped, optimizer = fabric.setup(model, optimizer)
    checkpoint = folder / "checkpoint" / "last.safetensors"
    log = _resume(checkpoint, model, optimizer, digests)
    first = min(int(budget.burn_in * budget.epochs), budget.epochs - 1)
    while len(log) < budget.epochs and not _out_of_patience(log, budget.patience):
        epoch = len(log)
        began = time.perf_counter()
        torch.manual_seed(derive(seed, "epoch", epoch))
        of_epoch = batches(epoch)
        wrapped.train()
        total = 0.0
        for step, batch in enumerate(of_epoch.stream):
            lr = budget.lr * schedule(epoch + step / of_epoch.n)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            value = loss(wrapped, batch)
            fabric.backward(value)
            optimizer.step()
            total += float(value.detach())
        train_loss = total / of_epoch.n
        wrapped.eval()
        with torch.inference_mode():
            scores = dict(validate(wrapped))
        if not np.isfinite([train_loss, scores["val_loss"]]).all():
            message = (
                f"training diverged in epoch {epoch} of {folder} (loss {train_loss}): "
                f"lower the learning rate ({budget.lr:g})"
            )
            raise InputError(message)
        kept = [_merit(row) for row in log if row["best"]]
        best = epoch >= first and (not kept or _merit(scores) > kept[-1])
        log.append(
            {
                "epoch": epoch,
                "learning_rate": lr,
                "train_loss": train_loss,
                **scores,
                "seconds": round(time.perf_counter() - began, 3),
                "best": int(best),
            }
        )
        if best:
            save_weights(model, weights)
        _save_checkpoint(checkpoint, model, optimizer, log, digests)
        write_csv(folder / "log.csv", pd.DataFrame(log))
        if after_epoch is not None:
            after_epoch(f"epoch {epoch + 1}/{budget.epochs} val_loss {scores['val_loss']:.3f}")
    load_weights(model, weights)
    chosen = [row["epoch"] for row in log if row["best"]][-1]
    write_json(folder / "card.json", {**card, "chosen_epoch": chosen}, digests)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers as safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format_version": str(FORMAT_VERSION)})


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights that :func:`save_weights` wrote; every name and shape must fit."""
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, OSError) as error:
        message = f"{path} does not fit this model: {str(error).splitlines()[0]}"
        raise InputError(message) from error


def _merit(scores: Mapping[str, float]) -> tuple[float, float]:
    """Accuracy chooses, loss breaks ties: one slide that is wrong with confidence rules a loss."""
    return scores["val_accuracy"], -scores["val_loss"]


def _out_of_patience(log: list[dict[str, Any]], patience: int | None) -> bool:
    best = [row["epoch"] for row in log if row["best"]]
    return patience is not None and bool(best) and len(log) - 1 - best[-1] >= patience


def _save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    log: list[dict[str, Any]],
    digests: Mapping[str, str],
) -> None:
    # One file, so that weights, optimiser and log are always of the same epoch; no pickle.
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    note = json.dumps({"log": log, "digests": dict(digests)})
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"state": note})


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, digests: Mapping[str, str]
) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["state"])
        if note["digests"] != dict(digests):
            return []
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    log: list[dict[str, Any]] = note["log"]
    return log
