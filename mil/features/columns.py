"""Columns of features that say nothing, or too much: constant ones, ids, and the label itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mil.features.bag import Array

__all__ = ["Columns", "Suspect"]

Severity = Literal["unsafe", "warning", "note"]
_CHANCE: Final = 0.01  # expected number of columns that separate the classes by chance
_LISTED: Final = 8
_WORDS: Final = {"low": "smallest", "high": "largest", "mean": "mean"}


@dataclass(frozen=True)
class Suspect:
    """Columns of one kind, and what they are in words."""

    kind: str
    severity: Severity
    columns: list[int]
    what: str

    @property
    def listed(self) -> str:
        """The first columns, in words."""
        more = ", ..." if len(self.columns) > _LISTED else ""
        return ", ".join(map(str, self.columns[:_LISTED])) + more


class Columns:
    """Smallest, largest and mean value of each column in each slide.

    Memory is three numbers a slide and column, however many tiles there are.
    """

    def __init__(self) -> None:
        self._slides: list[str] = []
        self._values: dict[str, list[Array]] = {"low": [], "high": [], "mean": []}

    def add(self, slide_id: str, x: Array) -> None:
        """Note a slide's features ``(n_tiles, dim)``; rows with a value not finite are left out."""
        rows = x[np.isfinite(x).all(axis=1)]
        if len(rows) == 0:
            return
        self._slides.append(slide_id)
        self._values["low"].append(rows.min(axis=0).astype(np.float32))
        self._values["high"].append(rows.max(axis=0).astype(np.float32))
        self._values["mean"].append(rows.mean(axis=0, dtype=np.float32))

    def suspects(self, labels: dict[str, str]) -> Iterator[Suspect]:
        """What is odd; the label is looked for where slides of two classes have one."""
        if not self._slides:
            return
        low, high = (np.stack(self._values[name]) for name in ("low", "high"))
        constant = low.min(axis=0) == high.max(axis=0)
        if constant.any():
            yield Suspect("constant_column", "warning", _where(constant), "never change")
        one_valued = (low == high).all(axis=0) & ~constant
        told = [i for i, name in enumerate(self._slides) if name in labels]
        names = [labels[self._slides[i]] for i in told]
        classes = sorted(set(names))
        leaking = np.zeros(low.shape[1], dtype=bool)
        if len(classes) > 1:
            code = np.array([classes.index(name) for name in names])
            for column in np.flatnonzero(one_valued):
                leaking[column] = _tells(low[told, column], code)
            if leaking.any():
                yield Suspect(
                    "label_column",
                    "unsafe",
                    _where(leaking),
                    "hold the label: each has one value in all tiles of a slide, and each value "
                    "occurs in one class only",
                )
        own = one_valued & ~leaking
        if own.any():
            yield Suspect(
                "slide_column",
                "warning",
                _where(own),
                "have one value in all tiles of a slide: no features of tiles (an id, a site?)",
            )
        if len(classes) > 1:
            yield from self._separating(told, code, ~constant & ~one_valued)

    def _separating(
        self, told: list[int], code: npt.NDArray[np.int64], asked: npt.NDArray[np.bool_]
    ) -> Iterator[Suspect]:
        """Columns of which one number a slide separates all classes, where chance would not."""
        chance = len(self._values) * int(asked.sum()) * _by_chance(list(code))
        if chance > _CHANCE:
            return
        low, high = (np.stack(self._values[name])[told] for name in ("low", "high"))
        n_classes = int(code.max()) + 1
        found = {
            name: asked & _separates(np.stack(values)[told], code)
            for name, values in self._values.items()
        }
        any_of = np.asarray(np.stack(list(found.values())).any(axis=0))
        coded = np.zeros_like(any_of)
        for column in np.flatnonzero(any_of):
            few = np.unique(np.concatenate([low[:, column], high[:, column]]))
            coded[column] = len(few) <= n_classes
        if coded.any():
            yield Suspect(
                "label_column",
                "unsafe",
                _where(coded),
                "hold the label: of no more values than classes, the largest or smallest in a "
                "slide is the class",
            )
        rest = any_of & ~coded
        if rest.any():
            which = [_WORDS[name] for name, columns in found.items() if (columns & rest).any()]
            yield Suspect(
                "separating_column",
                "warning",
                _where(rest),
                f"separate the classes perfectly each by itself (by the {' or '.join(which)} "
                "value of a slide): a strong feature, or the label in disguise",
            )


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]


def _tells(values: Array, code: npt.NDArray[np.int64]) -> bool:
    """Whether each value is of one class and values repeat, so that it is no id."""
    pairs = set(zip(values.tolist(), code.tolist(), strict=True))
    n_values = len({value for value, _ in pairs})
    return len(pairs) == n_values and n_values <= max(len(values) // 2, int(code.max()) + 1)


def _separates(values: Array, code: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Columns in which the ranges of the classes do not touch."""
    groups = [values[code == c] for c in range(int(code.max()) + 1)]
    low = np.stack([group.min(axis=0) for group in groups])
    high = np.stack([group.max(axis=0) for group in groups])
    order = np.argsort(low, axis=0)
    low, high = (np.take_along_axis(part, order, axis=0) for part in (low, high))
    return np.asarray((high[:-1] < low[1:]).all(axis=0))


def _by_chance(code: Sequence[int]) -> float:
    """Probability that values in random order keep all classes together."""
    counts = Counter(code).values()
    orders = math.lgamma(len(code) + 1) - sum(math.lgamma(n + 1) for n in counts)
    return math.factorial(len(counts)) * math.exp(-orders)
