"""Aggregators as a scikit-learn classifier of bags, for small studies in memory.

``from mil.classifier import SlideClassifier``. Whole cohorts with splits, audits and reports are
the command line's; here are ``fit``, ``predict_proba``, ``cross_val_score`` and ``GridSearchCV``
on a list of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from mil.aggregators import Output, create, create_loss
from mil.bag_training import Objective
from mil.data.bags import Bags, Batch
from mil.data.store import Features
from mil.loop import OPTIMIZERS, SCHEDULES, Batches
from mil.models import outputs
from mil.seeds import derive, generator
from splits.errors import InputError

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn 1.5 has it as a method

    def validate_data(estimator: Any, /, **args: Any) -> Any:
        """What newer releases call :func:`sklearn.utils.validation.validate_data`."""
        return estimator._validate_data(**args)


__all__ = ["SlideClassifier"]

Matrix = npt.NDArray[np.float64]
Offsets = npt.NDArray[np.int64]


class SlideClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Trains an aggregator on bags and classifies bags.

    A bag is an array ``(n_tiles, n_features)`` and ``X`` a sequence of bags; a 2-D array is taken
    as bags of one tile each, a 3-D array as bags of one size. Tiles are standardised by the
    training tiles. AdamW trains for a fixed number of epochs; the learning rate warms up and falls
    by a cosine. Nothing is held back for validation: choose settings with ``GridSearchCV``.

    The same seed and bags give the same model. Predictions are made in float64 on the CPU, so that
    what is said of a bag does not depend on the bags beside it.

    Args:
        aggregator: An entry of :data:`mil.aggregators.AGGREGATORS`.
        args: Its arguments, such as ``{"hidden": 64}``.
        instance_loss: Arguments of the loss on tiles that belongs to the aggregator, where its
            paper has one; ``"default"`` takes the defaults, None trains without.
        epochs: Passes over the training bags.
        lr: Largest learning rate.
        weight_decay: Weight decay.
        warmup: Share of the epochs in which the learning rate rises.
        batch_tiles: Tiles of a packed batch; a larger bag streams in chunks, with the same result.
        class_weight: ``"balanced"``, a weight for each class, or None for 1.
        seed: Everything random follows from it.
        device: Where the model is trained: ``"cpu"``, ``"cuda"``, ``"mps"``.

    Attributes:
        classes_: ``(n_classes,)``, sorted.
        n_features_in_: Length of a tile embedding.
        model_: The trained :class:`mil.aggregators.Aggregator`, in evaluation mode.
        loss_curve_: Mean training loss of each epoch.
    """

    def __init__(
        self,
        aggregator: str = "abmil",
        *,
        args: Mapping[str, Any] | None = None,
        instance_loss: Mapping[str, Any] | Literal["default"] | None = "default",
        epochs: int = 100,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        batch_tiles: int = 4096,
        class_weight: Mapping[Any, float] | str | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.aggregator = aggregator
        self.args = args
        self.instance_loss = instance_loss
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.batch_tiles = batch_tiles
        self.class_weight = class_weight
        self.seed = seed
        self.device = device

    def fit(self, X: Any, y: Any) -> SlideClassifier:  # noqa: N803
        """Train on bags.

        Args:
            X: Sequence of ``n_bags`` arrays ``(n_tiles, n_features)``.
            y: ``(n_bags,)`` classes, numbers or texts.

        Raises:
            InputError: (a ``ValueError``) A bag is empty, is not 2-D, has other features than the
                first or a value that is not finite; ``y`` has one class or another length; a
                setting is unknown or outside its range; or the loss is not finite.
        """
        self._check()
        x, offsets = self._packed(X, reset=True)
        label = self._labels(y, len(offsets) - 1)
        device = torch.device(self.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "start"))
            model = create(
                self.aggregator,
                dim=self.n_features_in_,
                n_classes=len(self.classes_),
                **(self.args or {}),
            )
            model.budget = self.batch_tiles
            extra = None
            if self.instance_loss is not None:
                given = {} if self.instance_loss == "default" else self.instance_loss
                extra = create_loss(self.aggregator, model, **given)
            model.standardise(x)
            objective = Objective(model, extra, self._class_weights(label)).to(device)
            self._train(objective, x, offsets, label)
        self.model_ = model.cpu().double().eval()
        return self

    def predict_proba(self, X: Any) -> Matrix:  # noqa: N803
        """Probability of each class, ``(n_bags, n_classes)``, in the order of ``classes_``."""
        logits = torch.cat([output.logits for output, _ in self._outputs(X)])
        probabilities: Matrix = F.softmax(logits, dim=1).numpy()
        return probabilities

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """The most probable class of each bag, ``(n_bags,)``."""
        found = self.predict_proba(X).argmax(axis=1)
        predicted: npt.NDArray[Any] = self.classes_[found]
        return predicted

    def attention(self, X: Any) -> list[Matrix] | None:  # noqa: N803
        """Attention of each tile: an array ``(n_tiles,)`` a bag that sums to 1.

        None where the aggregator weighs no tiles.
        """
        found: list[Matrix] = []
        for output, offsets in self._outputs(X):
            if output.attention is None:
                return None
            found += np.split(output.attention.numpy(), offsets[1:-1])
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _train(self, objective: Objective, x: Features, offsets: Offsets, label: Offsets) -> None:
        """The steps of ``loop.fit`` without its files, validation part and resuming.

        A search fits thousands of models of a hundred short steps each.
        """
        optimizer = OPTIMIZERS.create(
            "adamw", params=objective.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        schedule = SCHEDULES.create("cosine", epochs=self.epochs, warmup=self.warmup)
        bags = _bags(x, offsets, label)
        # Where one batch holds all bags it is packed once: order within a batch means nothing.
        whole = [bags.batch(bags.slide_ids)] if len(x) <= self.batch_tiles else None
        self.loss_curve_ = []
        for epoch in range(self.epochs):
            of_epoch = self._batches(bags, epoch) if whole is None else Batches(1, whole)
            total = 0.0
            for step, batch in enumerate(of_epoch.stream):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * schedule(epoch + step / of_epoch.n)
                optimizer.zero_grad(set_to_none=True)
                loss: Tensor = objective(batch.to(self.device))
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.detach())
            if not math.isfinite(total):
                message = f"training diverged in epoch {epoch}: lower the learning rate ({self.lr})"
                raise InputError(message)
            self.loss_curve_.append(total / of_epoch.n)

    def _batches(self, bags: Bags, epoch: int) -> Batches[Batch]:
        order = generator(self.seed, "order", epoch)
        plan = bags.plan(bags.slide_ids, max_tiles=self.batch_tiles, generator=order)
        return Batches(len(plan), bags.packed(plan, max_tiles=self.batch_tiles))

    def _outputs(self, X: Any) -> Iterator[tuple[Output, Offsets]]:  # noqa: N803
        check_is_fitted(self)
        x, offsets = self._packed(X, reset=False)
        bags = _bags(x, offsets, np.zeros(len(offsets) - 1, dtype=np.int64))
        for batch in bags.batches(bags.slide_ids, max_tiles=self.batch_tiles):
            with torch.inference_mode():
                output = outputs(self.model_, batch.x, batch.offsets, None)
            yield output, batch.offsets.numpy()

    def _packed(self, X: Any, *, reset: bool) -> tuple[Features, Offsets]:  # noqa: N803
        """All tiles ``(n_tiles, n_features)`` float32 and where each bag begins."""
        table = _is_table(X)
        if not table:
            X, sizes = _stacked(X)  # noqa: N806
        x = validate_data(self, X=X, reset=reset, dtype=np.float32)
        if table:
            sizes = [1] * len(x)
        return x, np.cumsum([0, *sizes], dtype=np.int64)

    def _labels(self, y: Any, n_bags: int) -> Offsets:
        if y is None:
            message = "SlideClassifier requires y to be passed, but the target y is None"
            raise InputError(message)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        if len(y) != n_bags:
            message = f"{n_bags} bags and {len(y)} labels given: one label a bag is needed"
            raise InputError(message)
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            message = f"y has one class, {self.classes_[0]!r}: at least two are needed"
            raise InputError(message)
        return label

    def _class_weights(self, label: Offsets) -> npt.NDArray[np.float64]:
        weights: npt.NDArray[np.float64] = compute_class_weight(
            self.class_weight, classes=self.classes_, y=self.classes_[label]
        )
        return weights

    def _check(self) -> None:
        whole = "an integer of 1 or more"
        for name, right, allowed in [
            ("epochs", _is_count(self.epochs), whole),
            ("batch_tiles", _is_count(self.batch_tiles), whole),
            ("lr", self.lr > 0, "a number above 0"),
            ("weight_decay", self.weight_decay >= 0, "a number from 0"),
            ("warmup", 0 <= self.warmup < 1, "a number from 0 to below 1"),
        ]:
            if not right:
                message = f"{name} is {getattr(self, name)!r}, allowed is {allowed}"
                raise InputError(message)


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and int(value) >= 1


def _bags(x: Features, offsets: Offsets, label: Offsets) -> Bags:
    """Named so that the sorted names have the order of the bags."""
    width = len(str(len(label)))
    names = [f"bag {i:0{width}d}" for i in range(len(label))]
    rows = [np.arange(*span) for span in pairwise(offsets)]
    return Bags(x, dict(zip(names, rows, strict=True)), dict(zip(names, label, strict=True)))


def _is_table(bags: Any) -> bool:
    """Whether this is one array with a row a sample, and no collection of arrays."""
    shape = getattr(bags, "shape", None)
    if shape is not None:
        return len(shape) < 3 and not (len(shape) == 1 and bags.dtype == object)
    if not isinstance(bags, Sequence):
        return True
    if len(bags) == 0:
        message = "no bags given: at least one is needed"
        raise InputError(message)
    return all(np.ndim(row) < 2 for row in bags)


def _stacked(bags: Any) -> tuple[npt.NDArray[Any], list[int]]:
    """The tiles of all bags ``(n_tiles, n_features)`` and the number of each.

    Raises:
        InputError: A bag is no matrix of numbers, is empty, has other features than the first, or
            a value that is not finite.
    """
    arrays = [np.asarray(bag) for bag in bags]
    for i, array in enumerate(arrays):
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            message = (
                f"bag {i} has shape {array.shape} and type {array.dtype}: numbers of shape "
                "(n_tiles, n_features) are needed"
            )
        elif len(array) == 0:
            message = f"bag {i} has no tiles: at least one is needed"
        elif array.shape[1] != arrays[0].shape[1]:
            message = (
                f"bag {i} has {array.shape[1]} features and bag 0 has {arrays[0].shape[1]}: all "
                "bags need the same"
            )
        elif not np.isfinite(array).all():
            tile = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            message = f"bag {i} contains NaN or infinity, in tile {tile}"
        else:
            continue
        raise InputError(message)
    return np.concatenate(arrays), [len(array) for array in arrays]
