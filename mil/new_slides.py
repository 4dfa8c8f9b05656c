"""What trained models say of new slides: folders of tiles, or feature files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mil import conformal, devices, encode, tissue
from mil.cohort import Fold, folds_of
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
from mil.predict import made_from
from mil.predictions import read_slides
from mil.stain.slides import fit_stains
from splits import tiles
from splits.artifacts import require_digests
from splits.errors import InputError
from splits.scan import list_folder, scan

__all__ = ["predict_new"]


def predict_new(run: Path, config: Config, inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Classify new slides by the mean over folds and seeds.

    An input is a folder of tiles; in a run that began with features, feature files as
    :func:`mil.features.find` takes them, where each slide is one.

    Returns:
        One record an input and method: ``slide, n_tiles, method, predicted, probabilities``;
        ``answer``, ``set`` and ``level`` (:class:`_Sets`); and, where the method weighs tiles,
        ``attention`` (tile -> weight). Tiles that could not be used are listed under ``skipped``.

    Raises:
        InputError: A folder without a usable tile, features of another dimension, a run
            without trained models, or one whose validation slides were not predicted by them.
    """
    folds = list(folds_of(run, config))
    sets = _Sets.of(run, config, folds)
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
                **sets.of_slide(method, answer),
                "skipped": [{"id": name, "cause": cause} for _, name, cause in slide.skipped],
            }
            if said.attention is not None:
                weights = said.attention.tolist()
                record["attention"] = dict(zip(slide.tile_ids, weights, strict=True))
            records.append(record)
    return records


@dataclass(frozen=True)
class _Sets:
    """Conformal sets of new slides: cross-conformal prediction over the folds of a run.

    A new slide is in no fold, so all validation slides of the run count, each scored by the model
    of its own fold (:func:`mil.conformal.p_values`). They are read from ``predictions.parquet``:
    neither an evaluation nor a test label is needed.

    Attributes:
        classes: Class names.
        level: Of the sets.
        validation: Method -> scores of the true class and patients, a pair a fold.
    """

    classes: Sequence[str]
    level: float
    validation: Mapping[str, Sequence[tuple[Matrix, npt.NDArray[np.object_]]]]

    @classmethod
    def of(cls, run: Path, config: Config, folds: Sequence[Fold]) -> _Sets:
        """Read what the models of this run said of their validation slides.

        Warns where there are too few validation patients for a set to leave a class out.
        """
        numbers = [fold.number for fold in folds]
        path = run / "predictions.parquet"
        require_digests(path, made_from(run, config, folds), f"slidewise train {run}")
        rows, classes, level = read_slides(path, "val"), folds[0].classes, config.evaluate.level
        of_true = conformal.of_truth(rows, classes)
        patients = rows["slide_id"].map(folds[0].patient_of).to_numpy(dtype=object)
        found, needed = len(set(patients)), conformal.n_needed(level)
        if found < needed:
            message = (
                f"{found} patient(s) validate in this run, and a set at level {level:g} needs "
                f"{needed} to leave a class out: every answer is {conformal.NOT_SURE!r} (the "
                f"highest level that so many allow is {found / (found + 1):.2f}, evaluate.level)"
            )
            warnings.warn(message, stacklevel=3)

        def of_fold(method: str, number: int) -> tuple[Matrix, npt.NDArray[np.object_]]:
            mine = ((rows["method"] == method) & (rows["fold"] == number)).to_numpy()
            return of_true[mine], patients[mine]

        methods = sorted(set(rows["method"]))
        return cls(classes, level, {m: [of_fold(m, k) for k in numbers] for m in methods})

    def of_slide(self, method: str, said: Sequence[Said]) -> dict[str, Any]:
        """``answer``, ``set`` and ``level`` of one slide from what the model of each fold says."""
        new = [conformal.scores(of_fold.votes.probabilities) for of_fold in said]
        held = conformal.in_set(conformal.p_values(self.validation[method], new), self.level)
        return {
            "answer": conformal.answer(held, self.classes)[0],
            "set": [name for name, inside in zip(self.classes, held[0], strict=True) if inside],
            "level": self.level,
        }


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
