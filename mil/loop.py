"""The one training loop, for encoders and aggregators: explicit, resumable, test out of reach.

It sees training batches and a function that scores validation; nothing else. All randomness of a
step follows from the seed and the step's number, and schedules are functions of progress, so a run
resumed at any checkpoint, in the middle of an epoch too, makes the same updates as one that was
never stopped.

In several processes each sees its share of every batch; gradients and losses are averaged, so all
of them make the same updates. Only the first writes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mil.checkpoint import Saver, is_finished, load_weights, resume, save_weights
from mil.devices import memory
from mil.prepare import Advance, unseen
from mil.registry import Registry
from mil.seeds import derive
from splits.artifacts import write_csv, write_json
from splits.errors import InputError

__all__ = ["OPTIMIZERS", "SCHEDULES", "Batches", "Budget", "fit"]


class OfSlides(Protocol):
    """A batch that knows its slides, so that an error can name them."""

    @property
    def slide_ids(self) -> Sequence[str]:
        """The slides of a batch, in any order."""


B = TypeVar("B", bound=OfSlides)
Schedule = Callable[[float], float]
_NAMED: Final = 5

OPTIMIZERS: Final[Registry[torch.optim.Optimizer]] = Registry("optimizer")
SCHEDULES: Final[Registry[Schedule]] = Registry("schedule")


@OPTIMIZERS.register("sgd")
def _sgd(params: Any, lr: float, weight_decay: float, momentum: float = 0.9) -> Any:
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, momentum=momentum, fused=True)


@OPTIMIZERS.register("adamw")
def _adamw(params: Any, lr: float, weight_decay: float) -> Any:
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)


@SCHEDULES.register("constant")
def _constant(epochs: int) -> Schedule:
    return lambda _: 1.0


@SCHEDULES.register("step")
def _step(epochs: int, step_size: int, gamma: float) -> Schedule:
    """As ``torch.optim.lr_scheduler.StepLR``."""
    return lambda epoch: gamma ** (int(epoch) // step_size)


@SCHEDULES.register("cosine")
def _cosine(epochs: int, warmup: float = 0.0) -> Schedule:
    """Half a cosine from the learning rate to 0 (Loshchilov & Hutter 2017, no restarts).

    ``warmup`` is the share of the epochs before it in which the rate climbs in a straight line
    (Goyal et al. 2017), from 1/100 of it.
    """
    if not 0 <= warmup < 1:
        message = f"warmup is {warmup!r}, allowed is a share of the epochs from 0 to below 1"
        raise InputError(message)

    def factor(epoch: float) -> float:
        progress = epoch / epochs
        if progress < warmup:
            return 0.01 + 0.99 * progress / warmup
        share = (progress - warmup) / (1 - warmup)
        return float(0.5 * (1 + np.cos(np.pi * min(share, 1.0))))

    return factor


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
    """The batches of an epoch.

    Attributes:
        n: How many a whole epoch has.
        stream: Makes them one at a time, from the step that was asked for on.
    """

    n: int
    stream: Iterable[B]


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train, and which epoch is kept.

    Attributes:
        criterion: What ``validate`` says of an epoch that chooses it. ``val_accuracy``: the
            highest, among equals the lowest loss: for few slides, of which one that is wrong with
            confidence rules a loss. ``val_loss``: the lowest.
        patience: Stop after so many epochs without a better one; None: never.
        burn_in: Share of the epochs before one may be kept.
    """

    epochs: int
    lr: float
    weight_decay: float
    optimizer: str = "adamw"
    optimizer_args: Mapping[str, Any] | None = None
    schedule: str = "cosine"
    schedule_args: Mapping[str, Any] | None = None
    patience: int | None = None
    burn_in: float = 0.0
    criterion: Literal["val_accuracy", "val_loss"] = "val_accuracy"


def fit(
    model: nn.Module,
    folder: Path,
    *,
    kept: nn.Module | None = None,
    budget: Budget,
    fabric: Fabric,
    batches: Callable[[int, int], Batches[B]],
    loss: Callable[[nn.Module, B], Tensor],
    validate: Callable[[nn.Module], Mapping[str, float]],
    seed: int,
    digests: Mapping[str, str],
    card: Mapping[str, Any],
    lower: str,
    tensorboard: bool = False,
    after_epoch: Callable[[str], object] | None = None,
    advance: Advance = unseen,
) -> None:
    """Train ``model`` in place and leave it (or what is kept of it) with the best epoch's weights.

    Writes ``model.safetensors`` (best epoch), ``checkpoint/last.safetensors`` (last step),
    ``log.csv`` and, when done, ``card.json``. With a card of the same digests it only loads the
    weights; with a checkpoint of the same digests it goes on from there.

    Args:
        model: Trained in place, on the fabric's device.
        folder: Such as ``encoder/fold0``.
        kept: The part of the model that is used later: ``model.safetensors`` holds it alone, and
            only it has the weights of the best epoch in the end. None: all of it.
        budget: Epochs, optimiser, schedule, and what chooses the epoch.
        fabric: Device, precision and processes.
        batches: Epoch and first step -> training batches, the same for the same numbers.
        loss: Mean loss of a batch.
        validate: Called with the bare model in eval mode and without gradients, gives at least
            ``val_loss`` and ``val_accuracy``.
        seed: Everything random follows from it.
        digests: Of all inputs.
        card: What a user of the weights must know.
        lower: The settings to lower where memory does not suffice.
        tensorboard: Write the log as TensorBoard events, too.
        after_epoch: Called with one line a finished epoch.
        advance: Called with the share of an epoch that is done, ``budget.epochs`` in sum: what an
            earlier call has done counts at once, and so do epochs that are not needed.

    Raises:
        InputError: The loss is not finite (the batch and its slides are named), or memory does not
            suffice.
    """
    kept = model if kept is None else kept
    weights = folder / "model.safetensors"
    if is_finished(folder, digests):
        load_weights(kept, weights)
        advance(budget.epochs)
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
    done = resume(checkpoint, model, optimizer, digests, warnings.warn)
    saver = Saver(checkpoint, model, optimizer, digests)
    fabric.barrier()  # nobody writes before everybody has read
    first = min(int(budget.burn_in * budget.epochs), budget.epochs - 1)
    advance(len(done.log))
    while len(done.log) < budget.epochs and not _out_of_patience(done.log, budget.patience):
        epoch, log = len(done.log), done.log
        began = time.perf_counter()
        of_epoch = batches(epoch, done.step)
        advance(done.step / of_epoch.n)
        wrapped.train()
        for batch in of_epoch.stream:
            torch.manual_seed(derive(seed, "step", epoch, done.step, fabric.global_rank))
            lr = budget.lr * schedule(epoch + done.step / of_epoch.n)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            with memory(lower):
                value = loss(wrapped, batch)
                fabric.backward(value)
            reduced = float(fabric.all_reduce(value.detach(), reduce_op="mean"))
            if not math.isfinite(reduced):
                raise _diverged(folder, reduced, epoch, done.step, batch, budget.lr)
            optimizer.step()
            done.step, done.total = done.step + 1, done.total + reduced
            advance(1 / of_epoch.n)
            if fabric.is_global_zero:
                saver.maybe(done)
        wrapped.eval()
        with torch.inference_mode(), fabric.autocast(), memory(lower):
            scores = dict(validate(model))
        if not math.isfinite(scores["val_loss"]):
            message = (
                f"training diverged in {folder}: the validation loss of epoch {epoch} is "
                f"{scores['val_loss']}: lower the learning rate ({budget.lr:g})"
            )
            raise InputError(message)
        merit = partial(_merit, criterion=budget.criterion)
        earlier = [merit(row) for row in log if row["best"]]
        best = epoch >= first and (not earlier or merit(scores) > earlier[-1])
        log.append(
            {
                "epoch": epoch,
                "learning_rate": budget.lr * schedule(epoch + 1 - 1 / of_epoch.n),
                "train_loss": done.total / of_epoch.n,
                **scores,
                "seconds": round(time.perf_counter() - began, 3),
                "best": int(best),
            }
        )
        done.step, done.total = 0, 0.0
        if fabric.is_global_zero:
            if best:
                save_weights(kept, weights)
            saver.maybe(done)
            write_csv(folder / "log.csv", pd.DataFrame(log))
            if tensorboard:
                _write_events(folder / "tensorboard", log[-1])
        if after_epoch is not None:
            after_epoch(f"epoch {epoch + 1}/{budget.epochs} val_loss {scores['val_loss']:.3f}")
    advance(budget.epochs - len(done.log))
    if fabric.is_global_zero:
        saver.save(done)
        chosen = [row["epoch"] for row in done.log if row["best"]][-1]
        write_json(folder / "card.json", {**card, "chosen_epoch": chosen}, digests)
    fabric.barrier()
    load_weights(kept, weights)


def _merit(scores: Mapping[str, float], criterion: str) -> tuple[float, float]:
    """Higher is better; the loss breaks ties of accuracy, and nothing breaks those of the loss."""
    return scores["val_accuracy"] if criterion == "val_accuracy" else 0.0, -scores["val_loss"]


def _out_of_patience(log: list[dict[str, Any]], patience: int | None) -> bool:
    best = [row["epoch"] for row in log if row["best"]]
    return patience is not None and bool(best) and len(log) - 1 - best[-1] >= patience


def _diverged(
    folder: Path, loss: float, epoch: int, step: int, batch: OfSlides, lr: float
) -> InputError:
    slides = list(dict.fromkeys(batch.slide_ids))
    named = ", ".join(slides[:_NAMED]) + (", …" if len(slides) > _NAMED else "")
    return InputError(
        f"training diverged in {folder}: the loss of batch {step} of epoch {epoch} is {loss} "
        f"(slides {named}): lower the learning rate ({lr:g}) or look at these slides"
    )


def _write_events(folder: Path, row: Mapping[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter  # an extra: `pip install tensorboard`

    with SummaryWriter(str(folder), purge_step=row["epoch"]) as writer:
        for name, value in row.items():
            if name not in {"epoch", "best"}:
                writer.add_scalar(name, value, row["epoch"])
