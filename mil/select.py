"""Selection within each fold: nested cross-validation over candidates.

The training and validation slides of a fold are dealt to parts, whole groups and classes even
(``split.inner``). Each part is held out once: a candidate learns from the others but one, that one
stops its training, and the held-out part scores it. The winner is then trained as any method of the
fold and predicts its test slides. These are no part of a fold within, so nothing that is compared
can have met one (Varma & Simon 2006, doi:10.1186/1471-2105-7-91; Cawley & Talbot 2010, JMLR 11).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_fabric import Fabric

from mil import bag_training, encode, tissue
from mil.aggregators import Aggregator
from mil.aggregators.voting import Votes, check_vote
from mil.cohort import Fold, positions_of
from mil.config import Candidate, Config, Select
from mil.data.bags import Bags
from mil.models import folder_of, load_aggregator, said_together, voted
from mil.prepare import Advance
from mil.selection import RULE, SELECTED, chosen, decide, record_of, score
from splits import split as splitting
from splits.artifacts import digest, is_current, write_json
from splits.errors import InputError, NegativeVerdictError

__all__ = ["check", "choose", "folds_within", "scores_key", "told", "votes_among"]

Matrix = npt.NDArray[np.float64]


def check(config: Config) -> None:
    """Bind every name and argument of the candidates.

    Raises:
        InputError: As `mil.bag_training.check`, or two candidates are the same.
    """
    known: dict[str, str] = {}
    for candidate in () if config.select is None else config.select.candidates:
        settings = candidate.within(config.mil)
        if candidate.aggregator is None:
            check_vote(candidate.method.name, **candidate.method.args)
        else:
            bag_training.check(settings.model_copy(update={"votes": ()}))
        own = _digest(config, candidate)
        if own in known:
            message = f"select.candidates: {known[own]!r} and {candidate.title!r} are the same"
            raise InputError(message)
        known[own] = candidate.title


def told(config: Config, n_folds: int) -> str:
    """How much training the selection asks for, in a line."""
    select, n_inner = _asked(config)
    n_trained = sum(each.aggregator is not None for each in select.candidates)
    n_models = n_trained * n_inner * n_folds * config.mil.seeds
    line = (
        f"select: {len(select.candidates)} candidates on {n_inner} inner folds of {n_folds} folds: "
        f"{n_models} trainings inside"
    )
    if not config.keeps_weights:
        line += f", and {n_inner * n_folds} more encoders, since each learns from slides"
    return line


def votes_among(config: Config) -> bool:
    """Whether some candidate is a vote, which needs tile probabilities."""
    return config.select is not None and any(c.aggregator is None for c in config.select.candidates)


def folds_within(run: Path, fold: Fold) -> list[Fold]:
    """The folds inside a fold, from ``split_inner.csv``.

    The part that is held out is their test part, and the next part their validation.

    Raises:
        InputError: There are none, they were dealt for other slides, or a class is missing where
            a candidate learns.
        NegativeVerdictError: A group is cut.
    """
    dealt = splitting.load(run).inner
    rows = (
        None if dealt is None else dealt[(dealt["fold"] == fold.number) & (dealt["part"] == "val")]
    )
    verb = f"run `slidewise split {run}` again"
    if rows is None or rows["inner_fold"].nunique() < 3:
        message = f"{run / 'split_inner.csv'} has no 3 folds within fold {fold.number}: {verb}"
        raise InputError(message)
    inside = sorted(fold.slides["train"] + fold.slides["val"])
    if sorted(rows["slide_id"]) != inside:
        message = (
            f"{run / 'split_inner.csv'} does not hold out each training and validation slide of "
            f"fold {fold.number} once: {verb}"
        )
        raise InputError(message)
    parts = [sorted(names) for _, names in rows.groupby("inner_fold")["slide_id"]]
    part_of: dict[str, int] = {}
    for number, names in enumerate(parts):
        for slide in names:
            if part_of.setdefault(fold.group_of[slide], number) != number:
                message = (
                    f"{run / 'split_inner.csv'} cuts group {fold.group_of[slide]!r} within fold "
                    f"{fold.number}: {verb}"
                )
                raise NegativeVerdictError(message)
    folds = []
    for number, held in enumerate(parts):
        stops = parts[(number + 1) % len(parts)]
        learns = sorted(set(inside) - {*held, *stops})
        missing = set(range(len(fold.classes))) - {fold.labels[slide] for slide in learns}
        if missing:
            message = (
                f"class {fold.classes[min(missing)]!r} has no slide to learn from in inner fold "
                f"{number} of fold {fold.number}: ask for more inner folds (split.inner), merge "
                "the class or leave it out (data.classes)"
            )
            raise InputError(message)
        folds.append(fold.within(number, {"train": learns, "val": stops, "test": held}))
    return folds


def choose(
    run: Path,
    config: Config,
    fold: Fold,
    fabric: Fabric,
    say: Callable[[str], object],
    advance: Advance,
) -> None:
    """Compare the candidates within a fold, keep which one won, and train it on the fold.

    Writes ``selection/fold<k>.json``. What is trained already is kept. ``advance`` is called with
    the number of candidates that are done, each inner fold counted.
    """
    select, _ = _asked(config)
    inner = folds_within(run, fold)
    keys = {encode.bag_key(config, part) for part in inner}
    if votes_among(config):
        keys |= {scores_key(part) for part in inner}
    digests = {
        "split": digest([part.split for part in inner]),
        "features": digest([encode.fold_meta(run, key)["digests"] for key in sorted(keys)]),
        "candidates": digest([[_digest(config, each) for each in select.candidates], config.seed]),
        "criterion": select.criterion,
    }
    path = record_of(run, fold.number)
    if is_current(path, digests):
        advance(len(inner) * len(select.candidates))
    else:
        columns = []
        for part in inner:
            columns.append(_scores(run, config, fold, part, fabric, advance))
            place = f"fold {fold.number}, inner fold {len(columns)} of {len(inner)}"
            say(f"{place}: {len(select.candidates)} candidates compared")
        write_json(path, _record(select, inner, np.array(columns).T), digests)
    candidate = chosen(run, fold.number)
    say(f"fold {fold.number}: selected {candidate.title}")
    home, choice = run / "aggregators" / SELECTED, candidate.aggregator
    if choice is None:  # of an earlier winner nothing stays behind
        for number in range(config.mil.seeds):
            shutil.rmtree(folder_of(home, fold.key, number), ignore_errors=True)
        return
    features, made_from = encode.bag_features(run, config, fold)
    settings = _alone(config, candidate)
    bag_training.fit(run, settings, fold, choice, fabric, features, made_from, home)


def scores_key(part: Fold) -> str:
    """Under which key tile probabilities are kept that no held-out slide has taught."""
    return f"{part.key}-scores"


def _scores(
    run: Path, config: Config, fold: Fold, part: Fold, fabric: Fabric, advance: Advance
) -> list[float]:
    """The criterion of each candidate on the slides that a fold within holds out."""
    select, _ = _asked(config)
    features, made_from = encode.bag_features(run, config, part)
    scores = None
    if votes_among(config):
        scores = encode.read_features(run, scores_key(part), unseen=part.unseen)
    trained: dict[int, list[Aggregator]] = {}
    for number, candidate in enumerate(select.candidates):
        choice = candidate.aggregator
        if choice is not None:
            settings = _alone(config, candidate)
            own = digest(candidate.spec)[:8]
            home = run / "selection" / f"{choice.name}-{own}"
            bag_training.fit(run, settings, part, choice, fabric, features, made_from, home)
            dim, n_classes = features.shape[1], len(part.classes)
            trained[number] = [
                load_aggregator(folder_of(home, part.key, i), settings, choice, dim, n_classes)
                for i in range(config.mil.seeds)
            ]
        advance(1)
    placed = None
    if any(model.takes_positions for models in trained.values() for model in models):
        placed = positions_of(run, part, config.mil.bags)
    whole, packed = fold.in_bags(config.mil.bags), part.in_bags(config.mil.bags)
    quality = tissue.quality_asked(run, config)
    bags = Bags(features, packed.rows_by_slide, whole.labels, placed)
    truth: list[int] = []
    said: list[list[Votes]] = [[] for _ in select.candidates]
    for batch in bags.batches(packed.slides["test"], max_tiles=config.mil.batch_tiles):
        truth += [whole.labels[slide] for slide in batch.slide_ids]
        rows = batch.rows.numpy()
        for number, candidate in enumerate(select.candidates):
            if candidate.aggregator is not None:
                models = trained[number]
                answer = said_together(models, batch.x, batch.offsets, batch.positions)
            else:
                assert scores is not None  # a vote is among the candidates
                share = np.exp(scores[rows].astype(np.float64))
                share /= share.sum(axis=1, keepdims=True)
                weights = None if quality is None else quality[rows]
                answer = voted(candidate.method, share, batch.offsets, weights)
            said[number].append(answer.votes)
    labels = np.array(truth, dtype=np.int64)
    return [
        score(
            select.criterion,
            labels,
            np.concatenate([votes.predicted for votes in of_candidate]),
            np.concatenate([votes.probabilities for votes in of_candidate]),
        )
        for of_candidate in said
    ]


def _record(select: Select, inner: Sequence[Fold], scores: Matrix) -> dict[str, Any]:
    """The content of ``selection/fold<k>.json``; scores ``(n_candidates, n_inner_folds)``."""
    winner, as_good = decide(scores, select.criterion)
    return {
        "criterion": select.criterion,
        "rule": RULE,
        "winner": winner,
        "candidates": [
            {
                "name": candidate.title,
                "candidate": candidate.spec,
                "scores": scores[i].tolist(),
                "mean": float(scores[i].mean()),
                "within_one_se": bool(as_good[i]),
            }
            for i, candidate in enumerate(select.candidates)
        ],
        "inner_folds": [part.slides for part in inner],
    }


def _asked(config: Config) -> tuple[Select, int]:
    """The section and the number of inner folds, which the config has together or not at all."""
    if config.select is None or config.split.inner is None:
        message = "this config has no select section: there is nothing to choose from"
        raise InputError(message)
    return config.select, config.split.inner


def _alone(config: Config, candidate: Candidate) -> Config:
    """The config in which this candidate is the only aggregator."""
    return config.model_copy(update={"mil": candidate.within(config.mil)})


def _digest(config: Config, candidate: Candidate) -> str:
    """Of all that makes a candidate: two with the same are one."""
    vote = None if candidate.vote is None else candidate.vote.model_dump(mode="json")
    return digest([vote, candidate.within(config.mil).model_dump(mode="json", exclude={"votes"})])
