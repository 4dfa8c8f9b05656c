"""The folds of the leakage gap: what they share, and how one is trained and predicted.

One scan, one identity, one stain table and one tile cache serve all folds; a frozen encoder reads
every tile once, and the folds then begin with its features, as a run of feature files does.

``deals/SCHEME/seedK/foldJ`` has the tables of one fold. It is no run folder (it has no config): its
split may cut slides, so no verb takes it. Its weights go once its predictions are there, since
nobody should use a model that saw its test slides.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from lightning_fabric import Fabric

from mil import devices, encode, pixels, predict, prepare, train
from mil.cohort import class_order
from mil.config import Config, Data
from mil.experiments.schemes import Deal
from mil.features.cohort import MATRIX, SOURCE
from mil.models import network_digest, new_encoder
from splits import split as splitting
from splits import tiles
from splits.artifacts import digest, is_current, read_json, write_json, write_table

__all__ = ["DONE", "Job", "Start"]

DONE: Final = "fold.json"
"""Written last in the folder of a fold."""
_FORM: Final = 1
_MADE: Final = ("encoder", "features", "aggregators", "cache")

Say = Callable[[str], object]


@dataclass(frozen=True)
class Job:
    """One fold of one scheme, seed and labelling.

    Attributes:
        deal: Where every tile goes.
        number: The fold.
        table: The tile table, with the labels to learn.
        config: With the seed.
        folder: Where its tables go.
    """

    deal: Deal
    number: int
    table: pd.DataFrame
    config: Config
    folder: Path


class Start:
    """What all folds begin with: the tiles, or one matrix of features that no fold changes.

    Args:
        out: Folder of the experiment, with an identified tile table.
        config: Of the experiment.
        fabric: Device and processes.
        say: Called with one line a finished step.
        progress: Of the tile cache.
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        fabric: Fabric,
        say: Say,
        progress: prepare.Progress | None,
    ) -> None:
        self.out, self.fabric = out, fabric
        self.seen: pixels.Pixels | None = None
        self.matrix = out / MATRIX
        self.source: Mapping[str, Any] = {}
        self.made_from = ""
        if config.data.features is not None:
            self.source = read_json(out / SOURCE)
            return
        seen = devices.first(fabric, lambda: pixels.pixels(out, config, progress, say))
        self.seen = seen or pixels.pixels(out, config)
        self.made_from = digest([self.seen.digest, network_digest(config)])
        if config.encoder.frozen:
            self._freeze(config, self.seen, say)

    def _freeze(self, config: Config, seen: pixels.Pixels, say: Say) -> None:
        """One matrix of a frozen encoder; the folds then begin with features."""
        table, key = prepare.read_tiles(self.out), "0"
        encoder = new_encoder(config, class_order(config, table), load_weights=True)
        digests = {"identity": tiles.identity_digest(table), "made_from": self.made_from}
        encode.features(
            self.out,
            config,
            key,
            encoder,
            seen.tiles,
            self.fabric,
            say,
            {"slides_seen": []},
            digests,
        )
        self.matrix, self.seen = self.out / "features" / f"fold{key}.npy", None
        self.source = {
            "path": str(self.matrix),
            "encoders": {config.encoder.name: len(table)},
            "dim": encoder.dim,
            "encoder_saw": [],
        }

    def run(self, job: Job) -> None:
        """Train and predict one fold, unless that is done."""
        made, split = job.deal.fold(job.table, job.number)
        config = self._config(job.config)
        digests = {
            "identity": tiles.identity_digest(made),
            "split": split.digest,
            "input": self.made_from,
            "config": digest([_FORM, _settings(config)]),
        }
        done = job.folder / DONE
        if is_current(done, digests):
            return
        devices.first(self.fabric, lambda: self._write(job.folder, made, split, digests))
        with devices.said_once(self.fabric):
            train.encoders(job.folder, config, self.seen, self.fabric, _silent)
        devices.first(self.fabric, lambda: self._finish(job, config, split, digests))

    def _config(self, config: Config) -> Config:
        # Votes are taken over all tiles of a slide, which may lie in several folds.
        mil = config.mil.model_copy(update={"votes": ()})
        changes: dict[str, Any] = {"mil": mil}
        if self.seen is None and config.data.features is None:
            changes["data"] = Data(features=self.matrix, classes=config.data.classes)
        return config.model_copy(update=changes)

    def _write(
        self, folder: Path, table: pd.DataFrame, split: splitting.Split, digests: Mapping[str, str]
    ) -> None:
        identity = {"identity": digests["identity"]}
        (folder / DONE).unlink(missing_ok=True)
        write_table(folder / "tiles.parquet", table, identity)
        splitting.save(split, folder / "split.csv", identity)
        if self.seen is None:
            encode.link(self.matrix, folder / MATRIX)
            own = {k: v for k, v in self.source.items() if k not in ("format_version", "digests")}
            write_json(folder / SOURCE, own, identity)

    def _finish(
        self, job: Job, config: Config, split: splitting.Split, digests: Mapping[str, str]
    ) -> None:
        train.aggregators(job.folder, config, _silent)
        predict.predict_run(job.folder, config)
        note = {"scheme": job.deal.scheme, "seed": job.config.seed, "fold": job.number}
        write_json(job.folder / DONE, {**note, "split": split.meta}, digests)
        for name in _MADE:
            shutil.rmtree(job.folder / name, ignore_errors=True)


def _silent(_: str) -> None:
    """A fold is one step of the experiment and says nothing itself."""


def _settings(config: Config) -> dict[str, Any]:
    """What a fold's predictions depend on beside its tiles, its split and its network."""
    other = {"data", "identity", "split", "stain", "encoder", "evidence", "evaluate", "compute"}
    return {**config.model_dump(mode="json", exclude=other), "classes": config.data.classes}
