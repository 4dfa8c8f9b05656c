"""Which column of a prediction file means what, by the names that other tools give them.

Known as they are: CLAM (``slide_id, Y, Y_hat, p_0, …``), STAMP (``PATIENT, <target>, pred,
<target>_<class>, …``), slideflow (``slide, y_true, y_pred0, …``), torchmil's ids (``bag_name``),
Patho-Bench's (``slide_id, case_id``), our own ``predictions.parquet``, and plain ``p_<class>``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from splits.errors import InputError, unknown
from splits.identity.manifest import SYNONYMS
from splits.images import SUFFIXES
from splits.slide_table import column_key, the_one

__all__ = ["FIELDS", "SCORE", "Shape", "is_number", "recognise"]

_LABEL: Final = (
    *SYNONYMS["slide_label"],
    *("y", "y_true", "true", "truth", "true_label", "ground_truth", "gt", "labels", "target_label"),
)
_PREDICTED: Final = (
    *("predicted", "pred", "prediction", "y_hat", "y_pred", "predicted_label", "predicted_class"),
    *("pred_label", "pred_class"),
)
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "tile_id": ("tile_id", *SYNONYMS["path"]),
    "slide_id": ("slide_id", *SYNONYMS["slide_id"]),
    "patient_id": ("patient_id", *SYNONYMS["patient_id"]),
    "site_id": tuple(name for name in SYNONYMS["site_id"] if name != "batch"),
    "label": _LABEL,
    "predicted": _PREDICTED,
    "method": ("method", "model", "aggregator"),
    "fold": ("fold", "fold_id", "cv_fold"),
    "part": ("part", "split", "subset", "partition"),
}
"""Our name of a column -> names under which it is known."""
SCORE: Final = "p_"
"""``p_<class>`` is our name for the column with the probability of a class."""
_SCORES: Final = (
    r"p_(?P<name>.+)",
    r"(?:probs?|proba|probability|probabilities|softmax|y_prob|y_proba|y_score|pred_prob|score)_"
    r"(?P<name>.+)",
    r"(?:.*-)?y_pred_?(?P<name>\d+)",
    r"(?:p|probs?|probability|score)(?P<name>\d+)",
)
_ONE_SCORE: Final = (
    *("p", "prob", "probs", "proba", "probability", "score", "y_prob", "y_proba", "y_score"),
    *("y_pred", "pred", "prediction", "y_hat", "positive_probability"),
)


@dataclass(frozen=True)
class Shape:
    """What the columns of one file mean.

    Attributes:
        fields: Our name (of `FIELDS`) -> column.
        scores: Class, as the column names it -> its column. One class only: the probability of the
            other one is what is left to 1. The name is empty where the column has none.
        unused: Columns without a meaning here.
    """

    fields: Mapping[str, str]
    scores: Mapping[str, str]
    unused: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What a row is: ``slide``, or ``patient`` where there are no slides."""
        return "slide" if "slide_id" in self.fields else "patient"


def recognise(
    cells: pd.DataFrame,
    path: Path,
    columns: Mapping[str, str],
    classes: Collection[str] = (),
    *,
    tiles: bool = False,
) -> Shape:
    """Find the columns of ids, labels and probabilities.

    Args:
        cells: The file, every cell as text.
        path: For the messages.
        columns: Our name, or ``p_<class>`` -> the file's, where it is not recognised.
        classes: Names that a column of probabilities may have as it is.
        tiles: Whether a row is a tile.

    Raises:
        InputError: A column is missing, or several could be meant.
    """
    for ours in columns:
        if ours not in FIELDS and not ours.startswith(SCORE):
            raise unknown(kind="column to map", given=ours, allowed=[*FIELDS, "p_CLASS"])
    mapped = {ours: theirs for ours, theirs in columns.items() if theirs in cells.columns}
    fields = {ours: theirs for ours, theirs in mapped.items() if ours in FIELDS}
    wanted = [name for name in FIELDS if tiles or name != "tile_id"]
    for ours in [name for name in wanted if name not in fields]:
        found = _field(cells, ours, set(mapped.values()) | set(fields.values()), path)
        if found is not None:
            fields[ours] = found
    if "slide_id" not in fields and not tiles:
        fields |= _files(cells, fields)
    numeric = [name for name in cells.columns if is_number(cells[name]).all()]
    if "label" not in fields and (target := _target(cells, numeric)) is not None:
        fields["label"] = target
    _one_meaning(cells, fields)
    scores = {ours[2:]: theirs for ours, theirs in mapped.items() if ours.startswith(SCORE)}
    if not scores:
        scores = _scores(cells, fields, classes, numeric, path)
    for name in scores.values():
        fields = {ours: theirs for ours, theirs in fields.items() if theirs != name}
    _require(cells, fields, scores, path, tiles=tiles)
    taken = {*fields.values(), *scores.values()}
    return Shape(fields, scores, tuple(name for name in cells.columns if name not in taken))


def is_number(column: pd.Series) -> pd.Series:
    """Which cells are numbers, the missing and infinite kinds and decimal commas included."""
    plain = column.str.strip().str.replace(",", ".", regex=False).str.lower()
    named = plain.isin(["nan", "inf", "-inf", "+inf", "infinity", "-infinity"])
    return pd.Series(pd.to_numeric(plain, errors="coerce").notna() | named, index=column.index)


def _field(cells: pd.DataFrame, ours: str, taken: set[str], path: Path) -> str | None:
    words = {column_key(word) for word in FIELDS[ours]}
    if ours == "label" and any(column_key(name) == "x" for name in cells.columns):
        words -= {"y"}  # a coordinate
    found = [
        name
        for name in cells.columns
        # slideflow puts the outcome in front: `cohort-y_true`.
        if (column_key(name) in words or (ours == "label" and name.endswith("-y_true")))
        and name not in taken
        and (cells[name] != "").any()
    ]
    return the_one(found, ours, path)


def _files(cells: pd.DataFrame, fields: Mapping[str, str]) -> dict[str, str]:
    """Files of slides or features give the slides; files of images would be tiles."""
    words = {column_key(word) for word in SYNONYMS["path"]}
    files = [
        name for name in cells.columns if column_key(name) in words and name not in fields.values()
    ]
    if files and not cells[files[0]].str.lower().str.endswith(SUFFIXES).any():
        return {"slide_id": files[0]}
    return {}


def _target(cells: pd.DataFrame, numeric: Collection[str]) -> str | None:
    """The column that others with numbers are named after, as STAMP's target."""
    for name in cells.columns:
        if sum(other.startswith(f"{name}_") for other in numeric) > 1 and name not in numeric:
            return str(name)
    return None


def _one_meaning(cells: pd.DataFrame, fields: dict[str, str]) -> None:
    """`split` may be the number of a fold."""
    part = fields.get("part")
    if part is not None and "fold" not in fields and cells[part].str.fullmatch(r"\d+").all():
        fields["fold"] = fields.pop("part")


def _scores(
    cells: pd.DataFrame,
    fields: Mapping[str, str],
    classes: Collection[str],
    numeric: Collection[str],
    path: Path,
) -> dict[str, str]:
    """Class -> column, by the first way to name them that gives at least two."""
    free = [name for name in cells.columns if name not in fields.values()]
    named = [found for found in _named(free, fields.get("label")) if found]
    several = [found for found in named if len(found) > 1]
    if several:
        return several[0]
    keys = {column_key(name) for name in classes}
    as_classes = {name: name for name in free if column_key(name) in keys}
    if len(as_classes) > 1:
        return as_classes
    if named:
        return named[0]
    # A column that is called a prediction and holds no class is a score.
    words = {column_key(word) for word in _ONE_SCORE}
    single = [name for name in free if column_key(name) in words]
    predicted, label = fields.get("predicted"), fields.get("label")
    if (
        not single
        and predicted is not None
        and predicted in numeric
        and column_key(predicted) in words
    ):
        holds_classes = label is not None and cells[predicted].isin(set(cells[label])).all()
        single = [] if holds_classes else [predicted]
    if len(single) > 1:
        message = (
            f"{path}: the columns {' and '.join(single)} could all be the probability: say which "
            f"with --columns p_CLASS={single[0]}"
        )
        raise InputError(message)
    return {"": single[0]} if single else {}


def _named(free: Collection[str], label: str | None) -> Iterator[dict[str, str]]:
    own = [rf"{re.escape(label)}_(?P<name>.+)"] if label else []
    predicted = {column_key(word) for word in _PREDICTED}
    for pattern in [*_SCORES, *own]:
        matches = {
            name: re.fullmatch(pattern, name, re.I | re.S)
            for name in free
            if column_key(name) not in predicted
        }
        yield {match["name"]: name for name, match in matches.items() if match}


def _require(
    cells: pd.DataFrame,
    fields: Mapping[str, str],
    scores: Mapping[str, str],
    path: Path,
    *,
    tiles: bool,
) -> None:
    has = f"(it has {', '.join(cells.columns)})"
    if tiles and not {"tile_id", "slide_id"} <= set(fields):
        missing = [name for name in ("tile_id", "slide_id") if name not in fields]
        message = (
            f"{path} has no column that is known as {missing[0]} {has}: map one with "
            f"--columns {missing[0]}=NAME"
        )
        raise InputError(message)
    if not {"slide_id", "patient_id"} & set(fields):
        message = (
            f"{path} has no column that is known as slide_id, or as patient_id {has}: map one with "
            "--columns slide_id=NAME"
        )
        raise InputError(message)
    if not scores:
        message = (
            f"{path} has no column of probabilities {has}: they are known as p_CLASS, prob_CLASS, "
            "y_pred0, or under the names of the classes; map each with --columns p_CLASS=NAME"
        )
        raise InputError(message)
