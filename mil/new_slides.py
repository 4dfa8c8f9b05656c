"""What trained models say of new slides: folders of tiles, or feature files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil import devices, encode, tissue
from mil.cohort import folds_of
from mil.config import Config
from mil.data.context import name_positions
from mil.data.positions import grid_positions
from mil.data.store import Features
from mil.encoders import TileEncoder
from mil.features import find
from mil.features.bag import require_usable
from mil.features.cohort import tile_names, tile_rows
from mil.models import Matrix, Models, Said, ensemble
from mil.pixels import new_pixels
from mil.stain.slides import fit_stains
from splits import tiles
from splits.errors import InputError
from splits.scan import list_folder, scan

__all__ = ["predict_new"]


def predict_new(run: Path, config: Config, inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Classify new slides by the mean over folds and seeds.

    An input is a folder of tiles; in a run that began with features, feature files as
    :func:`mil.features.find` takes them, where each slide is one.

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
        answers: dict[str, list[Said]] = {}
        for models in everyone:
            x = slide.embed(models.encoder)
            of_methods = models.slides(
                torch.from_numpy(x),
                torch.tensor([0, len(x)]),
                positions=slide.positions if models.take_positions else None,
                quality=slide.quality,
            )
            for method, of_fold in of_methods.items():
                answers.setdefault(method, []).append(of_fold)
        for method, answer in answers.items():
            said = ensemble(answer)
            share = said.votes.probabilities[0]
            record: dict[str, Any] = {
                "slide": slide.name,
                "n_tiles": len(slide.tile_ids),
                "method": method,
                "predicted": classes[int(said.votes.predicted[0])],
                "probabilities": dict(zip(classes, share.tolist(), strict=True)),
                "skipped": [{"id": name, "cause": cause} for _, name, cause in slide.skipped],
            }
            if said.attention is not None:
                weights = said.attention.tolist()
                record["attention"] = dict(zip(slide.tile_ids, weights, strict=True))
            records.append(record)
    return records


@dataclass(frozen=True)
class _New:
    """A new slide.

    Attributes:
        name: What to call it.
        tile_ids: Its tiles.
        embed: Encoder of a fold -> embeddings of the tiles, ``(n_tiles, dim)`` float32.
        positions: ``(n_tiles, 2)``, where they are known.
        quality: ``(n_tiles,)``, where a vote asks for it.
        skipped: What could not be used, as the ledger has it.
    """

    name: str
    tile_ids: list[str]
    embed: Callable[[TileEncoder], Features]
    positions: torch.Tensor | None
    quality: Matrix | None = None
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
    table = name_positions(table)
    pixels, quality = _pixels(folder, table, config)

    def embed(encoder: TileEncoder) -> Features:
        embedder = encode.reader(encoder, config, fabric)
        return encode.embed(embedder, pixels, config.compute.encode_batch)

    yield _New(str(folder), table["tile_id"].tolist(), embed, _placed(table), quality, skipped)


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

        names = tile_names(found, name, len(bag))
        yield _New(name, names, embed, _placed(tiles.check(tile_rows(bag, names))))


def _placed(table: pd.DataFrame) -> torch.Tensor | None:
    """Positions of the tiles of one slide."""
    found = [*grid_positions(table).values()]
    return torch.from_numpy(found[0]) if found else None


def _pixels(
    folder: Path, table: pd.DataFrame, config: Config
) -> tuple[npt.NDArray[np.uint8], Matrix | None]:
    """What the encoder sees of a new slide, ``(n_tiles, n_channels, size, size)``; tile quality."""
    fit = partial(fit_stains, folder, table, size_px=config.encoder.resize_px, seed=config.seed)
    stains = fit(config.stain.method)
    quality = None
    if config.needs_quality:
        fits = fit("macenko") if stains is None else stains
        quality = tissue.quality(tissue.measure_all(folder, table, fits, config.compute.threads))
    return new_pixels(folder, table, stains, config)[:], quality
