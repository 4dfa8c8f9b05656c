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
    standardised,
)


def _attend(weights: Weights, branch: str, h: Array) -> Array:
    scores = []
    for h_k in h:
        gate = 1 / (1 + np.exp(-affine(weights, f"{branch}.gate", h_k)))
        inner = np.tanh(affine(weights, f"{branch}.value", h_k)) * gate
        scores.append(float(affine(weights, f"{branch}.score", inner)[0]))
    return softmax(np.array(scores))


def _dtfd(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    n_pseudo = min(int(args.get("n_pseudo", 5)), len(tiles))
    place = standardised(weights, tiles) @ weights["direction"]
    ranked = sorted(range(len(tiles)), key=lambda k: place[k])
    h = embedded(weights, tiles)
    distilled, makers = [], []  # a feature and what each tile gave to it
    for m in range(n_pseudo):
        mine = ranked[m::n_pseudo]
        a = _attend(weights, "tile_attention", h[mine])
        if args.get("distill") == "maxmin":
            classes = weights["tile_classifier.weight"]
            p = [softmax(classes @ (a_k * h[k])) for a_k, k in zip(a, mine, strict=True)]
            for c in range(len(classes)):
                best = mine[int(np.argmax([p_k[c] for p_k in p]))]
                distilled.append(h[best])
                makers.append({best: 1.0})
        else:
            distilled.append(sum(a_k * h[k] for a_k, k in zip(a, mine, strict=True)))
            makers.append(dict(zip(mine, a, strict=True)))
    b = _attend(weights, "attention", np.array(distilled))
    pooled = sum(b_m * f_m for b_m, f_m in zip(b, distilled, strict=True))
    attention = np.zeros(len(tiles))
    for b_m, made in zip(b, makers, strict=True):
        for k, share in made.items():
            attention[k] += b_m * share
    given = [
        a_k * weights["classifier.weight"] @ h_k for a_k, h_k in zip(attention, h, strict=True)
    ]
    return Expected(affine(weights, "classifier", pooled), attention, contributions=np.array(given))


REFERENCES: dict[str, Reference] = {"dtfd": _dtfd}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("dtfd", {}),
    ("dtfd", {"hidden": 7, "attention_dim": 4, "n_pseudo": 2, "dropout": 0.5}),
    ("dtfd", {"hidden": 7, "attention_dim": 4, "n_pseudo": 3, "distill": "maxmin"}),
]
