"""One file of predictions as numbers and text: what is no number is named, never dropped."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.foreign.shape import Shape, recognise
from splits.artifacts import read_table
from splits.errors import InputError
from splits.groups import PARTS
from splits.identity.table import read_cells

__all__ = ["Answers", "Remarks", "few", "read", "summed", "whole"]

_TOLERANCE: Final = 1e-3
_ROUNDED: Final = 0.02  # of two decimals and four classes; more is no rounding
_SHOWN: Final = 3
_FLOAT: Final = re.compile(r"(-?\d+)\.0+")
_ENDS: Final = {"testing": "test", "validation": "val", "valid": "val", "training": "train"}
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Remarks:
    """What is said of the files, a sentence each, as it comes up.

    Attributes:
        notes: How they were read.
        cautions: What limits the numbers.
    """

    notes: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """What one file says.

    Attributes:
        path: The file.
        shape: Its columns.
        rows: ``slide_id`` (a patient where ``shape.unit`` says so) and what else of
            `mil.foreign.shape.FIELDS` it has, as text; ``label`` and ``predicted`` are always
            there, empty where not given.
        classes: Of the columns of ``scores``.
        scores: ``(n_rows, n_classes)``, as they are in the file.
    """

    path: Path
    shape: Shape
    rows: pd.DataFrame
    classes: tuple[str, ...]
    scores: Matrix

    def with_rows(self, rows: pd.DataFrame) -> Answers:
        """The same answers with other text beside them."""
        return replace(self, rows=rows)


def read(
    path: Path,
    columns: Mapping[str, str],
    remarks: Remarks,
    classes: Collection[str] = (),
    *,
    tiles: bool = False,
) -> Answers:
    """Read a file of predictions (comma, semicolon or tab separated, or parquet).

    Rows of the training part are not read, which is said.

    Args:
        path: The file.
        columns: As for :func:`mil.foreign.shape.recognise`.
        remarks: Gets what is to be said.
        classes: Names of classes that are known already.
        tiles: Whether a row is a tile.

    Raises:
        InputError: No table, a column is missing or ambiguous, an id is empty, or a probability is
            empty, no number, not finite, or outside 0 to 1.
    """
    cells = read_cells(path)
    if cells.empty:
        message = f"{path} has a header and no rows: there is nothing to score"
        raise InputError(message)
    names = set(classes)
    for name in cells.columns:
        if name.lower() in ("label", "target", "y_true", "class"):
            names |= set(cells[name]) - {""}
    shape = recognise(cells, path, columns, names, tiles=tiles)
    cells, kept = _tested(cells, shape, path, remarks)
    given = {ours: cells[theirs].str.strip() for ours, theirs in shape.fields.items()}
    rows = pd.DataFrame(given).reset_index(drop=True)
    if "slide_id" not in rows:
        rows = rows.rename(columns={"patient_id": "slide_id"})
    for name in ("label", "predicted"):
        rows[name] = whole(rows[name]) if name in rows else ""
    for name in ("tile_id", "slide_id") if tiles else ("slide_id",):
        empty = rows[name] == ""
        if empty.any():
            message = (
                f"{path}: {int(empty.sum())} row(s) have no {name}, the first is row "
                f"{int(empty.argmax()) + 1}"
            )
            raise InputError(message)
    of = list(shape.scores.values())
    typed = _typed(path, of)
    found = [
        typed[name][kept] if name in typed else _numbers(cells[name], rows["slide_id"], path)
        for name in of
    ]
    scores = np.column_stack(found)
    read_ = Answers(path, shape, rows, tuple(shape.scores), scores)
    _finite(read_)
    return read_


def summed(answers: Answers, classes: tuple[str, ...], remarks: Remarks) -> Matrix:
    """Probabilities that sum to 1, in the order of ``classes``; a single one is filled up to 1.

    Sums may be off by 0.001, as in our own tables. Values that a file rounds to a few decimals may
    be off by as much as that makes; these are scaled, which is said.

    Returns:
        ``(n_rows, n_classes)``.

    Raises:
        InputError: They are no probabilities: negative, above 1, or of another sum. The message
            says what they look like.
    """
    values, names, path = answers.scores, answers.classes, answers.path
    if len(names) == 1:
        _require_range(answers)
        other = 1 - values[:, 0]
        pair = [values[:, 0], other] if names[0] == classes[0] else [other, values[:, 0]]
        return np.column_stack(pair)
    sums = values.sum(axis=1)
    off = np.abs(sums - 1)
    rounding = values.shape[1] * 0.5 * 10.0 ** -_decimals(values) * (1 + 1e-9)
    tolerance = max(_TOLERANCE, min(rounding, _ROUNDED))
    wrong = off > tolerance
    if ((values < 0) | (values > 1)).any() or wrong.any():
        if wrong.any():
            row = int(np.argmax(wrong))
            message = (
                f"{path}: the probabilities of {int(wrong.sum())} of {len(values)} row(s) do not "
                f"sum to 1; those of slide {_id(answers, row)!r} are {_listed(values[row])}, sum "
                f"{sums[row]:.6g}{_hint(values, sums)}"
            )
            raise InputError(message)
        _require_range(answers)
    order = [names.index(name) for name in classes]
    if off.max() > _TOLERANCE:
        values = values / sums[:, None]
        remarks.notes.append(
            f"{path}: sums of probabilities are off 1 by up to {off.max():.2g}, as rounding makes "
            "them; they were scaled to sum 1"
        )
    ordered: Matrix = values[:, order]
    return ordered


def few(names: Collection[str]) -> str:
    """The first of some ids, sorted, and how many more."""
    listed = sorted(names)
    shown = ", ".join(map(repr, listed[:_SHOWN]))
    return shown + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")


def whole(column: pd.Series) -> pd.Series:
    """Classes that are numbers as whole ones, all of them or none: CLAM writes 1.0 for class 1."""
    filled = column[column != ""]
    if len(filled) and filled.str.fullmatch(r"-?\d+\.0+").all():
        return column.str.replace(_FLOAT, r"\1", regex=True)
    return column


def _tested(
    cells: pd.DataFrame, shape: Shape, path: Path, remarks: Remarks
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """Without rows of the training part; parts named as ours. Also which rows are kept."""
    if "part" not in shape.fields:
        return cells, np.ones(len(cells), dtype=np.bool_)
    column = shape.fields["part"]
    parts = _parts(cells[column], path)
    kept = (parts != "train").to_numpy(dtype=np.bool_)
    if not (parts == "test").any():
        message = f"{path} has no row of the test part (it has {', '.join(sorted(set(parts)))})"
        raise InputError(message)
    if not kept.all():
        n_left = int((~kept).sum())
        remarks.notes.append(f"{path}: {n_left} row(s) of the training part are not scored")
    return cells.assign(**{column: parts})[kept].reset_index(drop=True), kept


def _parts(column: pd.Series, path: Path) -> pd.Series:
    parts = column.str.strip().str.lower().replace(_ENDS)
    strange = sorted(set(column[~parts.isin(PARTS)]))
    if strange:
        message = (
            f"{path}: unknown part {strange[0]!r} in the column {column.name} "
            f"(allowed: {', '.join(PARTS)})"
        )
        raise InputError(message)
    return parts


def _typed(path: Path, names: Collection[str]) -> dict[str, Matrix]:
    """Columns that a parquet file holds as numbers, to the last bit."""
    if path.suffix.lower() not in {".parquet", ".pq"}:
        return {}
    table = read_table(path)
    table.columns = [str(name).strip() for name in table.columns]
    return {
        name: table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in names
        if name in table.columns and pd.api.types.is_numeric_dtype(table[name])
    }


def _numbers(column: pd.Series, slides: pd.Series, path: Path) -> Matrix:
    text = column.str.strip()
    comma = text.str.contains(",", regex=False)
    if comma.any() and not text.str.contains(".", regex=False).any():
        text = text.str.replace(",", ".", regex=False)
    low = text.str.lower()
    values = pd.to_numeric(low.where(low != "", "nan"), errors="coerce")
    strange = values.isna() & ~low.isin(["", "nan"])
    if strange.any():
        row = int(strange.to_numpy().argmax())
        cell = text.iloc[row]
        hint = ""
        if cell.endswith("%"):
            hint = ": a share of 0 to 1 is needed, not per cent"
        elif cell.startswith(("#", "=")):
            hint = ": a spreadsheet left an error or a formula there"
        message = (
            f"{path}: {int(strange.sum())} cell(s) of column {column.name!r} are no number, the "
            f"first is {cell!r} of slide {slides.iloc[row]!r}{hint}"
        )
        raise InputError(message)
    found: Matrix = values.to_numpy(dtype=np.float64)
    return found


def _finite(answers: Answers) -> None:
    wrong = ~np.isfinite(answers.scores)
    if not wrong.any():
        return
    columns = list(answers.shape.scores.values())
    empty = wrong.all(axis=0) & np.isnan(answers.scores).all(axis=0)
    if empty.any():
        message = f"{answers.path}: the column {columns[int(empty.argmax())]!r} is empty"
        raise InputError(message)
    row, place = (int(found[0]) for found in np.nonzero(wrong))
    value = answers.scores[row, place]
    said = "empty or NaN" if np.isnan(value) else "infinite"
    n_rows = int(wrong.any(axis=1).sum())
    message = (
        f"{answers.path}: {n_rows} of {len(wrong)} row(s) have a probability that is empty, NaN or "
        f"infinite; column {columns[place]!r} of slide {_id(answers, row)!r} is {said}: "
        "a slide that a tool could not score is to be left out by you, not by us"
    )
    raise InputError(message)


def _require_range(answers: Answers) -> None:
    outside = (answers.scores < 0) | (answers.scores > 1)
    if not outside.any():
        return
    wrong = np.asarray(outside.any(axis=1))
    row = int(wrong.argmax())
    hint = (
        "; are these logits? Apply the sigmoid (of one column) or the softmax first"
        if (answers.scores < 0).any() or answers.scores.max() < 50
        else "; are these per cent? Divide them by 100"
    )
    message = (
        f"{answers.path}: {int(wrong.sum())} of {len(wrong)} row(s) have a probability outside 0 "
        f"to 1; slide {_id(answers, row)!r} has {_listed(answers.scores[row])}{hint}"
    )
    raise InputError(message)


def _hint(values: Matrix, sums: Matrix) -> str:
    if np.all(np.abs(sums - 100) < 1):
        return "; are these per cent? Divide them by 100"
    if np.all(values <= 0) and np.allclose(np.exp(values).sum(axis=1), 1, atol=1e-2):
        return "; are these log probabilities? Take exp of them first"
    if (values < 0).any() or (values > 1).any():
        return "; are these logits? Apply the softmax first"
    return "; are these sigmoids of one class each? They have to be one distribution over classes"


def _decimals(values: Matrix) -> int:
    """Decimals that hold every value exactly, at most 6."""
    return next((n for n in range(1, 6) if np.all(np.abs(values - values.round(n)) < 1e-9)), 6)


def _listed(values: Any) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values[:4])
    return shown + (", …" if len(values) > 4 else "")


def _id(answers: Answers, row: int) -> str:
    return str(answers.rows["slide_id"].iloc[row])
