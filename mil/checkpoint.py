"""Weights and training state on disk: safetensors with a JSON note, never pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from splits.artifacts import FORMAT_VERSION, atomic, is_current
from splits.errors import InputError

__all__ = ["Progress", "Saver", "is_finished", "load_weights", "resume", "save_weights"]

_SECONDS: Final = 30.0
_COST_SHARE: Final = 20.0


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        log: One row a finished epoch.
        step: Steps done in the present epoch.
        total: Sum of their losses.
    """

    log: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    total: float = 0.0


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers as safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format_version": str(FORMAT_VERSION)})


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights that :func:`save_weights` wrote; every name and shape must fit."""
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, OSError, SafetensorError) as error:
        message = f"{path} does not fit this model: {str(error).splitlines()[0]}"
        raise InputError(message) from error


def is_finished(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether ``folder`` holds a model trained to its end from exactly these inputs."""
    return is_current(folder / "card.json", digests) and (folder / "model.safetensors").exists()


class Saver:
    """Writes the whole state of a training now and then, so that a killed one loses little.

    At most every 30 seconds, and no oftener than keeps the share of the time that goes into
    writing under a twentieth.

    Args:
        path: The file; weights, optimiser and progress are in one, so always of the same step.
        model: What is trained.
        optimizer: Its optimiser.
        digests: Of all inputs.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        digests: Mapping[str, str],
    ) -> None:
        self._path, self._model, self._optimizer = path, model, optimizer
        self._digests = dict(digests)
        self._pause, self._last = _SECONDS, time.perf_counter()

    def maybe(self, progress: Progress) -> None:
        """Save if it is time to."""
        if time.perf_counter() - self._last >= self._pause:
            self.save(progress)

    def save(self, progress: Progress) -> None:
        """Save now."""
        began = time.perf_counter()
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
        note = json.dumps({**vars(progress), "digests": self._digests})
        with atomic(self._path) as temporary:
            save_file(tensors, temporary, metadata={"state": note})
        self._last = time.perf_counter()
        self._pause = max(_SECONDS, _COST_SHARE * (self._last - began))


def resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    digests: Mapping[str, str],
    warn: Callable[[str], object],
) -> Progress:
    """Load what a :class:`Saver` wrote for the same inputs; else start from the beginning."""
    if not path.exists():
        return Progress()
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["state"])
            if note.pop("digests") != dict(digests):
                return Progress()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        warn(f"{path} is not readable ({error}): training starts from the beginning")
        return Progress()
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            like = parameters[int(index)]
            if tensor.shape == like.shape:
                # Laid out as the parameter (channels last): fused optimisers go by memory.
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    return Progress(**note)
