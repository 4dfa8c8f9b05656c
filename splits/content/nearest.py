"""Nearest neighbours: exact by blocked products for small sets, an approximate index for large ones."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from usearch.index import Index

__all__ = ["EXACT_BELOW", "nearest"]

EXACT_BELOW: Final = 50_000
"""Number of vectors below which the search is exact."""
_BLOCK: Final = 2048


def nearest(
    vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The ``k`` nearest vectors of each query, nearest first.

    From `EXACT_BELOW` vectors on they come from an approximate index (HNSW, Malkov and Yashunin
    2018), whose work grows with N log N; a caller checks what it is given.

    Args:
        vectors: ``(n, dim)``, float32.
        queries: ``(m, dim)``, float32.
        k: Neighbours a query; fewer come back where there are fewer vectors.

    Returns:
        Row numbers ``(m, min(k, n))`` and squared Euclidean distances of the same shape. An
        approximate search that finds too few marks the rest with -1 and infinity.
    """
    k = min(k, len(vectors))
    if k == 0 or len(queries) == 0:
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    return _exact(vectors, queries, k) if len(vectors) < EXACT_BELOW else _index(vectors, queries, k)


def _exact(
    vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    norms = np.einsum("ij,ij->i", vectors, vectors)
    rows = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        squared = norms - 2 * (block @ vectors.T) + np.einsum("ij,ij->i", block, block)[:, None]
        if k < len(vectors):
            near = np.argpartition(squared, k - 1, axis=1)[:, :k]
        else:
            near = np.tile(np.arange(k), (len(block), 1))
        values = np.take_along_axis(squared, near, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        rows[start : start + len(block)] = np.take_along_axis(near, order, axis=1)
        distances[start : start + len(block)] = np.take_along_axis(values, order, axis=1)
    return rows, np.maximum(distances, 0)


def _index(
    vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    index = Index(ndim=vectors.shape[1], metric="l2sq", dtype="f16", connectivity=16)
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors)
    found = index.search(queries, k)
    rows = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    for query, count in enumerate(found.counts):
        rows[query, :count] = found.keys[query, :count]
        distances[query, :count] = found.distances[query, :count]
    return rows, distances
