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


def _dsmil(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    h = embedded(weights, tiles)
    scores = np.array([affine(weights, "instance", h_k) for h_k in h])
    q = np.array([affine(weights, "query", h_k) for h_k in h])
    attention, pooled = [], []
    for s_c in scores.T:
        tied = [k for k, s in enumerate(s_c) if s == max(s_c)]
        q_m = np.mean([q[k] for k in tied], axis=0)
        a = softmax(np.array([q_k @ q_m for q_k in q]) / np.sqrt(len(q_m)))
        attention.append(a)
        pooled.append(sum(a_k * h_k for a_k, h_k in zip(a, h, strict=True)))
    logits = affine(weights, "classifier", np.concatenate(pooled))
    # What the classifier says of the bag of one tile alone, pooled with its weights.
    given = [
        weights["classifier.weight"] @ np.concatenate([a[k] * h_k for a in attention])
        for k, h_k in enumerate(h)
    ]
    by_class = np.stack(attention, axis=1)
    return Expected(logits, attention[int(np.argmax(logits))], by_class, np.array(given))


REFERENCES: dict[str, Reference] = {"dsmil": _dsmil}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("dsmil", {}),
    ("dsmil", {"hidden": 7, "query_dim": 4, "dropout": 0.5}),
]
