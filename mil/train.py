"""The training stages of a run: an encoder a fold, then every aggregator, on training slides."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression

from mil import bag_training, devices, encode, loop, select
from mil.checkpoint import is_finished, load_weights, save_weights
from mil.cohort import Fold, folds_of
from mil.config import Config
from mil.data.store import Features
from mil.encoders import TileEncoder, check_name
from mil.encoders.given import Given
from mil.encoders.weights import origin_digest
from mil.features.cohort import SOURCE, UNKNOWN
from mil.models import log_probabilities, network_digest, new_encoder
from mil.pixels import Pixels, Tiles
from mil.prepare import Advance, Progress, bar
from mil.seeds import derive, generator
from mil.tile_training import fit_encoder, slide_weights, tile_logits
from splits.artifacts import digest, read_json, write_json
from splits.errors import InputError
from splits.splitter import BalancedGroupKFold

__all__ = ["aggregators", "check", "encoders"]

_PROBE_TILES: Final = 50_000

Say = Callable[[str], object]
Rows = npt.NDArray[np.int64]


def check(config: Config) -> None:
    """Bind every name and argument of the config before any work starts.

    Raises:
        InputError: An encoder, aggregator, optimiser or schedule, or an argument of one, does not
            exist; the nearest is named. Also where the split is repeated, or an optional package
            is missing.
    """
    if config.split.repeats > 1:
        message = (
            f"split.repeats={config.split.repeats}: a run trains and tests one repeat, so give "
            "each a run of its own with split.seed=0, 1, ... (`slidewise split` deals repeats for "
            "your own loop)"
        )
        raise InputError(message)
    check_name(config.encoder.name)
    origin_digest(config.encoder.name, config.encoder.checkpoint)
    loop.OPTIMIZERS.bind(config.train.optimizer.name, config.train.optimizer.args)
    loop.SCHEDULES.bind(config.train.schedule.name, config.train.schedule.args)
    bag_training.check(config.mil)
    select.check(config)
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        message = "train.tensorboard needs the package: pip install 'slidewise[tensorboard]'"
        raise InputError(message)
    if config.train.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        message = "train.mlflow needs the package: pip install 'slidewise[mlflow]'"
        raise InputError(message)


def encoders(
    run: Path,
    config: Config,
    seen: Pixels | None,
    fabric: Fabric,
    say: Say = print,
    progress: Progress | None = None,
) -> None:
    """Train (or, frozen, probe) the tile encoder of every fold and write its features.

    With ``train.crossfit`` also the encoders that tell the aggregators what a tile looks like to
    somebody who never saw its slide.

    Args:
        run: Run folder.
        config: Its configuration.
        seen: The tiles as the encoder sees them; None where features come from files, which are
            taken as those of a frozen encoder.
        fabric: Device, precision and processes.
        say: Called with one line a finished step.
        progress: Shows the epochs of all encoders.
    """
    folds, n_parts = list(folds_of(run, config)), config.train.crossfit
    fewest = min(len({fold.group_of[s] for s in fold.slides["train"]}) for fold in folds)
    if n_parts is not None and n_parts > fewest:
        message = (
            f"train.crossfit={n_parts}, and a fold has {fewest} groups of training slides that are "
            f"never cut: allowed is 2 to {fewest}"
        )
        raise InputError(message)
    inner: dict[int, list[Fold]] = {}
    if config.select is not None:
        say(select.told(config, len(folds)))
        inner = {fold.number: select.folds_within(run, fold) for fold in folds}
    epochs, frozen = config.train.epochs, seen is None or config.encoder.frozen
    within = sum(len(parts) for parts in inner.values())
    n_trained = 0 if frozen else len(folds) * (1 + (n_parts or 0)) + within
    advance = bar(progress if n_trained else None, "encoders, epochs", n_trained * epochs)
    network = network_digest(config)
    stage = _Encoders(run, config, seen, fabric, say, network, advance, progress)
    for fold in folds:
        stage.of_fold(fold)
        if n_parts is not None:
            stage.crossfit(fold, n_parts)
        for part in inner.get(fold.number, ()):
            stage.within(part)


def aggregators(
    run: Path, config: Config, say: Say = print, progress: Progress | None = None
) -> None:
    """Train every aggregator of the config on every fold's bags, in one process."""
    fabric = devices.fabric(config.compute, processes=1)
    folds, settings = list(folds_of(run, config)), config.mil
    n_models = len(folds) * len(settings.aggregators) * settings.seeds
    advance = bar(progress, "aggregators, epochs", n_models * settings.epochs)
    compared = None
    if config.select is not None:
        n_within = len(folds) * (config.split.inner or 0)
        n_compared = n_within * len(config.select.candidates)
        compared = bar(progress, "candidates on inner folds", n_compared)
    for fold in folds:
        bag_training.fit_fold(run, config, fold, fabric, say, advance)
        if compared is not None:
            select.choose(run, config, fold, fabric, say, compared)


@dataclass(frozen=True)
class _Encoders:
    """What the encoders of all folds have in common."""

    run: Path
    config: Config
    seen: Pixels | None
    fabric: Fabric
    say: Say
    network: str  # digest of it and of its published weights
    advance: Advance  # with epochs
    progress: Progress | None

    @property
    def frozen(self) -> bool:
        """Whether only the tile classifier is fitted."""
        return self.seen is None or self.config.encoder.frozen

    @property
    def tiles(self) -> Tiles:
        """What an encoder is trained on."""
        if self.seen is None:
            message = f"{self.run} began with features: there are no pixels to train an encoder on"
            raise InputError(message)
        return self.seen.tiles

    def of_fold(self, fold: Fold) -> None:
        """The encoder of a fold, and what it makes of every tile."""
        run, key, frozen = self.run, fold.key, self.frozen
        base = {"identity": fold.identity, "encoder": self.network}
        if self.seen is not None:
            base["pixels"] = self.seen.digest
        of_weights = {**base, "training": self._training(fold, key)}
        of_features = base if frozen else of_weights
        folder = run / "encoder" / f"fold{key}"
        if is_finished(folder, of_weights) and encode.are_current(run, key, of_features):
            self.advance(0 if frozen else self.config.train.epochs)
            return
        source = None if self.seen is not None else read_json(run / SOURCE)
        dim = 0 if source is None else source["dim"]
        encoder = new_encoder(self.config, fold.classes, load_weights=True, dim=dim)
        card = self._card(fold, encoder, source)
        if not frozen:
            self._fine_tune(encoder, fold, key, card, of_weights)
        if source is None:
            encode.features(
                run,
                self.config,
                key,
                encoder,
                self.tiles,
                self.fabric,
                self.say,
                card,
                of_features,
                self.progress,
            )
        elif self.fabric.is_global_zero:
            encode.given_features(run, key, card, of_features)
        if frozen:
            if self.fabric.is_global_zero:
                features = encode.read_features(run, key, unseen=fold.unseen)
                _probe(encoder, fold, features, self.config.seed)
                save_weights(encoder, folder / "model.safetensors")
                head = {**card, "head_saw": fold.slides["train"]}
                write_json(folder / "card.json", head, of_weights)
            self.fabric.barrier()
            self.say(f"fold {key}: linear tile classifier fitted")

    def crossfit(self, fold: Fold, n_parts: int) -> None:
        """Class probabilities of every tile by an encoder that did not train on its slide.

        Training slides are dealt to parts, patients whole and classes even; the tiles of a part
        are judged by an encoder trained on the other parts. Validation and test slides are judged
        by the encoder of the fold, which saw none of them.
        """
        run, config = self.run, self.config
        key, of_fold = f"{fold.number}-crossfit", str(fold.number)
        parts = _parts(fold, n_parts, config.seed)
        digests = {
            **encode.fold_meta(run, of_fold)["digests"],
            "training": self._training(fold, key),
            "parts": digest(parts),
        }
        if encode.are_current(run, key, digests):
            self.advance(0 if self.frozen else n_parts * config.train.epochs)
            return
        features = encode.read_features(run, of_fold, unseen=fold.unseen)
        dim = features.shape[1]
        encoder = new_encoder(config, fold.classes, load_weights=False, dim=dim)
        load_weights(encoder, run / "encoder" / f"fold{of_fold}" / "model.safetensors")
        scores = log_probabilities(encoder, features)
        for number, (rest, held) in enumerate(parts):
            part = replace(fold, slides={**fold.slides, "train": rest, "test": held})
            judged = part.rows("test")
            encoder = new_encoder(config, fold.classes, load_weights=not self.frozen, dim=dim)
            if self.frozen:
                _probe(encoder, part, features, config.seed)
                scores[judged] = log_probabilities(encoder, features[judged])
                continue
            name = f"{key}{number}"
            of_weights = {**digests, "training": self._training(part, name)}
            self._fine_tune(encoder, part, name, self._card(part, encoder), of_weights)
            scores[judged] = self._judge(encoder, judged)
        if self.fabric.is_global_zero:
            judges = [{"slides_seen": rest, "slides_judged": held} for rest, held in parts]
            encode.write_scores(run, key, scores, {"parts": judges}, digests)
        self.fabric.barrier()

    def within(self, part: Fold) -> None:
        """What an encoder says of tiles that saw none of the slides held out in a fold within.

        Frozen weights saw none: only votes need a tile classifier of their own.
        """
        if not self.frozen:
            self.of_fold(part)
        if not select.votes_among(self.config):
            return
        run, config, key = self.run, self.config, select.scores_key(part)
        of_part = encode.bag_key(config, part)
        digests = {
            **encode.fold_meta(run, of_part)["digests"],
            "scores": self._training(part, key),
        }
        if encode.are_current(run, key, digests):
            return
        features = encode.read_features(run, of_part, unseen=part.unseen)
        if self.frozen:
            encoder: TileEncoder = Given(features.shape[1], len(part.classes))
            _probe(encoder, part, features, config.seed)
        else:
            encoder = new_encoder(config, part.classes, load_weights=False)
            load_weights(encoder, run / "encoder" / f"fold{part.key}" / "model.safetensors")
        if self.fabric.is_global_zero:
            judge = {"slides_seen": part.slides["train"], "slides_judged": part.slides["test"]}
            scores = log_probabilities(encoder, features)
            encode.write_scores(run, key, scores, {"parts": [judge]}, digests)
        self.fabric.barrier()

    def _judge(self, encoder: TileEncoder, rows: Rows) -> npt.NDArray[np.float32]:
        """Log probabilities ``(n_rows, n_classes)``."""
        encoder.eval().to(self.fabric.device)
        with torch.inference_mode(), self.fabric.autocast():
            image_px = self.config.encoder.image_px
            logits = tile_logits(encoder, self.tiles, rows, image_px, self.fabric)
        said: npt.NDArray[np.float32] = F.log_softmax(logits, dim=1).numpy()
        return said

    def _fine_tune(
        self,
        encoder: TileEncoder,
        fold: Fold,
        key: str,
        card: dict[str, Any],
        digests: dict[str, str],
    ) -> None:
        fit_encoder(
            encoder,
            self.run / "encoder" / f"fold{key}",
            self.config,
            fold,
            self.tiles,
            self.fabric,
            seed=derive(self.config.seed, "encoder", key),
            card=card,
            digests=digests,
            after_epoch=lambda line: self.say(f"fold {key}: encoder {line}"),
            advance=self.advance,
        )

    def _training(self, fold: Fold, key: str) -> str:
        """Digest of what the weights of an encoder depend on beside its input."""
        made_from: list[Any] = [fold.split, fold.slides["train"], key, self.config.seed]
        if not self.frozen:
            # Neither crossfit nor who keeps the logs changes a weight.
            own = {"crossfit", "tensorboard", "mlflow"}
            made_from.append(self.config.train.model_dump(mode="json", exclude=own))
        return digest(made_from)

    def _card(
        self, fold: Fold, encoder: TileEncoder, source: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        if source is not None:
            seen = source["encoder_saw"]
            return {
                "encoder": {"name": ", ".join(source["encoders"]), "files": source["path"]},
                "classes": fold.classes,
                "dim": encoder.dim,
                # Unknown counts as none, or no features of others could be used at all.
                "slides_seen": [] if seen == UNKNOWN else seen,
                "encoder_saw": seen,
            }
        frozen = self.config.encoder.frozen
        return {
            "encoder": self.config.encoder.model_dump(mode="json"),
            "preprocessing": encoder.card,
            "classes": fold.classes,
            "dim": encoder.dim,
            "n_parameters": sum(p.numel() for p in encoder.parameters()),
            "slides_seen": [] if frozen else fold.slides["train"],
            "slides_that_chose_the_epoch": [] if frozen else fold.slides["val"],
            "torch": torch.__version__,
        }


def _parts(fold: Fold, n_parts: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Training slides without a part, and the slides of that part, for each."""
    slides = np.array(fold.slides["train"], dtype=object)
    deals = BalancedGroupKFold(n_parts, seed=seed).split(
        slides,
        [fold.labels[name] for name in slides],
        [fold.group_of[name] for name in slides],
    )
    return [(sorted(slides[rest]), sorted(slides[held])) for rest, held in deals]


def _probe(encoder: TileEncoder, fold: Fold, features: Features, seed: int) -> None:
    """Fit the linear tile classifier of a frozen encoder on training slides.

    Logistic regression on standardised features at scikit-learn's default strength: nothing is
    tuned, so validation slides stay unseen. Of very many tiles as many of each slide are drawn as
    keep them at ``_PROBE_TILES``; each slide weighs the same either way.
    """
    rows = _drawn(fold, seed)
    x = np.asarray(features[rows], dtype=np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / std
    target, share = fold.targets(rows), slide_weights(fold, rows)
    final = LogisticRegression(max_iter=1000).fit(x, target, share)
    weight, bias = final.coef_ / std, final.intercept_
    if len(fold.classes) == 2:
        # scikit-learn keeps one row for two classes: the other class has logit 0.
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    with torch.no_grad():
        encoder.head.weight.copy_(torch.from_numpy(weight))
        encoder.head.bias.copy_(torch.from_numpy(bias - weight @ mean))


def _drawn(fold: Fold, seed: int) -> Rows:
    """Training rows, ascending: all, or an even number of each slide where they are too many."""
    rows = fold.rows("train")
    if len(rows) <= _PROBE_TILES:
        return rows
    slides = fold.slides["train"]
    most = max(_PROBE_TILES // len(slides), 1)
    parts = [
        generator(seed, "probe", name).permutation(fold.rows_by_slide[name])[:most]
        for name in slides
    ]
    return np.sort(np.concatenate(parts))
