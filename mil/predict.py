"""What trained models say: out-of-fold tables of a run, and new slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil import devices, encode
from mil.aggregators.voting import Votes
from mil.cohort import folds_of
from mil.config import Config
from mil.data.bags import Bags
from mil.data.context import name_positions
from mil.models import Matrix, Models, weights_digests
from mil.pixels import new_pixels
from mil.stain.slides import fit_stains
from splits.artifacts import digest, is_current, write_table
from splits.scan import list_folder, scan

__all__ = ["predict_new", "predict_run"]

_ATTENTION = ["tile_id", "slide_id", "fold", "part", "method", "attention"]


def predict_run(run: Path, config: Config) -> None:
    """Predict validation and test slides of every fold with that fold's models.

    Writes ``predictions.parquet``, ``tile_predictions.parquet`` and ``attention.parquet``.
    """
    folds = list(folds_of(run, config))
    digests = {
        "identity": folds[0].identity,
        "split": folds[0].split,
        "models": digest(weights_digests(run, config, [fold.number for fold in folds])),
    }
    # attention.parquet is written last: with it, all three are there.
    if is_current(run / "attention.parquet", digests):
        return
    slides, tiles, weights = [], [], [pd.DataFrame(columns=_ATTENTION)]
    for fold in folds:
        features = encode.read_features(run, str(fold.number), unseen=fold.unseen)
        bags = Bags(features, fold.rows_by_slide, fold.labels)
        models = Models.load(run, config, fold.number, fold.classes)
        for part in ("val", "test"):
            for batch in bags.batches(fold.slides[part], max_tiles=config.mil.batch_tiles):
                rows = batch.rows.numpy()
                where = {"fold": fold.number, "part": part}
                of_tile = {"tile_id": fold.tile_ids[rows], "slide_id": fold.slide_of[rows], **where}
                target = fold.target[rows]
                tiles.append(_frame(of_tile, fold.classes, target, models.tiles(batch.x)))
                for method, (votes, attention) in models.slides(batch.x, batch.offsets).items():
                    of_slide = {"slide_id": batch.slide_ids, **where, "method": method}
                    slides.append(_frame(of_slide, fold.classes, batch.label.numpy(), votes))
                    if attention is not None:
                        columns = {**of_tile, "method": method, "attention": attention}
                        weights.append(pd.DataFrame(columns))
    write_table(run / "predictions.parquet", pd.concat(slides, ignore_index=True), digests)
    write_table(run / "tile_predictions.parquet", pd.concat(tiles, ignore_index=True), digests)
    attention_table = pd.concat(weights, ignore_index=True)
    write_table(run / "attention.parquet", attention_table[_ATTENTION], digests)


def predict_new(run: Path, config: Config, inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Classify new slides, each a folder of tiles, by the mean over the folds' models.

    Returns:
        One record an input and method: ``slide, n_tiles, method, predicted, probabilities`` and,
        where the method weighs tiles, ``attention`` (tile -> weight). Tiles that could not be used
        are listed under ``skipped``.

    Raises:
        InputError: A folder without a usable tile, or a run without trained models.
    """
    fabric = devices.fabric(config.compute, processes=1)
    folds = list(folds_of(run, config))
    everyone = [Models.load(run, config, fold.number, fold.classes) for fold in folds]
    classes = folds[0].classes
    records = []
    for folder in inputs:
        table, skipped = scan(
            list_folder(folder),
            label="none",
            tile_px=config.data.tile_px,
            mixed_sizes=config.data.mixed_sizes,
        )
        table["slide_id"] = folder.resolve().name
        pixels = _pixels(folder, table, config)
        answers: dict[str, list[tuple[Matrix, Matrix | None]]] = {}
        for models in everyone:
            embedder = encode.reader(models.encoder, config, fabric)
            x = encode.embed(embedder, pixels, config.compute.encode_batch)
            said = models.slides(torch.from_numpy(x), torch.tensor([0, len(x)]))
            for method, (votes, attention) in said.items():
                answers.setdefault(method, []).append((votes.probabilities[0], attention))
        for method, answer in answers.items():
            mean = np.mean([probabilities for probabilities, _ in answer], axis=0)
            record: dict[str, Any] = {
                "slide": str(folder),
                "n_tiles": len(table),
                "method": method,
                "predicted": classes[int(mean.argmax())],
                "probabilities": dict(zip(classes, mean.tolist(), strict=True)),
                "skipped": [{"id": name, "cause": cause} for _, name, cause in skipped],
            }
            weights = [attention for _, attention in answer if attention is not None]
            if weights:
                shares = np.mean(weights, axis=0).tolist()
                record["attention"] = dict(zip(table["tile_id"], shares, strict=True))
            records.append(record)
    return records


def _pixels(folder: Path, table: pd.DataFrame, config: Config) -> npt.NDArray[np.uint8]:
    """What the encoder sees of a new slide, ``(n_tiles, n_channels, size, size)``."""
    size_px = config.encoder.resize_px
    stains = fit_stains(folder, table, config.stain.method, size_px=size_px, seed=config.seed)
    return new_pixels(folder, name_positions(table), stains, config)[:]


def _frame(
    ids: Mapping[str, Any], classes: Sequence[str], label: npt.NDArray[np.int64], votes: Votes
) -> pd.DataFrame:
    names = np.array(classes, dtype=object)
    columns: dict[str, Any] = {
        **ids,
        "label": names[label],
        "predicted": names[votes.predicted],
    }
    for i, name in enumerate(classes):
        columns[f"p_{name}"] = votes.probabilities[:, i]
    return pd.DataFrame(columns)
