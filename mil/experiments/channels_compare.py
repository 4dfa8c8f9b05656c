"""What the rows of ``slidewise channels`` have to say to each other; see :mod:`.channels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mil import statistics
from mil.experiments.probe import KINDS, difference, units_of
from mil.paired import holm
from mil.predictions import (
    class_indices,
    class_names,
    method_names,
    probabilities_of,
    read_slides,
    read_tiles,
)
from mil.prepare import read_tiles as read_tile_table
from mil.scores import score
from mil.seal import open_test_labels
from mil.statistics import Estimate
from splits import tiles
from splits.artifacts import read_json

__all__ = ["METRICS", "PAIRS", "REFERENCE", "compare", "compare_runs", "lines"]

METRICS: Final = ("accuracy", "auroc")
REFERENCE: Final = "he"
PAIRS: Final = (
    *((name, REFERENCE) for name in ("h", "e", "rgb", "rgb-reinhard")),
    *((f"{name}-fixed", REFERENCE) for name in ("he", "h", "e")),
    ("he-tile", REFERENCE),
    ("h-fixed", "h"),
    ("e-fixed", "e"),
    ("rgb-reinhard", "rgb"),
)
"""Rows that are compared, the first minus the second."""
_BEFORE: Final = "rgb"

Scored = Mapping[str, Estimate]
"""Every metric of one level of a row, with its draws."""


def compare_runs(
    out: Path,
    rows: Sequence[Mapping[str, str]],
    absent: Sequence[Mapping[str, str]],
    *,
    n_draws: int,
    seed: int,
) -> dict[str, Any]:
    """What ``channels.json`` holds: one look at the test labels of each row."""
    scored: dict[str, dict[str, Scored]] = {}
    listed = []
    for row in rows:
        run = out / row["name"]
        scored[row["name"]] = _scored(run, n_draws=n_draws, seed=seed)
        metrics, probed = read_json(run / "metrics.json"), read_json(run / "probe.json")
        of_level = {"tile": metrics["tile"], **metrics["slide"]}
        listed.append(
            {
                "row": row["name"],
                **{name: row[name] for name in ("words", "channels", "stain")},
                "scores": {
                    level: {metric: of_level[level][metric] for metric in METRICS}
                    for level in scored[row["name"]]
                },
                "probe": {
                    kind: {k: v for k, v in found.items() if k != "left_out"}
                    for kind, found in probed["values"].items()
                },
                "looks": read_json(run / "seal.json")["looks"],
            }
        )
    first = out / rows[0]["name"]
    metrics, probed = read_json(first / "metrics.json"), read_json(first / "probe.json")
    return {
        "n": metrics["n"],
        "classes": metrics["classes"],
        "reference": REFERENCE,
        "levels": list(scored[rows[0]["name"]]),
        "rows": listed,
        "not_run": list(absent),
        "paired": compare(scored),
        "separation": _separation(out, rows, n_draws=n_draws, seed=seed),
        "probe": {
            "encoder": probed["encoder"],
            "n": probed["n"],
            "notes": probed["notes"],
            "left_out": {kind: found["left_out"] for kind, found in probed["values"].items()},
        },
    }


def _scored(run: Path, *, n_draws: int, seed: int) -> dict[str, Scored]:
    """Level (``tile`` or a slide method) -> values and draws, in the same order for every row."""
    predictions = read_slides(run / "predictions.parquet")
    levels = {"tile": read_tiles(run / "tile_predictions.parquet")}
    levels |= {
        method: predictions[predictions["method"] == method] for method in method_names(predictions)
    }
    labels = open_test_labels(run, predictions, "channels")
    cohort = tiles.slides(read_tile_table(run)).astype({"slide_id": object}).set_index("slide_id")
    classes = class_names(predictions)
    scored: dict[str, Scored] = {}
    for level, table in levels.items():
        slide = table["slide_id"]
        scored[level] = score(
            class_indices(labels[slide], classes),
            class_indices(table["predicted"], classes),
            probabilities_of(table, classes),
            cohort.loc[slide, "patient_id"].to_numpy(dtype=object),
            n_draws=n_draws,
            seed=seed,
        ).overall
    return scored


def compare(scored: Mapping[str, Mapping[str, Scored]]) -> list[dict[str, Any]]:
    """Every pair of ``PAIRS`` that was run, at every level, for every metric.

    Args:
        scored: Row -> level -> values and draws, the draws of the same patients throughout.

    Returns:
        ``{"a", "b", "level", "metric", "difference", "ci_low", "ci_high", "p", "p_holm"}``; numbers
        are null where a metric is not defined. ``p_holm`` is corrected over the pairs of one level
        and metric.
    """
    pairs = [pair for pair in PAIRS if set(pair) <= set(scored)]
    found: list[dict[str, Any]] = []
    for level in next(iter(scored.values())) if pairs else ():
        for metric in METRICS:
            column = []
            for a, b in pairs:
                one, other = scored[a][level][metric], scored[b][level][metric]
                df = scored[a][level]["accuracy"].df  # of a mean over rows, for all metrics
                tested: dict[str, Any] = dict.fromkeys(("difference", "ci_low", "ci_high", "p"))
                if one.value is not None and other.value is not None:
                    apart = one.value - other.value
                    tested = dict(statistics.paired(one.draws, other.draws, apart, df))
                column.append({"a": a, "b": b, "level": level, "metric": metric, **tested})
            corrected = holm([row["p"] for row in column])
            found += [{**row, "p_holm": p} for row, p in zip(column, corrected, strict=True)]
    return found


def _separation(
    out: Path, rows: Sequence[Mapping[str, str]], *, n_draws: int, seed: int
) -> dict[str, Any] | None:
    """What the probe reads off H+E less than off RGB, on the same tiles."""
    if not {_BEFORE, REFERENCE} <= {row["name"] for row in rows}:
        return None
    before, after = units_of(out / _BEFORE), units_of(out / REFERENCE)
    return {
        "before": _BEFORE,
        "after": REFERENCE,
        "difference": {
            kind: difference(after, before, kind, n_draws=n_draws, seed=seed) for kind in KINDS
        },
    }


def lines(result: Mapping[str, Any]) -> pd.DataFrame:
    """One line a row, level and metric, with its difference from the reference."""
    against = {
        (pair["a"], pair["level"], pair["metric"]): pair
        for pair in result["paired"]
        if pair["b"] == result["reference"]
    }
    lines = []
    for row in result["rows"]:
        named = {name: row[name] for name in ("row", "channels", "stain")}
        for level, scores in row["scores"].items():
            for metric, found in scores.items():
                pair = against.get((row["row"], level, metric), {})
                less = {
                    "difference": pair.get("difference"),
                    "difference_low": pair.get("ci_low"),
                    "difference_high": pair.get("ci_high"),
                    "p": pair.get("p"),
                    "p_holm": pair.get("p_holm"),
                }
                lines.append({**named, "level": level, "metric": metric, **found, **less})
        for kind, probed in row["probe"].items():
            found = {name: probed.get(name) for name in ("value", "ci_low", "ci_high", "p")}
            lines.append(
                {**named, "level": f"probe: {kind}", "metric": "balanced_accuracy", **found}
            )
    return pd.DataFrame(lines)
