"""Training of one encoder a fold, then of every aggregator a fold, on training slides only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mil import devices, encode, loop
from mil.aggregators import AGGREGATORS
from mil.cohort import Fold, folds_of
from mil.config import Config
from mil.data.bags import Bags, Batch
from mil.encoders import TileEncoder, check_name
from mil.encoders.augment import centre_view, random_view
from mil.models import new_aggregator, new_encoder
from mil.pixels import Pixels, Tiles
from mil.seeds import derive, generator, of_rows
from splits.artifacts import digest, is_current, write_json
from splits.errors import InputError

__all__ = ["aggregators", "check", "encoders"]

Say = Callable[[str], object]
Rows = npt.NDArray[np.int64]
_EVAL_BATCH = 128


def check(config: Config) -> None:
    """Bind every name and argument of the config before any work starts.

    Raises:
        InputError: An encoder, aggregator, optimiser or schedule, or an argument of one, does not
            exist; the nearest is named. Also where the split is repeated.
    """
    if config.split.repeats > 1:
        message = (
            f"split.repeats={config.split.repeats}: a run trains and tests one repeat, so give "
            "each a run of its own with split.seed=0, 1, ... (`slidewise split` deals repeats for "
            "your own loop)"
        )
        raise InputError(message)
    check_name(config.encoder.name)
    loop.OPTIMIZERS.bind(config.train.optimizer.name, config.train.optimizer.args)
    loop.SCHEDULES.bind(config.train.schedule.name, config.train.schedule.args)
    names = [choice.name for choice in config.mil.aggregators]
    for choice in config.mil.aggregators:
        AGGREGATORS.bind(choice.name, choice.args)
        if names.count(choice.name) > 1:
            message = f"mil.aggregators names {choice.name!r} twice: once is allowed"
            raise InputError(message)


def encoders(run: Path, config: Config, seen: Pixels, say: Say = print) -> None:
    """Train (or, frozen, probe) the tile encoder of every fold and write its features.

    Args:
        run: Run folder.
        config: Its configuration.
        seen: The tiles as the encoder sees them.
        say: Called with one line a finished step.
    """
    fabric = devices.fabric(config.compute)
    for fold in folds_of(run, config):
        encoder = new_encoder(config, fold.classes, load_weights=True)
        card = {
            "encoder": config.encoder.model_dump(mode="json"),
            "classes": fold.classes,
            "dim": encoder.dim,
            "n_parameters": sum(p.numel() for p in encoder.parameters()),
            "slides_seen": [] if config.encoder.frozen else fold.slides["train"],
            "slides_that_chose_the_epoch": [] if config.encoder.frozen else fold.slides["val"],
            "torch": torch.__version__,
        }
        digests = {
            "identity": fold.identity,
            "pixels": seen.digest,
            "encoder": digest(config.encoder.model_dump(mode="json")),
        }
        if config.encoder.frozen:
            features = encode.features(
                run,
                config,
                fold.number,
                encoder,
                seen.tiles,
                fabric,
                card=card,
                digests=digests,
            )
            _probe(run, config, fold, encoder, features, card=card, digests=digests, say=say)
            continue
        digests["training"] = digest(
            [config.train.model_dump(mode="json"), fold.split, fold.number, config.seed]
        )
        _fine_tune(
            run, config, fold, encoder, seen.tiles, fabric, card=card, digests=digests, say=say
        )
        encode.features(
            run, config, fold.number, encoder, seen.tiles, fabric, card=card, digests=digests
        )


def aggregators(run: Path, config: Config, say: Say = print) -> None:
    """Train every aggregator of the config on every fold's bags."""
    fabric = devices.fabric(config.compute)
    for fold in folds_of(run, config):
        features = encode.read_features(run, fold.number, unseen=fold.unseen)
        bags = Bags(features, fold.rows_by_slide, fold.labels)
        entry = encode.fold_meta(run, fold.number)
        for choice in config.mil.aggregators:
            folder = run / "aggregators" / choice.name / f"fold{fold.number}"
            settings = config.mil.model_dump(mode="json", exclude={"aggregators"})
            digests = {
                "features": digest(entry["digests"]),
                "split": fold.split,
                "aggregator": digest([settings, choice.model_dump(mode="json"), config.seed]),
            }
            seed = derive(config.seed, "aggregator", choice.name, fold.number)
            torch.manual_seed(seed)
            model = new_aggregator(choice, bags.dim, len(fold.classes))
            model.standardise(features[fold.rows("train")])
            loop.fit(
                model,
                folder,
                budget=loop.Budget(
                    epochs=config.mil.epochs,
                    lr=config.mil.lr,
                    weight_decay=config.mil.weight_decay,
                    patience=config.mil.patience,
                    burn_in=config.mil.burn_in,
                ),
                fabric=fabric,
                batches=partial(_bag_batches, bags, fold, config, seed),
                loss=partial(_bag_loss, fabric.device),
                validate=partial(_validate_bags, bags, fold, config, fabric.device),
                seed=seed,
                digests=digests,
                card={
                    "aggregator": choice.model_dump(mode="json"),
                    "classes": fold.classes,
                    "dim": bags.dim,
                    "slides_seen": fold.slides["train"],
                },
            )
            say(f"fold {fold.number}: {choice.name} trained")


def _fine_tune(
    run: Path,
    config: Config,
    fold: Fold,
    encoder: TileEncoder,
    tiles: Tiles,
    fabric: Fabric,
    *,
    card: dict[str, Any],
    digests: dict[str, str],
    say: Say,
) -> None:
    train = config.train
    seed = derive(config.seed, "encoder", fold.number)
    rows, target = fold.rows("train"), fold.target
    if not (config.encoder.pretrained or config.encoder.checkpoint):
        encoder.set_scale(*_scale(tiles, rows))
    weight = _slide_weights(fold, rows)
    optical = config.encoder.channels != "rgb"

    n_batches = max(1, round(len(rows) / train.batch_size))

    def views(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = generator(seed, "order", epoch).permutation(len(rows))
        for part in np.array_split(order, n_batches):
            chosen = rows[np.sort(part)]
            view = random_view(
                torch.from_numpy(tiles[chosen]),
                config.encoder.image_px,
                of_rows(derive(seed, "view", epoch), chosen),
                optical=optical,
                **train.augment.model_dump(),
            )
            yield view, torch.from_numpy(target[chosen]), torch.from_numpy(weight[np.sort(part)])

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        view, label, share = (part.to(fabric.device) for part in batch)
        view = view.contiguous(memory_format=torch.channels_last)
        return (F.cross_entropy(model(view), label, reduction="none") * share).mean()

    def validate(model: nn.Module) -> dict[str, float]:
        val = fold.rows("val")
        logits = []
        for start in range(0, len(val), _EVAL_BATCH):
            block = torch.from_numpy(tiles[val[start : start + _EVAL_BATCH]]).to(fabric.device)
            logits.append(model(centre_view(block, config.encoder.image_px)).float().cpu())
        scores, label = torch.cat(logits), torch.from_numpy(target[val])
        share = torch.from_numpy(_slide_weights(fold, val))
        right = (scores.argmax(1) == label).float()
        losses = F.cross_entropy(scores, label, reduction="none")
        return {
            "val_loss": float((losses * share).mean()),
            "val_accuracy": float((right * share).mean()),
        }

    loop.fit(
        encoder.to(memory_format=torch.channels_last),
        run / "encoder" / f"fold{fold.number}",
        budget=loop.Budget(
            epochs=train.epochs,
            lr=train.lr,
            weight_decay=train.weight_decay,
            optimizer=train.optimizer.name,
            optimizer_args=train.optimizer.args,
            schedule=train.schedule.name,
            schedule_args=train.schedule.args,
            patience=train.patience,
            burn_in=train.burn_in,
        ),
        fabric=fabric,
        batches=lambda epoch: loop.Batches(n_batches, views(epoch)),
        loss=loss,
        validate=validate,
        seed=seed,
        digests=digests,
        card=card,
        after_epoch=lambda line: say(f"fold {fold.number}: encoder {line}"),
    )


def _probe(
    run: Path,
    config: Config,
    fold: Fold,
    encoder: TileEncoder,
    features: npt.NDArray[Any],
    *,
    card: dict[str, Any],
    digests: dict[str, str],
    say: Say,
) -> None:
    """Fit the linear tile classifier of a frozen encoder on training slides.

    Logistic regression on standardised features at scikit-learn's default strength: nothing is
    tuned, so validation slides stay unseen.
    """
    folder = run / "encoder" / f"fold{fold.number}"
    digests = {**digests, "training": digest([fold.split, fold.number, config.seed])}
    if is_current(folder / "card.json", digests):
        return
    rows = fold.rows("train")
    x = np.asarray(features[rows], dtype=np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / std
    target, share = fold.target[rows], _slide_weights(fold, rows)
    final = LogisticRegression(max_iter=1000).fit(x, target, share)
    weight, bias = final.coef_ / std, final.intercept_
    if len(fold.classes) == 2:
        # scikit-learn keeps one row for two classes: the other class has logit 0.
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    with torch.no_grad():
        encoder.head.weight.copy_(torch.from_numpy(weight))
        encoder.head.bias.copy_(torch.from_numpy(bias - weight @ mean))
    loop.save_weights(encoder, folder / "model.safetensors")
    write_json(folder / "card.json", {**card, "head_saw": fold.slides["train"]}, digests)
    say(f"fold {fold.number}: linear tile classifier fitted")


def _scale(tiles: Tiles, rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel over the training tiles, ``(n_channels,)`` grey levels."""
    counts = np.zeros((tiles.shape[1], 256))
    for start in range(0, len(rows), _EVAL_BATCH):
        block = tiles[rows[start : start + _EVAL_BATCH]]
        for channel in range(tiles.shape[1]):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    levels = np.arange(256)
    mean = share @ levels
    std = np.sqrt(np.maximum((share * (levels - mean[:, None]) ** 2).sum(1), 1.0))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _slide_weights(fold: Fold, rows: Rows) -> npt.NDArray[np.float32]:
    """Weights of mean 1 under which every slide counts the same, however many tiles it has."""
    slides = pd.Series(fold.slide_of[rows])
    share = 1 / slides.map(slides.value_counts())
    weights: npt.NDArray[np.float32] = (share / share.mean()).to_numpy(dtype=np.float32)
    return weights


def _bag_batches(
    bags: Bags, fold: Fold, config: Config, seed: int, epoch: int
) -> loop.Batches[Batch]:
    plan = bags.plan(
        fold.slides["train"],
        max_tiles=config.mil.batch_tiles,
        generator=generator(seed, "order", epoch),
    )
    return loop.Batches(len(plan), map(bags.batch, plan))


def _bag_loss(device: torch.device, model: nn.Module, batch: Batch) -> Tensor:
    batch = batch.to(device)
    return F.cross_entropy(model(batch.x, batch.offsets).logits.float(), batch.label)


def _validate_bags(
    bags: Bags, fold: Fold, config: Config, device: torch.device, model: nn.Module
) -> Mapping[str, float]:
    loss, right, n = 0.0, 0, 0
    for packed in bags.batches(fold.slides["val"], max_tiles=config.mil.batch_tiles):
        batch = packed.to(device)
        logits = model(batch.x, batch.offsets).logits.float()
        loss += float(F.cross_entropy(logits, batch.label, reduction="sum"))
        right += int((logits.argmax(1) == batch.label).sum())
        n += len(batch)
    return {"val_loss": loss / n, "val_accuracy": right / n}
