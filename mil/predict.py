"""What trained models say: out-of-fold tables of a run, and new slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from mil.data.store import Features
from mil.encoders import TileEncoder
from mil.features import find
from mil.features.bag import require_usable
from mil.features.cohort import tile_names
from mil.models import Matrix, Models, weights_digests
from mil.pixels import new_pixels
from mil.stain.slides import fit_stains
from splits.artifacts import digest, is_current, write_table
from splits.errors import InputError
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
    """Classify new slides by the mean over the folds' models.

    An input is a folder of tiles; in a run that began with features, feature files as
    `mil.features.find` takes them, where each slide is one.

    Returns:
        One record an input and method: ``slide, n_tiles, method, predicted, probabilities`` and,
        where the method weighs tiles, ``attention`` (tile -> weight). Tiles that could not be used
        are listed under ``skipped``.

    Raises:
        InputError: A folder without a usable tile, features of another dimension, or a run
            without trained models.
    """
    folds = list(folds_of(run, config))
    everyone = [Models.load(run, config, fold.number, fold.classes) for fold in folds]
    classes = folds[0].classes
    slides = _from_features if config.data.features is not None else _from_pixels
    records = []
    for slide in (slide for path in inputs for slide in slides(path, config)):
        answers: dict[str, list[tuple[Matrix, Matrix | None]]] = {}
        for models in everyone:
            x = slide.embed(models.encoder)
            said = models.slides(torch.from_numpy(x), torch.tensor([0, len(x)]))
            for method, (votes, attention) in said.items():
                answers.setdefault(method, []).append((votes.probabilities[0], attention))
        for method, answer in answers.items():
            mean = np.mean([probabilities for probabilities, _ in answer], axis=0)
            record: dict[str, Any] = {
                "slide": slide.name,
                "n_tiles": len(slide.tile_ids),
                "method": method,
                "predicted": classes[int(mean.argmax())],
                "probabilities": dict(zip(classes, mean.tolist(), strict=True)),
                "skipped": [{"id": name, "cause": cause} for _, name, cause in slide.skipped],
            }
            weights = [attention for _, attention in answer if attention is not None]
            if weights:
                shares = np.mean(weights, axis=0).tolist()
                record["attention"] = dict(zip(slide.tile_ids, shares, strict=True))
            records.append(record)
    return records


@dataclass(frozen=True)
class _New:
    """A new slide, and how its tiles become embeddings ``(n_tiles, dim)`` float32."""

    name: str
    tile_ids: list[str]
    embed: Callable[[TileEncoder], Features]
    skipped: Sequence[tuple[str, str, str]] = ()


def _from_pixels(folder: Path, config: Config) -> Iterator[_New]:
    """A folder of tiles is one slide."""
    fabric = devices.fabric(config.compute, processes=1)
    table, skipped = scan(
        list_folder(folder),
        label="none",
        tile_px=config.data.tile_px,
        mixed_sizes=config.data.mixed_sizes,
    )
    table["slide_id"] = folder.resolve().name
    pixels = _pixels(folder, table, config)

    def embed(encoder: TileEncoder) -> Features:
        embedder = encode.reader(encoder, config, fabric)
        return encode.embed(embedder, pixels, config.compute.encode_batch)

    yield _New(str(folder), table["tile_id"].tolist(), embed, skipped)


def _from_features(path: Path, _: Config) -> Iterator[_New]:
    """Every slide of a feature file or a folder of them."""
    found = find(path)
    for name in found.slide_ids:
        bag = found.read(name)
        where = f"slide {name!r} ({found.files[name]})"
        require_usable(bag, where)
        x = bag.x.astype(np.float32)

        def embed(encoder: TileEncoder, x: Features = x, where: str = where) -> Features:
            if x.shape[1] != encoder.dim:
                message = (
                    f"{where} has features of dimension {x.shape[1]}, the models of this run read "
                    f"{encoder.dim}: features of the same encoder are needed"
                )
                raise InputError(message)
            return x

        yield _New(name, tile_names(found, name, len(bag)), embed)


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
