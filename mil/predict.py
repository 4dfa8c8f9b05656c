"""What trained models say: out-of-fold tables of a run, and new slides."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil import encode, tissue
from mil.aggregators.voting import Votes
from mil.cohort import Fold, folds_of, label_names, positions_of
from mil.config import Config
from mil.data.bags import Bags, Batch
from mil.models import Matrix, Models, Said, weights_digests
from mil.prepare import Progress, bar
from splits.artifacts import digest, digests_of, is_current, write_table

__all__ = ["made_from", "predict_run"]

_TILE = ["tile_id", "slide_id", "fold", "part", "method"]
_ATTENTION = [*_TILE, "attention"]
_SCORES = [*_TILE, "class", "attention", "contribution"]


def predict_run(run: Path, config: Config, progress: Progress | None = None) -> None:
    """Predict validation and test slides of every fold with that fold's models.

    Writes ``predictions.parquet``, ``tile_predictions.parquet``, ``attention.parquet`` and
    ``tile_scores.parquet``, what methods say of tiles class by class. Where bags are patients, each
    slide has the prediction of its patient, and attention is scaled to sum 1 within each slide.

    Warns of slides of which no tile would have had a vote.
    """
    folds = list(folds_of(run, config))
    quality = tissue.quality_asked(run, config)
    digests = made_from(run, config, folds)
    # attention.parquet is written last: with it, all four are there.
    if is_current(run / "attention.parquet", digests):
        return
    tables, placed = _Tables(label_names(run)), None
    n_slides = sum(len(fold.slides[part]) for fold in folds for part in ("val", "test"))
    advance = bar(progress, "predictions, slides", n_slides)
    for fold in folds:
        features = encode.read_features(run, str(fold.number), unseen=fold.unseen)
        packed = fold.in_bags(config.mil.bags)
        models = Models.load(run, config, fold.number, fold.classes)
        if models.take_positions and placed is None:
            placed = positions_of(run, fold, config.mil.bags)
        bags = Bags(features, packed.rows_by_slide, packed.labels, placed)
        for part in ("val", "test"):
            for batch in bags.batches(packed.slides[part], max_tiles=config.mil.batch_tiles):
                rows = batch.rows.numpy()
                said = models.slides(
                    batch.x,
                    batch.offsets,
                    positions=batch.positions,
                    quality=None if quality is None else quality[rows],
                )
                tables.add(fold, part, batch, models.tiles(batch.x), said)
                advance(len(set(fold.slide_of[rows])))
    tables.warn()
    for name, table in tables.concatenated():
        write_table(run / f"{name}.parquet", table, digests)


def made_from(run: Path, config: Config, folds: Sequence[Fold]) -> dict[str, str]:
    """Digests of all that the prediction tables of a run depend on.

    Raises:
        InputError: A model was not trained to the end.
    """
    votes = [vote.model_dump(mode="json") for vote in config.mil.votes]
    return {
        "identity": folds[0].identity,
        "split": folds[0].split,
        "models": digest(weights_digests(run, config, [fold.number for fold in folds])),
        "bags": config.mil.bags,
        "votes": digest([votes, config.needs_quality and digests_of(run / "tissue.parquet")]),
    }


class _Tables:
    """The rows of the prediction tables, as they come.

    Args:
        label_of: Class name by slide, of all slides: it is copied into the tables and nothing
            that is computed here depends on it.
    """

    def __init__(self, label_of: pd.Series) -> None:
        self._label_of = label_of
        self._slides: list[pd.DataFrame] = []
        self._tiles: list[pd.DataFrame] = []
        self._attention = [pd.DataFrame(columns=_ATTENTION)]
        self._scores = [pd.DataFrame(columns=_SCORES)]
        self._all_counted: dict[str, list[str]] = {}

    def add(
        self, fold: Fold, part: str, batch: Batch, of_tiles: Votes, said: Mapping[str, Said]
    ) -> None:
        rows, where = batch.rows.numpy(), {"fold": fold.number, "part": part}
        slide_of = fold.slide_of[rows]
        ids = {"tile_id": fold.tile_ids[rows], "slide_id": slide_of, **where}
        self._tiles.append(self._frame(ids, fold.classes, of_tiles))
        # A bag of a patient holds several slides, each of which gets its prediction.
        offsets = batch.offsets.numpy()
        bag = np.repeat(np.arange(len(batch)), np.diff(offsets))  # (n_tiles,)
        slides, first = np.unique(slide_of.astype(str), return_index=True)
        slides, first = slides[np.argsort(first)], np.sort(first)
        bag_of = bag[first]  # (n_slides,)
        for method, (votes, attention, by_class, contributions) in said.items():
            own = Votes(votes.predicted[bag_of], votes.probabilities[bag_of])
            of_slide = {"slide_id": slides, **where, "method": method}
            self._slides.append(self._frame(of_slide, fold.classes, own))
            if votes.all_counted is not None:
                blank = slides[votes.all_counted[bag_of]]
                self._all_counted.setdefault(method, []).extend(blank.tolist())
            of_tile = {**ids, "method": method}
            if attention is not None:
                weights = _within(attention[:, None], slide_of)[:, 0]
                self._attention.append(pd.DataFrame({**of_tile, "attention": weights}))
            if by_class is not None or contributions is not None:
                shares = None if by_class is None else _within(by_class, slide_of)
                self._scores += [
                    pd.DataFrame(
                        {
                            **of_tile,
                            "class": name,
                            "attention": np.nan if shares is None else shares[:, i],
                            "contribution": np.nan
                            if contributions is None
                            else contributions[:, i],
                        }
                    )
                    for i, name in enumerate(fold.classes)
                ]

    def _frame(self, ids: Mapping[str, Any], classes: Sequence[str], votes: Votes) -> pd.DataFrame:
        columns: dict[str, Any] = {
            **ids,
            "label": self._label_of[ids["slide_id"]].to_numpy(),
            "predicted": np.array(classes, dtype=object)[votes.predicted],
        }
        for i, name in enumerate(classes):
            columns[f"p_{name}"] = votes.probabilities[:, i]
        return pd.DataFrame(columns)

    def concatenated(self) -> list[tuple[str, pd.DataFrame]]:
        return [
            ("predictions", pd.concat(self._slides, ignore_index=True)),
            ("tile_predictions", pd.concat(self._tiles, ignore_index=True)),
            ("tile_scores", _joined(self._scores, _SCORES)),
            ("attention", _joined(self._attention, _ATTENTION)),
        ]

    def warn(self) -> None:
        for method, slides in self._all_counted.items():
            if slides:
                message = (
                    f"{method}: every tile of {len(set(slides))} slide(s) is blank or abstains, so "
                    f"that all of them count there; the first is {min(slides)!r}"
                )
                warnings.warn(message, stacklevel=3)


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True)[columns]


def _within(weights: Matrix, slide_of: npt.NDArray[np.object_]) -> Matrix:
    """Scaled to sum 1 within each slide, which a bag of several slides does not do by itself.

    A slide without any weight in its bag gets even weights.
    """
    _, code = np.unique(slide_of.astype(str), return_inverse=True)
    columns = []
    for column in weights.T:
        total = np.bincount(code, column)[code]
        even = 1 / np.bincount(code)[code]
        columns.append(np.where(total > 0, column / np.where(total > 0, total, 1.0), even))
    return np.stack(columns, axis=1)
