"""A split as a thing: where every slide goes, on disk and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from splits.artifacts import digest, read_csv, read_json, write_csv, write_json
from splits.errors import InputError, NegativeVerdictError, unknown
from splits.groups import PARTS, slide_rows

__all__ = [
    "EVERY_SLIDE_TESTED",
    "Split",
    "balance_table",
    "check",
    "load",
    "parts",
    "refuse_cuts",
    "save",
]

_COLUMNS: Final = ("slide_id", "group_id", "fold", "part")
_INNER: Final = "split_inner.csv"
EVERY_SLIDE_TESTED: Final = ("kfold", "leave-one-site-out")
"""Methods that test every slide the same number of times."""


@dataclass(frozen=True)
class Split:
    """Where every slide goes.

    Attributes:
        table: ``slide_id, group_id, fold, part``, sorted by fold and slide; one row a slide in each
            fold.
        meta: ``version, seed, method, unit, digest`` (of the slide table), the settings of the
            method, ``balanced``, ``balance`` (one record a fold and part), ``floor`` (points per
            class that no split can avoid), ``floor_size``, ``optimum``, ``warnings``.
        inner: Of a nested split: ``slide_id, group_id, fold, inner_fold, part``; the folds within
            the training and validation part of each fold, with parts train and val.
    """

    table: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    inner: pd.DataFrame | None = None

    @property
    def n_folds(self) -> int:
        """Number of folds over all repeats; 1 for a holdout."""
        return int(self.table["fold"].nunique())

    @property
    def digest(self) -> str:
        """Digest of the table itself, so that an edited ``split.csv`` counts as another split."""
        return digest(self.table[list(_COLUMNS)].astype(str).to_numpy().tolist())


def parts(split: Split, fold: int) -> dict[str, list[str]]:
    """Sorted slide ids of each part of one fold.

    Raises:
        InputError: There is no such fold.
    """
    rows = split.table[split.table["fold"] == fold]
    if rows.empty:
        message = f"there is no fold {fold}: the split has folds 0 to {split.n_folds - 1}"
        raise InputError(message)
    return {part: sorted(rows.loc[rows["part"] == part, "slide_id"]) for part in PARTS}


def check(split: Split, slides: pd.DataFrame) -> None:
    """Make sure that nothing is cut and that every slide is tested as often as the method says.

    Raises:
        InputError: The split was made for other slides.
        NegativeVerdictError: A slide or group is in two parts of a fold, or a slide is not tested
            exactly once in each repeat of a k-fold split.
    """
    rows = slide_rows(slides)
    dealt, known = set(split.table["slide_id"]), set(rows["slide_id"])
    if dealt != known:
        message = (
            f"the split was made for other slides: {len(dealt - known)} of its slides are unknown, "
            f"{len(known - dealt)} have no part (such as {min(dealt ^ known)!r}): split again"
        )
        raise InputError(message)
    group = rows.set_index("slide_id")["group_id"]
    _refuse_cuts(split.table.assign(group_id=split.table["slide_id"].map(group)), "fold")
    if split.inner is not None:
        inner = split.inner.assign(
            group_id=split.inner["slide_id"].map(group),
            fold=[f"{f}.{i}" for f, i in split.inner[["fold", "inner_fold"]].to_numpy()],
        )
        _refuse_cuts(inner, "inner fold")
    if split.meta.get("method") in EVERY_SLIDE_TESTED:
        times = int(split.meta.get("repeats", 1))
        tested = split.table.loc[split.table["part"] == "test", "slide_id"].value_counts()
        wrong = tested.reindex(sorted(known), fill_value=0)
        wrong = wrong[wrong != times]
        if len(wrong):
            message = (
                f"not a k-fold split: slide {wrong.index[0]!r} is tested {wrong.iloc[0]} times, "
                f"not {times} ({len(wrong)} such slides)"
            )
            raise NegativeVerdictError(message)


def refuse_cuts(split: Split) -> None:
    """Make sure that no slide and no group of the split is in two parts of a fold.

    Raises:
        NegativeVerdictError: With the first that is.
    """
    _refuse_cuts(split.table, "fold")


def _refuse_cuts(table: pd.DataFrame, what: str) -> None:
    for column in ("slide_id", "group_id"):
        places = table[["fold", column, "part"]].drop_duplicates()
        cut = places[places.duplicated(["fold", column])]
        if len(cut):
            fold, name = cut.iloc[0][["fold", column]]
            here = places[(places["fold"] == fold) & (places[column] == name)]
            kind = column.removesuffix("_id")
            message = f"leak: {kind} {name!r} is in {len(here)} parts of {what} {fold}"
            raise NegativeVerdictError(message)


def save(split: Split, path: Path, digests: Mapping[str, str]) -> None:
    """Write the table to ``path``, its account to ``.json`` beside it, inner folds to a third file.

    The account comes last, since it vouches for all.

    Args:
        split: What to write.
        path: A CSV file, ``split.csv`` in a run folder.
        digests: What the split was made from.
    """
    write_csv(path, split.table)
    inner = path.with_name(f"{path.stem}_inner.csv")
    if split.inner is not None:
        write_csv(inner, split.inner)
    else:
        inner.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), split.meta, digests)


def load(run_dir: Path) -> Split:
    """Read the split of a run folder.

    Raises:
        InputError: A file is missing or is not a split.
    """
    path = run_dir / "split.csv"
    table = _read(path, _COLUMNS)
    meta = read_json(run_dir / "split.json")
    own = {name: value for name, value in meta.items() if name not in ("format_version", "digests")}
    inner = run_dir / _INNER
    nested = _read(inner, (*_COLUMNS, "inner_fold")) if inner.exists() else None
    return Split(table, own, nested)


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = read_csv(path)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        message = f"{path} has no column {missing[0]!r}: a split has {', '.join(columns)}"
        raise InputError(message)
    strange = sorted(set(table["part"]) - set(PARTS))
    if strange:
        raise unknown(kind=f"part in {path}", given=strange[0], allowed=PARTS)
    numbered = [name for name in ("fold", "inner_fold") if name in columns]
    if table.empty or not all(table[name].str.fullmatch(r"\d{1,6}").all() for name in numbered):
        message = f"{path}: every row needs a {' and an '.join(numbered)} that is a number from 0"
        raise InputError(message)
    table = table[list(columns)].astype(dict.fromkeys(numbered, "int64"))
    return table.sort_values([*numbered, "slide_id"], kind="stable").reset_index(drop=True)


def balance_table(split: Split) -> pd.DataFrame:
    """``meta["balance"]`` as a flat table: a row a fold and part, a column a class."""
    rows = []
    for record in split.meta.get("balance", []):
        row = {name: value for name, value in record.items() if not isinstance(value, dict)}
        rows.append(row | {f"class {name}": n for name, n in record["classes"].items()})
    return pd.DataFrame(rows)
