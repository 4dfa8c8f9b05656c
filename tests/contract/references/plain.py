"""What a reference implementation is given and gives, and the parts that several share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]


class Expected(NamedTuple):
    """What an aggregator must say of one bag; fields as in ``Output``, for its tiles alone."""

    logits: Array
    attention: Array | None = None
    class_attention: Array | None = None
    contributions: Array | None = None


Reference = Callable[[Weights, Mapping[str, object], Array], Expected]
"""State dict, constructor arguments and the tiles ``(n, dim)`` of one bag -> what must come out."""


def standardised(weights: Weights, tiles: Array) -> Array:
    return (tiles - weights["mean"]) / weights["std"]


def affine(weights: Weights, layer: str, x: Array) -> Array:
    made = x @ weights[f"{layer}.weight"].T
    return made + weights[f"{layer}.bias"] if f"{layer}.bias" in weights else made


def embedded(weights: Weights, tiles: Array) -> Array:
    tiles = standardised(weights, tiles)
    if "embed.0.weight" not in weights:
        return tiles
    return np.maximum(affine(weights, "embed.0", tiles), 0)


def softmax(scores: Array) -> Array:
    return np.exp(scores) / np.exp(scores).sum()
