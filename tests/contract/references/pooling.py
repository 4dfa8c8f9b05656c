from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.contract.references.plain import Array, Expected, Reference, Weights, affine, embedded


def _mean(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h = embedded(weights, tiles)
    parts = np.array([weights["classifier.weight"] @ h_k / len(h) for h_k in h])
    return Expected(affine(weights, "classifier", sum(h) / len(h)), contributions=parts)


def _max(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h = embedded(weights, tiles)
    highest = np.array([max(h_k[m] for h_k in h) for m in range(h.shape[1])])
    return Expected(affine(weights, "classifier", highest))


def _lse(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h, r = embedded(weights, tiles), float(args.get("sharpness", 1.0))
    pooled = [np.log(sum(np.exp(r * h_k[m]) for h_k in h) / len(h)) / r for m in range(h.shape[1])]
    return Expected(affine(weights, "classifier", np.array(pooled)))


REFERENCES: dict[str, Reference] = {"mean": _mean, "max": _max, "lse": _lse}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, args) for name in REFERENCES for args in ({}, {"hidden": 7, "dropout": 0.5})),
    ("lse", {"sharpness": 4.5}),
]
