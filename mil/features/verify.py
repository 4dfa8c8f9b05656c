"""``slidewise verify``: everything that makes feature files unsafe to learn from, or doubtful.

Findings have one of three severities: ``unsafe`` (a model would learn something wrong, or nothing),
``warning`` (look at it) and ``note``. One pass over the files, one slide in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.features.bag import Array, Bag
from mil.features.columns import Columns, Severity
from mil.features.copies import copies, row_numbers
from mil.features.folder import FeatureFiles, find
from mil.features.labels import label
from splits.errors import InputError

__all__ = ["SEVERITIES", "verify"]

SEVERITIES: Final = ("unsafe", "warning", "note")
Progress = Callable[[str, int], Callable[[int], object]]
Found = dict[str, Any]
_FEW: Final = 3
_NOT_SAID: Final = "not said"
_OFF: Final = 0.01  # of the stride of a grid: what counts as beside it


def verify(
    path: Path,
    table: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    fold: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read every feature file once and say what is in it and what is wrong with it.

    Args:
        path: As for `mil.features.folder.find`.
        table: Slides and labels; None takes those of the files, where they bring any.
        columns: Our name -> the table's, for columns that are not recognised.
        fold: Whose features of a run folder.
        progress: Shown while slides are read.

    Returns:
        ``verdict`` (``safe`` or ``unsafe``), ``formats``, ``n`` (slides, tiles, smallest and
        largest bag), ``dims``, ``dtypes``, ``frames``, ``encoders``, ``labels`` (class -> slides)
        and ``findings``: ``kind, severity, message, slides`` (all of them) and ``columns``.

    Raises:
        InputError: Nothing that is recognised as features, or a wrong table.
    """
    found = find(path, fold)
    findings: list[Found] = []
    labels: dict[str, str] = {}
    if table is not None or found.labels:
        labelled = label(found, table, columns)
        rows = labelled.slides
        labels = dict(zip(rows["slide_id"].astype(str), rows["label"].astype(str), strict=True))
        findings += _about_labels(labelled.without_label, labelled.without_features)
        findings += [_finding("labels", "note", note) for note in labelled.notes]
    elif columns:
        message = "--columns belongs to --labels CSV, and none is given"
        raise InputError(message)
    tally = _Tally()
    advance = progress("verify", len(found.files)) if progress else None
    for name in found.slide_ids:
        tally.add(found, name)
        if advance is not None:
            advance(1)
    findings += tally.findings(labels)
    findings += [_finding("other_files", "note", note) for note in found.notes]
    findings.sort(key=lambda one: SEVERITIES.index(one["severity"]))  # stable
    unsafe = any(one["severity"] == "unsafe" for one in findings)
    return {
        "verdict": "unsafe" if unsafe else "safe",
        "path": str(path),
        **tally.summary(),
        "labels": dict(sorted(Counter(labels.values()).items())),
        "findings": findings,
    }


class _Tally:
    """What is counted over slides."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.by: dict[str, dict[str, list[str]]] = {
            name: {} for name in ("form", "dim", "dtype", "frame", "encoder", "note", "warning")
        }
        self.unreadable: dict[str, str] = {}
        self.empty: list[str] = []
        self.not_finite: dict[str, tuple[int, int, str]] = {}  # NaN, infinite, where first
        self.zero: dict[str, int] = {}
        self.coords: dict[str, dict[str, str]] = {}  # kind -> slide -> what
        self.numbers: dict[str, Array] = {}  # of each tile
        self.columns: dict[int, Columns] = {}

    def add(self, found: FeatureFiles, name: str) -> None:
        try:
            bag = found.read(name)
        except InputError as error:
            self.unreadable[name] = str(error)
            return
        self.sizes[name] = len(bag)
        known = {"form": bag.form, "dim": str(bag.x.shape[1]), "dtype": str(bag.x.dtype)}
        known |= {"frame": bag.frame or ("none" if bag.coords is None else "not declared")}
        known |= {"encoder": bag.encoder or _NOT_SAID}
        for what, value in known.items():
            self.by[what].setdefault(value, []).append(name)
        for kind, said in (("note", bag.notes), ("warning", bag.warnings)):
            for words in said:
                self.by[kind].setdefault(words, []).append(name)
        if 0 in bag.x.shape:
            self.empty.append(name)
            return
        finite = np.isfinite(bag.x)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            n_nan = int(np.isnan(bag.x).sum())
            where = f"tile {row}, column {column}"
            self.not_finite[name] = (n_nan, int((~finite).sum()) - n_nan, where)
        if n_zero := int((~bag.x.any(axis=1)).sum()):
            self.zero[name] = n_zero
        for kind, what in _coordinates(bag):
            self.coords.setdefault(kind, {})[name] = what
        self.numbers[name] = row_numbers(bag.x)
        self.columns.setdefault(bag.x.shape[1], Columns()).add(name, bag.x)

    def summary(self) -> dict[str, Any]:
        sizes = list(self.sizes.values())
        n = {"slides": len(sizes), "unreadable": len(self.unreadable), "tiles": sum(sizes)}
        if sizes:
            n |= {"smallest": min(sizes), "median": int(np.median(sizes)), "largest": max(sizes)}
        counted = {what: {k: len(v) for k, v in of.items()} for what, of in self.by.items()}
        named = {"formats": "form", "dims": "dim", "dtypes": "dtype", "frames": "frame"}
        named |= {"encoders": "encoder"}
        return {"n": n, **{name: counted[what] for name, what in named.items()}}

    def findings(self, labels: dict[str, str]) -> Iterator[Found]:
        for name, cause in self.unreadable.items():
            yield _finding("unreadable", "unsafe", cause, [name])
        if self.empty:
            yield _finding("empty", "unsafe", f"{_slides(self.empty)} without a tile", self.empty)
        if self.not_finite:
            n_nan = sum(nan for nan, _, _ in self.not_finite.values())
            n_inf = sum(infinite for _, infinite, _ in self.not_finite.values())
            first, (_, _, where) = next(iter(self.not_finite.items()))
            what = f"{n_nan} NaN and {n_inf} infinite values in {_slides(self.not_finite)}"
            what += f"; the first is {where} of {first!r}"
            yield _finding("not_finite", "unsafe", what, self.not_finite)
        yield from self._mixed("dim", "unsafe", "dimensions differ", "one model reads one")
        several = len(set(self.by["encoder"]) - {_NOT_SAID}) > 1
        severity: Severity = "unsafe" if several else "warning"
        yield from self._mixed("encoder", severity, "encoders differ", "their features mix")
        yield from self._mixed("dtype", "note", "types differ", "each is kept as it is")
        yield from self._mixed("frame", "warning", "frames of coordinates differ", "look why")
        for kind, severity in _KINDS.items():
            if kind in self.coords:
                of = self.coords[kind]
                first, what = next(iter(of.items()))
                message = f"{_slides(of)}, the first is {first!r}: {what}"
                yield _finding(kind, severity, message, of)
        if self.zero:
            message = f"{sum(self.zero.values())} tile(s) are all zeros, in {_slides(self.zero)}"
            yield _finding("zero_tiles", "warning", message, self.zero)
        yield from self._copied(labels)
        for columns in self.columns.values():
            for one in columns.suspects(labels):
                message = f"{len(one.columns)} column(s) {one.what}: {one.listed}"
                yield _finding(one.kind, one.severity, message, columns=one.columns)
        for severity in ("warning", "note"):
            for words, names in self.by[severity].items():
                message = f"{words} ({_slides(names)}: {_few(names)})"
                yield _finding("file", severity, message, names)

    def _mixed(self, what: str, severity: Severity, words: str, so: str) -> Iterator[Found]:
        values = self.by[what]
        if len(values) > 1:
            usual = max(values, key=lambda value: len(values[value]))
            counts = ", ".join(f"{value} in {len(of)}" for value, of in values.items())
            other = [name for value, of in values.items() if value != usual for name in of]
            message = f"{words} ({counts} slides; not {usual}: {_few(other)}): {so}"
            yield _finding(f"mixed_{what}", severity, message, other)

    def _copied(self, labels: dict[str, str]) -> Iterator[Found]:
        if not self.numbers:
            return
        of_tile = np.repeat(list(self.numbers), [len(of) for of in self.numbers.values()])
        tiles = pd.Series(np.concatenate(list(self.numbers.values())))
        found = copies(tiles, pd.Series(of_tile, dtype=object))
        if found.pairs:
            names = sorted({name for pair in found.pairs for name in pair[:2]})
            first = found.pairs[0]
            message = (
                f"{len(found.pairs)} pair(s) of slides are copies, whole or in part (a run keeps "
                f"them in one group); the first: {first[0]!r} and {first[1]!r} share "
                f"{first[2]:.0%} of the smaller one's tiles"
            )
            told = [pair for pair in found.pairs if set(pair[:2]) <= set(labels)]
            if n := sum(labels[a] != labels[b] for a, b, _ in told):
                message += f"; {n} pair(s) have two labels"
            yield _finding("copied_slides", "unsafe", message, names)
        if found.within:
            message = (
                f"{sum(found.within.values())} tile(s) occur again within their slide, in "
                f"{_slides(found.within)}"
            )
            yield _finding("repeated_tiles", "warning", message, found.within)
        if found.common:
            message = (
                f"{len(found.common)} feature vector(s) occur in several slides that are no "
                "copies: blank tiles, as a rule"
            )
            yield _finding("common_tiles", "note", message)


_KINDS: Final[dict[str, Severity]] = {
    "coordinates": "unsafe",
    "coordinates_repeated": "warning",
    "coordinates_doubtful": "warning",
    "off_grid": "note",
}


def _coordinates(bag: Bag) -> Iterator[tuple[str, str]]:
    """What is wrong with the places of the tiles."""
    coords = bag.coords
    if coords is None:
        return
    if coords.shape != (len(bag), 2) or coords.dtype.kind not in "fiu":
        yield (
            "coordinates",
            f"features of {len(bag)} tiles, coordinates of shape {coords.shape} ({coords.dtype})",
        )
        return
    if not np.isfinite(coords).all():
        yield "coordinates_doubtful", "coordinates that are not finite"
        return
    if (coords < 0).any():
        yield "coordinates_doubtful", "negative coordinates"
    if n_again := len(coords) - len(np.unique(coords, axis=0)):
        yield "coordinates_repeated", f"{n_again} tile(s) at the place of another"
    off = [_off_grid(coords[:, axis]) for axis in (0, 1)]
    beside = off[0] | off[1]
    if beside.any():
        yield "off_grid", f"{int(beside.sum())} of {len(bag)} tiles lie beside the grid of the rest"


def _off_grid(place: Array) -> Array:
    """Which places are no whole number of strides from most others, ``(n_tiles,)`` bool."""
    place = np.round(place.astype(np.float64), 3)
    steps = np.diff(np.unique(place))
    if len(steps) == 0:
        return np.zeros(len(place), dtype=bool)
    stride = Counter(np.round(steps, 1).tolist()).most_common(1)[0][0]
    if stride <= 0:
        return np.zeros(len(place), dtype=bool)
    phase = place / stride % 1
    usual = Counter(np.round(phase, 2).tolist()).most_common(1)[0][0]
    away = np.abs(phase - usual)
    return np.asarray(np.minimum(away, 1 - away) > _OFF)


def _about_labels(without_label: list[str], without_features: list[str]) -> Iterator[Found]:
    for names, what in (
        (without_label, "no label for {} with features"),
        (without_features, "no features for {} with a label"),
    ):
        if names:
            yield _finding(
                "labels", "warning", f"{what.format(_slides(names))}: {_few(names)}", names
            )


def _finding(
    kind: str,
    severity: Severity,
    message: str,
    slides: Sequence[str] | Mapping[str, Any] = (),
    columns: Sequence[int] = (),
) -> Found:
    where = {"slides": list(slides), "columns": list(columns)}
    return {"kind": kind, "severity": severity, "message": message, **where}


def _slides(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"{len(names)} slide{'' if len(names) == 1 else 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_FEW])) + (", ..." if len(names) > _FEW else "")
