"""Tile beside slide: where the two disagree, which slides are mixed, how many tiles it takes.

The vote needs no training on slides, so what a trained method adds to it shows in the slides that
the two call differently. Everything here is a function of tables; :func:`write` reads what the
prediction stage left in a run folder and writes ``beside.json``, ``flips.csv``, ``evidence.json``
and ``localisation.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.evidence import evidence, localisation, means
from mil.flips import flat, flips, summary, votes
from mil.predictions import method_names, read_scores
from mil.statistics import Estimate
from splits.artifacts import digest, digests_of, read_table, require_digests, write_csv, write_json

__all__ = ["MARGIN", "mixed", "tiles_seen", "write"]

MARGIN: Final = 0.2
"""A slide is heterogeneous where the first class of its tiles leads the second by less."""


def write(
    run: Path,
    *,
    predictions: pd.DataFrame,
    tile_rows: pd.DataFrame | None,
    attention: pd.DataFrame | None,
    labels: pd.Series,
    patients: pd.Series,
    clusters: pd.Series,
    rival: str | None,
    n_draws: int,
    seed: int,
    digests: Mapping[str, str],
) -> None:
    """Everything about tiles beside slides and about attention, from the tables of a run.

    A file about what the run does not have is removed, so that none of an earlier one stays.

    Args:
        run: The run folder.
        predictions: Test rows of slides.
        tile_rows: Test rows of tiles; None where there are none.
        attention: Test rows of attention; None where there are none.
        labels: Label of each test slide.
        patients: Patient of each slide.
        clusters: What intervals draw, of each slide: its patient, or its site.
        rival: The trained method that the vote is compared with.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
        digests: What the outputs are made from.

    Raises:
        InputError: Tables of answers from fewer tiles are of other predictions.
    """
    draws = {"n_draws": n_draws, "seed": seed}
    listed = None
    if rival is not None:
        path = run / "tile_scores.parquet"
        scores = read_scores(path) if path.exists() else None
        listed = flips(predictions, tile_rows, attention, scores, patients, rival)
    of_tiles = None if tile_rows is None else votes(tile_rows)
    seen = _perturbed(run, "tiles_seen")
    found = {
        "a": "vote",
        "b": rival,
        "flips": None if listed is None else summary(listed),
        "heterogeneous": None
        if of_tiles is None
        else mixed(predictions, of_tiles, labels, patients, clusters, **draws),
        "tiles_seen": None if seen is None else tiles_seen(seen, labels, clusters, **draws),
    }
    write_json(run / "beside.json", found, digests)
    if listed is None:
        (run / "flips.csv").unlink(missing_ok=True)
    else:
        write_csv(run / "flips.csv", flat(listed))
    table = _optional(run / "tiles.parquet")
    located = {}
    for name, weights in (
        ("attention", attention),
        ("shuffled_attention", _perturbed(run, "shuffled_attention")),
    ):
        known = table is not None and weights is not None and len(weights) > 0
        located[name] = localisation(table, weights, labels, clusters, **draws) if known else None
    _write(run / "localisation.json", located["attention"], digests)
    perturbation, agreement = _perturbed(run, "perturbation"), _perturbed(run, "agreement")
    believed = None
    if perturbation is not None and agreement is not None:
        control = located["shuffled_attention"]
        believed = evidence(
            perturbation, agreement, labels, clusters, **draws, shuffled_found=control
        )
    _write(run / "evidence.json", believed, digests)


def _optional(path: Path) -> pd.DataFrame | None:
    return read_table(path) if path.exists() else None


def _perturbed(run: Path, name: str) -> pd.DataFrame | None:
    """A table of :mod:`mil.perturb`, refused where it is of other predictions."""
    path = run / f"{name}.parquet"
    if not path.exists():
        return None
    predictions = digest(digests_of(run / "attention.parquet"))
    require_digests(path, {"predictions": predictions}, f"slidewise train {run}")
    return read_table(path)


def _write(path: Path, found: Mapping[str, Any] | None, digests: Mapping[str, str]) -> None:
    if found is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, found, digests)


def mixed(
    predictions: pd.DataFrame,
    of_tiles: pd.DataFrame,
    labels: pd.Series,
    patients: pd.Series,
    clusters: pd.Series,
    *,
    n_draws: int,
    seed: int,
) -> dict[str, Any]:
    """Slides whose tiles do not agree, and how each method does on them and on the others.

    Args:
        predictions: Test rows of slides.
        of_tiles: As of :func:`votes`.
        labels: Label of each test slide.
        patients: Patient of each slide.
        clusters: What intervals draw, of each slide.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    of_tiles = of_tiles.loc[labels.index]
    doubtful = of_tiles["vote_margin"] < MARGIN
    accuracy = {}
    for method in method_names(predictions):
        right = _right(predictions[predictions["method"] == method], labels)
        kinds = pd.DataFrame({"yes": right.where(doubtful), "no": right.where(~doubtful)})
        both = means(kinds, labels, clusters, n_draws=n_draws, seed=seed, shares=True)
        accuracy[method] = {
            "heterogeneous": {**both[0].describe(), "n": int(doubtful.sum())},
            "homogeneous": {**both[1].describe(), "n": int((~doubtful).sum())},
            "difference": _difference(*both).describe(),
        }
    rows = of_tiles[doubtful].sort_index()
    return {
        "rule": (
            "A slide is heterogeneous where the share of its tiles that vote for the first class "
            f"exceeds that for the second by less than {MARGIN:g}."
        ),
        "margin_below": MARGIN,
        "n_heterogeneous": int(doubtful.sum()),
        "n_homogeneous": int((~doubtful).sum()),
        "slides": [
            {
                "slide_id": slide,
                "patient_id": patients[slide],
                "label": labels[slide],
                "n_tiles": int(row["n_tiles"]),
                "vote_margin": float(row["vote_margin"]),
                "second": row["second"],
            }
            for slide, row in rows.iterrows()
        ],
        "accuracy": accuracy,
    }


def tiles_seen(
    seen: pd.DataFrame, labels: pd.Series, clusters: pd.Series, *, n_draws: int, seed: int
) -> dict[str, Any]:
    """Accuracy by the number of tiles that a method sees of each slide.

    A slide of at most m tiles keeps them all; its answer then counts as the answer from m tiles,
    and ``n_whole`` says of how many slides that is so. The answer of a slide is the mean over its
    random subsets.

    Args:
        seen: ``tiles_seen.parquet``.
        labels: Label of each test slide.
        clusters: What intervals draw, of each slide: its patient, or its site.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    sizes = seen.groupby("slide_id")["n_tiles"].first()
    steps = sorted(seen.loc[seen["m"] < seen["n_tiles"], "m"].unique().tolist())
    methods = {}
    for method in method_names(seen):
        rows = seen[seen["method"] == method]
        right = rows["predicted"].to_numpy(object) == labels[rows["slide_id"]].to_numpy(object)
        rows = rows.assign(right=right.astype(np.float64))
        whole = rows[rows["m"] == rows["n_tiles"]].set_index("slide_id")["right"]
        few = rows[rows["m"] < rows["n_tiles"]]
        few = few.pivot_table(index="slide_id", columns="m", values="right", aggfunc="mean")
        curve = few.reindex(index=whole.index, columns=steps)
        curve = curve.apply(lambda column, whole=whole: column.fillna(whole)).assign(all=whole)
        gaps = curve.sub(whole, axis=0)
        found = means(curve, labels, clusters, n_draws=n_draws, seed=seed, shares=True)
        to_all = means(gaps, labels, clusters, n_draws=n_draws, seed=seed)
        methods[method] = [
            {
                "m": m,
                "accuracy": accuracy.describe(),
                "to_all": gap.describe(),
                "n_whole": len(sizes) if m is None else int((sizes <= m).sum()),
            }
            for accuracy, gap, m in zip(found, to_all, [*steps, None], strict=True)
        ]
    return {
        "rule": "Tiles are drawn at random; a slide of fewer tiles than are asked for keeps all.",
        "n_slides": len(sizes),
        "n_slides_of": len(labels),
        "repeats": int(seen["repeat"].max()) + 1,
        "methods": methods,
    }


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """Of two means over different slides, for the same draws."""
    value = None if a.value is None or b.value is None else a.value - b.value
    return Estimate(value, a.draws - b.draws, 0.0, min(a.df, b.df), None)


def _right(rows: pd.DataFrame, labels: pd.Series) -> pd.Series:
    """1.0 where the slide is called right, by slide."""
    said = rows.set_index("slide_id")["predicted"].astype(object)[labels.index]
    return (said == labels.astype(object)).astype(np.float64)
