"""The split: every slide gets a fold and a part, and no group is ever cut.

In k-fold each slide is in the test part of exactly one fold, and each fold has a validation part
of its own; a holdout is a single fold. The group (``group_id``) is what is dealt: the closure of
patient, slide or site, whichever unit was chosen, and of every hard link between tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.artifacts import digest, read_csv, read_json, write_csv, write_json
from splits.errors import InputError, NegativeVerdictError, unknown
from splits.groups import BALANCE, PARTS, UNITS, Groups, regroup, slide_rows

__all__ = [
    "BALANCE",
    "PARTS",
    "UNITS",
    "Split",
    "balance_table",
    "check",
    "holdout",
    "kfold",
    "load",
    "parts",
    "regroup",
    "save",
]

_VERSION: Final = 1
_COLUMNS: Final = ("slide_id", "group_id", "fold", "part")


@dataclass(frozen=True)
class Split:
    """Where every slide goes.

    Attributes:
        table: ``slide_id, group_id, fold, part``, sorted by fold and slide; one row a slide in each
            fold.
        meta: ``version, seed, method, unit, digest`` (of the slide table), ``folds, balanced``,
            ``balance`` (one record a fold and part), ``floor`` (points per class), ``warnings``.
    """

    table: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_folds(self) -> int:
        """Number of folds; 1 for a holdout."""
        return int(self.table["fold"].nunique())

    @property
    def digest(self) -> str:
        """Digest of the table itself, so that an edited ``split.csv`` counts as another split."""
        return digest(self.table[list(_COLUMNS)].astype(str).to_numpy().tolist())


def kfold(
    slides: pd.DataFrame,
    *,
    folds: int = 5,
    val_share: float = 0.2,
    balance: Sequence[str] = ("label", "tiles"),
    seed: int = 0,
    unit: str | None = None,
) -> Split:
    """Deal groups to ``folds`` test parts, and within each fold set aside a validation part.

    Args:
        slides: ``slide_id, group_id, label`` and, where known, ``patient_id, site_id, n_tiles``.
        folds: Number of folds, at least 2.
        val_share: Share of a fold's slides outside its test part that validate.
        balance: What the parts are balanced on: any of ``label``, ``site``, ``tiles``. The number
            of slides and of groups always counts.
        seed: Seed of the search.
        unit: What the groups encode, ``patient``, ``slide`` or ``site``; checked where given,
            otherwise the strongest of site, patient and slide that holds.

    Raises:
        InputError: The table or the request cannot be met; the message says what would meet it.
    """
    if folds < 2:
        message = f"folds is {folds}: at least 2 are needed (for a single fold use a holdout)"
        raise InputError(message)
    if not 0 < val_share < 1:
        message = f"val_share is {val_share}: it must lie between 0 and 1, such as 0.2"
        raise InputError(message)
    data = Groups(slides, balance, unit)
    if data.n < folds:
        message = f"{data.n} group(s) cannot fill {folds} folds: ask for {data.n} folds or fewer"
        raise InputError(message)
    data.require(2, "k-fold", "so that training is never without a class that is tested")
    test_fold = data.assign(np.full(folds, 1 / folds), seed)
    columns = []
    for fold in range(folds):
        rest = test_fold != fold
        column = np.full(data.n, PARTS.index("test"))
        column[rest] = data.train_or_val(rest, val_share, seed)
        columns.append(column)
    shares = [(1 - 1 / folds) * (1 - val_share), (1 - 1 / folds) * val_share, 1 / folds]
    settings = {"method": "kfold", "folds": folds, "val_share": val_share, "seed": seed}
    return _build(data, columns, shares, settings)


def holdout(
    slides: pd.DataFrame,
    *,
    ratios: Sequence[float] = (0.7, 0.15, 0.15),
    balance: Sequence[str] = ("label", "tiles"),
    seed: int = 0,
    unit: str | None = None,
) -> Split:
    """Deal groups once to train, val and test by ``ratios`` (fold 0); else as :func:`kfold`.

    Raises:
        InputError: As :func:`kfold`; also where the ratios are not three positive shares of 1.
    """
    shares = np.asarray(ratios, dtype=np.float64)
    if shares.shape != (3,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        message = (
            f"ratios are {', '.join(f'{share:g}' for share in ratios)}: three positive shares "
            "(train, val, test) with a sum of 1 are needed, such as 0.7,0.15,0.15"
        )
        raise InputError(message)
    data = Groups(slides, balance, unit)
    data.require(3, "a holdout", "one each for train, val and test")
    settings = {"method": "holdout", "ratios": shares.tolist(), "seed": seed}
    return _build(data, [data.assign(shares, seed)], shares.tolist(), settings)


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
    """Make sure that nothing is cut and, in k-fold, that every slide is tested exactly once.

    Raises:
        InputError: The split was made for other slides.
        NegativeVerdictError: A slide or group is in two parts of a fold, or a slide is not tested
            exactly once.
    """
    rows = slide_rows(slides)
    dealt, known = set(split.table["slide_id"]), set(rows["slide_id"])
    if dealt != known:
        message = (
            f"the split was made for other slides: {len(dealt - known)} of its slides are unknown, "
            f"{len(known - dealt)} have no part (such as {min(dealt ^ known)!r}): split again"
        )
        raise InputError(message)
    table = split.table.assign(
        group_id=split.table["slide_id"].map(rows.set_index("slide_id")["group_id"])
    )
    for column in ("slide_id", "group_id"):
        n_parts = table.groupby(["fold", column], sort=True)["part"].nunique()
        cut = n_parts[n_parts > 1]
        if len(cut):
            fold, name = cut.index[0]
            kind = column.removesuffix("_id")
            message = f"leak: {kind} {name!r} is in {cut.iloc[0]} parts of fold {fold}"
            raise NegativeVerdictError(message)
    if split.meta.get("method") == "kfold":
        tested = table.loc[table["part"] == "test", "slide_id"].value_counts()
        wrong = tested.reindex(sorted(known), fill_value=0)
        wrong = wrong[wrong != 1]
        if len(wrong):
            message = (
                f"not a k-fold split: slide {wrong.index[0]!r} is tested {wrong.iloc[0]} times "
                f"({len(wrong)} such slides)"
            )
            raise NegativeVerdictError(message)


def save(split: Split, run_dir: Path, digests: Mapping[str, str]) -> None:
    """Write ``split.csv`` and ``split.json``; the latter last, since it vouches for both."""
    write_csv(run_dir / "split.csv", split.table)
    write_json(run_dir / "split.json", split.meta, digests)


def load(run_dir: Path) -> Split:
    """Read what :func:`save` wrote.

    Raises:
        InputError: A file is missing or is not a split.
    """
    path = run_dir / "split.csv"
    table = read_csv(path)
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        message = f"{path} has no column {missing[0]!r}: a split has {', '.join(_COLUMNS)}"
        raise InputError(message)
    strange = sorted(set(table["part"]) - set(PARTS))
    if strange:
        raise unknown(kind=f"part in {path}", given=strange[0], allowed=PARTS)
    if table.empty or not table["fold"].str.fullmatch(r"\d{1,6}").all():
        message = f"{path}: every row needs a fold that is a number from 0"
        raise InputError(message)
    table = table[list(_COLUMNS)].assign(fold=table["fold"].astype("int64"))
    table = table.sort_values(["fold", "slide_id"], kind="stable").reset_index(drop=True)
    meta = read_json(run_dir / "split.json")
    own = {name: value for name, value in meta.items() if name not in ("format_version", "digests")}
    return Split(table, own)


def balance_table(split: Split) -> pd.DataFrame:
    """``meta["balance"]`` as a flat table: a row a fold and part, a column a class."""
    rows = []
    for record in split.meta.get("balance", []):
        row = {name: value for name, value in record.items() if not isinstance(value, dict)}
        rows.append(row | {f"class {name}": n for name, n in record["classes"].items()})
    return pd.DataFrame(rows)


def _build(
    data: Groups,
    columns: Sequence[npt.NDArray[np.int64]],
    shares: Sequence[float],
    settings: Mapping[str, Any],
) -> Split:
    """Turn the part of each group (one array a fold) into a split with its account."""
    names = np.asarray(PARTS, dtype=object)
    tables = [
        pd.DataFrame(
            {
                "slide_id": data.rows["slide_id"].astype(object),
                "group_id": data.rows["group_id"].astype(object),
                "fold": fold,
                "part": names[column[data.of]],
            }
        )
        for fold, column in enumerate(columns)
    ]
    table = pd.concat(tables, ignore_index=True)
    records = [
        data.record(column, fold, index, shares[index])
        for fold, column in enumerate(columns)
        for index in range(len(PARTS))
    ]
    n_tests = len(columns) if settings["method"] == "kfold" else len(PARTS)
    meta = {
        "version": _VERSION,
        **settings,
        "unit": data.unit,
        "digest": data.digest(),
        "balanced": list(data.balance),
        "balance": records,
        # A holdout's largest part takes the largest group best.
        "floor": data.floor(shares[2] if settings["method"] == "kfold" else max(shares)),
        "warnings": data.notes(n_tests) + _missing(records),
    }
    return Split(table, meta)


def _missing(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which parts lack a class.

    Raises:
        InputError: A class is missing from a training part.
    """
    where: dict[tuple[str, str], list[int]] = {}
    for record in records:
        for name, n_slides in record["classes"].items():
            if n_slides == 0:
                where.setdefault((name, record["part"]), []).append(record["fold"])
    for (name, part), folds in where.items():
        if part == "train":
            message = (
                f"class {name!r} cannot be in the training part of fold {folds[0]}: too few groups "
                "hold it beside other classes; ask for more folds, merge it or leave it out "
                "(data.classes)"
            )
            raise InputError(message)
    return [
        f"class {name!r} is missing from the {part} part of fold(s) {', '.join(map(str, folds))}"
        for (name, part), folds in where.items()
    ]
