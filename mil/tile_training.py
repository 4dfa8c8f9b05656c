"""Training of one tile encoder on tiles that carry the label of their slide.

The label is weak: most tiles of a slide may show nothing of it. So every slide counts the same,
however many tiles it has, and validation judges whole slides by their mean probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mil import loop
from mil.cohort import Fold
from mil.config import Config
from mil.data.images import ahead
from mil.encoders import TileEncoder
from mil.encoders.augment import centre_view, random_view
from mil.encoders.synchronised import synchronise
from mil.pixels import Tiles
from mil.prepare import Advance, unseen
from mil.seeds import derive, generator, of_rows
from splits.errors import InputError

__all__ = ["fit_encoder", "slide_weights", "tile_logits"]

Rows = npt.NDArray[np.int64]
_EVAL_BATCH = 128
_AHEAD = 2  # batches that are made while others are learned from


@dataclass(frozen=True)
class Views:
    """One process's share of a batch of augmented tiles.

    Attributes:
        view: ``(n, n_channels, size, size)`` float32, in grey levels.
        label: ``(n,)`` class of each, and ``other`` that of what is mixed into it.
        weight: ``(n,)`` weight of each in the loss, and ``other_weight``.
        share: Share of the tile itself in its view; 1 without mixup.
        n: Tiles of the whole batch, over all processes.
        slide_ids: Slide of each.
    """

    view: Tensor
    label: Tensor
    other: Tensor
    weight: Tensor
    other_weight: Tensor
    share: float
    n: int
    slide_ids: Sequence[str]


def fit_encoder(
    encoder: TileEncoder,
    folder: Path,
    config: Config,
    fold: Fold,
    tiles: Tiles,
    fabric: Fabric,
    *,
    seed: int,
    card: dict[str, Any],
    digests: dict[str, str],
    after_epoch: Callable[[str], object],
    advance: Advance = unseen,
) -> None:
    """Train ``encoder`` on the training slides of ``fold``; see :func:`mil.loop.fit`."""
    train = config.train
    if not (config.encoder.pretrained or config.encoder.checkpoint):
        encoder.set_scale(*_mean_and_deviation(tiles, fold.rows("train")))
    n_tiles = len(fold.rows("train"))
    n_batches = max(1, round(n_tiles / train.batch_size))
    if fabric.world_size > 1:
        if n_tiles // n_batches < fabric.world_size:
            message = (
                f"batches of {n_tiles // n_batches} tiles are too small for {fabric.world_size} "
                "processes: raise train.batch_size or lower compute.devices"
            )
            raise InputError(message)
        synchronise(encoder, fabric.device)
    validation = fold.rows("val")

    def loss(model: nn.Module, batch: Views) -> Tensor:
        view = batch.view.to(fabric.device).contiguous(memory_format=torch.channels_last)
        logits = model(view)

        def against(label: Tensor, weight: Tensor) -> Tensor:
            smoothing = train.label_smoothing
            each = F.cross_entropy(
                logits, label.to(fabric.device), reduction="none", label_smoothing=smoothing
            )
            return (each * weight.to(fabric.device)).sum()

        total = batch.share * against(batch.label, batch.weight)
        if batch.share < 1:
            total = total + (1 - batch.share) * against(batch.other, batch.other_weight)
        # Processes are averaged, and their shares of a batch may differ by one tile.
        mean: Tensor = total * fabric.world_size / batch.n
        return mean

    def validate(model: nn.Module) -> dict[str, float]:
        logits = tile_logits(encoder, tiles, validation, config.encoder.image_px, fabric)
        return _slide_scores(logits, fold, validation)

    loop.fit(
        encoder.to(memory_format=torch.channels_last),
        folder,
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
        batches=lambda epoch, start: loop.Batches(
            n_batches,
            ahead(_views(config, fold, tiles, fabric, seed, n_batches, epoch, start), _AHEAD),
        ),
        loss=loss,
        validate=validate,
        seed=seed,
        digests=digests,
        card=card,
        lower="train.batch_size or encoder.image_px",
        tensorboard=train.tensorboard,
        after_epoch=after_epoch,
        advance=advance,
    )


def slide_weights(fold: Fold, rows: Rows) -> npt.NDArray[np.float32]:
    """Weights of mean 1 under which every slide counts the same, however many tiles it has."""
    slides = pd.Series(fold.slide_of[rows])
    share = 1 / slides.map(slides.value_counts())
    weights: npt.NDArray[np.float32] = (share / share.mean()).to_numpy(dtype=np.float32)
    return weights


def tile_logits(
    model: TileEncoder, tiles: Tiles, rows: Rows, image_px: int, fabric: Fabric
) -> Tensor:
    """Class logits ``(n_rows, n_classes)`` of the centres of tiles, float32 on the CPU.

    Every process takes its share of the tiles and gets all logits.
    """
    found = []
    starts = list(range(0, len(rows), _EVAL_BATCH))
    for place, start in enumerate(starts):
        if place % fabric.world_size == fabric.global_rank:
            block = torch.from_numpy(np.array(tiles[rows[start : start + _EVAL_BATCH]]))
            found.append((start, model(centre_view(block.to(fabric.device), image_px)).float()))
    logits = torch.zeros(len(rows), model.head.out_features, device=fabric.device)
    for start, of_block in found:
        logits[start : start + len(of_block)] = of_block
    total: Tensor = fabric.all_reduce(logits, reduce_op="sum")
    return total.cpu()


def _views(
    config: Config,
    fold: Fold,
    tiles: Tiles,
    fabric: Fabric,
    seed: int,
    n_batches: int,
    epoch: int,
    start: int,
) -> Iterator[Views]:
    train, rows = config.train, fold.rows("train")
    target = fold.targets(rows)  # (n_train_tiles,)
    weight = slide_weights(fold, rows)
    order = generator(seed, "order", epoch).permutation(len(rows))
    view_seed = derive(seed, "view", epoch)

    def views(places: Rows) -> Tensor:
        return random_view(
            torch.from_numpy(tiles[rows[places]]),
            config.encoder.image_px,
            of_rows(view_seed, rows[places]),
            optical=config.encoder.channels != "rgb",
            scales=config.encoder.context,
            **train.augment.model_dump(),
        )

    for step, part in enumerate(np.array_split(order, n_batches)):
        if step < start:
            continue
        whole = np.sort(part)
        share, partner = 1.0, whole
        if train.mixup > 0:
            rng = generator(seed, "mixup", epoch, step)
            share, partner = float(rng.beta(train.mixup, train.mixup)), rng.permutation(whole)
        mine = slice(fabric.global_rank, None, fabric.world_size)
        chosen, other = whole[mine], partner[mine]
        view = views(chosen)
        if share < 1:
            view = share * view + (1 - share) * views(other)
        yield Views(
            view=view,
            label=torch.from_numpy(target[chosen]),
            other=torch.from_numpy(target[other]),
            weight=torch.from_numpy(weight[chosen]),
            other_weight=torch.from_numpy(weight[other]),
            share=share,
            n=len(whole),
            slide_ids=list(fold.slide_of[rows[chosen]]),
        )


def _slide_scores(logits: Tensor, fold: Fold, rows: Rows) -> dict[str, float]:
    """Loss and accuracy of slides by the mean probability of their tiles; of tiles beside it."""
    probability = logits.double().softmax(1).numpy()
    slides = pd.DataFrame(probability).groupby(fold.slide_of[rows]).mean()
    mean, label = slides.to_numpy(), np.array([fold.labels[name] for name in slides.index])
    of_label = np.maximum(mean[np.arange(len(slides)), label], np.finfo(np.float64).tiny)
    right = (probability.argmax(1) == fold.targets(rows)) * slide_weights(fold, rows)
    return {
        "val_loss": float(-np.log(of_label).mean()),
        "val_accuracy": float((mean.argmax(1) == label).mean()),
        "val_tile_accuracy": float(right.mean()),
    }


def _mean_and_deviation(tiles: Tiles, rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel in one pass over training tiles, ``(n_channels,)`` levels."""
    counts = np.zeros((tiles.shape[1], 256))
    for start in range(0, len(rows), _EVAL_BATCH):
        block = tiles[rows[start : start + _EVAL_BATCH]]
        for channel in range(tiles.shape[1]):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    levels = np.arange(256)
    mean = share @ levels
    deviation = np.sqrt(np.maximum((share * (levels - mean[:, None]) ** 2).sum(1), 1.0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
