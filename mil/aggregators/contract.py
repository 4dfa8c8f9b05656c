"""What every trained aggregator is: ``forward(x, offsets) -> Output``.

``x (n_tiles, dim)`` holds the tile embeddings of several bags one after the other, and
``offsets (n_bags + 1,)`` says where each begins. No aggregator holds a loss or an optimiser.
Permuting the tiles of a bag changes nothing (attention moves along), splitting a batch changes
nothing, and a bag of one tile works. ``tests/contract/test_aggregators.py`` holds every entry
of the registry to it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from mil.registry import Registry
from splits.errors import InputError

__all__ = ["AGGREGATORS", "Output", "check_sizes", "linear"]

AGGREGATORS: Registry[nn.Module] = Registry("aggregator")


class Output(NamedTuple):
    """What an aggregator says about a batch of bags.

    Attributes:
        logits: ``(n_bags, n_classes)``, before softmax.
        attention: ``(n_tiles,)``, not negative, summing to 1 in each bag; None where the
            aggregator weighs no tiles.
    """

    logits: torch.Tensor
    attention: torch.Tensor | None


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
