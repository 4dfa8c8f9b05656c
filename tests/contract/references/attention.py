from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.contract.references.plain import (
    Array,
    Expected,
    Reference,
    Weights,
    affine,
    embedded,
    softmax,
)


def _attend(weights: Weights, h: Array, *, gated: bool) -> Array:
    scores = []
    for h_k in h:
        inner = np.tanh(affine(weights, "attention.value", h_k))
        if gated:
            inner = inner / (1 + np.exp(-affine(weights, "attention.gate", h_k)))
        scores.append(float(weights["attention.score.weight"][0] @ inner))
    return softmax(np.array(scores))


def _abmil(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    return _pool(weights, tiles, gated=False)


def _gated_abmil(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    return _pool(weights, tiles, gated=True)


def _pool(weights: Weights, tiles: Array, *, gated: bool) -> Expected:
    h = embedded(weights, tiles)
    a = _attend(weights, h, gated=gated)
    pooled = sum(a_k * h_k for a_k, h_k in zip(a, h, strict=True))
    parts = [a_k * (weights["classifier.weight"] @ h_k) for a_k, h_k in zip(a, h, strict=True)]
    return Expected(affine(weights, "classifier", pooled), a, contributions=np.array(parts))


def _additive(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h = embedded(weights, tiles)
    a = _attend(weights, h, gated=False)
    parts = [
        weights["psi.2.weight"] @ np.maximum(weights["psi.0.weight"] @ (a_k * h_k), 0)
        for a_k, h_k in zip(a, h, strict=True)
    ]
    return Expected(sum(parts) + weights["bias"], a, contributions=np.array(parts))


REFERENCES: dict[str, Reference] = {
    "abmil": _abmil,
    "gated_abmil": _gated_abmil,
    "additive": _additive,
}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *(
        (name, args)
        for name in REFERENCES
        for args in ({}, {"hidden": 7, "attention_dim": 4, "dropout": 0.5})
    ),
    ("additive", {"score_dim": 5}),
]
