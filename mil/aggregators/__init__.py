"""From the tiles of a slide to the slide: votes that need no training, and trained aggregators.

``create("abmil", dim=512, n_classes=2)`` builds an entry of ``AGGREGATORS``; the contract that
every entry keeps stands in :mod:`mil.aggregators.contract`.
"""

from __future__ import annotations

from typing import Any

# A module enters its classes into the registry when it is imported.
from mil.aggregators.attention import ABMIL, AdditiveMIL, GatedABMIL
from mil.aggregators.clam import CLAMMB, CLAMSB, ClusterLoss
from mil.aggregators.contract import (
    AGGREGATORS,
    INSTANCE_LOSSES,
    Aggregator,
    InstanceLoss,
    Output,
)
from mil.aggregators.dsmil import DSMIL, CriticalInstanceLoss
from mil.aggregators.dtfd import DTFD, PseudoBagLoss
from mil.aggregators.instance import MaxInstance
from mil.aggregators.pooling import LogSumExpPooling, MaxPooling, MeanPooling
from mil.aggregators.transformer import Transformer
from mil.aggregators.transmil import TransMIL
from splits.errors import InputError

__all__ = [
    "ABMIL",
    "AGGREGATORS",
    "CLAMMB",
    "CLAMSB",
    "DSMIL",
    "DTFD",
    "INSTANCE_LOSSES",
    "AdditiveMIL",
    "Aggregator",
    "ClusterLoss",
    "CriticalInstanceLoss",
    "GatedABMIL",
    "InstanceLoss",
    "LogSumExpPooling",
    "MaxInstance",
    "MaxPooling",
    "MeanPooling",
    "Output",
    "PseudoBagLoss",
    "TransMIL",
    "Transformer",
    "create",
    "create_loss",
]


def create(name: str, **args: Any) -> Aggregator:
    """Build a trained aggregator.

    Weights are drawn from torch's global generator: seed it before.

    Args:
        name: An entry of ``AGGREGATORS``.
        args: ``dim`` and ``n_classes``, and what the entry's own docstring lists.

    Raises:
        InputError: The name or an argument is unknown, missing or outside its range.
    """
    return AGGREGATORS.create(name, **args)


def create_loss(name: str, aggregator: Aggregator, **args: Any) -> InstanceLoss | None:
    """Build the loss on tiles that belongs to an aggregator; None where its paper has none.

    Args:
        name: The aggregator's entry of ``AGGREGATORS``.
        aggregator: What :func:`create` built.
        args: What the entry of ``INSTANCE_LOSSES`` lists.

    Raises:
        InputError: An argument is unknown or outside its range, or given to a method without loss.
    """
    if name in INSTANCE_LOSSES:
        return INSTANCE_LOSSES.create(name, aggregator=aggregator, **args)
    if args:
        message = f"aggregator {name!r} has no instance loss: {', '.join(args)} given"
        raise InputError(message)
    return None
