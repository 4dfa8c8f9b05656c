"""Numbers of the leakage gap: every scheme on the same tiles and slides, over seeds.

A scheme has one prediction of every tile a seed, out of fold. A slide's answer is that of all its
tiles together, so it rests on as many tiles under a split of tiles, where they come from several
folds, as where they come from one.

Schemes are compared on the same draws. A draw takes patients with replacement, in strata of their
classes, as every run does (:mod:`mil.scores`), and as many seeds with replacement as there are, the
same for all schemes; its value is the mean over the drawn seeds. So an interval holds both who was
in the cohort and how folds and weights fell; with one seed it is that of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil import statistics
from mil.config import Choice
from mil.models import voted, votes_of
from mil.predictions import (
    UNTRAINED,
    class_names,
    method_names,
    probabilities_of,
    read_slides,
    read_tiles,
)
from mil.scores import score
from mil.seeds import generator
from mil.statistics import Estimate
from splits.errors import InputError

__all__ = [
    "FORM",
    "METRICS",
    "TILE",
    "Answers",
    "Scores",
    "as_predictions",
    "gaps",
    "pooled",
    "scores",
    "summary",
]

FORM: Final = 1
"""Version of how scores are made."""

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc")
TILE: Final = "tile"
"""Key of single tiles, where others are methods."""

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What the models of all folds say, out of fold.

    Attributes:
        ids: ``tile`` -> tiles and each method -> slides, sorted.
        predicted: Class index of each, ``(n,)``.
        probabilities: ``(n, n_classes)``, rows sum to 1.
    """

    ids: dict[str, list[str]] = field(repr=False)
    predicted: dict[str, Ints] = field(repr=False)
    probabilities: dict[str, Matrix] = field(repr=False)


@dataclass(frozen=True)
class Scores:
    """One scheme, by ``tile`` or method and then by metric, undefined ones left out.

    Attributes:
        by_seed: Value of each seed, ``(n_seeds,)``.
        mean: Their mean, with draws that are means over drawn seeds.
    """

    by_seed: dict[str, dict[str, Matrix]] = field(repr=False)
    mean: dict[str, dict[str, Estimate]] = field(repr=False)


def pooled(
    folders: Sequence[Path],
    table: pd.DataFrame,
    classes: Sequence[str],
    votes: Sequence[Choice],
    quality: Matrix | None = None,
) -> Answers:
    """Join the folds of a scheme and seed.

    Votes are taken anew over all tiles of a slide. A trained method answers for each piece of a
    slide; the answer for the slide is the mean of their probabilities, each times its tiles.

    Args:
        folders: Of the folds, with their prediction tables.
        table: The tile table with true slides.
        classes: In the order of the probability columns.
        votes: Votes beside ``vote`` and ``mean_probability``, or these with arguments.
        quality: Of each tile, for ``quality_vote``.

    Raises:
        InputError: A tile is missing or predicted twice.
    """
    tile_rows = pd.concat([read_tiles(f / "tile_predictions.parquet") for f in folders])
    tile_rows = tile_rows.sort_values("tile_id", kind="stable").reset_index(drop=True)
    names = table["tile_id"].astype(str).tolist()
    if sorted(tile_rows["tile_id"]) != sorted(names) or class_names(tile_rows) != list(classes):
        message = f"{folders[0].parent}: not every tile is predicted once: remove it and run again"
        raise InputError(message)
    tile_rows = tile_rows.set_index("tile_id").loc[names].reset_index()
    p = probabilities_of(tile_rows, classes)
    slide_of = table["slide_id"].to_numpy(dtype=object).astype(str)
    answers = Answers({TILE: names}, {TILE: p.argmax(1)}, {TILE: p})

    order = np.argsort(slide_of, kind="stable")
    slides, first = np.unique(slide_of[order], return_index=True)
    offsets = np.append(first, len(names))
    ordered = None if quality is None else quality[order]
    for name, vote in votes_of(votes).items():
        said = voted(vote, p[order], torch.from_numpy(offsets), ordered).votes
        answers.ids[name] = slides.tolist()
        answers.predicted[name] = said.predicted
        answers.probabilities[name] = said.probabilities

    slide_rows = pd.concat([read_slides(f / "predictions.parquet") for f in folders])
    piece = ["fold", "slide_id"]
    pieces = tile_rows.assign(of=slide_of).groupby(piece).agg(n=("of", "size"), of=("of", "first"))
    for name in method_names(slide_rows):
        if name in UNTRAINED:
            continue
        rows = slide_rows[slide_rows["method"] == name].join(pieces, on=piece)
        share = probabilities_of(rows, classes) * rows["n"].to_numpy()[:, None]
        total = pd.DataFrame(share).groupby(rows["of"].to_numpy(dtype=object)).sum().sort_index()
        if total.index.tolist() != slides.tolist():
            message = f"{folders[0].parent}: not every slide has an answer of {name}"
            raise InputError(message)
        p_slide = total.to_numpy() / total.to_numpy().sum(axis=1, keepdims=True)
        answers.ids[name] = slides.tolist()
        answers.predicted[name] = p_slide.argmax(1)
        answers.probabilities[name] = p_slide
    return answers


def as_predictions(
    said: Mapping[str, Sequence[Answers]], table: pd.DataFrame, classes: Sequence[str]
) -> pd.DataFrame:
    """All slide answers as a table of predictions, one method a scheme, seed and method."""
    label = table.drop_duplicates("slide_id").astype({"slide_id": str}).set_index("slide_id")
    names, parts = np.array(classes, dtype=object), []
    for scheme, answers in said.items():
        for seed, of in enumerate(answers):
            for method in of.ids.keys() - {TILE}:
                slides, p = of.ids[method], of.probabilities[method]
                rows: dict[str, Any] = {"slide_id": slides, "part": "test"}
                rows["method"] = f"{scheme} {seed} {method}"
                rows["label"] = label.loc[slides, "slide_label"].astype(object).to_numpy()
                rows["predicted"] = names[of.predicted[method]]
                parts.append(
                    pd.DataFrame({**rows, **{f"p_{c}": p[:, i] for i, c in enumerate(names)}})
                )
    return pd.concat(parts, ignore_index=True)


def scores(
    answers: Sequence[Answers],
    labels: Sequence[pd.Series],
    table: pd.DataFrame,
    *,
    n_draws: int,
    seed: int,
) -> Scores:
    """Values and draws of one scheme.

    Args:
        answers: One a seed.
        labels: Slide -> class index, one a seed (of the true labels the same each time).
        table: The tile table with true slides and patients.
        n_draws: Number of draws.
        seed: Of the draws.
    """
    slide_of = dict(zip(table["tile_id"], table["slide_id"].astype(str), strict=True))
    patient_of = dict(zip(table["slide_id"].astype(str), table["patient_id"], strict=True))
    picks = _picks(len(answers), n_draws, seed)
    by_seed: dict[str, dict[str, Matrix]] = {}
    mean: dict[str, dict[str, Estimate]] = {}
    for name in answers[0].ids:
        found = []
        for said, label in zip(answers, labels, strict=True):
            ids = said.ids[name]
            slides = [slide_of[one] for one in ids] if name == TILE else ids
            truth = label[slides].to_numpy(dtype=np.int64)
            who = np.array([str(patient_of[slide]) for slide in slides], dtype=object)
            rows = (truth, said.predicted[name], said.probabilities[name], who)
            found.append(score(*rows, n_draws=n_draws, seed=seed).overall)
        defined = [m for m in METRICS if all(one[m].value is not None for one in found)]
        by_seed[name] = {m: np.array([one[m].value for one in found]) for m in defined}
        mean[name] = {m: _mean([one[m] for one in found], picks) for m in defined}
    return Scores(by_seed, mean)


def _mean(of_seeds: Sequence[Estimate], picks: Ints) -> Estimate:
    """The mean over seeds; patients are the same in all, and so are degrees and skewness nearly."""
    if len(of_seeds) == 1:
        return of_seeds[0]
    draws = np.stack([one.draws for one in of_seeds])  # (n_seeds, n_draws)
    return Estimate(
        value=float(np.mean([one.value for one in of_seeds if one.value is not None])),
        draws=np.take_along_axis(draws, picks, axis=0).mean(axis=0),
        acceleration=float(np.mean([one.acceleration for one in of_seeds])),
        df=min(one.df for one in of_seeds),
        n_effective=of_seeds[0].n_effective,
    )


def _picks(n_seeds: int, n_draws: int, seed: int) -> Ints:
    """Which seeds a draw takes, ``(n_seeds, n_draws)``: the same for all schemes."""
    return generator(seed, "gap", "seeds").integers(0, n_seeds, size=(n_seeds, n_draws))


def summary(found: Scores) -> dict[str, Any]:
    """``tile`` and ``slide`` -> method: metric -> value, interval and the value of each seed."""
    entries = {
        name: {
            metric: {**estimate.describe(), "by_seed": found.by_seed[name][metric].tolist()}
            for metric, estimate in metrics.items()
        }
        for name, metrics in found.mean.items()
    }
    return {TILE: entries.pop(TILE), "slide": entries}


def gaps(found: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """What each scheme scores above the next stricter one, and above the strictest in all.

    Args:
        found: Schemes that were run, from the one that leaks most to the strictest.

    Returns:
        A row a pair of schemes, level, method and metric: ``from, to, level, method, metric,
        difference, ci_low, ci_high, p, by_seed`` and ``share`` of the whole gap from the first
        scheme to the last (null where that is not above 0).
    """
    names = list(found)
    pairs = list(pairwise(names))
    if len(names) > 2:
        pairs += [(names[0], last) for last in names[2:]]
    rows: list[dict[str, Any]] = []
    for name, metrics in found[names[0]].mean.items():
        for metric in metrics:
            if not all(metric in found[scheme].mean[name] for scheme in names):
                continue
            whole = _paired(found, names[0], names[-1], name, metric)
            for a, b in pairs:
                one = _paired(found, a, b, name, metric)
                sure = whole["ci_low"] > 0
                share = one["difference"] / whole["difference"] if sure else None
                level = (TILE, None) if name == TILE else ("slide", name)
                about = dict(zip(("level", "method"), level, strict=True))
                rows.append({"from": a, "to": b, **about, "metric": metric, **one, "share": share})
    return rows


def _paired(found: Mapping[str, Scores], a: str, b: str, name: str, metric: str) -> dict[str, Any]:
    by_seed = found[a].by_seed[name][metric] - found[b].by_seed[name][metric]
    one, other = (found[scheme].mean[name][metric] for scheme in (a, b))
    difference = float(by_seed.mean())
    return {
        **statistics.paired(one.draws, other.draws, difference, min(one.df, other.df)),
        "by_seed": by_seed.tolist(),
    }
