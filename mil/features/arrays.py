"""Files of numpy: torchmil's folders of ``.npy``, an ``.npz`` a slide, sets of bags in one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from mil.features.bag import FRAMES, Array, Bag, as_features
from splits.artifacts import atomic
from splits.errors import InputError

__all__ = [
    "bags_of_set",
    "open_npz",
    "read_npz",
    "read_torchmil",
    "write_label",
    "write_npz",
    "write_torchmil",
]

_FEATURES: Final = ("features", "X", "x", "feats")


def _load(path: Path, *, mapped: bool = False) -> Any:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        message = f"{path} {_why(error)}"
        raise InputError(message) from error


def _why(error: Exception) -> str:
    if "allow_pickle" in str(error):
        return "holds pickled objects and was not opened, because that can run any code"
    return f"cannot be read, it is cut short, damaged or no numpy file ({error})"


def open_npz(path: Path) -> Mapping[str, Array]:
    """All arrays of an ``.npz`` file.

    Raises:
        InputError: The file is damaged or cut short, or holds objects.
    """
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        message = f"{path} is one array, not an .npz archive"
        raise InputError(message)
    try:
        return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        message = f"{path} {_why(error)}"
        raise InputError(message) from error
    finally:
        loaded.close()


def _matrix(path: Path) -> Array:
    loaded = _load(path, mapped=True)
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        message = f"{path} is an .npz archive under another name: rename it"
        raise InputError(message)
    return loaded


def read_npz(path: Path, slide_id: str) -> Bag:
    """One slide: ``features`` (or ``X``) and, optional, ``coords, frame, tile, mpp, encoder``.

    Raises:
        InputError: No features, or as for :func:`open_npz`.
    """
    arrays = open_npz(path)
    key = next((name for name in _FEATURES if name in arrays), None)
    if key is None:
        message = f"{path} has no array features or X, it holds {', '.join(arrays) or 'nothing'}"
        raise InputError(message)
    x, notes = as_features(arrays[key], f"{path}:{key}")
    frame = str(arrays["frame"]) if "frame" in arrays else None
    if frame is not None and frame not in FRAMES:
        message = f"{path} declares the frame {frame!r}, allowed: {', '.join(FRAMES)}"
        raise InputError(message)
    coords = arrays.get("coords")
    tile_px = _scalar(arrays, "tile_px")
    return Bag(
        slide_id,
        "npz",
        x,
        coords,
        frame if coords is not None else None,  # type: ignore[arg-type]
        tile=_scalar(arrays, "tile"),
        mpp=_scalar(arrays, "mpp"),
        tile_px=None if tile_px is None else int(tile_px),
        centred="centred" in arrays,
        encoder=str(arrays["encoder"]) if "encoder" in arrays else None,
        notes=tuple(notes),
    )


def _scalar(arrays: Mapping[str, Array], name: str) -> float | None:
    return float(arrays[name]) if name in arrays else None


def write_npz(bag: Bag, folder: Path) -> list[str]:
    """``<slide>.npz`` with all that a bag knows; other formats hold less."""
    said: dict[str, Any] = {"features": bag.x, "coords": bag.coords, "frame": bag.frame}
    said |= {name: getattr(bag, name) for name in ("tile", "mpp", "tile_px", "encoder")}
    if bag.centred:
        said["centred"] = True
    known: dict[str, Any] = {k: np.asarray(v) for k, v in said.items() if v is not None}
    with atomic(folder / f"{bag.slide_id}.npz") as path, path.open("wb") as file:
        np.savez(file, **known)
    return []


def read_torchmil(path: Path, slide_id: str, root: Path) -> Bag:
    """One slide: ``features/<slide>.npy``, and ``coords/<slide>.npy`` where it is there.

    Neither says what the unit of the coordinates is.
    """
    x, notes = as_features(np.array(_matrix(path)), str(path))
    place = root / "coords" / path.name
    coords = np.array(_matrix(place)) if place.exists() else None
    if coords is not None:
        notes.append("the frame of its coordinates is not declared")
    return Bag(slide_id, "torchmil", x, coords, notes=tuple(notes))


def write_torchmil(bag: Bag, folder: Path) -> list[str]:
    """``features/<slide>.npy`` and ``coords/<slide>.npy``; notes on what was left out."""
    parts = {"features": bag.x, "coords": bag.coords}
    for name, values in parts.items():
        if values is not None:
            target = folder / name / f"{bag.slide_id}.npy"
            with atomic(target) as path, path.open("wb") as file:
                np.save(file, values, allow_pickle=False)
    if bag.coords is None:
        return ["coordinates are unknown and were left out"]
    return ["torchmil has no place for the frame of coordinates"] if bag.frame else []


def write_label(label: int, folder: Path, slide_id: str) -> None:
    """``labels/<slide>.npy`` of torchmil: the number of the class."""
    with atomic(folder / "labels" / f"{slide_id}.npy") as path, path.open("wb") as file:
        np.save(file, np.array([label]), allow_pickle=False)


def bags_of_set(path: Path) -> tuple[dict[str, Bag], dict[str, str]]:
    """Many bags in one file, the layout of the classic benchmarks.

    ``X (n_instances, dim)``, ``bag (n_instances,)`` and, optional, ``y (n_bags,)``: the label of
    bag ``i`` is ``y[i]``. Other arrays, such as ``inst_label``, are set aside with a note.

    Returns:
        Bags by id, ``bag_007`` for bag 7 of 100, and labels as text, empty without ``y``.

    Raises:
        InputError: Shapes that do not fit, or as for :func:`open_npz`.
    """
    arrays = open_npz(path)
    key = next((name for name in _FEATURES if name in arrays), None)
    if key is None:
        message = f"{path} has no array X, it holds {', '.join(arrays)}"
        raise InputError(message)
    x, notes = as_features(arrays[key], f"{path}:{key}")
    bag, y = arrays["bag"], arrays.get("y")
    if bag.shape != (len(x),) or bag.dtype.kind not in "iu":
        message = (
            f"{path}: bag has the shape {bag.shape} and type {bag.dtype}, allowed are "
            f"{len(x)} whole numbers, one a row of {key}"
        )
        raise InputError(message)
    numbers = np.unique(bag)
    n_bags = len(numbers) if y is None else len(y)
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= max(n_bags, 1)) and y is not None:
        message = f"{path}: bag goes from {numbers[0]} to {numbers[-1]}, and y has {n_bags} labels"
        raise InputError(message)
    wide = len(str(max(n_bags - 1, int(numbers[-1]) if len(numbers) else 0)))
    aside = sorted(set(arrays) - {key, "bag", "y"})
    if aside:
        notes.append(f"not used: {', '.join(aside)}")
    order = np.argsort(bag, kind="stable")
    bounds = np.searchsorted(bag[order], np.arange(int(numbers[-1]) + 2 if len(numbers) else 1))
    names = range(n_bags) if y is not None else map(int, numbers)
    bags = {}
    for number in names:
        rows = order[bounds[number] : bounds[number + 1]] if number + 1 < len(bounds) else order[:0]
        name = f"bag_{number:0{wide}d}"
        bags[name] = Bag(name, "npz-set", x[rows], notes=tuple(notes))
    labels = {} if y is None else {name: str(y[i]) for i, name in enumerate(bags)}
    return bags, labels
