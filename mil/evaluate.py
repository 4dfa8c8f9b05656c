"""Evaluation: tables in, ``metrics.json`` out; no model, no pixels.

Only the test part counts, pooled over folds: with k folds every slide is tested exactly once, by
models that never saw it. Intervals draw whole patients (:mod:`mil.statistics`), the same patients
for every method, so that methods can be compared in pairs.

The labels of test slides are behind a seal (:mod:`mil.seal`), which counts every look.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil import beside, reliability, selection, statistics
from mil.predictions import (
    SLIDES,
    UNTRAINED,
    check_coverage,
    check_labels,
    check_tiles,
    class_names,
    content_digest,
    method_names,
    read_attention,
    read_slides,
    read_tiles,
    read_validation,
    slide_cohort,
    tested_folds,
)
from mil.seal import open_test_labels
from splits.artifacts import digest, read_json, read_table, write_json
from splits.errors import InputError, unknown

__all__ = [
    "PAIRED_METRICS",
    "UNTRAINED",
    "evaluate",
    "flipped",
    "rival",
]

PAIRED_METRICS: Final = ("accuracy", "balanced_accuracy", "auroc")


def evaluate(
    run: Path,
    *,
    n_draws: int = 2000,
    seed: int = 0,
    level: float = 0.9,
    digests: Mapping[str, str] | None = None,
    cautions: Sequence[str] = (),
) -> dict[str, Any]:
    """Score the predictions of a run against the labels of its test slides: one look.

    Reads ``tiles.parquet``, the split, ``predictions.parquet``, ``tile_predictions.parquet``
    and, where there is one, ``attention.parquet``. Writes ``metrics.json``, one entry to
    ``seal.json``, ``calibration.json`` and ``answers.parquet``, and the files of
    :func:`mil.beside.write`. What limits the numbers (few patients, a class without slides) is
    said in a :class:`UserWarning` each.

    A tile is scored against the label of its slide, which is what the encoder was trained on.

    Args:
        run: The run folder.
        n_draws: Bootstrap draws.
        seed: Seed of the draws; the result does not depend on the order of rows.
        level: Of the conformal sets (:mod:`mil.reliability`).
        digests: What the outputs are made from; by default the content of the predictions and
            these settings.
        cautions: What else limits the numbers, said in ``metrics.json`` beside our own caveats.

    Returns:
        The content of ``metrics.json`` without version and digests.

    Raises:
        InputError: A table is missing or malformed, a test slide has no prediction or more than
            one for a method, a fold or a label disagrees with the split or the tile table.
    """
    if n_draws < 1:
        message = f"n_draws is {n_draws}: at least 1 is needed"
        raise InputError(message)
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
    classes, methods = class_names(predictions), method_names(predictions)
    if tile_rows is not None and sorted(classes) != sorted(class_names(tile_rows)):
        message = f"{run}: predictions.parquet and tile_predictions.parquet differ in classes"
        raise InputError(message)
    for method in methods:
        rows = predictions[predictions["method"] == method]
        check_coverage(rows, folds, f"predictions.parquet, method {method!r}")
    if tile_rows is not None:
        check_coverage(tile_rows, folds, "tile_predictions.parquet")
    for name, rows in (("tile_predictions", tile_rows), ("attention", attention)):
        if rows is not None and table is not None:
            check_tiles(rows, table, f"{name}.parquet")

    labels = open_test_labels(run, predictions, "evaluate")
    if tile_rows is not None:
        check_labels(tile_rows, labels, "tile_predictions.parquet")
    cohort = slide_cohort(run).set_index("slide_id")
    patients = cohort["patient_id"]
    score = partial(_score, labels, patients, classes, n_draws=n_draws, seed=seed)
    scored = {method: score(predictions[predictions["method"] == method]) for method in methods}
    clusters = patients[labels.index].to_numpy(dtype=object)
    caveats = statistics.caveats(_indices(labels, classes), clusters, classes)
    for caveat in caveats:
        warnings.warn(caveat, stacklevel=2)

    compared = rival(methods, attention)
    tested = cohort.loc[labels.index]
    result = {
        "n": {
            "tiles": None if tile_rows is None else len(tile_rows),
            "slides": len(tested),
            "patients": int(tested["patient_id"].nunique()),
            "sites": int(tested["site_id"].nunique()),
        },
        "classes": classes,
        "tile": None if tile_rows is None else _summary(*score(tile_rows)),
        "slide": {method: _summary(*scored[method]) for method in methods},
        "paired": _compare(scored, methods),
        "flips": None if compared is None else len(flipped(predictions, "vote", compared)),
        "looks": read_json(run / "seal.json")["looks"],
        "cautions": [*caveats, *cautions],
    }
    if digests is None:
        settings = {"n_draws": n_draws, "seed": seed, "level": level}
        digests = {"predictions": content_digest(predictions), "config": digest(settings)}
    reliability.write(
        run,
        predictions=predictions,
        validation=validation,
        labels=labels,
        patients=patients,
        classes=classes,
        level=level,
        n_draws=n_draws,
        seed=seed,
        digests=digests,
    )
    beside.write(
        run,
        predictions=predictions,
        tile_rows=tile_rows,
        attention=attention,
        labels=labels,
        patients=patients,
        rival=compared,
        n_draws=n_draws,
        seed=seed,
        digests=digests,
    )
    selection.write(run, predictions, labels, classes, digests)
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


Scored = tuple[dict[str, float | None], dict[str, npt.NDArray[np.float64]]]


def _indices(names: pd.Series, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    found = pd.Index(classes, dtype=object).get_indexer(names)
    return np.asarray(found, dtype=np.int64)


def _score(
    labels: pd.Series,
    patients: pd.Series,
    classes: Sequence[str],
    rows: pd.DataFrame,
    *,
    n_draws: int,
    seed: int,
) -> Scored:
    """Point values and bootstrap draws of rows that are sorted by their id."""
    truth = _indices(labels[rows["slide_id"]], classes)
    predicted = _indices(rows["predicted"], classes)
    probabilities = rows[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # stored as float32
    clusters = patients[rows["slide_id"]].to_numpy(dtype=object)
    draws = statistics.bootstrap(
        truth, predicted, probabilities, clusters, n_draws=n_draws, seed=seed
    )
    return statistics.point(truth, predicted, probabilities), draws


def _summary(
    values: Mapping[str, float | None], draws: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, dict[str, float | None]]:
    summary: dict[str, dict[str, float | None]] = {}
    for metric in statistics.METRICS:
        low, high = statistics.interval(draws[metric]) if metric in draws else (None, None)
        summary[metric] = {"value": values[metric], "ci_low": low, "ci_high": high}
    return summary


def _compare(scored: Mapping[str, Scored], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Every other method against the vote, which needs no training."""
    rows: list[dict[str, Any]] = []
    for method in methods if "vote" in methods else ():
        if method == "vote":
            continue
        (values_a, draws_a), (values_b, draws_b) = scored[method], scored["vote"]
        for metric in PAIRED_METRICS:
            a, b = values_a[metric], values_b[metric]
            row: dict[str, Any] = dict.fromkeys(("difference", "ci_low", "ci_high", "p"))
            if a is not None and b is not None:
                row = dict(statistics.paired(draws_a[metric], draws_b[metric], a - b))
            rows.append({"a": method, "b": "vote", "metric": metric, **row})
    return rows
