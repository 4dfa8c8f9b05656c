"""One file of a split as it is: a table with every cell as text, or a JSON document."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from splits.errors import InputError
from splits.identity.table import read_text

__all__ = ["PART_NAMES", "Found", "Source", "is_fold", "load"]

PART_NAMES: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_EXCEL_HINT: Final = re.compile(r"\Asep=[;,\t|]\r?\n", re.I)
_FOLD: Final = re.compile(
    r"(?:(?P<rest>.*)[_-])?(?:fold[_-]?)?(?P<fold>\d{1,6})(?:fold)?(?:_bool|_descriptor)?", re.I
)
_FOLD_FOLDER: Final = re.compile(r"(?:fold|split)[_-]?(\d{1,6})", re.I)


@dataclass(frozen=True)
class Source:
    """A file that may be a split.

    Attributes:
        path: Where it lies.
        rows: Its table, columns in small letters; ``""`` and ``"#2"`` are columns without a name.
        names: The columns as the file writes them, in their order.
        document: What a JSON file holds.
    """

    path: Path
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    names: tuple[str, ...] = ()
    document: Any = None

    @property
    def header(self) -> list[str]:
        """The columns in small letters, an unnamed first one as ``""``."""
        return list(self.rows.columns)

    def written(self, column: str) -> str:
        """A column as the file writes it."""
        return self.names[self.header.index(column)]

    def numbered(self) -> tuple[str, int] | None:
        """What the name says of the fold: the rest of the path, and the number; None if nothing."""
        if (match := _FOLD.fullmatch(self.path.stem)) is not None:
            return f"{self.path.parent}/{match['rest'] or ''}", int(match["fold"])
        if (folder := _FOLD_FOLDER.fullmatch(self.path.parent.name)) is not None:
            return str(self.path.parent.parent / self.path.name), int(folder[1])
        return None

    def fold(self) -> int | None:
        """The fold that the file's name (or that of its folder) says."""
        numbered = self.numbered()
        return None if numbered is None else numbered[1]


@dataclass(frozen=True)
class Found:
    """One split (or one fold of it) in a recognised file.

    Attributes:
        kind: The format.
        rows: ``part`` as written, ``fold`` (int) and ids; no ``fold`` where only the name of the
            file could say it.
        name: The column or entry of a file that holds several splits; "" otherwise.
        unit: What the split claims to keep whole.
        notes: What was set aside, in words.
    """

    kind: str
    rows: pd.DataFrame
    name: str = ""
    unit: str | None = None
    notes: tuple[str, ...] = ()


def is_fold(path: Path) -> bool:
    """Whether a path is a folder that is named as a fold: ``fold_0``, ``split-1``."""
    return _FOLD_FOLDER.fullmatch(path.name) is not None and path.is_dir()


def load(path: Path) -> Source:
    """Read a file with every cell as text: ``NA``, ``05`` and ``3E`` are ids.

    Columns may be ragged, separated by comma, semicolon or tab, and in any encoding that Excel
    writes; rows without any cell are left out.

    Raises:
        InputError: The file is missing, empty, binary, no table and no JSON, or has two columns of
            one name.
    """
    if not path.exists():
        message = f"{path} does not exist"
        raise InputError(message)
    text = _EXCEL_HINT.sub("", read_text(path)).lstrip("\r\n")
    if not text.strip():
        message = f"{path} is empty"
        raise InputError(message)
    if text.lstrip().startswith(("{", "[")):
        try:
            return Source(path, document=json.loads(text))
        except ValueError as error:
            message = f"{path} is not a readable JSON file ({error})"
            raise InputError(message) from error
    return _table(path, text)


def _table(path: Path, text: str) -> Source:
    first = text.split("\n", 1)[0]
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",\t;", key=first.count), strict=True
    )
    try:
        names = [name.strip() for name in next(lines)]
        cells = []
        for line in lines:
            if any(line[len(names) :]):
                message = (
                    f"{path} is not a readable table: line {lines.line_num} has {len(line)} cells, "
                    f"the header {len(names)} (a separator within a cell needs quotes)"
                )
                raise InputError(message)
            if any(line):
                cells.append(line[: len(names)] + [""] * (len(names) - len(line)))
    except csv.Error as error:
        message = f"{path} is not a readable table (line {lines.line_num}: {error})"
        raise InputError(message) from error
    keys = _keys(path, names)
    return Source(path, pd.DataFrame(cells, columns=keys, dtype=object), tuple(names))


def _keys(path: Path, names: list[str]) -> list[str]:
    """Column names in small letters; those without a name are numbered, the first one is ""."""
    keys: list[str] = []
    for position, name in enumerate(names):
        key = name.lower()
        if not key or key.startswith("unnamed:"):
            key = f"#{position}" if position else ""
        if key in keys:
            message = (
                f"{path} has two columns {name!r}: which of them is meant? Rename or remove one"
            )
            raise InputError(message)
        keys.append(key)
    return keys
