"""The prediction tables of a run: read, check, and refuse what cannot be scored.

Everything downstream of prediction, evaluation and report alike, reads these tables and nothing
else. Class names are text of any kind; the probability column of class ``x`` is ``p_x``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits import split as splitting
from splits import tiles
from splits.artifacts import digest, read_table
from splits.errors import InputError, unknown

__all__ = [
    "SLIDES",
    "UNTRAINED",
    "check_coverage",
    "check_labels",
    "check_tiles",
    "class_indices",
    "class_names",
    "content_digest",
    "counted",
    "ends",
    "extremes",
    "method_names",
    "probabilities_of",
    "read_attention",
    "read_scores",
    "read_slides",
    "read_tiles",
    "read_validation",
    "slide_cohort",
    "tested_folds",
]

SLIDES: Final = "slides.parquet"
"""Where predictions of another tool are scored, the slide table that stands in for tiles."""

UNTRAINED: Final = (
    "vote",
    "mean_probability",
    "weighted_vote",
    "quality_vote",
    "top_k_mean",
    "max_probability",
    "noisy_or",
)
"""Methods that learn nothing on slides: the names of ``mil.aggregators.voting.VOTES``."""
_TOLERANCE: Final = 1e-3


def read_slides(path: Path, part: str = "test") -> pd.DataFrame:
    """Rows of one part of ``predictions.parquet``, sorted by method, slide and fold.

    A slide is tested in one fold, and may validate in several.

    Returns:
        ``slide_id, fold, part, method, label, predicted, p_<class>…``; ids and classes as text.

    Raises:
        InputError: A column is missing or holds nulls, there are no test rows, a slide is there
            twice for a method, fewer than two classes, a class without a column, or probabilities
            that are not in 0 to 1 with sum 1.
    """
    columns = ("slide_id", "fold", "part", "method", "label", "predicted")
    keys = ["method", "slide_id", "fold"] if part == "val" else ["method", "slide_id"]
    return _check_probabilities(_read(path, columns, keys, part=part), path)


def read_validation(path: Path) -> pd.DataFrame | None:
    """Validation rows as :func:`read_slides` gives them; None where there are none.

    Predictions of other tools may have test slides only.
    """
    if not (read_table(path)["part"].astype(object) == "val").any():
        return None
    return read_slides(path, "val")


def read_tiles(path: Path) -> pd.DataFrame:
    """Test rows of ``tile_predictions.parquet``, sorted by tile; refuses as :func:`read_slides`.

    Returns:
        ``tile_id, slide_id, fold, part, label, predicted, p_<class>…``.
    """
    columns = ("tile_id", "slide_id", "fold", "part", "label", "predicted")
    return _check_probabilities(_read(path, columns, ["tile_id"]), path)


def read_attention(path: Path) -> pd.DataFrame:
    """Test rows of ``attention.parquet``, sorted by method, slide and tile.

    The table has no rows at all where no method attends.

    Returns:
        ``tile_id, slide_id, fold, part, method, attention``.

    Raises:
        InputError: As for :func:`read_slides`, or weights that are negative, not finite, or do not
            sum to 1 within slide and method.
    """
    columns = ("tile_id", "slide_id", "fold", "part", "method", "attention")
    table = _read(path, columns, ["method", "tile_id"], may_be_empty=True)
    table = table.astype({"attention": np.float64})
    table = table.sort_values(["method", "slide_id", "tile_id"]).reset_index(drop=True)
    sums = table.groupby(["method", "slide_id"])["attention"].sum()
    wrong = sums.index[~((sums - 1).abs() <= _TOLERANCE)]
    if len(wrong) or not (table["attention"] >= 0).all():
        first = f", the first is slide {wrong[0][1]!r} under {wrong[0][0]!r}" if len(wrong) else ""
        message = f"{path}: attention must be >= 0 and sum to 1 within slide and method{first}"
        raise InputError(message)
    return table


def read_scores(path: Path) -> pd.DataFrame:
    """Test rows of ``tile_scores.parquet``, sorted by method, slide, tile and class.

    A row a tile and class, for methods that say more of a tile than one weight; none for others.

    Returns:
        ``tile_id, slide_id, fold, part, method, class, attention, contribution``. Attention sums to
        1 within slide, method and class; contributions are what tiles add to the logits. Either is
        null where the method has no such thing.

    Raises:
        InputError: A column is missing, an id is null, or a tile is there twice.
    """
    columns = ("tile_id", "slide_id", "fold", "part", "method", "class")
    table = _read(path, columns, ["method", "tile_id", "class"], may_be_empty=True)
    numbers = dict.fromkeys(("attention", "contribution"), np.float64)
    missing = [name for name in numbers if name not in table.columns]
    if missing:
        message = f"{path} lacks the column(s) {', '.join(missing)}"
        raise InputError(message)
    table = table.astype(numbers)
    return table.sort_values(["method", "slide_id", "tile_id", "class"]).reset_index(drop=True)


def extremes(run: Path, method: str, n: int = 5) -> pd.DataFrame:
    """The tiles that a method counts most, and least, in each test slide.

    A tile's score is its contribution to the logit of the predicted class where the method has
    contributions, and its attention otherwise. Equal scores go by ``tile_id``.

    Args:
        run: Run folder.
        method: A method that has either.
        n: Tiles at each end; a slide of fewer than 2 n has fewer at the bottom, none twice.

    Returns:
        ``slide_id, end, rank, tile_id, score, measure``, sorted by the first three: ``end`` is
        ``top`` or ``bottom``, ``rank`` counts from 1 at the extreme, ``measure`` is
        ``contribution`` or ``attention``.

    Raises:
        InputError: The method weighs no tiles, or as for the tables.
    """
    slides = read_slides(run / "predictions.parquet")
    attention = read_attention(run / "attention.parquet")
    scores = counted(method, slides, attention, read_scores(run / "tile_scores.parquet"))
    if scores.empty:
        raise unknown(
            kind="method that weighs tiles", given=method, allowed=set(attention["method"])
        )
    bags = scores.groupby("slide_id", sort=True)
    found = pd.concat([ends(bag, "score", n) for _, bag in bags], ignore_index=True)
    return found[["slide_id", "end", "rank", "tile_id", "score", "measure"]]


def counted(
    method: str, slides: pd.DataFrame, attention: pd.DataFrame, scores: pd.DataFrame | None
) -> pd.DataFrame:
    """How much each tile counts for a method, by the measure of :func:`extremes`.

    Args:
        method: Any method.
        slides: As of :func:`read_slides`.
        attention: As of :func:`read_attention`.
        scores: As of :func:`read_scores`; None where there are none.

    Returns:
        ``slide_id, tile_id, score, measure``; no rows where the method weighs no tiles.
    """
    if scores is not None:
        given = scores[(scores["method"] == method) & scores["contribution"].notna()]
        if len(given):
            of_method = slides[slides["method"] == method]
            predicted = of_method.set_index("slide_id")["predicted"]
            given = given[given["class"] == given["slide_id"].map(predicted)]
            found = given[["slide_id", "tile_id"]].assign(score=given["contribution"])
            return found.assign(measure="contribution")
    given = attention[attention["method"] == method]
    found = given[["slide_id", "tile_id"]].assign(score=given["attention"])
    return found.assign(measure="attention")


def ends(bag: pd.DataFrame, measure: str, n: int) -> pd.DataFrame:
    """The tiles of one slide at both ends of a measure, as :func:`extremes` lists them.

    Args:
        bag: ``tile_id`` and the measure, a row a tile.
        measure: Column to go by.
        n: Tiles at each end.

    Returns:
        These rows with ``end`` and ``rank``, the bottom first.
    """
    ranked = bag.sort_values([measure, "tile_id"], ascending=[False, True])
    bottom, top = ranked.iloc[n:].iloc[::-1].head(n), ranked.head(n)
    return pd.concat(
        [
            tiles.assign(end=end, rank=np.arange(1, len(tiles) + 1))
            for end, tiles in (("bottom", bottom), ("top", top))
        ]
    )


def class_names(table: pd.DataFrame) -> list[str]:
    """Classes of a prediction table, in the order of its probability columns."""
    return [str(name)[2:] for name in table.columns if str(name).startswith("p_")]


def class_indices(names: pd.Series, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Place of each name in ``classes``, ``(n,)``; -1 for another name."""
    found = pd.Index(classes, dtype=object).get_indexer(names)
    return np.asarray(found, dtype=np.int64)


def probabilities_of(table: pd.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """``(n, n_classes)``, rows that sum to 1: tables keep them as float32."""
    values = table[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def method_names(table: pd.DataFrame) -> list[str]:
    """Methods of a slide prediction table: the untrained ones first, then by name."""
    found = set(table["method"])
    return [name for name in UNTRAINED if name in found] + sorted(found - set(UNTRAINED))


def content_digest(table: pd.DataFrame) -> str:
    """Digest of the test rows of a prediction table, independent of the order of its rows."""
    test = table[table["part"] == "test"]
    keys = [name for name in ("method", "slide_id", "tile_id") if name in test.columns]
    return digest(test.sort_values(keys, kind="stable").to_dict("list"))


def slide_cohort(run: Path) -> pd.DataFrame:
    """What is known of each slide, from the tile table or from the slide table in its place.

    Returns:
        ``slide_id, patient_id, site_id, label``, a row a slide, sorted; site and label may be null.

    Raises:
        InputError: There is neither table, or as for :func:`splits.tiles.slides`.
    """
    given = run / SLIDES
    table = read_table(given) if given.exists() else tiles.slides(read_table(run / "tiles.parquet"))
    columns = ["slide_id", "patient_id", "site_id", "label"]
    return table[columns].astype(object).sort_values("slide_id").reset_index(drop=True)


def tested_folds(run: Path) -> dict[str, int]:
    """The fold that tests each slide, from the split of a run, or its slide table.

    Raises:
        InputError: There is no split, or a slide is in the test part of two folds.
    """
    if (run / SLIDES).exists():
        given = read_table(run / SLIDES).dropna(subset=["fold"])
        return {str(row.slide_id): int(row.fold) for row in given.itertuples()}
    table = splitting.load(run).table
    test = table[table["part"] == "test"]
    twice = sorted(test.loc[test["slide_id"].duplicated(), "slide_id"])
    if test.empty or twice:
        cause = f"slide {twice[0]!r} is tested in several folds" if twice else "none is"
        message = f"{run / 'split.csv'}: every slide of a test part is tested once, but {cause}"
        raise InputError(message)
    return {str(row.slide_id): int(row.fold) for row in test.itertuples()}


def check_coverage(rows: pd.DataFrame, tested: Mapping[str, int], name: str) -> None:
    """Refuse rows that do not cover exactly the test slides of the split, in their folds.

    Args:
        rows: Test rows of one method, or of tiles.
        tested: The result of :func:`tested_folds`.
        name: Where the rows are from, for the message.

    Raises:
        InputError: A test slide is missing, or predicted in a fold that does not test it.
    """
    missing = sorted(set(tested) - set(rows["slide_id"]))
    if missing:
        message = (
            f"{name}: {len(missing)} of {len(tested)} test slides without prediction, "
            f"the first is {missing[0]!r}: run `slidewise train` again"
        )
        raise InputError(message)
    for slide, fold in rows[["slide_id", "fold"]].drop_duplicates().itertuples(index=False):
        if tested.get(slide) != fold:
            says = f"tests it in fold {tested[slide]}" if slide in tested else "does not test it"
            message = (
                f"{name}: slide {slide!r} is predicted as test in fold {fold}; split.csv {says}"
            )
            raise InputError(message)


def check_labels(rows: pd.DataFrame, labels: pd.Series, name: str) -> None:
    """Refuse rows whose label is not that of their slide in the tile table.

    Raises:
        InputError: With the first slide that disagrees.
    """
    given = rows["label"].to_numpy(dtype=object)
    known = labels[rows["slide_id"]].to_numpy(dtype=object)
    for row in np.flatnonzero(given != known)[:1]:
        message = (
            f"{name}: slide {rows['slide_id'].iloc[row]!r} has the label {given[row]!r}, "
            f"in the tile table {known[row]!r}: run `slidewise train` again"
        )
        raise InputError(message)


def check_tiles(rows: pd.DataFrame, table: pd.DataFrame, name: str) -> None:
    """Refuse rows of tiles that the tile table does not have, or has in another slide.

    Raises:
        InputError: With the first such tile.
    """
    slide_of = dict(zip(table["tile_id"], table["slide_id"], strict=True))
    for tile, slide in zip(rows["tile_id"], rows["slide_id"], strict=True):
        if slide_of.get(tile) != slide:
            message = (
                f"{name}: tile {tile!r} is not a tile of slide {slide!r} in the tile table: "
                "run `slidewise train` again"
            )
            raise InputError(message)


def _read(
    path: Path,
    columns: Sequence[str],
    keys: list[str],
    *,
    part: str = "test",
    may_be_empty: bool = False,
) -> pd.DataFrame:
    table = read_table(path)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        message = f"{path} lacks the column(s) {', '.join(missing)}"
        raise InputError(message)
    table = table[table["part"].astype(object) == part]
    if table.empty and not may_be_empty:
        message = f"{path} has no row of the {part} part: run `slidewise train` first"
        raise InputError(message)
    empty = [name for name in columns if table[name].isna().any()]
    if empty:
        message = f"{path}: null in the column(s) {', '.join(empty)}"
        raise InputError(message)
    text = [name for name in columns if name not in ("fold", "attention")]
    table = table.astype(dict.fromkeys(text, str)).astype(dict.fromkeys(text, object))
    twice = table.loc[table.duplicated(keys), keys]
    if len(twice):
        message = f"{path}: {' and '.join(map(repr, twice.iloc[0]))} is there more than once"
        raise InputError(message)
    return table.sort_values(keys, kind="stable").reset_index(drop=True)


def _check_probabilities(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    classes = class_names(table)
    if len(classes) < 2:
        message = (
            f"{path} has {len(classes)} probability column(s) p_<class>: at least 2 are needed"
        )
        raise InputError(message)
    for column in ("label", "predicted"):
        for name in sorted(set(table[column]) - set(classes)):
            raise unknown(kind=f"{column} class in {path}", given=name, allowed=classes)
    values = table[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    sums = values.sum(axis=1)
    fine = (values >= 0).all(axis=1) & (np.abs(sums - 1) <= _TOLERANCE)
    if not fine.all():
        slide = table["slide_id"].iloc[int(np.flatnonzero(~fine)[0])]
        message = (
            f"{path}: {int((~fine).sum())} row(s) with probabilities that are not in 0 to 1 with "
            f"sum 1, the first is of slide {slide!r}"
        )
        raise InputError(message)
    return table
