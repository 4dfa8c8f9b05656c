"""Ways to split: k-fold (repeated, nested), holdout, and one site left out at a time.

In k-fold each slide is in the test part of exactly one fold of a repeat, and each fold has a
validation part of its own; a holdout is a single fold. The group (``group_id``) is what is dealt:
the closure of patient, slide or site, whichever unit was chosen, and of every hard link between
tiles. No group is ever cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.errors import InputError
from splits.grouped import BALANCE, Groups
from splits.groups import PARTS, UNITS, regroup
from splits.optimum import Optimum
from splits.split import EVERY_SLIDE_TESTED, Split

__all__ = ["BALANCE", "UNITS", "holdout", "kfold", "leave_one_site_out", "regroup"]

_VERSION: Final = 2
_TEST: Final = PARTS.index("test")

Ints = npt.NDArray[np.int64]


def kfold(
    slides: pd.DataFrame,
    *,
    folds: int = 5,
    repeats: int = 1,
    inner: int | None = None,
    val_share: float = 0.2,
    balance: Sequence[str] = ("label", "tiles"),
    seed: int = 0,
    unit: str | None = None,
    prove: bool = False,
) -> Split:
    """Deal groups to ``folds`` test parts, and within each fold set aside a validation part.

    Args:
        slides: ``slide_id, group_id, label`` and, where known, ``patient_id, site_id, n_tiles``,
            and columns ``tissue:<type>`` (tiles) and ``stain:<bin>`` (slides) to balance.
        folds: Number of folds, at least 2.
        repeats: Times the whole deal is made anew; repeat r has the folds from ``r * folds`` on.
        inner: Folds within the training and validation slides of every fold (nested
            cross-validation: choose within, test without); they are in ``Split.inner``.
        val_share: Share of a fold's slides outside its test part that validate.
        balance: What the parts are balanced on: any of ``label``, ``tissue``, ``site``, ``tiles``,
            ``stain``. The number of slides and of groups always counts.
        seed: Seed of the search.
        unit: What the groups encode, ``patient``, ``slide`` or ``site``; checked where given,
            otherwise the strongest of site, patient and slide that holds. With ``site`` the folds
            are site-preserved (Howard et al. 2021).
        prove: Bound how much better the test parts could be, with an exact solver: seconds for at
            most 60 groups, nothing for more. ``meta["optimum"]`` has the gap.

    Raises:
        InputError: The table or the request cannot be met; the message says what would meet it.
    """
    if folds < 2:
        message = f"folds is {folds}: at least 2 are needed (for a single fold use a holdout)"
        raise InputError(message)
    if repeats < 1:
        message = f"repeats is {repeats}: it must be 1 or more"
        raise InputError(message)
    data = Groups(slides, balance, unit)
    if data.n < folds:
        message = f"{data.n} group(s) cannot fill {folds} folds: ask for {data.n} folds or fewer"
        raise InputError(message)
    data.require(2, "k-fold", "so that training is never without a class that is tested")
    shares = np.full(folds, 1 / folds)
    best = data.best(shares, prove=prove)
    dealt = [data.assign(shares, [seed, repeat], best) for repeat in range(repeats)]
    settings = {"method": "kfold", "folds": folds, "repeats": repeats, "seed": seed}
    parts_ = _with_validation(data, dealt, val_share, seed)
    settings |= {"val_share": val_share, "inner": inner}
    split = _build(data, parts_, _shares(folds, val_share), settings, shares)
    split.meta["optimum"] = _account(best, [data.cost(shares, part) for part in dealt])
    return split if inner is None else _nested(split, data, parts_, inner, seed)


def leave_one_site_out(
    slides: pd.DataFrame,
    *,
    val_share: float = 0.2,
    balance: Sequence[str] = ("label", "tiles"),
    seed: int = 0,
) -> Split:
    """One fold a site, which is its test part; the groups have to be sites (``regroup``).

    Sites that share a patient are left out together. ``meta["left_out"]`` names the group of each
    fold. Further arguments as for :func:`kfold`.

    Raises:
        InputError: As :func:`kfold`; a class that one site alone has cannot be learned without it.
    """
    data = Groups(slides, balance, "site")
    if data.n < 2:
        message = f"all slides belong to one site ({data.names[0]!r}): nothing is left to train on"
        raise InputError(message)
    data.require(2, "leave-one-site-out", "since a class of one site is not there to train on")
    shares = np.full(data.n, 1 / data.n)
    columns = _with_validation(data, [np.arange(data.n)], val_share, seed)
    settings = {
        "method": "leave-one-site-out",
        "seed": seed,
        "val_share": val_share,
        "left_out": dict(enumerate(data.names)),
    }
    return _build(data, columns, _shares(data.n, val_share), settings, shares)


def holdout(
    slides: pd.DataFrame,
    *,
    ratios: Sequence[float] = (0.7, 0.15, 0.15),
    balance: Sequence[str] = ("label", "tiles"),
    seed: int = 0,
    unit: str | None = None,
    prove: bool = False,
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
    best = data.best(shares, prove=prove)
    part = data.assign(shares, [seed, 0], best)
    settings = {"method": "holdout", "ratios": shares.tolist(), "seed": seed}
    split = _build(data, [part], shares.tolist(), settings, shares)
    split.meta["optimum"] = _account(best, [data.cost(shares, part)])
    return split


def _with_validation(
    data: Groups, dealt: Sequence[Ints], val_share: float, seed: int
) -> list[Ints]:
    """Part of each group in every fold, given the test fold of each group in every repeat."""
    if not 0 < val_share < 1:
        message = f"val_share is {val_share}: it must lie between 0 and 1, such as 0.2"
        raise InputError(message)
    columns = []
    for repeat, test_fold in enumerate(dealt):
        for fold in range(int(test_fold.max()) + 1):
            rest = test_fold != fold
            column = np.full(data.n, _TEST)
            column[rest] = data.train_or_val(rest, val_share, [seed, repeat])
            columns.append(column)
    return columns


def _shares(folds: int, val_share: float) -> list[float]:
    return [(1 - 1 / folds) * (1 - val_share), (1 - 1 / folds) * val_share, 1 / folds]


def _nested(split: Split, data: Groups, columns: Sequence[Ints], inner: int, seed: int) -> Split:
    """Add folds within the training and validation slides of every fold."""
    if inner < 2:
        message = f"inner is {inner}: at least 2 inner folds are needed"
        raise InputError(message)
    tables = []
    for fold, column in enumerate(columns):
        rest = column != _TEST
        held = (data.labels[rest] > 0).sum(axis=0)
        if rest.sum() < inner or held.min() < 2:
            name = data.classes[int(np.argmin(held))]
            message = (
                f"fold {fold} leaves {int(rest.sum())} group(s) for {inner} inner folds, "
                f"{int(held.min())} of them of class {name!r}: an inner fold needs a group, and "
                "each class two; ask for fewer folds or merge the class with another"
            )
            raise InputError(message)
        inner_fold = np.full(data.n, -1)
        inner_fold[rest] = data.assign(np.ones(inner), [seed, fold], rest=rest)
        inside = rest[data.of]
        rows = data.rows.loc[inside, ["slide_id", "group_id"]].astype(object)
        for number in range(inner):
            part = np.where(inner_fold[data.of][inside] == number, "val", "train")
            tables.append(rows.assign(fold=fold, inner_fold=number, part=part.astype(object)))
    return Split(split.table, split.meta, pd.concat(tables, ignore_index=True))


def _account(best: Optimum | None, costs: Sequence[float]) -> dict[str, Any] | None:
    """How far the test parts are from the best there is; None where that is not known."""
    if best is None or (best.bound == 0 and not best.proved):
        return None
    cost = max(costs)
    gap = None if best.bound == 0 else round(100 * (cost / best.bound - 1), 3)
    return {"cost": cost, "bound": best.bound, "gap_percent": gap, "proved": best.proved}


def _build(
    data: Groups,
    columns: Sequence[Ints],
    shares: Sequence[float],
    settings: Mapping[str, Any],
    dealt: npt.NDArray[np.float64],
) -> Split:
    """Turn the part of each group (one array a fold) into a split with its account.

    Args:
        data: The groups.
        columns: Part of each group, an array a fold.
        shares: Of train, val and test in a fold.
        settings: Of the method.
        dealt: Shares of the parts that groups were dealt to: the test parts, or all of a holdout.
    """
    names = np.asarray(PARTS, dtype=object)
    ids = data.rows[["slide_id", "group_id"]].astype(object)
    tables = [
        ids.assign(fold=fold, part=names[column[data.of]]) for fold, column in enumerate(columns)
    ]
    table = pd.concat(tables, ignore_index=True)
    records = [
        data.record(column, fold, index, shares[index])
        for fold, column in enumerate(columns)
        for index in range(len(PARTS))
    ]
    meta = {
        "version": _VERSION,
        **settings,
        "unit": data.unit,
        "digest": data.digest(),
        "balanced": list(data.balance),
        "balance": records,
        "floor": data.floor(dealt),
        "floor_size": data.floor_size(dealt),
        "warnings": data.notes(dealt) + _missing(records, settings["method"]),
    }
    return Split(table, meta)


def _missing(records: Sequence[Mapping[str, Any]], method: str) -> list[str]:
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
            more = "ask for more folds, " if method in EVERY_SLIDE_TESTED else ""
            message = (
                f"class {name!r} cannot be in the training part of fold {folds[0]}: too few groups "
                f"hold it beside other classes; {more}merge it or leave it out (data.classes)"
            )
            raise InputError(message)
    return [
        f"class {name!r} is missing from the {part} part of fold(s) {', '.join(map(str, folds))}"
        for (name, part), folds in where.items()
    ]
