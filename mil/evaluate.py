"""Evaluation: tables in, ``metrics.json`` out; no model, no pixels.

Only the test part counts, pooled over folds: with k folds every slide is tested exactly once, by
models that never saw it. Intervals draw whole patients (:mod:`mil.statistics`), the same patients
for every method, so that methods can be compared in pairs.

The labels of test slides are behind a seal (:mod:`mil.seal`), which counts every look.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil import beside, reliability, selection, statistics
from mil.paired import compare
from mil.predictions import (
    SLIDES,
    UNTRAINED,
    check_coverage,
    check_labels,
    check_tiles,
    class_indices,
    class_names,
    content_digest,
    method_names,
    probabilities_of,
    read_attention,
    read_slides,
    read_tiles,
    read_validation,
    slide_cohort,
    tested_folds,
)
from mil.prepare import Progress, bar
from mil.scores import Scores, score, undefined_draws
from mil.seal import open_test_labels
from splits.artifacts import digest, read_json, read_table, write_json
from splits.errors import InputError, unknown

__all__ = [
    "UNTRAINED",
    "evaluate",
    "flipped",
    "rival",
]

_N_FILES: Final = 3  # metrics.json with its comparisons, calibration.json, beside.json


def evaluate(
    run: Path,
    *,
    n_draws: int = 2000,
    seed: int = 0,
    cluster: Literal["patient", "site"] = "patient",
    interval: statistics.Method = "bca",
    order: Sequence[str] | None = None,
    level: float = 0.9,
    digests: Mapping[str, str] | None = None,
    cautions: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score the predictions of a run against the labels of its test slides: one look.

    Reads ``tiles.parquet`` (or ``slides.parquet``, with predictions of another tool), the split,
    ``predictions.parquet``, ``tile_predictions.parquet`` and, where there is one,
    ``attention.parquet``. Writes ``metrics.json``, one entry to ``seal.json``,
    ``calibration.json`` and ``answers.parquet``, the files of :func:`mil.beside.write` and of
    :func:`mil.selection.write`. What limits the numbers (few patients, a class without slides) is
    in ``cautions``, and said in a :class:`UserWarning` each.

    A tile is scored against the label of its slide, which is what the encoder was trained on.

    Args:
        run: The run folder.
        n_draws: Bootstrap draws.
        seed: Seed of the draws; the result does not depend on the order of rows.
        cluster: What is drawn: whole patients, or whole sites.
        interval: ``"bca"`` shifts intervals for skewness, ``"percentile"`` does not.
        order: Classes from lowest to highest, if they have an order: then there is a kappa.
        level: Of the conformal sets (:mod:`mil.reliability`).
        digests: What the outputs are made from; by default the content of the predictions and
            these settings.
        cautions: What else limits the numbers, said in ``metrics.json`` beside our own caveats.
        progress: Shows what is scored: every method, tiles, and the files beside.

    Returns:
        The content of ``metrics.json`` without version and digests.

    Raises:
        InputError: A table is missing or malformed, a test slide has no prediction or more than
            one for a method, a fold or a label disagrees with the split or the tile table, sites
            are to be drawn and a test slide has none, or ``order`` does not name every class.
    """
    if n_draws < 1:
        message = f"n_draws is {n_draws}: at least 1 is needed"
        raise InputError(message)
    given = _read(run)
    places = None if order is None else _places(order, given.classes)
    cohort = slide_cohort(run).set_index("slide_id")
    clusters = _clusters(cohort, given.folds, cluster)

    labels = open_test_labels(run, given.predictions, "evaluate")
    if given.tile_rows is not None:
        check_labels(given.tile_rows, labels, "tile_predictions.parquet")
    scores_of = partial(
        _score, labels, clusters, given.classes, n_draws=n_draws, seed=seed, order=places
    )
    by_method = dict(list(given.predictions.groupby("method")))
    methods = method_names(given.predictions)
    of_tiles = given.tile_rows is not None
    advance = bar(progress, "scores, methods and files", len(methods) + of_tiles + _N_FILES)
    scored = {}
    for method in methods:
        scored[method] = scores_of(by_method[method])
        advance(1)
    tile = None if given.tile_rows is None else scores_of(given.tile_rows)
    advance(of_tiles)
    truth = class_indices(labels, given.classes)
    drawn = clusters[labels.index].to_numpy(dtype=object)
    caveats = [
        *statistics.caveats(truth, drawn, given.classes, cluster),
        *undefined_draws({"tiles": tile, **scored}, given.classes),
    ]
    for caveat in caveats:
        warnings.warn(caveat, stacklevel=2)

    compared = rival(methods, given.attention)
    tested = cohort.loc[labels.index]
    result = {
        "n": {
            "tiles": None if given.tile_rows is None else len(given.tile_rows),
            "slides": len(tested),
            "patients": int(tested["patient_id"].nunique()),
            "sites": int(tested["site_id"].nunique()),
        },
        "classes": given.classes,
        "tile": None if tile is None else _described(tile.overall, interval),
        "slide": {name: _described(scored[name].overall, interval) for name in methods},
        "per_class": {
            "tile": None if tile is None else _by_class(tile, given, given.tile_rows, interval),
            "slide": {
                name: _by_class(scored[name], given, by_method[name], interval) for name in methods
            },
        },
        "paired": compare(
            scored,
            {name: _right(rows) for name, rows in by_method.items()},
            {name: probabilities_of(rows, given.classes) for name, rows in by_method.items()},
            truth,
            drawn,
        ),
        "interval": {
            "method": interval,
            "level": statistics.LEVEL,
            "cluster": cluster,
            "n_clusters": len(set(drawn)),
            "n_draws": n_draws,
        },
        "cautions": [*caveats, *cautions],
        "flips": None if compared is None else len(flipped(given.predictions, "vote", compared)),
        "looks": read_json(run / "seal.json")["looks"],
    }
    if digests is None:
        settings = {
            "n_draws": n_draws,
            "seed": seed,
            "cluster": cluster,
            "interval": interval,
            "order": None if order is None else list(order),
            "level": level,
        }
        digests = {"predictions": content_digest(given.predictions), "config": digest(settings)}
    advance(1)  # methods are compared
    drawing = {"labels": labels, "n_draws": n_draws, "seed": seed, "digests": digests}
    patients = cohort["patient_id"]
    reliability.write(
        run,
        predictions=given.predictions,
        validation=given.validation,
        patients=patients,
        classes=given.classes,
        level=level,
        **drawing,
    )
    advance(1)
    beside.write(
        run,
        predictions=given.predictions,
        tile_rows=given.tile_rows,
        attention=given.attention,
        patients=patients,
        clusters=clusters,
        rival=compared,
        **drawing,
    )
    advance(1)
    selection.write(run, given.predictions, labels, given.classes, digests)
    write_json(run / "metrics.json", result, digests)
    return result


def rival(methods: Sequence[str], attention: pd.DataFrame | None) -> str | None:
    """The trained method that the vote is compared with when flips are counted.

    ``abmil`` where it has attention, else the first method that has, else the first trained one;
    ``None`` without a vote or a trained method.
    """
    trained = [method for method in methods if method not in UNTRAINED]
    if "vote" not in methods or not trained:
        return None
    attending = set() if attention is None else set(attention["method"])
    candidates = [method for method in trained if method in attending] or trained
    return "abmil" if "abmil" in candidates else candidates[0]


def flipped(predictions: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Test slides that two methods call differently.

    Returns:
        ``slide_id, fold, label, predicted_a, predicted_b``, sorted by ``slide_id``.

    Raises:
        InputError: A method has no predictions.
    """
    test = predictions[predictions["part"] == "test"]
    for method in (a, b):
        if method not in set(test["method"]):
            raise unknown(kind="method", given=method, allowed=set(test["method"]))
    first = test.loc[test["method"] == a, ["slide_id", "fold", "label", "predicted"]]
    second = test.loc[test["method"] == b, ["slide_id", "predicted"]]
    both = first.merge(second, on="slide_id", suffixes=("_a", "_b"), validate="one_to_one")
    differ = both["predicted_a"].astype(object) != both["predicted_b"].astype(object)
    return both[differ].sort_values("slide_id").reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class _Given:
    """The tables of a run, checked against its split; nothing here is a test label."""

    folds: Mapping[str, int]
    predictions: pd.DataFrame
    validation: pd.DataFrame | None
    tile_rows: pd.DataFrame | None
    attention: pd.DataFrame | None
    classes: list[str]


def _read(run: Path) -> _Given:
    """Read and check before the seal is broken, so that a faulty table costs no look."""
    # Predictions of another tool have a slide table, and perhaps no word on tiles.
    foreign = (run / SLIDES).exists()
    table = None if foreign else read_table(run / "tiles.parquet")
    folds = tested_folds(run)
    predictions = read_slides(run / "predictions.parquet")
    validation = read_validation(run / "predictions.parquet")
    tiles_path = run / "tile_predictions.parquet"
    tile_rows = None if foreign and not tiles_path.exists() else read_tiles(tiles_path)
    attention_path = run / "attention.parquet"
    attention = read_attention(attention_path) if attention_path.exists() else None
    classes = class_names(predictions)
    if tile_rows is not None and sorted(classes) != sorted(class_names(tile_rows)):
        message = f"{run}: predictions.parquet and tile_predictions.parquet differ in classes"
        raise InputError(message)
    for method, rows in predictions.groupby("method"):
        check_coverage(rows, folds, f"predictions.parquet, method {method!r}")
    if tile_rows is not None:
        check_coverage(tile_rows, folds, "tile_predictions.parquet")
    for name, rows in (("tile_predictions", tile_rows), ("attention", attention)):
        if rows is not None and table is not None:
            check_tiles(rows, table, f"{name}.parquet")
    return _Given(folds, predictions, validation, tile_rows, attention, classes)


def _clusters(cohort: pd.DataFrame, tested: Collection[str], cluster: str) -> pd.Series:
    """Patient or site of every slide."""
    found = cohort[f"{cluster}_id"]
    unknown_ones = sorted(found.index[found.isna() & found.index.isin(list(tested))])
    if unknown_ones:
        message = (
            f"evaluate.cluster={cluster}: {len(unknown_ones)} of {len(tested)} test slides have no "
            f"{cluster}_id, the first is {unknown_ones[0]!r}: name it in a manifest, or set "
            "evaluate.cluster=patient"
        )
        raise InputError(message)
    return found


def _places(order: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Classes from lowest to highest, as indices."""
    missing = [name for name in classes if name not in order]
    if missing:
        message = (
            f"the order of the classes is {', '.join(map(repr, order))}: it lacks "
            f"{', '.join(map(repr, missing))} (split.label_order)"
        )
        raise InputError(message)
    return [classes.index(name) for name in order if name in classes]


def _right(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return np.asarray(rows["predicted"] == rows["label"], dtype=np.bool_)


def _score(
    labels: pd.Series,
    clusters: pd.Series,
    classes: Sequence[str],
    rows: pd.DataFrame,
    *,
    n_draws: int,
    seed: int,
    order: Sequence[int] | None,
) -> Scores:
    """Scores of rows that are sorted by their id."""
    return score(
        class_indices(labels[rows["slide_id"]], classes),
        class_indices(rows["predicted"], classes),
        probabilities_of(rows, classes),
        clusters[rows["slide_id"]].to_numpy(dtype=object),
        n_draws=n_draws,
        seed=seed,
        order=order,
    )


def _described(
    estimates: Mapping[str, statistics.Estimate], interval: statistics.Method
) -> dict[str, dict[str, float | None]]:
    return {name: estimate.describe(interval) for name, estimate in estimates.items()}


def _by_class(
    scores: Scores, given: _Given, rows: pd.DataFrame, interval: statistics.Method
) -> dict[str, dict[str, Any]]:
    counts = rows["label"].value_counts()
    return {
        name: {"n": int(counts.get(name, 0)), **_described(estimates, interval)}
        for name, estimates in zip(given.classes, scores.by_class, strict=True)
    }
