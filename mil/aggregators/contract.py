"""What every trained aggregator is: ``forward(x, offsets) -> Output``.

``x (n_tiles, dim)`` holds the tile embeddings of several bags one after the other, and
``offsets (n_bags + 1,)`` says where each begins. No aggregator holds a loss or an optimiser.
Permuting the tiles of a bag changes nothing (attention moves along), splitting a batch changes
nothing, and a bag of one tile works. ``tests/contract/test_aggregators.py`` holds every entry
of the registry to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mil.aggregators.segments import segment_ids
from mil.aggregators.tiles import Tiles
from mil.registry import Registry
from splits.errors import InputError

__all__ = [
    "AGGREGATORS",
    "INSTANCE_LOSSES",
    "Aggregator",
    "InstanceLoss",
    "Output",
    "check_sizes",
    "class_scores",
    "embedding",
    "linear",
    "of_winner",
]


_BLOCK: Final = 4096
"""Tiles that are read at once to standardise."""


class Output(NamedTuple):
    """What an aggregator says about a batch of bags.

    Attributes:
        logits: ``(n_bags, n_classes)``, before softmax.
        attention: ``(n_tiles,)``, not negative, summing to 1 in each bag; None where the
            aggregator weighs no tiles. Where attention differs by class, that of the class with
            the highest logit.
        class_attention: ``(n_tiles, n_classes)``, each column as ``attention``; None where all
            classes share one.
        contributions: ``(n_tiles, n_classes)``, what each tile adds to the logits of its bag:
            their sum over the bag and a bias that all bags share are the logits; None where logits
            are no such sum. In training some leave it out, where it would cost.
        auxiliary: What the instance loss of this method reads, and nobody else; the class says
            what it is.
    """

    logits: Tensor
    attention: Tensor | None = None
    class_attention: Tensor | None = None
    contributions: Tensor | None = None
    auxiliary: Any = None


class Aggregator(nn.Module, ABC):
    """Base of the trained aggregators: standardises tiles and brings them within the budget.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.

    Attributes:
        takes_positions: Whether ``forward`` has a third argument, ``positions (n_tiles, 2)`` int64:
            column and row of each tile on the grid of its slide, or None where nobody knows them.
        budget: A call with more tiles works in chunks, with the same result in less memory.
    """

    takes_positions: ClassVar[bool] = False
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.dim, self.n_classes = dim, n_classes
        self.budget = 2**16
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def standardise(
        self,
        features: npt.NDArray[np.floating[Any]],
        rows: npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """Take mean and deviation of each feature from training tiles.

        They are saved with the weights; before, tiles are taken as they are.

        Args:
            features: ``(n_tiles, dim)``; a memory map is read in blocks.
            rows: Which of them train, ``(n,)``; None: all.
        """
        rows = np.arange(len(features)) if rows is None else rows
        blocks = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
        mean = np.sum([features[b].sum(axis=0, dtype=np.float64) for b in blocks], axis=0)
        mean = mean / len(rows)
        squares = [np.square(features[b] - mean).sum(axis=0) for b in blocks]
        std = np.sqrt(np.sum(squares, axis=0) / len(rows))
        self.mean.copy_(torch.from_numpy(mean))
        # A feature that is constant in training, up to the rounding of its own values or of the
        # largest feature's, says nothing: it must not explode elsewhere.
        rounding = 1e-6 * np.maximum(np.abs(mean), std.max())
        self.std.copy_(torch.from_numpy(np.where(std > rounding, std, np.inf)))

    def tiles(
        self,
        x: Tensor,
        offsets: Tensor,
        embed: Callable[[Tensor], Tensor],
        order: Tensor | None = None,
    ) -> Tiles:
        """The standardised tiles of packed bags behind ``embed``, in the given order."""
        return Tiles(
            x, offsets, embed, mean=self.mean, std=self.std, budget=self.budget, order=order
        )

    @abstractmethod
    def forward(self, x: Tensor, offsets: Tensor) -> Output:
        """Classify bags: ``x (n_tiles, dim)``, ``offsets (n_bags + 1,)``."""


class InstanceLoss(nn.Module, ABC):
    """A loss on tiles that the training stage adds to the loss of the bags.

    It may have parameters of its own, which are trained and not needed later. Built from the
    aggregator that it belongs to and its own arguments.

    Attributes:
        weight: Its factor, where the loss of the bags has 1.
    """

    weight: float

    @abstractmethod
    def forward(self, output: Output, offsets: Tensor, label: Tensor) -> Tensor:
        """Mean over the bags: ``offsets (n_bags + 1,)``, ``label (n_bags,)`` to a scalar."""


AGGREGATORS: Registry[Aggregator] = Registry("aggregator")
INSTANCE_LOSSES: Registry[InstanceLoss] = Registry("instance loss")
"""By the name of the aggregator: builder ``(aggregator, **args)``. Not every one has a loss."""


def check_sizes(*, n_classes: int, dropout: float, **sizes: int) -> None:
    """Refuse constructor arguments that build no sensible module.

    Args:
        n_classes: At least 2.
        dropout: At least 0 and below 1.
        sizes: Any number of widths, each at least 1.

    Raises:
        InputError: An argument lies outside; the message says what is allowed.
    """
    for name, value, least in [("n_classes", n_classes, 2), *((n, v, 1) for n, v in sizes.items())]:
        if not isinstance(value, int) or value < least:
            message = f"{name} is {value!r}, allowed is an integer of {least} or more"
            raise InputError(message)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        message = f"dropout is {dropout!r}, allowed is a number from 0 to below 1"
        raise InputError(message)


def linear(
    n_in: int,
    n_out: int,
    *,
    activation: Literal["linear", "relu", "tanh", "sigmoid"] = "linear",
    bias: bool = True,
) -> nn.Linear:
    """A linear layer that keeps the variance of its input through ``activation``.

    Weights are Xavier uniform (Glorot & Bengio 2010) with the gain of the activation that
    follows; biases start at zero, so that a fresh aggregator favours no class and no tile.

    Args:
        n_in: Width of the input.
        n_out: Width of the output.
        activation: What follows the layer.
        bias: Whether the layer has one.
    """
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain(activation))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """The first layer of most methods: ``ReLU(W x + b)`` on each tile, then dropout."""
    return nn.Sequential(linear(dim, hidden, activation="relu"), nn.ReLU(), nn.Dropout(dropout))


def of_winner(by_class: Tensor, logits: Tensor, offsets: Tensor) -> Tensor:
    """Attention for the class with the highest logit of each bag.

    Args:
        by_class: ``(n_tiles, n_classes)``.
        logits: ``(n_bags, n_classes)``.
        offsets: ``(n_bags + 1,)``.

    Returns:
        ``(n_tiles,)``.
    """
    winner = logits.argmax(1)[segment_ids(offsets)]  # (n_tiles,)
    return by_class.gather(1, winner[:, None]).squeeze(1)


def class_scores(tiles: Tiles, classifier: nn.Linear) -> Tensor:
    """What a linear classifier of bags says of each embedded tile, without its bias.

    Returns:
        ``(n_tiles, n_classes)``, in float32 or wider: pooled with the weights of the tiles it is
        the logits, to the last digits.
    """
    n_bags = len(tiles.offsets) - 1
    return tiles.dot(classifier.weight.expand(n_bags, -1, -1))
