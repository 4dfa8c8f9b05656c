from __future__ import annotations

import math
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


def _norm(weights: Weights, layer: str, t: Array) -> Array:
    scaled = (t - t.mean()) / np.sqrt(t.var() + 1e-5)
    return scaled * weights[f"{layer}.weight"] + weights[f"{layer}.bias"]


def _heads(weights: Weights, layer: str, tokens: Array, n_heads: int) -> list[list[Array]]:
    """Queries, keys and values of each head, each ``(n, d)``."""
    normed = np.array([_norm(weights, f"{layer}.norm", t) for t in tokens])
    q, k, v = np.split(normed @ weights[f"{layer}.qkv.weight"].T, 3, axis=1)
    return [
        list(one) for one in zip(*(np.split(p, n_heads, axis=1) for p in (q, k, v)), strict=True)
    ]


def _rows(scores: Array) -> Array:
    return np.array([softmax(row - row.max()) for row in scores])


def _self_attention(
    weights: Weights, layer: str, tokens: Array, n_heads: int
) -> tuple[Array, Array]:
    """What each token receives, and the weights of each head ``(n_heads, n, n)``."""
    given, received = [], []
    for q, k, v in _heads(weights, layer, tokens, n_heads):
        given.append(_rows(q @ k.T / np.sqrt(q.shape[1])))
        received.append(given[-1] @ v)
    return affine(weights, f"{layer}.out", np.hstack(received)), np.array(given)


def _of_class_token(given: Array) -> Array:
    """Weights of the tiles in the first row, averaged over heads, with sum 1."""
    mean = given[:, 0, 1:].mean(axis=0)
    return mean / mean.sum()


def _gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def _transformer(weights: Weights, args: Mapping[str, object], tiles: Array) -> Expected:
    n_heads = int(str(args.get("n_heads", 4)))
    n_whole = int(str(args.get("n_layers", 2))) - 1
    tokens = np.vstack([weights["class_token"], embedded(weights, tiles)])
    for block in [*(f"blocks.{i}" for i in range(n_whole)), "last"]:
        received, given = _self_attention(weights, f"{block}.attention", tokens, n_heads)
        tokens = tokens + received
        normed = np.array([_norm(weights, f"{block}.mlp.0", t) for t in tokens])
        inner = _gelu(affine(weights, f"{block}.mlp.1", normed))
        tokens = tokens + affine(weights, f"{block}.mlp.3", inner)
    logits = affine(weights, "classifier", _norm(weights, "norm", tokens[0]))
    return Expected(logits, _of_class_token(given))


def _cells(keys: Array, columns: int) -> list[list[int]]:
    """Tokens cut at the middle along one column after the other."""
    groups, bounds = [list(range(len(keys)))], [0, len(keys)]
    for column in range(columns):
        n = 2 ** (column + 1)
        bounds = [len(keys) * i // n for i in range(n + 1)]
        halves = []
        for i, group in enumerate(groups):
            ordered = sorted(group, key=lambda row: keys[row, column])
            first = bounds[2 * i + 1] - bounds[2 * i]
            halves += [ordered[:first], ordered[first:]]
        groups = halves
    return groups


def _nystrom(weights: Weights, layer: str, tokens: Array, n_heads: int) -> Array:
    directions = weights[f"{layer}.directions"]
    normed = np.array([_norm(weights, f"{layer}.norm", t) for t in tokens])
    cells = _cells(normed @ directions, directions.shape[1])
    received = []
    for q, k, v in _heads(weights, layer, tokens, n_heads):
        scale = np.sqrt(q.shape[1])
        q_means = np.array([q[cell].mean(axis=0) for cell in cells])
        k_means = np.array([k[cell].mean(axis=0) for cell in cells])
        among = _rows(q_means @ k_means.T / scale)
        one = np.eye(len(among))
        z = among.T / (np.linalg.norm(among, 1) * np.linalg.norm(among, np.inf))
        for _ in range(6):
            a = among @ z
            z = z @ (13 * one - a @ (15 * one - a @ (7 * one - a))) / 4
        received.append(_rows(q @ k_means.T / scale) @ z @ _rows(q_means @ k.T / scale) @ v)
    return affine(weights, f"{layer}.out", np.hstack(received))


def _around(weights: Weights, tiles: Array, positions: Array) -> Array:
    """Three convolutions, cell by cell."""
    places = [tuple(p) for p in positions.tolist()]
    cells = {
        p: np.mean([t for t, q in zip(tiles, places, strict=True) if p == q], axis=0)
        for p in places
    }
    made = []
    for column, row in places:
        total = weights["ppeg.bias"].copy()
        for name, reach in (("wide", 3), ("middle", 2), ("narrow", 1)):
            kernel = weights[f"ppeg.{name}.weight"][:, 0]  # (width, rows, columns)
            for right in range(-reach, reach + 1):
                for down in range(-reach, reach + 1):
                    cell = cells.get((column + right, row + down))
                    if cell is not None:
                        total += kernel[:, down + reach, right + reach] * cell
        made.append(total)
    return np.array(made)


def _transmil(
    weights: Weights, args: Mapping[str, object], tiles: Array, positions: Array | None = None
) -> Expected:
    n_heads = int(str(args.get("n_heads", 8)))
    tokens = np.vstack([weights["class_token"], embedded(weights, tiles)])
    if len(tiles) > int(str(args.get("exact_tiles", 2048))):
        tokens = tokens + _nystrom(weights, "first", tokens, n_heads)
    else:
        tokens = tokens + _self_attention(weights, "first", tokens, n_heads)[0]
    if positions is not None:
        tokens = np.vstack([tokens[:1], tokens[1:] + _around(weights, tokens[1:], positions)])
    received, given = _self_attention(weights, "last", tokens, n_heads)
    tokens = tokens + received
    logits = affine(weights, "classifier", _norm(weights, "norm", tokens[0]))
    return Expected(logits, _of_class_token(given))


REFERENCES: dict[str, Reference] = {"transformer": _transformer, "transmil": _transmil}
PLACED = {"transmil": _transmil}
"""Those that take the positions of tiles ``(n, 2)`` as a fourth argument."""
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("transformer", {}),
    ("transformer", {"hidden": 6, "n_layers": 3, "n_heads": 2, "dropout": 0.5}),
    ("transformer", {"hidden": 4, "n_layers": 1, "n_heads": 1}),
    ("transmil", {}),
    ("transmil", {"hidden": 6, "n_heads": 3, "n_landmarks": 4, "exact_tiles": 4, "dropout": 0.5}),
    ("transmil", {"hidden": 4, "n_heads": 1, "n_landmarks": 1, "exact_tiles": 1}),
]
