"""What lies in a folder of feature files: its slides, recognised by the files themselves."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from mil.features import arrays, hdf5, ours, tensors
from mil.features.bag import Bag
from splits.artifacts import digest, read_json
from splits.errors import InputError, unknown

__all__ = ["CARD", "SUFFIXES", "FeatureFiles", "find"]

Read = Callable[[], Bag]

SUFFIXES: Final = (".h5", ".hdf5", ".pt", ".pth", ".npz", ".npy")
"""What a feature file ends in; the id of its slide is its name without it."""
CARD: Final = "slidewise.json"
"""What `mil.features.export` leaves beside its files: the slides that the encoder saw."""
_KNOWN: Final = frozenset((tensors.CONFIG, CARD))
_INSIDE: Final = ("h5_files", "pt_files", "features")  # the folders of CLAM and torchmil
_SHOWN: Final = 3


@dataclass(frozen=True)
class FeatureFiles:
    """Slides with features, read one at a time.

    Attributes:
        root: Folder or file that was asked for.
        files: Slide -> the file it is read from, by id.
        labels: Slide -> label, where the files themselves bring it (sets of bags, torchmil).
        seen: Slides that the encoder was trained on; None where the files do not say.
        notes: What was set aside, in words.
        digest: Of names, sizes and times of all files that are read.
    """

    root: Path
    files: dict[str, Path]
    labels: dict[str, str]
    seen: list[str] | None
    notes: tuple[str, ...]
    digest: str
    _read: Mapping[str, Read] = field(repr=False)

    @property
    def slide_ids(self) -> list[str]:
        """All slides, sorted."""
        return sorted(self.files)

    def read(self, slide_id: str) -> Bag:
        """The bag of one slide, as its file has it.

        Raises:
            InputError: No such slide, or its file cannot be read.
        """
        if slide_id not in self._read:
            raise unknown(kind=f"slide of {self.root}", given=slide_id, allowed=self._read)
        return self._read[slide_id]()


def find(path: Path, fold: int | None = None) -> FeatureFiles:
    """Recognise feature files.

    Args:
        path: A folder with a file a slide (TRIDENT, CLAM, STAMP, slideflow, torchmil, npz), the
            folder above ``h5_files``, ``pt_files`` or ``features``, one such file, a set of bags
            in one ``.npz``, or a run folder.
        fold: Which features of a run folder; None takes the only ones there are.

    Raises:
        InputError: There are none, two files are of one slide, or a set cannot be read.
    """
    if not path.exists():
        message = f"{path} does not exist: a folder of feature files is needed"
        raise InputError(message)
    if ours.is_run(path):
        run = ours.slides(path, fold)
        stamps = _digest([path / "tiles.parquet", path / "features" / "meta.json", run.matrix])
        files = dict.fromkeys(run.rows, run.matrix)
        read = {name: partial(run.read, name) for name in files}
        return FeatureFiles(path, files, run.labels, run.seen, (), stamps, read)
    if fold is not None:
        message = f"--fold goes with a run folder, and {path} is none"
        raise InputError(message)
    if path.is_file():
        return _of_file(path)
    return _of_folder(path)


def _of_file(path: Path) -> FeatureFiles:
    if path.suffix.lower() not in SUFFIXES:
        message = f"{path} is no feature file (allowed: {', '.join(SUFFIXES)})"
        raise InputError(message)
    if _is_set(path):
        bags, labels = arrays.bags_of_set(path)
        read: dict[str, Read] = {name: partial(_same, bag) for name, bag in bags.items()}
        files = dict.fromkeys(bags, path)
        return FeatureFiles(path, files, labels, None, (), _digest([path]), read)
    name = path.name[: -len(path.suffix)]
    used = _beside(path)
    reader = {name: _reader(path, name)}
    return FeatureFiles(path, {name: path}, {}, None, (), _digest(used), reader)


def _of_folder(path: Path) -> FeatureFiles:
    folder, notes = _inner(path)
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    within = [entry for entry in entries if entry.is_file()]
    found = [entry for entry in within if _is_feature_file(entry)]
    others = [e.name for e in within if not _is_feature_file(e) and not _is_companion(e)]
    if not found:
        inside = [e.name for e in entries if e.is_dir() and any(map(_is_feature_file, e.iterdir()))]
        hint = f"; its folder(s) {', '.join(inside[:5])} hold some: give one" if inside else ""
        message = f"{folder} holds no feature file (allowed: {', '.join(SUFFIXES)}){hint}"
        raise InputError(message)
    files: dict[str, Path] = {}
    for file in found:
        name = file.name[: -len(file.suffix)]
        if name in files:
            message = (
                f"slide {name!r} has two files in {folder}, {files[name].name} and {file.name}: "
                "one a slide is allowed"
            )
            raise InputError(message)
        files[name] = file
    sets = [file.name for file in files.values() if _is_set(file)]
    if sets:
        message = f"{folder / sets[0]} is a set of many bags: give the file, not its folder"
        raise InputError(message)
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        listed = ", ".join(others[:_SHOWN]) + more
        notes.append(f"{len(others)} other file(s) were not read: {listed}")
    used = [companion for file in files.values() for companion in _beside(file)]
    read = {name: _reader(file, name) for name, file in files.items()}
    card = (folder.parent if folder.name in _INSIDE else folder) / CARD
    used += [card] if card.exists() else []
    labels = _labels(folder, files)
    return FeatureFiles(path, files, labels, _seen(card), tuple(notes), _digest(used), read)


def _seen(card: Path) -> list[str] | None:
    """The slides that the encoder saw, where the files are an export of ours."""
    seen = read_json(card).get("slides_seen") if card.exists() else None
    return None if seen is None else [str(name) for name in seen]


def _inner(path: Path) -> tuple[Path, list[str]]:
    """Where the files lie: the folder itself, or the one that a tool puts them in."""
    if any(entry.is_file() and _is_feature_file(entry) for entry in path.iterdir()):
        return path, []
    inside = [name for name in _INSIDE if (path / name).is_dir()]
    folder = path / inside[0] if inside else path
    notes = [f"{path.name}/{name} was not read beside {inside[0]}" for name in inside[1:]]
    deeper = [e for e in sorted(folder.iterdir()) if e.is_dir() and e.name.startswith("features")]
    if folder.name == "features" and len(deeper) == 1:
        folder = deeper[0]  # torchmil's features/features_<encoder>
    return folder, notes


def _is_feature_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.endswith(".index.npz")


def _is_companion(path: Path) -> bool:
    return path.name in _KNOWN or path.name.endswith(".index.npz")


def _is_set(path: Path) -> bool:
    """Whether an ``.npz`` holds many bags; only the list of its arrays is read."""
    if path.suffix.lower() != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "bag.npy" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _reader(path: Path, name: str) -> Read:
    kind = path.suffix.lower()
    if kind in (".h5", ".hdf5"):
        return partial(hdf5.read, path, name)
    if kind in (".pt", ".pth"):
        return partial(tensors.read, path, name)
    if kind == ".npz":
        return partial(arrays.read_npz, path, name)
    return partial(arrays.read_torchmil, path, name, _root(path.parent))


def _root(folder: Path) -> Path:
    """Where torchmil's ``coords`` and ``labels`` lie: beside ``features``."""
    if folder.name.startswith("features"):
        above = folder.parent
        return above.parent if above.name == "features" else above
    return folder


def _beside(path: Path) -> list[Path]:
    """A feature file and all that is read with it."""
    beside = [tensors.index_of(path), path.with_name(tensors.CONFIG)]
    if path.suffix.lower() == ".npy":
        root = _root(path.parent)
        beside = [root / name / path.name for name in ("coords", "labels")]
    elif path.suffix.lower() not in (".pt", ".pth"):
        beside = []
    return [path, *(file for file in beside if file.exists())]


def _labels(folder: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Labels of torchmil, ``labels/<slide>.npy``: one number a slide."""
    root, labels = _root(folder), {}
    for name, file in files.items():
        path = root / "labels" / file.name
        if file.suffix.lower() == ".npy" and path.exists():
            try:
                value = np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                message = f"{path} cannot be read ({error})"
                raise InputError(message) from error
            if not isinstance(value, np.ndarray) or value.size != 1:
                message = f"{path} holds no single label"
                raise InputError(message)
            label = value.reshape(-1)[0]
            whole = value.dtype.kind == "f" and float(label).is_integer()
            labels[name] = str(int(label)) if whole else str(label)
    return labels


def _same(bag: Bag) -> Bag:
    return bag


def _digest(paths: list[Path]) -> str:
    stats = [(path, path.stat()) for path in dict.fromkeys(paths)]
    return digest(sorted((path.as_posix(), s.st_size, s.st_mtime_ns) for path, s in stats))
