"""Training of the aggregators on the bags of a fold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mil import encode, loop
from mil.aggregators import AGGREGATORS, INSTANCE_LOSSES, InstanceLoss, create, create_loss
from mil.aggregators.contract import Aggregator
from mil.aggregators.voting import check_vote
from mil.checkpoint import is_finished
from mil.cohort import Fold, positions_of
from mil.config import Aggregator as Choice
from mil.config import Config, Mil
from mil.data.bags import Bags, Batch
from mil.data.store import Features
from mil.models import folder_of, new_aggregator, outputs, shuffled_home
from mil.prepare import Advance, unseen
from mil.seeds import derive, generator
from splits.artifacts import digest
from splits.errors import InputError

__all__ = ["Objective", "check", "class_weights", "fit", "fit_fold", "fit_shuffled", "shuffled"]

_FORM = 4  # of the weights: another one is trained anew


def check(settings: Mil) -> None:
    """Build everything that the section names, small, before any work starts.

    Raises:
        InputError: An aggregator, its instance loss or a vote, or an argument of one, does not
            exist (the nearest is named), is named twice or lies outside its range.
    """
    for kind, choices in (("aggregators", settings.aggregators), ("votes", settings.votes)):
        names = [choice.name for choice in choices]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            message = f"mil.{kind} names {twice[0]!r} twice: once is allowed"
            raise InputError(message)
    for choice in settings.aggregators:
        for name in ("dim", "n_classes"):
            if name in choice.args:
                message = (
                    f"{name} of aggregator {choice.name!r} follows from the data: leave it out"
                )
                raise InputError(message)
        if choice.name not in INSTANCE_LOSSES and choice.instance_loss != {}:
            message = (
                f"mil.aggregators: {choice.name!r} has no instance loss to set or to switch off "
                f"(those that have one: {', '.join(INSTANCE_LOSSES) or 'none'})"
            )
            raise InputError(message)
        with torch.random.fork_rng([]):
            model = create(choice.name, dim=8, n_classes=2, **choice.args)
            create_loss(choice.name, model, **(choice.instance_loss or {}))
    for vote in settings.votes:
        check_vote(vote.name, **vote.args)


def fit_fold(
    run: Path,
    config: Config,
    fold: Fold,
    fabric: Fabric,
    say: Callable[[str], object],
    advance: Advance = unseen,
) -> None:
    """Train every aggregator of the config, every seed of it; what is trained already is kept.

    ``advance`` is called with the epochs that are done, as by :func:`mil.loop.fit`.
    """
    # Opening reads every value once, so it is done once for all of them.
    features, made_from = encode.bag_features(run, config, fold)
    for choice in config.mil.aggregators:
        home = run / "aggregators" / choice.name
        fit(run, config, fold, choice, fabric, features, made_from, home, advance)
        say(f"fold {fold.number}: {choice.name} trained")


def fit_shuffled(
    run: Path, config: Config, fold: Fold, fabric: Fabric, methods: Collection[str]
) -> None:
    """Train one model of each method on labels that mean nothing, all else being the same.

    Whole patients of the training part swap their labels, those of the validation part among
    themselves. The seed is another one, as between members of an ensemble: first weights in common
    would make maps alike whatever was learned.
    """
    features, made_from = encode.bag_features(run, config, fold)
    mixed = shuffled(fold, config.seed)
    one = config.mil.model_copy(update={"seeds": 1})
    single = config.model_copy(update={"mil": one, "seed": derive(config.seed, "shuffled")})
    for choice in config.mil.aggregators:
        if choice.name in methods:
            home = shuffled_home(run, choice.name)
            fit(run, single, mixed, choice, fabric, features, made_from, home)


def shuffled(fold: Fold, seed: int) -> Fold:
    """The fold with labels that change hands among the patients of its training part.

    The same among those of its validation part. A slide takes the label of a slide of the other
    patient, in the order of their names; by chance some keep theirs.
    """
    labels = dict(fold.labels)
    for part in ("train", "val"):
        slides_of: dict[str, list[str]] = {}
        for slide in fold.slides[part]:
            slides_of.setdefault(fold.patient_of[slide], []).append(slide)
        patients = sorted(slides_of)
        order = generator(seed, "shuffled", fold.number, part).permutation(len(patients))
        for patient, place in zip(patients, order, strict=True):
            given = cycle(fold.labels[slide] for slide in slides_of[patients[place]])
            labels |= dict(zip(slides_of[patient], given, strict=False))
    # The digest of the split says which labels a model was trained on.
    return replace(fold, labels=labels, split=digest([fold.split, "shuffled labels"]))


def fit(
    run: Path,
    config: Config,
    fold: Fold,
    choice: Choice,
    fabric: Fabric,
    features: Features,
    made_from: str,
    home: Path,
    advance: Advance = unseen,
) -> None:
    """Train one aggregator on one fold, every seed of it.

    Args:
        run: Run folder.
        config: Its configuration; ``mil`` says how it is trained.
        fold: Whose training slides teach it, and whose validation slides stop it.
        choice: The aggregator.
        fabric: Device and precision.
        features: Of all tiles, ``(n_tiles, dim)``.
        made_from: Digest of the features.
        home: Folder of its models, a folder a fold and seed.
        advance: Called with the epochs that are done.
    """
    settings = config.mil
    seen, judges = fold.slides["train"], fold.slides["val"]
    placed = None
    if getattr(AGGREGATORS.get(choice.name), "takes_positions", False):
        placed = positions_of(run, fold, settings.bags)
    fold = fold.in_bags(settings.bags)
    bags = Bags(features, fold.rows_by_slide, fold.labels, placed)
    # Neither the other methods nor the number of seeds changes a weight.
    own = settings.model_dump(mode="json", exclude={"aggregators", "votes", "seeds"})
    digests = {
        "features": made_from,
        "split": fold.split,
        "aggregator": digest([_FORM, own, choice.model_dump(mode="json"), config.seed]),
    }
    for number in range(settings.seeds):
        folder = folder_of(home, fold.key, number)
        if is_finished(folder, digests):
            advance(settings.epochs)
            continue
        # The first has the seed that it has where it is the only one.
        names = (choice.name, fold.key, *([number] if number else []))
        seed = derive(config.seed, "aggregator", *names)
        torch.manual_seed(seed)
        model = new_aggregator(config, choice, bags.dim, len(fold.classes))
        model.standardise(features, fold.rows("train"))
        loss = choice.instance_loss
        objective = Objective(
            model,
            None if loss is None else create_loss(choice.name, model, **loss),
            class_weights(fold) if settings.balance else np.ones(len(fold.classes)),
        )
        loop.fit(
            objective,
            folder,
            kept=model,
            budget=loop.Budget(
                epochs=settings.epochs,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                schedule_args={"warmup": settings.warmup},
                patience=settings.patience,
                burn_in=settings.burn_in,
                criterion="val_loss",
            ),
            fabric=fabric,
            batches=partial(_batches, bags, fold, settings, seed),
            loss=partial(_loss, fabric),
            validate=partial(_validate, bags, fold, settings, fabric.device),
            seed=seed,
            digests=digests,
            card={
                "aggregator": choice.model_dump(mode="json"),
                "bags": settings.bags,
                "classes": fold.classes,
                "dim": bags.dim,
                "slides_seen": seen,
                "slides_that_chose_the_epoch": judges,
            },
            lower="mil.batch_tiles",
            advance=advance,
        )


class Objective(nn.Module):
    """An aggregator and what is learned beside it; its forward pass is the loss of a batch.

    The mean over the bags of the cross-entropy, each bag times the weight of its class, plus the
    loss on tiles times its own weight. Weights are no part of the divisor: a batch of one bag
    would lose them.

    Args:
        aggregator: All that prediction needs.
        instance_loss: Its loss on tiles, with parameters of its own perhaps.
        class_weight: ``(n_classes,)``.
    """

    class_weight: Tensor

    def __init__(
        self,
        aggregator: Aggregator,
        instance_loss: InstanceLoss | None,
        class_weight: npt.NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.aggregator, self.instance_loss = aggregator, instance_loss
        weight = torch.from_numpy(class_weight).float()
        self.register_buffer("class_weight", weight, persistent=False)

    def of_bags(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of each bag: ``(n_bags, n_classes)``, ``(n_bags,)`` to ``(n_bags,)``."""
        return self.class_weight[label] * F.cross_entropy(logits.float(), label, reduction="none")

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        output = outputs(self.aggregator, batch.x, batch.offsets, batch.positions)
        loss = self.of_bags(output.logits, batch.label).mean()
        if self.instance_loss is not None:
            on_tiles = self.instance_loss(output, batch.offsets, batch.label)
            loss = loss + self.instance_loss.weight * on_tiles
        return loss


def class_weights(fold: Fold) -> npt.NDArray[np.float64]:
    """One over the number of training bags of each class, of mean 1 over these bags.

    Weights and no balanced draws: every bag is seen once an epoch, none twice and none not at all.
    A class without training bags has weight 1.
    """
    labels = [fold.labels[slide] for slide in fold.slides["train"]]
    counts = np.bincount(labels, minlength=len(fold.classes))
    even = len(labels) / np.count_nonzero(counts)
    return np.where(counts > 0, even / np.maximum(counts, 1), 1.0)


def _batches(
    bags: Bags, fold: Fold, settings: Mil, seed: int, epoch: int, start: int
) -> loop.Batches[Batch]:
    train = fold.slides["train"]
    if settings.bag_dropout or settings.max_tiles is not None:
        bags = bags.sampled(
            train,
            derive(seed, "tiles", epoch),
            dropout=settings.bag_dropout,
            most=settings.max_tiles,
        )
    budget = settings.batch_tiles
    plan = bags.plan(train, max_tiles=budget, generator=generator(seed, "order", epoch))
    return loop.Batches(len(plan), bags.packed(plan[start:], max_tiles=budget))


def _loss(fabric: Fabric, wrapped: nn.Module, batch: Batch) -> Tensor:
    # Not through Fabric's wrapper, which would first copy memory-mapped tiles to float32.
    objective: Any = wrapped.module
    with fabric.autocast():
        loss: Tensor = objective(batch.to(fabric.device))
    return loss


def _validate(
    bags: Bags, fold: Fold, settings: Mil, device: torch.device, objective: Objective
) -> Mapping[str, float]:
    loss, right, n = 0.0, 0, 0
    for packed in bags.batches(fold.slides["val"], max_tiles=settings.batch_tiles):
        batch = packed.to(device)
        logits = outputs(objective.aggregator, batch.x, batch.offsets, batch.positions).logits
        loss += float(objective.of_bags(logits, batch.label).sum())
        right += int((logits.argmax(1) == batch.label).sum())
        n += len(batch)
    return {"val_loss": loss / n, "val_accuracy": right / n}
