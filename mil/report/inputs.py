"""What the report reads: the tables of a run folder, required and optional, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.evaluate import rival
from mil.features.cohort import SOURCE
from mil.predictions import UNTRAINED, class_names, read_attention, read_slides, read_tiles
from splits import ledger
from splits import split as splitting
from splits.artifacts import read_csv, read_json, read_table
from splits.errors import InputError

__all__ = ["Inputs", "read", "true_probability"]


@dataclass(frozen=True)
class Inputs:
    """The tables of one run; ``None`` where an optional file is not there.

    Attributes:
        run: The run folder.
        metrics: ``metrics.json``.
        predictions: Test rows of ``predictions.parquet``, one row a slide and method.
        tile_predictions: Test rows of ``tile_predictions.parquet``.
        attention: Test rows of ``attention.parquet``.
        tiles: The tile table.
        stain: One row a slide: white point, stain vectors, 99th percentiles, quality and flag.
        tissue: Tissue type of each tile.
        amounts: What the split balances beside the slide table, one row a slide.
        split: ``split.json``.
        assignment: ``split.csv``.
        audit: ``audit.json``.
        identity: ``identity.json``.
        localisation: ``localisation.json``.
        calibration: ``calibration.json``.
        answers: ``answers.parquet``: the answer of each method, or "not sure", and its set.
        beside: ``beside.json``, tile beside slide.
        flips: ``flips.csv``, cells as text.
        evidence: ``evidence.json``, experiments on attention.
        selection: ``selection.json``, what inner folds chose.
        seal: ``seal.json``, the looks at the test labels.
        cohort: ``slides.parquet`` of predictions that were brought in, a row a slide.
        skipped: The ledger, empty where nothing was written.
        logs: Training logs of all folds by model, the encoder first; columns as in ``log.csv``
            and ``fold``.
        encoder_card: Whether an encoder left a card (a frozen one leaves a card and no log).
        config: The text of ``config.yaml``.
        features: ``features/source.json`` of a run that began with features, without pixels.
    """

    run: Path
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    tile_predictions: pd.DataFrame | None
    attention: pd.DataFrame | None
    tiles: pd.DataFrame | None
    stain: pd.DataFrame | None
    tissue: pd.DataFrame | None
    amounts: pd.DataFrame | None
    split: dict[str, Any] | None
    assignment: pd.DataFrame | None
    audit: dict[str, Any] | None
    identity: dict[str, Any] | None
    localisation: dict[str, Any] | None
    calibration: dict[str, Any] | None
    answers: pd.DataFrame | None
    beside: dict[str, Any] | None
    flips: pd.DataFrame | None
    evidence: dict[str, Any] | None
    selection: dict[str, Any] | None
    seal: dict[str, Any] | None
    cohort: pd.DataFrame | None
    skipped: pd.DataFrame
    logs: dict[str, pd.DataFrame]
    encoder_card: bool
    config: str | None
    features: dict[str, Any] | None

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of the probability columns."""
        return [str(name) for name in self.metrics["classes"]]

    @property
    def methods(self) -> list[str]:
        """Slide methods in the order of ``metrics.json``, which is never that of their scores."""
        return list(self.metrics["slide"])

    @property
    def focus(self) -> str | None:
        """The trained aggregator that the verdict is about, by the rule of :func:`rival`.

        The rule does not look at scores: the best method on the test slides would flatter.
        """
        trained = [name for name in self.methods if name not in UNTRAINED]
        return rival(self.methods, self.attention) or (trained[0] if trained else None)

    @property
    def slides(self) -> pd.DataFrame:
        """``patient_id, site_id, n_tiles`` of the tested slides by ``slide_id``, null if unknown.

        ``n_tiles`` counts the tiles that were predicted, or else those of the tile table.
        """
        tested = sorted(set(self.predictions["slide_id"].astype(str)))
        known = self.tiles if self.tiles is not None else self.cohort
        table = pd.DataFrame(index=pd.Index(tested, name="slide_id"))
        first = None if known is None else known.drop_duplicates("slide_id").set_index("slide_id")
        for name in ("patient_id", "site_id"):
            if first is None or name not in first.columns:
                table[name] = None
            else:
                table[name] = first[name].astype(object).reindex(table.index)
        rows = self.tile_predictions if self.tile_predictions is not None else self.tiles
        table["n_tiles"] = (
            None if rows is None else rows.groupby("slide_id").size().reindex(table.index)
        )
        return table

    def slides_of(self, method: str) -> pd.DataFrame:
        """Test predictions of one method, indexed and sorted by ``slide_id``."""
        rows = self.predictions[self.predictions["method"] == method]
        return rows.sort_values("slide_id").set_index("slide_id")


def read(run: Path) -> Inputs:
    """Read a run folder.

    Raises:
        InputError: ``metrics.json`` or ``predictions.parquet`` is missing (``slidewise evaluate``
            makes the first from the second), lacks a field, or any file is damaged.
    """
    verb = f"run `slidewise evaluate {run}` first"
    for name in ("metrics.json", "predictions.parquet"):
        if not (run / name).exists():
            message = f"{run / name} does not exist: {verb}"
            raise InputError(message)
    metrics = read_json(run / "metrics.json")
    absent = [name for name in ("n", "classes", "tile", "slide") if name not in metrics]
    if absent:
        message = f"{run / 'metrics.json'} has no {', '.join(absent)}: {verb}"
        raise InputError(message)
    predictions = read_slides(run / "predictions.parquet")
    if set(class_names(predictions)) != set(metrics["classes"]):
        message = f"{run}: metrics.json and predictions.parquet differ in classes: {verb}"
        raise InputError(message)
    metrics["tile"] = metrics["tile"] or {}  # null where only slides were predicted
    tiles, weights = run / "tile_predictions.parquet", run / "attention.parquet"
    cards = list(run.glob("encoder/fold*/card.json"))
    config = run / "config.yaml"
    return Inputs(
        run=run,
        metrics=metrics,
        predictions=predictions,
        tile_predictions=read_tiles(tiles) if tiles.exists() else None,
        attention=read_attention(weights) if weights.exists() else None,
        tiles=_optional_table(run / "tiles.parquet"),
        stain=_optional_table(run / "stain.parquet"),
        tissue=_optional_table(run / "tissue.parquet"),
        amounts=_optional_table(run / "amounts.parquet"),
        split=_optional_json(run / "split.json"),
        assignment=splitting.load(run).table if (run / "split.csv").exists() else None,
        audit=_optional_json(run / "audit.json"),
        identity=_optional_json(run / "identity.json"),
        localisation=_optional_json(run / "localisation.json"),
        calibration=_optional_json(run / "calibration.json"),
        answers=_optional_table(run / "answers.parquet"),
        beside=_optional_json(run / "beside.json"),
        flips=read_csv(run / "flips.csv") if (run / "flips.csv").exists() else None,
        evidence=_optional_json(run / "evidence.json"),
        selection=_optional_json(run / "selection.json"),
        seal=_optional_json(run / "seal.json"),
        cohort=_optional_table(run / "slides.parquet"),
        skipped=ledger.read(run),
        logs=_logs(run, metrics["slide"]),
        encoder_card=bool(cards),
        config=config.read_text(encoding="utf-8") if config.exists() else None,
        features=_optional_json(run / SOURCE),
    )


def true_probability(rows: pd.DataFrame, classes: list[str]) -> npt.NDArray[np.float64]:
    """Probability that each row gives to its own label, shape (n_rows,)."""
    matrix = rows[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    column = pd.Index(classes).get_indexer(rows["label"].astype(str))
    values: npt.NDArray[np.float64] = matrix[np.arange(len(rows)), column]
    return np.where(column >= 0, values, np.nan)


def _optional_table(path: Path) -> pd.DataFrame | None:
    return read_table(path) if path.exists() else None


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _logs(run: Path, methods: Iterable[str]) -> dict[str, pd.DataFrame]:
    folders = {"encoder": run / "encoder"}
    folders |= {name: run / "aggregators" / name for name in methods}
    logs = {}
    for name, folder in folders.items():
        parts = [_log(path) for path in sorted(folder.glob("fold*/log.csv"))]
        if parts:
            logs[name] = pd.concat(parts, ignore_index=True)
    return logs


def _log(path: Path) -> pd.DataFrame:
    table = read_csv(path)
    if "epoch" not in table.columns:
        message = f"{path} has no column epoch (it has {', '.join(table.columns)})"
        raise InputError(message)
    best = table.get("best", pd.Series("", index=table.index)).str.lower().isin(["true", "1"])
    numbers = table.drop(columns="best", errors="ignore").apply(pd.to_numeric, errors="coerce")
    return numbers.assign(best=best, fold=path.parent.name.removeprefix("fold"))
