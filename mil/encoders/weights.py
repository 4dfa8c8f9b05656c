"""Weights from a file or from the hub, without running anything that they say.

A pickle can run any code when it is read. So tensors come from safetensors, or from a PyTorch file
through ``torch.load(weights_only=True)``, which builds nothing but tensors and plain containers;
a file that asks for more is refused.
"""

from __future__ import annotations

import os
import pickle
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from splits.artifacts import digest, file_digest
from splits.errors import InputError

__all__ = ["LOCAL", "fill", "folder_file", "hub", "origin_digest", "read_weights"]

LOCAL: Final = "local-dir:"
"""Prefix of the name of a timm model in a folder (``config.json`` beside its weights)."""
_FOLDER_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_WRAPPINGS: Final = ("state_dict_ema", "model_ema", "state_dict", "model")
_HUB_TIMEOUT_S: Final = 5
_NOT_CODE: Final = (
    "write the plain tensors as safetensors where you trust the file: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a file of weights, on the CPU.

    Args:
        path: safetensors, or a PyTorch file that holds a state dict, alone or under
            ``state_dict`` or ``model`` as training scripts write it.

    Raises:
        InputError: There is no such file, it is cut short, it is something else (a web page, a
            git-lfs pointer), or it holds Python objects beside tensors.
    """
    if path.is_dir():
        message = f"{path} is a folder: name the file, or set encoder.name={LOCAL}{path}"
        raise InputError(message)
    if not path.is_file():
        message = f"{path} does not exist: encoder.checkpoint takes a file of weights"
        raise InputError(message)
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise InputError(message) from error
    if not start:
        message = f"{path} is empty"
    elif start.startswith(b"version https://git-lfs"):
        message = f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` beside it"
    elif start.lstrip().startswith(b"<"):
        message = f"{path} is a web page, not weights: the download failed"
    elif start[4:9] == b"\0\0\0\0{" or path.suffix == ".safetensors":
        return _safetensors(path)
    elif start.startswith((b"PK", b"\x80")):
        return _pickled(path)
    else:
        message = f"{path} is neither safetensors nor a PyTorch state dict"
    raise InputError(message)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        message = f"{path} ({size:,} bytes) is cut short or no safetensors file: {_line(error)}"
        raise InputError(message) from error


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path} holds Python objects, which could run code, and is refused: {_NOT_CODE}"
        raise InputError(message) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        message = f"{path} ({path.stat().st_size:,} bytes) is cut short or damaged: {_line(error)}"
        raise InputError(message) from error
    for key in _WRAPPINGS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    tensors = found if isinstance(found, Mapping) else {}
    tensors = {k: v for k, v in tensors.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        message = f"{path} holds no state dict (name -> tensor): {_NOT_CODE}"
        raise InputError(message)
    return dict(clean_state_dict(tensors))


def fill(backbone: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a timm model without a classifier; every tensor of it must be there.

    Names and shapes of other releases are translated by timm's own ``checkpoint_filter_fn`` of the
    model family where it has one (position embeddings are resampled there).

    Args:
        backbone: Changed in place.
        tensors: As :func:`read_weights` gives them.
        source: Where they come from, for the error.

    Raises:
        InputError: They are of another model; how many tensors fit is said.
    """
    own = backbone.state_dict()
    wanted = {n: t.shape for n, t in own.items() if not n.endswith("num_batches_tracked")}
    if misfits := _misfits(wanted, tensors):
        convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                tensors = convert(dict(tensors), backbone)
                misfits = _misfits(wanted, tensors)
            except (LookupError, RuntimeError, TypeError, ValueError, AttributeError):
                pass  # not a release that timm knows: what does not fit is known already
    card: Any = getattr(backbone, "pretrained_cfg", {})
    surplus = _surplus(own, tensors, card.get("classifier"))
    if misfits or surplus:
        example = f"{surplus[0]!r} is too much" if surplus else ""
        if misfits:
            example = f"{misfits[0]!r} is missing or has another shape"
        message = (
            f"{source} does not fit encoder {card.get('architecture')!r}: "
            f"{len(wanted) - len(misfits)} of its {len(wanted)} tensors are there; {example}"
        )
        raise InputError(message)
    backbone.load_state_dict({n: tensors.get(n, t) for n, t in own.items()})


def _misfits(wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> list[str]:
    return [n for n, shape in wanted.items() if n not in tensors or tensors[n].shape != shape]


def _surplus(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], classifier: Any
) -> list[str]:
    """Tensors of a part that the model has, such as further blocks; heads are not looked at."""
    parts = {name.partition(".")[0] for name in own}
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return [
        n
        for n in tensors
        if n not in own and n.partition(".")[0] in parts and not n.startswith(heads)
    ]


def folder_file(name: str) -> Path:
    """The weights in the folder of a ``local-dir:`` name.

    Raises:
        InputError: The folder has none.
    """
    folder = Path(name.removeprefix(LOCAL))
    found = [folder / file for file in _FOLDER_FILES if (folder / file).is_file()]
    found += sorted(folder.glob("*.safetensors"))
    if not found:
        message = (
            f"{folder} holds no weights: {' or '.join(_FOLDER_FILES)} is needed beside config.json"
        )
        raise InputError(message)
    return found[0]


def origin_digest(name: str, checkpoint: Path | None) -> str | None:
    """What names local weights by their content, without building a model.

    Other weights may come to stand under the same path. None where the hub publishes them.

    Raises:
        InputError: The files do not exist.
    """
    if checkpoint is not None:
        if not checkpoint.is_file():
            read_weights(checkpoint)  # says what is wrong with it
        return file_digest(checkpoint)
    if name.startswith(LOCAL):
        files = [Path(name.removeprefix(LOCAL)) / "config.json", folder_file(name)]
        return digest([file_digest(file) for file in files])
    return None


@contextmanager
def hub() -> Iterator[None]:
    """Within, files of the hub come from its cache at once where it does not answer.

    (Its client tries each file for 23 seconds.) PyTorch files are read as tensors only, whatever
    the version of timm asks for.
    """
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    offline = constants.HF_HUB_OFFLINE
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    constants.HF_HUB_OFFLINE = offline or not _answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        if forced is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced


def _answers() -> bool:
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
