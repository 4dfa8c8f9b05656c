"""``.pt`` files of CLAM (a bare tensor) and slideflow (with the places in ``.index.npz``).

A ``.pt`` file is a pickle, which can run any code when it is read. Only plain tensors are: torch's
``weights_only`` reader refuses all else.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np

from mil.features.arrays import open_npz
from mil.features.bag import Array, Bag, as_features
from splits.artifacts import atomic
from splits.errors import InputError

__all__ = ["CONFIG", "index_of", "read", "write_clam", "write_slideflow"]

CONFIG: Final = "bags_config.json"
_WASTE: Final = 2  # times its tensor that a storage may be
_SMALL: Final = 1 << 20  # bytes that are no waste worth a word


def index_of(path: Path) -> Path:
    """Where slideflow puts the places of a bag's tiles."""
    return path.with_name(f"{path.stem}.index.npz")


def read(path: Path, slide_id: str) -> Bag:
    """One slide.

    Raises:
        InputError: The file is damaged or cut short, or holds anything but one tensor.
    """
    x, notes, warnings = _tensor(path)
    index, config = index_of(path), path.with_name(CONFIG)
    if not index.exists() and not config.exists():
        return Bag(slide_id, "clam-pt", x, notes=tuple(notes), warnings=tuple(warnings))
    said = _config(config)
    side_um, side_px = said.get("tile_um"), said.get("tile_px")
    known = isinstance(side_um, int | float) and isinstance(side_px, int | float) and side_px > 0
    coords = None
    if index.exists():
        arrays = open_npz(index)
        if "locations" in arrays or "arr_0" not in arrays:
            warnings.append(
                "its .index.npz is the index of a TFRecord (byte offsets), not of a bag: "
                "it was left aside, so there are no coordinates"
            )
        else:
            coords = arrays["arr_0"]
    return Bag(
        slide_id,
        "slideflow",
        x,
        coords,
        "level0_px" if coords is not None else None,
        tile_px=int(side_px) if known and side_px is not None else None,
        centred=coords is not None,
        encoder=None if said.get("extractor") is None else _name(said["extractor"]),
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _name(extractor: Any) -> str:
    """The extractor's name, where it is written as ``{"class": ..., "kwargs": ...}``."""
    return str(extractor.get("class", extractor) if isinstance(extractor, dict) else extractor)


def _config(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        message = f"{path} is not valid JSON ({error})"
        raise InputError(message) from error
    return said if isinstance(said, dict) else {}


def _tensor(path: Path) -> tuple[Array, list[str], list[str]]:
    """The tensor of a file, notes and warnings."""
    import torch

    try:
        # A map reads only the pages of the tensor, however large the storage it was cut from.
        given = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        cause = str(error).splitlines()[0].split("WeightsUnpickler error: ")[-1]
        message = (
            f"{path} is a pickle of more than tensors and was not opened, because that can run any "
            f"code: save the features as one tensor, .h5 or .npz ({_cause(error, cause)})"
        )
        raise InputError(message) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{path} cannot be read, it is cut short, damaged or no .pt file ({said})"
        raise InputError(message) from error
    if not isinstance(given, torch.Tensor):
        message = f"{path} holds {_described(given)}, allowed is one tensor (n_tiles, dim)"
        raise InputError(message)
    if given.layout != torch.strided:
        message = f"{path} holds a {given.layout} tensor, allowed is a dense one (n_tiles, dim)"
        raise InputError(message)
    tensor = given.detach()
    notes: list[str] = []
    warnings: list[str] = []
    if tensor.untyped_storage().nbytes() > max(_WASTE * tensor.nbytes, _SMALL):
        warnings.append(
            "its file holds far more than its tensor: a slice was saved with all that it was cut "
            "from (clone it before torch.save)"
        )
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
        notes.append("bfloat16 values were read as float32")
    x, changed = as_features(np.array(tensor.numpy()), str(path))
    return x, [*notes, *changed], warnings


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _cause(error: Exception, first: str) -> str:
    """The name of what the pickle wanted to call, where torch says it."""
    text = str(error)
    if "GLOBAL" in text:
        return text[text.index("GLOBAL") :].split(" was not")[0].splitlines()[0]
    return first


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary with the keys {', '.join(map(str, list(value)[:5]))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a {type(value).__name__}"


def write_clam(bag: Bag, folder: Path) -> list[str]:
    """``pt_files/<slide>.pt``: the features alone."""
    _save(bag, folder / "pt_files")
    return ["clam-pt has no place for coordinates"] if bag.coords is not None else []


def write_slideflow(bag: Bag, folder: Path) -> list[str]:
    """``<slide>.pt``, its places in ``.index.npz``, and ``bags_config.json``; notes on what is not.

    slideflow's places are the middle of a tile, in level-0 pixels.
    """
    _save(bag, folder)
    place, side = bag.place_px(), bag.side_px()
    with atomic(folder / CONFIG) as path:
        said = {
            "extractor": bag.encoder or "slidewise",
            "normalizer": None,
            "num_features": int(bag.x.shape[1]),
            "tile_px": bag.tile_px,
            "tile_um": round(side * bag.mpp) if side and bag.mpp else None,
        }
        path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    if place is None or (side is None and not bag.centred):
        return ["the middle of a tile in level-0 pixels is unknown: no .index.npz was written"]
    middle = place if bag.centred or side is None else place + side / 2
    with atomic(folder / f"{bag.slide_id}.index.npz") as path, path.open("wb") as file:
        np.savez(file, np.rint(middle).astype(np.int64))
    return []


def _save(bag: Bag, folder: Path) -> None:
    import torch

    with atomic(folder / f"{bag.slide_id}.pt") as path:
        # A copy: torch.save of a slice writes all that it was cut from.
        torch.save(torch.from_numpy(np.array(bag.x)), path)
