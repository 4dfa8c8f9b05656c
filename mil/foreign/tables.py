"""Prediction tables in our own form, from files that are read, and what cannot be one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil.foreign.answers import Answers, Remarks, few, summed
from mil.foreign.classes import named
from mil.foreign.cohort import Cohort
from splits.errors import InputError

__all__ = ["covered", "of_file", "of_tiles", "once_each", "one_fold_each"]


def of_file(answers: Answers, classes: tuple[str, ...], remarks: Remarks) -> pd.DataFrame:
    """The rows of one file, ``slide_id, fold, part, method, predicted, p_<class>…``.

    ``fold`` is text, empty where the file has none. What is predicted stands as the file
    has it; without, it is the most probable class.
    """
    probabilities = summed(answers, classes, remarks)
    rows = answers.rows
    names = np.array(classes, dtype=object)
    likeliest = names[probabilities.argmax(axis=1)]
    given = rows["predicted"].to_numpy(dtype=object)
    own = given != ""
    differ = own & (given != likeliest)
    if differ.any():
        remarks.notes.append(
            f"{answers.path}: in {int(differ.sum())} of {len(rows)} row(s) the predicted class is "
            "not the most probable one; it counts as given"
        )
    top = np.sort(probabilities, axis=1)[:, -2:]
    ties = ~own & (top[:, 0] == top[:, 1])
    if ties.any():
        remarks.cautions.append(
            f"{answers.path}: {int(ties.sum())} row(s) have two classes of highest probability and "
            "no predicted class: the first of them counts"
        )
    table = pd.DataFrame(
        {
            "slide_id": rows["slide_id"],
            "fold": rows.get("fold", ""),
            "part": rows.get("part", "test"),
            "method": rows.get("method", ""),
            "predicted": np.where(own, given, likeliest),
        }
    )
    table[[f"p_{name}" for name in classes]] = probabilities
    return table


def once_each(table: pd.DataFrame) -> pd.DataFrame:
    """Refuse a slide that a method answers twice."""
    for part, keys in (("test", ["method", "slide_id"]), ("val", ["method", "slide_id", "fold"])):
        rows = table[table["part"] == part]
        twice = rows[rows.duplicated(keys, keep=False)]
        if twice.empty:
            continue
        first = twice.iloc[0]
        same = twice[(twice[keys] == first[keys]).all(axis=1)]
        folds = sorted(set(same["fold"]) - {""})
        where = f" (folds {', '.join(folds)})" if len(folds) > 1 else ""
        message = (
            f"method {first['method']!r} predicts {twice[keys].drop_duplicates().shape[0]} "
            f"slide(s) more than once: {few(set(twice['slide_id']))}; "
            f"{first['slide_id']!r} {len(same)} times{where}. A slide counts once: average its "
            "rows, or give repeats as methods of their own (METHOD=FILE)"
        )
        raise InputError(message)
    return table


def one_fold_each(table: pd.DataFrame, remarks: Remarks) -> pd.DataFrame:
    """Folds as numbers, the same for all methods.

    Methods without folds take those of the others. Where two methods test a slide in different
    folds, folds are dropped, and validation rows with them.
    """
    given = sorted(set(table["fold"]) - {""})
    numbers = {name: int(name) for name in given if name.isdecimal()}
    if len(numbers) < len(given) or len(set(numbers.values())) < len(numbers):
        numbers = {name: place for place, name in enumerate(given)}
        named = ", ".join(f"{name!r} is {place}" for name, place in numbers.items())
        remarks.notes.append(f"folds are numbered: {named}")
    fold = table["fold"].map(numbers)
    test = table.assign(fold=fold)[table["part"] == "test"].dropna(subset=["fold"])
    if test.groupby("slide_id")["fold"].nunique().gt(1).any():
        remarks.notes.append(
            "methods test slides in different folds: folds and validation rows are not used"
        )
        return table[table["part"] == "test"].assign(fold=0)
    tested = test.drop_duplicates("slide_id").set_index("slide_id")["fold"]
    filled = fold.fillna(table["slide_id"].map(tested)).fillna(0).astype("int64")
    return table.assign(fold=filled)


def covered(
    table: pd.DataFrame, cohort: Cohort, remarks: Remarks, *, partial: bool
) -> pd.DataFrame:
    """All methods over the same slides: all that have a label, or with ``partial`` those shared.

    Raises:
        InputError: A method does not predict a slide that it should, or none is shared.
    """
    test = table[table["part"] == "test"]
    sets = {str(name): set(rows["slide_id"]) for name, rows in test.groupby("method")}
    known = set(cohort.labels) if cohort.table is not None else set().union(*sets.values())
    shared = known.intersection(*sets.values())
    for name, predicted in sets.items():
        missing = known - predicted
        if missing and not partial:
            where = (
                f"of {cohort.table}" if cohort.table is not None else "that another method predicts"
            )
            message = (
                f"method {name!r} has no prediction for {len(missing)} of {len(known)} slide(s) "
                f"{where}: {few(missing)}. Predict them, or score only the slides that every "
                f"method predicts with --partial"
            )
            raise InputError(message)
    if not shared:
        message = f"no slide is predicted by all of {', '.join(sorted(sets))}"
        raise InputError(message)
    left = known - shared
    if left:
        remarks.cautions.append(
            f"{len(left)} of {len(known)} slide(s) are not scored because not every method "
            f"predicts them: {few(left)}; if they are the hard ones, the scores flatter"
        )
    columns = [name for name in table.columns if name.startswith("p_")]
    for name, rows in test[test["slide_id"].isin(shared)].groupby("method"):
        if len(rows) > 1 and (rows[columns].nunique() == 1).all():
            remarks.cautions.append(
                f"method {name!r} gives every slide the same probabilities: it tells nothing apart"
            )
    kept = table["slide_id"].isin(shared) | (table["part"] == "val")
    return table[kept].reset_index(drop=True)


def of_tiles(
    answers: Answers,
    cohort: Cohort,
    classes: tuple[str, ...],
    fold_of: pd.Series,
    remarks: Remarks,
) -> pd.DataFrame:
    """``tile_id, slide_id, fold, part, label, predicted, p_<class>…`` of the scored slides.

    A tile is scored against the label of its slide. Names of tiles that occur in several slides
    get the slide in front.

    Raises:
        InputError: A scored slide has no tile, or a tile is there twice.
    """
    if (answers.rows["label"] != "").any():
        remarks.notes.append(
            f"{answers.path}: labels of its own are not used, a tile counts for its slide's label"
        )
    answers = named(answers.with_rows(answers.rows.assign(label="")), cohort.labels, remarks)
    _same_classes(answers, classes)
    table = of_file(answers, classes, remarks).drop(columns="method")
    ids = answers.rows.loc[table.index, "tile_id"]
    table = table[table["part"] == "test"]
    table.insert(0, "tile_id", ids[table.index])
    twice = table.duplicated(["slide_id", "tile_id"])
    if twice.any():
        first = table[twice].iloc[0]
        message = (
            f"{answers.path}: {int(twice.sum())} row(s) repeat a tile, the first is "
            f"{first['tile_id']!r} of slide {first['slide_id']!r}"
        )
        raise InputError(message)
    if table["tile_id"].duplicated().any():
        table["tile_id"] = table["slide_id"] + "/" + table["tile_id"]
    missing = set(fold_of.index) - set(table["slide_id"])
    if missing:
        message = f"{answers.path} has no tile of {len(missing)} scored slide(s): {few(missing)}"
        raise InputError(message)
    scored = table["slide_id"].isin(fold_of.index)
    if not scored.all():
        remarks.notes.append(
            f"{answers.path}: {int((~scored).sum())} tile(s) of slides that are not scored are "
            f"left out: {few(set(table.loc[~scored, 'slide_id']))}"
        )
    table = table[scored].reset_index(drop=True)
    label = table["slide_id"].map(cohort.labels)
    return table.assign(fold=table["slide_id"].map(fold_of), label=label)


def _same_classes(answers: Answers, classes: Sequence[str]) -> None:
    if not set(answers.classes) <= set(classes) or len(answers.classes) not in (1, len(classes)):
        message = (
            f"{answers.path} has the classes {', '.join(answers.classes)}, the predictions of "
            f"slides {', '.join(classes)}"
        )
        raise InputError(message)
