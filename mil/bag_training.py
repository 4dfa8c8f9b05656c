"""Training of one aggregator on the bags of a fold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mil import encode, loop
from mil.cohort import Fold
from mil.config import Choice, Config
from mil.data.bags import Bags, Batch
from mil.models import new_aggregator
from mil.seeds import derive, generator
from splits.artifacts import digest

__all__ = ["fit_aggregator"]

_FORM = 2  # of the weights: another one is trained anew


def fit_aggregator(run: Path, config: Config, fold: Fold, choice: Choice, fabric: Fabric) -> None:
    """Train one aggregator of the config, or do nothing where it is trained."""
    features, made_from = encode.bag_features(run, config, fold)
    bags = Bags(features, fold.rows_by_slide, fold.labels)
    folder = run / "aggregators" / choice.name / f"fold{fold.number}"
    settings = config.mil.model_dump(mode="json", exclude={"aggregators"})
    digests = {
        "features": made_from,
        "split": fold.split,
        "aggregator": digest([_FORM, settings, choice.model_dump(mode="json"), config.seed]),
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
        lower="mil.batch_tiles",
    )


def _bag_batches(
    bags: Bags, fold: Fold, config: Config, seed: int, epoch: int, start: int
) -> loop.Batches[Batch]:
    plan = bags.plan(
        fold.slides["train"],
        max_tiles=config.mil.batch_tiles,
        generator=generator(seed, "order", epoch),
    )
    return loop.Batches(len(plan), map(bags.batch, plan[start:]))


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
