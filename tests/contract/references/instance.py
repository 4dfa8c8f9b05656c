from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.contract.references.plain import Array, Expected, Reference, Weights, affine, embedded


def _max_instance(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    scores = [affine(weights, "classifier", h_k) for h_k in embedded(weights, tiles)]
    logits = [max(column) for column in zip(*scores, strict=True)]
    logits.insert(int(args.get("negative", 0)), 0.0)
    return Expected(np.array(logits))


REFERENCES: dict[str, Reference] = {"max_instance": _max_instance}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("max_instance", {}),
    ("max_instance", {"hidden": 7, "negative": 1, "dropout": 0.5}),
    ("max_instance", {"hidden": None, "negative": 2}),
]
