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


def _scores(weights: Weights, h_k: Array) -> Array:
    gate = 1 / (1 + np.exp(-affine(weights, "attention.gate", h_k)))
    return affine(
        weights, "attention.score", np.tanh(affine(weights, "attention.value", h_k)) * gate
    )


def _single(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h = embedded(weights, tiles)
    a = softmax(np.array([_scores(weights, h_k)[0] for h_k in h]))
    z = sum(a_k * h_k for a_k, h_k in zip(a, h, strict=True))
    given = [a_k * weights["classifier.weight"] @ h_k for a_k, h_k in zip(a, h, strict=True)]
    return Expected(affine(weights, "classifier", z), a, contributions=np.array(given))


def _multi(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h = embedded(weights, tiles)
    branches, logits, given = [], [], []
    for m, (c_m, b_m) in enumerate(
        zip(weights["classifier.weight"], weights["classifier.bias"], strict=True)
    ):
        a = softmax(np.array([_scores(weights, h_k)[m] for h_k in h]))
        z = sum(a_k * h_k for a_k, h_k in zip(a, h, strict=True))
        branches.append(a)
        logits.append(c_m @ z + b_m)
        given.append([a_k * c_m @ h_k for a_k, h_k in zip(a, h, strict=True)])
    return Expected(
        np.array(logits),
        branches[int(np.argmax(logits))],
        np.stack(branches, axis=1),
        np.stack(given, axis=1),
    )


REFERENCES: dict[str, Reference] = {"clam_sb": _single, "clam_mb": _multi}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    (name, args)
    for name in REFERENCES
    for args in ({}, {"hidden": 7, "attention_dim": 4, "dropout": 0.5})
]
