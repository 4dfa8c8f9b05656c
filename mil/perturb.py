"""What models say of test slides from which tiles were taken away.

Two questions need the models again, and no label: what a method would have said of fewer tiles,
drawn at random, and what becomes of its answer when tiles leave in the order of its attention
(Petsiuk, Das & Saenko, "RISE", BMVC 2018, section 3.2: deletion and insertion). Tables of answers
come out; :mod:`mil.beside` and :mod:`mil.evidence` make numbers of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from mil import bag_training, devices, encode, tissue
from mil.aggregators.voting import Votes
from mil.cohort import Fold, folds_of, positions_of
from mil.config import Config
from mil.data.bags import Bags, Batch
from mil.models import (
    Matrix,
    Models,
    Said,
    ensemble,
    folder_of,
    load_aggregator,
    say,
    shuffled_home,
)
from mil.pieces import Bag, Piece, bag_of, groups, offsets, removals, subsets
from mil.prepare import Progress, bar
from mil.seeds import derive
from splits.artifacts import digest, digests_of, is_current, write_table

__all__ = ["perturb_run"]

_FORM: Final = 1
_TABLES: Final = ("tiles_seen", "agreement", "shuffled_attention", "perturbation")
_COLUMNS: Final = {
    "perturbation": "slide_id fold method labels order repeat end share n_removed predicted p",
    "agreement": "slide_id fold method measure a b n_tiles spearman overlap",
    "shuffled_attention": "tile_id slide_id fold part method attention",
}

Rows = npt.NDArray[np.int64]


def perturb_run(run: Path, config: Config, progress: Progress | None = None) -> None:
    """Ask the models of every fold about its test slides with tiles taken away.

    Writes ``tiles_seen.parquet`` (answers from 1, 2, 4, ... tiles), ``perturbation.parquet``
    (answers when tiles leave by attention, by contribution, or at random), ``agreement.parquet``
    (rank correlation of what two models say of the tiles of a slide) and, with
    ``evidence.shuffled_control``, ``shuffled_attention.parquet``. Where a bag is a patient, each of
    its slides has the rows of the patient.

    With ``evidence.max_slides=0`` it removes all of them.
    """
    settings = config.evidence
    if settings.max_slides == 0:
        for name in _TABLES:
            (run / f"{name}.parquet").unlink(missing_ok=True)
        return
    asked = [_FORM, settings.model_dump(mode="json"), config.seed]
    digests = {
        "predictions": digest(digests_of(run / "attention.parquet")),
        "evidence": digest(asked),
    }
    # perturbation.parquet is written last: with it, all of them are there.
    if is_current(run / "perturbation.parquet", digests):
        return
    quality = tissue.quality_asked(run, config)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in _TABLES}
    folds = [(fold, fold.in_bags(config.mil.bags)) for fold in folds_of(run, config)]
    drawn = _drawn([name for _, packed in folds for name in packed.slides["test"]], config)
    advance = bar(progress, "tiles taken away, slides", len(drawn))
    placed = None
    for fold, packed in folds:
        features = encode.read_features(run, str(fold.number), unseen=fold.unseen)
        models = Models.load(run, config, fold.number, fold.classes)
        controls = _controls(run, config, fold, models) if settings.shuffled_control else {}
        if models.take_positions and placed is None:
            placed = positions_of(run, fold, config.mil.bags)
        bags = Bags(features, packed.rows_by_slide, packed.labels, placed)
        # The batches of prediction: an answer from all tiles is then the very same.
        for batch in bags.batches(packed.slides["test"], max_tiles=config.mil.batch_tiles):
            if drawn.isdisjoint(batch.slide_ids):
                continue
            asking = _Asking(fold, models, controls, batch, config, quality, drawn)
            for name, found in asking.tables():
                tables[name].append(found)
            advance(len(drawn.intersection(batch.slide_ids)))
    for name in _TABLES:
        if name == "shuffled_attention" and not settings.shuffled_control:
            (run / f"{name}.parquet").unlink(missing_ok=True)
            continue
        empty = pd.DataFrame(columns=_COLUMNS.get(name, "").split())
        filled = [table for table in tables[name] if len(table)]
        whole = pd.concat(filled, ignore_index=True) if filled else empty
        write_table(run / f"{name}.parquet", whole, digests)


def _drawn(bags: Sequence[str], config: Config) -> set[str]:
    """The bags that are looked at: whether one is follows from its name and those of the others."""
    ranked = sorted(bags, key=lambda name: (derive(config.seed, "evidence", name), name))
    return set(ranked[: config.evidence.max_slides])


def _controls(run: Path, config: Config, fold: Fold, models: Models) -> dict[str, Models]:
    """For methods that weigh tiles: the same, trained on shuffled labels."""
    weighing = {
        name: same[0] for name, same in models.aggregators.items() if _weighs_tiles(same[0])
    }
    fabric = devices.fabric(config.compute, processes=1)
    bag_training.fit_shuffled(run, config, fold, fabric, weighing)
    found = {}
    for choice in config.mil.aggregators:
        if choice.name in weighing:
            folder = folder_of(shuffled_home(run, choice.name), fold.key, 0)
            dim = weighing[choice.name].dim
            model = load_aggregator(folder, config, choice, dim, len(fold.classes))
            found[choice.name] = Models(models.encoder, {choice.name: [model]}, models.crossfit, {})
    return found


def _weighs_tiles(model: Any) -> bool:
    """Whether a model says how much each tile of a bag counts."""
    said = say(model, torch.zeros(2, model.dim), torch.tensor([0, 2]))
    return said.attention is not None or said.contributions is not None


class _Asking:
    """One batch of a fold: everything that is asked of its bags."""

    def __init__(
        self,
        fold: Fold,
        models: Models,
        controls: Mapping[str, Models],
        batch: Batch,
        config: Config,
        quality: Matrix | None,
        drawn: set[str],
    ) -> None:
        self._fold, self._models, self._controls, self._batch = fold, models, controls, batch
        self._budget = config.mil.batch_tiles
        rows = batch.rows.numpy()
        self._quality = None if quality is None else quality[rows]
        self._slide_of, self._tile_ids = fold.slide_of[rows].astype(str), fold.tile_ids[rows]
        ends, repeats = batch.offsets.tolist(), config.evidence.repeats
        self._bags = [
            bag_of(name, start, stop - start, repeats=repeats, seed=config.seed)
            for name, (start, stop) in zip(batch.slide_ids, pairwise(ends), strict=True)
        ]
        self._place = {bag.name: place for place, bag in enumerate(self._bags)}
        self._drawn = [bag for bag in self._bags if bag.name in drawn]

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Parts of the tables, by name."""
        models, batch = self._models, self._batch
        few = [piece for bag in self._drawn for piece in subsets(bag)]
        probabilities = models.tiles(batch.x).probabilities
        whole = models.untrained(probabilities, batch.offsets, self._quality)
        for method, said in whole.items():
            yield "tiles_seen", self._seen(method, said.votes)
        if few:
            rows = self._rows(few)
            quality = None if self._quality is None else self._quality[rows]
            of_few = models.untrained(probabilities[rows], offsets(few), quality)
            for method, said in of_few.items():
                yield "tiles_seen", self._seen(method, said.votes, few)
        seen = models.seen(batch.x)
        for method in models.aggregators:
            members = models.members(method, seen, batch.offsets, batch.positions)
            said = ensemble(members)
            yield "tiles_seen", self._seen(method, said.votes)
            answers = self._answers(models, method, seen, few)
            yield "tiles_seen", self._seen(method, Votes(answers.argmax(1), answers), few)
            yield "perturbation", self._removed(models, method, seen, said, "true")
            names = [str(number) for number in range(len(members))]
            yield "agreement", self._agreement(method, said, dict(zip(names, members, strict=True)))
            if method in self._controls:
                control = self._controls[method]
                other = control.members(method, seen, batch.offsets, batch.positions)[0]
                yield "perturbation", self._removed(control, method, seen, other, "shuffled")
                yield "agreement", self._agreement(method, said, {"true": said, "shuffled": other})
                yield "shuffled_attention", self._attention(method, other)

    def _rows(self, pieces: Sequence[Piece]) -> Rows:
        """Rows of the batch, ``(n_tiles,)``, those of a piece ascending."""
        rows = [piece.bag.start + np.sort(piece.tiles) for piece in pieces]
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)

    def _answers(
        self, models: Models, method: str, seen: Tensor, pieces: Sequence[Piece]
    ) -> Matrix:
        """Class probabilities of each piece, ``(n_pieces, n_classes)``."""
        places, found = self._batch.positions, []
        for group in groups(pieces, self._budget):
            rows = torch.from_numpy(self._rows(group))
            at = None if places is None else places[rows]
            members = models.members(method, seen[rows].float(), offsets(group), at)
            found.append(ensemble(members).votes.probabilities)
        return np.concatenate([*found, np.zeros((0, len(self._fold.classes)))])

    def _seen(
        self, method: str, votes: Votes, pieces: Sequence[Piece] | None = None
    ) -> pd.DataFrame:
        """Rows of ``tiles_seen``: of these pieces, or of whole bags."""
        if pieces is None:
            at = [self._place[bag.name] for bag in self._drawn]
            votes = Votes(votes.predicted[at], votes.probabilities[at])
            pieces = [Piece(bag, bag.ties, {"m": bag.n_tiles, "repeat": 0}) for bag in self._drawn]
        classes = self._fold.classes
        table = pd.DataFrame(
            {
                "bag": [piece.bag.name for piece in pieces],
                "fold": self._fold.number,
                "method": method,
                "n_tiles": [piece.bag.n_tiles for piece in pieces],
                **{key: [piece.chosen[key] for piece in pieces] for key in ("m", "repeat")},
                "predicted": np.array(classes, dtype=object)[votes.predicted],
                **{f"p_{name}": votes.probabilities[:, i] for i, name in enumerate(classes)},
            }
        )
        return self._by_slide(table)

    def _removed(
        self, models: Models, method: str, seen: Tensor, said: Said, labels: str
    ) -> pd.DataFrame:
        """Rows of ``perturbation``: probability of the class that was predicted from all tiles."""
        predicted, pieces = said.votes.predicted, []
        for bag in self._drawn:
            measures = self._measures(bag, said, int(predicted[self._place[bag.name]]))
            if not measures:
                continue
            for measure, score in measures.items():
                order = bag.ordered(score)
                pieces += removals(bag, order, {"order": measure, "repeat": 0, "end": "top"})
                up = order[::-1]
                pieces += removals(bag, up, {"order": measure, "repeat": 0, "end": "bottom"})
            for repeat, order in enumerate(bag.orders):
                pieces += removals(bag, order, {"order": "random", "repeat": repeat, "end": "top"})
        if not pieces:
            return pd.DataFrame()
        some = [piece for piece in pieces if piece.chosen["n_removed"]]
        answers = iter(self._answers(models, method, seen, some))
        rows = []
        for piece in pieces:
            place = self._place[piece.bag.name]
            share = next(answers) if piece.chosen["n_removed"] else said.votes.probabilities[place]
            winner = int(predicted[place])
            rows += [
                {
                    "bag": piece.bag.name,
                    "fold": self._fold.number,
                    "method": method,
                    "labels": labels,
                    **{key: value for key, value in piece.chosen.items() if key != "shares"},
                    "share": removed,
                    "predicted": self._fold.classes[winner],
                    "p": float(share[winner]),
                }
                for removed in piece.chosen["shares"]
            ]
        return self._by_slide(pd.DataFrame(rows))

    def _agreement(self, method: str, said: Said, voices: Mapping[str, Said]) -> pd.DataFrame:
        """Rows of ``agreement``: every pair of voices, on the class that all of them predict."""
        rows, names = [], list(voices)
        for bag in self._drawn if len(names) > 1 else ():
            winner = int(said.votes.predicted[self._place[bag.name]])
            scores = {name: self._measures(bag, voice, winner) for name, voice in voices.items()}
            rows += [
                {
                    "bag": bag.name,
                    "fold": self._fold.number,
                    "method": method,
                    "measure": measure,
                    "a": a,
                    "b": b,
                    "n_tiles": bag.n_tiles,
                    "spearman": _correlation(scores[a][measure], scores[b][measure]),
                    "overlap": _overlap(bag, scores[a][measure], scores[b][measure]),
                }
                for i, a in enumerate(names)
                for b in names[i + 1 :]
                for measure in scores[a]
            ]
        return self._by_slide(pd.DataFrame(rows)) if rows else pd.DataFrame()

    def _attention(self, method: str, said: Said) -> pd.DataFrame:
        """Rows as those of ``attention.parquet``, of the drawn bags."""
        if said.attention is None:
            return pd.DataFrame()
        rows = np.concatenate([np.arange(b.start, b.start + b.n_tiles) for b in self._drawn])
        return pd.DataFrame(
            {
                "tile_id": self._tile_ids[rows],
                "slide_id": self._slide_of[rows],
                "fold": self._fold.number,
                "part": "test",
                "method": method,
                "attention": said.attention[rows],
            }
        )

    @staticmethod
    def _measures(bag: Bag, said: Said, winner: int) -> dict[str, Matrix]:
        """What a method says of each tile of a bag, ``(n_tiles,)``, in every way it does."""
        here = bag.rows
        found = {}
        if said.attention is not None:
            found["attention"] = said.attention[here]
        if said.contributions is not None:
            found["contribution"] = said.contributions[here, winner]
        return found

    def _by_slide(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of each bag for each of its slides: column ``bag`` becomes ``slide_id``."""
        slides = {bag.name: np.unique(self._slide_of[bag.rows]) for bag in self._drawn}
        repeated = table.assign(bag=table["bag"].map(slides)).explode("bag", ignore_index=True)
        return repeated.rename(columns={"bag": "slide_id"})


def _correlation(a: Matrix, b: Matrix) -> float:
    """Spearman's rank correlation; NaN for fewer than 3 tiles or where all are equal."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _overlap(bag: Bag, a: Matrix, b: Matrix) -> float:
    """Share of the highest tenth of the tiles, rounded up, that both have in common."""
    n = math.ceil(bag.n_tiles / 10)
    return len(np.intersect1d(bag.ordered(a)[:n], bag.ordered(b)[:n])) / n
