"""What trained models say: out-of-fold tables of a run, and new slides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional as F

from mil import devices, encode, loop
from mil.aggregators import AGGREGATORS
from mil.aggregators.scaled import Scaled
from mil.aggregators.voting import Votes, mean_probability, plurality_vote
from mil.config import Choice, Config
from mil.data import cache
from mil.data.bags import Bags
from mil.encoders import TileEncoder, create
from mil.prepare import read_tiles
from splits import folds as folding
from splits import tiles
from splits.artifacts import digest, digests_of, is_current, write_table
from splits.errors import InputError
from splits.scan import list_folder, scan

__all__ = [
    "Fold",
    "folds_of",
    "new_aggregator",
    "new_encoder",
    "predict_new",
    "predict_run",
]

_VOTES = {"vote": plurality_vote, "mean_probability": mean_probability}
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """One fold of a run, in the rows of its tile table.

    Attributes:
        number: From 0.
        classes: Class names; a class index is a place in it.
        slides: Part (train, val, test) -> its slides, sorted.
        labels: Slide -> class index.
        rows_by_slide: Slide -> rows of the tile table, ascending.
        slide_of: Slide of each row, ``(n_tiles,)``.
        target: Class index of each row, that of its slide, ``(n_tiles,)`` int64.
        identity: Digest of the tile table.
        split: Digest of the split.
    """

    number: int
    classes: list[str]
    slides: dict[str, list[str]]
    labels: dict[str, int]
    rows_by_slide: dict[str, npt.NDArray[np.int64]] = field(repr=False)
    slide_of: npt.NDArray[np.object_] = field(repr=False)
    target: npt.NDArray[np.int64] = field(repr=False)
    identity: str
    split: str

    def rows(self, *parts: str) -> npt.NDArray[np.int64]:
        """Rows of all tiles in these parts, ascending."""
        slides = [slide for part in parts for slide in self.slides[part]]
        return np.sort(np.concatenate([self.rows_by_slide[slide] for slide in slides]))


def folds_of(run: Path, config: Config) -> Iterator[Fold]:
    """The folds of a run's split.

    Raises:
        InputError: The split is missing or of another tile table.
    """
    table = read_tiles(run)
    split = folding.load(run)
    found = digests_of(run / "split.json")
    identity = tiles.identity_digest(table)
    if found.get("identity") != identity:
        message = f"{run}/split.csv is of another tile table: run `slidewise split {run}` again"
        raise InputError(message)
    slides = tiles.slides(table)
    classes = list(config.data.classes or sorted(slides["label"].unique()))
    index = {name: i for i, name in enumerate(classes)}
    labels = {s: index[c] for s, c in slides[["slide_id", "label"]].itertuples(index=False)}
    slide_of = table["slide_id"].to_numpy(dtype=object)
    rows = {str(k): np.sort(v) for k, v in table.groupby("slide_id").indices.items()}
    for number in sorted(split.table["fold"].unique()):
        yield Fold(
            number=int(number),
            classes=classes,
            slides={part: sorted(names) for part, names in folding.parts(split, number).items()},
            labels=labels,
            rows_by_slide=rows,
            slide_of=slide_of,
            target=np.array([labels[name] for name in slide_of], dtype=np.int64),
            identity=identity,
            split=digest(found),
        )


def new_encoder(config: Config, classes: Sequence[str], *, load_weights: bool) -> TileEncoder:
    """The encoder of a config: with published weights, or empty to be filled from a run."""
    settings = config.encoder
    # Random weights follow from the seed, the same in every fold.
    torch.manual_seed(config.seed)
    return create(
        settings.name,
        n_channels=len(cache.CHANNELS[settings.channels]),
        n_classes=len(classes),
        image_px=settings.image_px,
        pretrained=settings.pretrained,
        checkpoint=settings.checkpoint,
        load_weights=load_weights,
        args=settings.args,
    )


def new_aggregator(choice: Choice, dim: int, n_classes: int) -> Scaled:
    """The aggregator of a config, behind its standardisation."""
    return Scaled(AGGREGATORS.create(choice.name, dim=dim, n_classes=n_classes, **choice.args), dim)


def predict_run(run: Path, config: Config) -> dict[str, str]:
    """Predict validation and test slides of every fold with that fold's models.

    Writes ``predictions.parquet``, ``tile_predictions.parquet`` and ``attention.parquet``;
    returns the digests that they carry.
    """
    all_folds = list(folds_of(run, config))
    digests = {
        "identity": all_folds[0].identity,
        "split": all_folds[0].split,
        "models": digest(_weights(run, config, all_folds)),
    }
    # attention.parquet is written last: with it, all three are there.
    if is_current(run / "attention.parquet", digests):
        return digests
    table = read_tiles(run)
    slide_rows, tile_rows, attention_rows = [], [], []
    for fold in all_folds:
        unseen = {*fold.slides["val"], *fold.slides["test"]}
        features = encode.read_features(run, fold.number, unseen=unseen)
        bags = Bags(features, fold.rows_by_slide, fold.labels)
        encoder = _trained_encoder(run, config, fold)
        for part in ("val", "test"):
            batch = bags.batch(fold.slides[part])
            rows, offsets = batch.rows.numpy(), batch.offsets.numpy()
            with torch.inference_mode():
                probabilities = encoder.classify(batch.x).double().numpy()
            where = {"fold": fold.number, "part": part}
            tile_rows.append(
                _frame(
                    {"tile_id": table["tile_id"].to_numpy()[rows], "slide_id": fold.slide_of[rows]},
                    where,
                    fold.classes,
                    fold.target[rows],
                    Votes(probabilities.argmax(1), probabilities),
                )
            )
            label = batch.label.numpy()
            for method, rule in _VOTES.items():
                votes = rule(probabilities, offsets)
                ids = {"slide_id": batch.slide_ids}
                slide_rows.append(
                    _frame(ids, {**where, "method": method}, fold.classes, label, votes)
                )
            for choice in config.mil.aggregators:
                model = _trained_aggregator(run, choice, fold, bags.dim)
                with torch.inference_mode():
                    output = model(batch.x, batch.offsets)
                said = F.softmax(output.logits.double(), dim=1).numpy()
                slide_rows.append(
                    _frame(
                        {"slide_id": batch.slide_ids},
                        {**where, "method": choice.name},
                        fold.classes,
                        label,
                        Votes(said.argmax(1), said),
                    )
                )
                if output.attention is not None:
                    attention_rows.append(
                        pd.DataFrame(
                            {
                                "tile_id": table["tile_id"].to_numpy()[rows],
                                "slide_id": fold.slide_of[rows],
                                **where,
                                "method": choice.name,
                                "attention": output.attention.double().numpy(),
                            }
                        )
                    )
    write_table(run / "predictions.parquet", pd.concat(slide_rows, ignore_index=True), digests)
    write_table(run / "tile_predictions.parquet", pd.concat(tile_rows, ignore_index=True), digests)
    columns = ["tile_id", "slide_id", "fold", "part", "method", "attention"]
    attention = pd.concat([pd.DataFrame(columns=columns), *attention_rows], ignore_index=True)
    write_table(run / "attention.parquet", attention[columns], digests)
    return digests


def predict_new(run: Path, config: Config, inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Classify new slides, each a folder of tiles, by the mean over the folds' models.

    Returns:
        One record an input and method: ``slide, method, predicted, probabilities`` and, where the
        method weighs tiles, ``attention`` (tile -> weight). Tiles that could not be used are
        listed under ``skipped``.

    Raises:
        InputError: A folder without a usable tile, or a run without trained models.
    """
    fabric = devices.fabric(config.compute)
    all_folds = list(folds_of(run, config))
    records = []
    for folder in inputs:
        table, skipped = scan(
            list_folder(folder),
            label="none",
            tile_px=config.data.tile_px,
            mixed_sizes=config.data.mixed_sizes,
        )
        table["slide_id"] = folder.resolve().name
        stains = None
        if config.stain.method != "none":
            stains = cache.fit_stains(
                folder,
                table,
                config.stain.method,
                size_px=config.encoder.resize_px,
                seed=config.seed,
            )
        size_px = config.encoder.resize_px
        blocks = cache.render(folder, table, stains, config.encoder.channels, size_px=size_px)
        pixels = np.concatenate(list(blocks))
        votes: dict[str, list[Matrix]] = {}
        weights: dict[str, list[Matrix]] = {}
        for fold in all_folds:
            encoder = _trained_encoder(run, config, fold)
            features = encode.embed(encoder, pixels, config.encoder.image_px, fabric)
            x, offsets = torch.from_numpy(features), torch.tensor([0, len(features)])
            with torch.inference_mode():
                probabilities = encoder.cpu().classify(x).double().numpy()
                for method, rule in _VOTES.items():
                    said = rule(probabilities, offsets.numpy()).probabilities[0]
                    votes.setdefault(method, []).append(said)
                for choice in config.mil.aggregators:
                    output = _trained_aggregator(run, choice, fold, encoder.dim)(x, offsets)
                    said = F.softmax(output.logits.double(), dim=1).numpy()[0]
                    votes.setdefault(choice.name, []).append(said)
                    if output.attention is not None:
                        weights.setdefault(choice.name, []).append(output.attention.numpy())
        for method, said_by_fold in votes.items():
            mean = np.mean(said_by_fold, axis=0)
            record: dict[str, Any] = {
                "slide": str(folder),
                "n_tiles": len(table),
                "method": method,
                "predicted": all_folds[0].classes[int(mean.argmax())],
                "probabilities": dict(zip(all_folds[0].classes, mean.tolist(), strict=True)),
                "skipped": [{"id": name, "cause": cause} for _, name, cause in skipped],
            }
            if method in weights:
                attention = np.mean(weights[method], axis=0).tolist()
                record["attention"] = dict(zip(table["tile_id"], attention, strict=True))
            records.append(record)
    return records


def _frame(
    ids: dict[str, Any],
    where: dict[str, Any],
    classes: Sequence[str],
    label: npt.NDArray[np.int64],
    votes: Votes,
) -> pd.DataFrame:
    names = np.array(classes, dtype=object)
    columns: dict[str, Any] = {
        **ids,
        **where,
        "label": names[label],
        "predicted": names[votes.predicted],
    }
    for i, name in enumerate(classes):
        columns[f"p_{name}"] = votes.probabilities[:, i]
    return pd.DataFrame(columns)


def _trained_encoder(run: Path, config: Config, fold: Fold) -> TileEncoder:
    encoder = new_encoder(config, fold.classes, load_weights=False)
    path = run / "encoder" / f"fold{fold.number}" / "model.safetensors"
    _require(path, run)
    loop.load_weights(encoder, path)
    return encoder.eval()


def _trained_aggregator(run: Path, choice: Choice, fold: Fold, dim: int) -> Scaled:
    model = new_aggregator(choice, dim, len(fold.classes))
    path = run / "aggregators" / choice.name / f"fold{fold.number}" / "model.safetensors"
    _require(path, run)
    loop.load_weights(model, path)
    return model.eval()


def _weights(run: Path, config: Config, all_folds: Sequence[Fold]) -> list[str]:
    folders = [
        *(run / "encoder" / f"fold{fold.number}" for fold in all_folds),
        *(
            run / "aggregators" / choice.name / f"fold{fold.number}"
            for choice in config.mil.aggregators
            for fold in all_folds
        ),
    ]
    for folder in folders:
        _require(folder / "card.json", run)
    return [_content(folder / "model.safetensors") for folder in folders]


def _content(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _require(path: Path, run: Path) -> None:
    if not path.exists():
        message = f"{path} does not exist: run `slidewise train {run}` first"
        raise InputError(message)
