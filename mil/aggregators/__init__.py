"""From the tiles of a slide to the slide: votes that need no training, and trained aggregators.

``create("abmil", dim=512, n_classes=2)`` builds an entry of ``AGGREGATORS``; the contract that
every entry keeps stands in :mod:`mil.aggregators.contract`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# A module enters its classes into the registry when it is imported.
from mil.aggregators.attention import ABMIL, GatedABMIL
from mil.aggregators.contract import AGGREGATORS, Output
from mil.aggregators.pooling import MaxPooling, MeanPooling

__all__ = [
    "ABMIL",
    "AGGREGATORS",
    "GatedABMIL",
    "MaxPooling",
    "MeanPooling",
    "Output",
    "create",
]


def create(name: str, **args: Any) -> nn.Module:
    """Build a trained aggregator.

    Weights are drawn from torch's global generator: seed it before.

    Args:
        name: An entry of ``AGGREGATORS``.
        args: ``dim`` and ``n_classes``, and what the entry's own docstring lists.

    Raises:
        InputError: The name or an argument is unknown, missing or outside its range.
    """
    return AGGREGATORS.create(name, **args)
