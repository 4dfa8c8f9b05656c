"""Reading tables that people made by hand or exported: every cell as text, nothing guessed."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa

from splits.artifacts import read_table
from splits.errors import InputError

__all__ = ["read_cells", "read_text"]

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXCEL_HINT = re.compile(r"\Asep=[;,\t|]\r?\n", re.I)


def read_text(path: Path) -> str:
    """Decode a text file: by its byte order mark, else UTF-8, else the code page of Windows.

    Excel writes UTF-16 as "Unicode text" and the code page as "CSV".

    Raises:
        InputError: The file is missing, a workbook or no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror or error})"
        raise InputError(message) from error
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        message = f"{path} is a workbook, no text table: save it as CSV (UTF-8)"
        raise InputError(message)
    marked = [name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)]
    for encoding in marked or ["utf-8", "cp1252", "latin-1"]:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    message = f"{path} cannot be read as text: save it as CSV (UTF-8)"
    raise InputError(message)


def read_cells(path: Path) -> pd.DataFrame:
    """Read a table, comma, semicolon or tab separated, or parquet.

    Returns:
        One column of text a column of the file, named as there without outer spaces; an empty
        cell is ``""``. Columns without a name, such as a row index, are left out.

    Raises:
        InputError: The file is missing or no table, a line has more cells than the header, or a
            column name occurs twice.
    """
    if path.suffix.lower() in {".parquet", ".pq"}:
        return _from_parquet(path)
    text = _EXCEL_HINT.sub("", read_text(path)).lstrip("\r\n")
    header = text.split("\n", 1)[0]
    separator = max((",", ";", "\t"), key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        rows = [_fitted(cells, len(names), path, lines.line_num) for cells in lines if any(cells)]
    except csv.Error as error:
        message = f"{path} is not a readable table (line {lines.line_num}: {error})"
        raise InputError(message) from error
    if not any(names):
        message = f"{path} is not a readable table: it is empty"
        raise InputError(message)
    return _named(pd.DataFrame(rows, columns=range(len(names)), dtype=object), names, path)


def _from_parquet(path: Path) -> pd.DataFrame:
    try:
        table = read_table(path)
    except (pa.ArrowException, OSError) as error:
        message = f"{path} is not a readable parquet table ({error})"
        raise InputError(message) from error
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    names = [str(name).strip() for name in table.columns]
    cells = pd.DataFrame({i: _as_text(table.iloc[:, i]) for i in range(len(names))})
    return _named(cells, names, path)


def _as_text(column: pd.Series) -> pd.Series:
    """Text of a typed column: ids that a missing value turned into floats are whole again."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Float64").astype("Int64")
    return column.astype("string").fillna("").astype(object)


def _fitted(cells: list[str], n: int, path: Path, line: int) -> list[str]:
    """A row of ``n`` cells: empty ones may be left out at the end, others never shifted."""
    if any(cells[n:]):
        message = (
            f"{path} is not a readable table: line {line} has {len(cells)} cells, the header {n} "
            "(a separator within a cell needs quotes)"
        )
        raise InputError(message)
    return cells[:n] + [""] * (n - len(cells))


def _named(cells: pd.DataFrame, names: list[str], path: Path) -> pd.DataFrame:
    kept = [i for i, name in enumerate(names) if name and not name.startswith("Unnamed:")]
    repeated = sorted({names[i] for i in kept if names.count(names[i]) > 1})
    if repeated:
        message = f"{path} has two columns {repeated[0]!r}: rename one of them"
        raise InputError(message)
    return cells[kept].set_axis([names[i] for i in kept], axis=1)
