"""``skipped.csv``: every tile and slide that left, with the stage and the cause."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from splits.artifacts import read_csv, write_csv

__all__ = ["COLUMNS", "read", "record"]

COLUMNS = ["level", "id", "stage", "cause"]


def record(run: Path, stage: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Replace what ``stage`` has written before by ``rows`` of (level, id, cause).

    ``level`` is ``file``, ``tile`` or ``slide``. Rows of other stages are kept.
    """
    old = read(run)
    new = pd.DataFrame(
        [(level, name, stage, cause) for level, name, cause in rows], columns=COLUMNS, dtype=str
    )
    write_csv(run / "skipped.csv", pd.concat([old[old["stage"] != stage], new]))


def read(run: Path) -> pd.DataFrame:
    """All rows of the ledger; an empty table where nothing was written yet."""
    path = run / "skipped.csv"
    return read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS, dtype=str)
