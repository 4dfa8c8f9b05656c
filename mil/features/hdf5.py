"""HDF5 files of TRIDENT, CLAM and STAMP, told apart by their keys and attributes.

TRIDENT: ``features`` and ``coords``, whose attributes say the size of a tile. CLAM: the same keys
without attributes, coordinates in level-0 pixels by the tool's convention. STAMP: ``feats`` in
float16 and ``coords`` in micrometres, as the attributes of the file say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mil.features.bag import Array, Bag, as_features
from splits.artifacts import atomic
from splits.errors import InputError

__all__ = ["read", "write_clam", "write_stamp", "write_trident"]


def read(path: Path, slide_id: str) -> Bag:
    """One slide.

    Raises:
        InputError: The file is damaged or cut short, or holds no tile features.
    """
    try:
        with h5py.File(path, "r") as file:
            return _stamp(file, path, slide_id) if "feats" in file else _clam(file, path, slide_id)
    except InputError:
        raise  # the file was read, and says what it lacks
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        message = f"{path} cannot be read, it is cut short, damaged or no HDF5 file ({error})"
        raise InputError(message) from error


def _clam(file: h5py.File, path: Path, slide_id: str) -> Bag:
    x, notes = _features(file, "features", path)
    coords = _coords(file)
    if coords is None:
        return Bag(slide_id, "clam-h5", x, notes=tuple(notes))
    said = {name: _plain(value) for name, value in file["coords"].attrs.items()}
    made = {name: _plain(value) for name, value in file["features"].attrs.items()}
    if not said and not made:
        if coords.dtype.kind == "f":
            notes.append("coordinates are no whole numbers and their frame is not declared")
            return Bag(slide_id, "clam-h5", x, coords, notes=tuple(notes))
        notes.append("the frame is not declared; CLAM's are level-0 pixels, and so these are taken")
        return Bag(slide_id, "clam-h5", x, coords, "level0_px", notes=tuple(notes))
    return Bag(
        slide_id,
        "trident",
        x,
        coords,
        "level0_px",
        tile=_number(said, "patch_size_level0"),
        tile_px=_whole(said, "patch_size"),
        mpp=_number(said, "level0_mpp"),
        encoder=None if made.get("encoder") is None else str(made["encoder"]),
        notes=tuple(notes),
    )


def _stamp(file: h5py.File, path: Path, slide_id: str) -> Bag:
    said = {name: _plain(value) for name, value in file.attrs.items()}
    kind = said.get("feat_type", "tile")
    if kind != "tile":
        message = f"{path} holds STAMP features of a {kind}: needed are features of tiles"
        raise InputError(message)
    x, notes = _features(file, "feats", path)
    coords = _coords(file)
    in_um = said.get("unit") == "um" or (coords is not None and "tile_size_um" in said)
    if coords is not None and not in_um:
        notes.append(
            "an old STAMP file without unit: its coordinates are kept, their frame is unknown"
        )
    side_um, side_px = _number(said, "tile_size_um"), _whole(said, "tile_size_px")
    return Bag(
        slide_id,
        "stamp",
        x,
        coords,
        "um" if in_um and coords is not None else None,
        tile=side_um if in_um else None,
        tile_px=side_px,
        mpp=side_um / side_px if side_um and side_px else None,
        encoder=None if said.get("extractor") is None else str(said["extractor"]),
        notes=tuple(notes),
    )


def _features(file: h5py.File, key: str, path: Path) -> tuple[Array, list[str]]:
    if key not in file or not isinstance(file[key], h5py.Dataset):
        held = ", ".join(sorted(file)) or "nothing"
        hint = " (a file of coordinates, as of patches/)" if "coords" in file else ""
        message = f"{path} has no dataset features or feats, it holds {held}{hint}"
        raise InputError(message)
    return as_features(file[key][()], f"{path}:{key}")


def _coords(file: h5py.File) -> Array | None:
    return np.asarray(file["coords"][()]) if "coords" in file else None


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _number(said: Mapping[str, Any], name: str) -> float | None:
    try:
        value = float(said[name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) and value > 0 else None


def _whole(said: Mapping[str, Any], name: str) -> int | None:
    value = _number(said, name)
    return None if value is None else round(value)


def write_trident(bag: Bag, folder: Path) -> list[str]:
    """``<slide>.h5`` as TRIDENT's ``features_<encoder>/`` has it; notes on what was left out."""
    coords, notes = _level0(bag)
    with atomic(folder / f"{bag.slide_id}.h5") as path, h5py.File(path, "w") as file:
        file["features"] = bag.x
        made = {"name": bag.slide_id, "savetodir": folder.name, "encoder": bag.encoder}
        file["features"].attrs.update(_known(made))
        if coords is not None:
            file["coords"] = coords
            tile = bag.side_px()
            said = {"name": bag.slide_id, "savetodir": folder.name, "patch_size": bag.tile_px}
            said |= {"patch_size_level0": None if tile is None else round(tile)}
            file["coords"].attrs.update(_known(said))
    return notes


def write_clam(bag: Bag, folder: Path) -> list[str]:
    """``h5_files/<slide>.h5`` as CLAM has it; notes on what was left out."""
    coords, notes = _level0(bag)
    target = folder / "h5_files" / f"{bag.slide_id}.h5"
    with atomic(target) as path, h5py.File(path, "w") as file:
        file["features"] = bag.x.astype(np.float32)
        if coords is not None:
            file["coords"] = coords.astype(np.int32)
    return notes


def write_stamp(bag: Bag, folder: Path) -> list[str]:
    """``<slide>.h5`` as STAMP has it: features in float16, coordinates in micrometres.

    Raises:
        InputError: Coordinates or micrometres a pixel are unknown, or a value exceeds float16.
    """
    place, side = bag.place_um(), bag.side_px()
    if place is None or bag.mpp is None or side is None:
        missing = "coordinates" if bag.place_px() is None else "mpp" if not bag.mpp else "tile size"
        message = (
            f"stamp needs coordinates in micrometres and the size of a tile; slide "
            f"{bag.slide_id!r} has no {missing} (trident, clam-h5 and npz do without)"
        )
        raise InputError(message)
    with np.errstate(over="ignore"):
        half = bag.x.astype(np.float16)
    if not np.isfinite(half).all():
        message = f"stamp stores float16, and slide {bag.slide_id!r} has values beyond 65504"
        raise InputError(message)
    with atomic(folder / f"{bag.slide_id}.h5") as path, h5py.File(path, "w") as file:
        file["feats"] = half
        file["coords"] = place.astype(np.float32)
        said = {
            "unit": "um",
            "extractor": bag.encoder or "slidewise",
            "tile_size_um": side * bag.mpp,
            "tile_size_px": round(side) if bag.tile_px is None else bag.tile_px,
            "feat_type": "tile",
        }
        file.attrs.update(said)
    return [] if bag.x.dtype == np.float16 else ["float32 values were rounded to float16"]


def _level0(bag: Bag) -> tuple[Array | None, list[str]]:
    place = bag.place_px()
    if place is None:
        return None, ["coordinates in level-0 pixels are unknown and were left out"]
    return np.rint(place).astype(np.int64), []


def _known(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}
