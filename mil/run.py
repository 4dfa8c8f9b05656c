"""All stages in order: one tile from disk to the slide report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from mil import (
    auditing,
    devices,
    evaluate,
    perturb,
    predict,
    prepare,
    report,
    settings,
    tissue,
    tracking,
    train,
)
from mil.config import Config, Data, Encoder, Split, Train
from mil.features import cohort as feature_cohort
from mil.phantom import Phantom
from mil.pixels import Pixels, pixels
from mil.report.audit import audit_run
from mil.report.identity import identify_run
from mil.stain.quality import summary
from mil.stain.slides import stain_table
from splits.artifacts import digest, digests_of, is_current

__all__ = ["demo_config", "evaluate_run", "prepare_run", "report_run", "run", "train_run"]

Say = Callable[[str], object]


def run(
    path: Path, config: Config, say: Say, progress: prepare.Progress | None = None
) -> Path | None:
    """Every stage; one whose outputs carry the digests of its inputs is skipped.

    Returns:
        The report; None in all but the first of several processes.

    Raises:
        InputError: The data or the config is wrong.
        NegativeVerdictError: No slide-level split exists, or the split leaks.
    """
    train.check(config)
    fabric = devices.fabric(config.compute)
    devices.first(fabric, lambda: prepare_run(path, config, say, progress))
    _train(path, config, fabric, say, progress)
    return devices.first(fabric, lambda: _judge(path, config, progress))


def train_run(
    path: Path, config: Config, say: Say, progress: prepare.Progress | None = None
) -> None:
    """Pixels, encoders, features, aggregators and their predictions, after a clean audit."""
    train.check(config)
    _train(path, config, devices.fabric(config.compute), say, progress)


def prepare_run(
    path: Path, config: Config, say: Say, progress: prepare.Progress | None = None
) -> None:
    """All before any learning: tile table, identity, split, audit.

    Raises:
        InputError: The data or the config is wrong.
        NegativeVerdictError: No slide-level split exists, or the split leaks.
    """
    settings.save(config, path / "config.yaml")
    prepare.scan(path, config, progress)
    if config.data.features is not None:
        say(feature_cohort.told(path))
    identity = identify_run(path, config, progress=progress)
    say(f"identity: grade {identity['grade']} ({identity['reason']})")
    prepare.split(path, config, tissue.amounts(path, config, progress))
    audit_run(path, config, encoders=False)  # a leak is to be looked at: the page comes first
    say(f"audit: {auditing.audit(path, config)['verdict']}")


def _train(
    path: Path, config: Config, fabric: Fabric, say: Say, progress: prepare.Progress | None
) -> None:
    """One process makes the pixels and trains the aggregators, all train the encoders."""

    def pixels_first() -> Pixels | None:
        auditing.audit(path, config)
        if config.data.features is not None:
            return None
        seen = pixels(path, config, progress, say)
        if config.stain.method != "none" and (doubts := summary(stain_table(path, config))):
            say(f"stain: {doubts}")
        return seen

    def aggregators() -> None:
        train.aggregators(path, config, say, progress)
        predict.predict_run(path, config, progress)
        perturb.perturb_run(path, config, progress)

    made = devices.first(fabric, pixels_first)
    said = say if fabric.is_global_zero else _silent
    # The other processes open what the first has made.
    with devices.said_once(fabric):
        if made is None and config.data.features is None:
            made = pixels(path, config)
        shown = progress if fabric.is_global_zero else None
        train.encoders(path, config, made, fabric, said, shown)
    devices.first(fabric, aggregators)


def _judge(path: Path, config: Config, progress: prepare.Progress | None) -> Path:
    evaluate_run(path, config, progress)
    page = report_run(path, config)
    if config.train.mlflow is not None:
        tracking.track(path, config, config.train.mlflow)
    return page


def _silent(_: str) -> None:
    """Only the first process speaks."""


def evaluate_run(path: Path, config: Config, progress: prepare.Progress | None = None) -> None:
    """``metrics.json``; a second look at the same predictions is not taken."""
    settings: dict[str, Any] = {
        "n_draws": config.evaluate.bootstrap,
        "seed": config.seed,
        "cluster": config.evaluate.cluster,
        "interval": config.evaluate.interval,
        "order": config.split.label_order,
        "level": config.evaluate.level,
    }
    digests = {
        **digests_of(path / "predictions.parquet"),
        "perturbation": digest(digests_of(path / "perturbation.parquet")),
        "evaluate": digest(settings),
    }
    if not is_current(path / "metrics.json", digests):
        evaluate.evaluate(path, **settings, digests=digests, progress=progress)


def report_run(path: Path, config: Config) -> Path:
    """``report.html`` from the tables of the run."""
    return report.build(path, read_tile=prepare.tile_reader(path, config))


def demo_config() -> Config:
    """What ``slidewise demo`` runs: the same experiment as ``configs/phantom.yaml``."""
    return Config(
        data=Data(phantom=Phantom(n_blank=6, n_blurred=6, n_truncated=1)),
        split=Split(folds=3),
        encoder=Encoder(resize_px=64, image_px=64),
        train=Train(epochs=6, lr=1e-3),
    )
