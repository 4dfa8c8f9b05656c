"""Nearest neighbours: exact by blocked products, or from an approximate index for large sets."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from usearch.index import Index

__all__ = ["EXACT_PAIRS", "nearest"]

EXACT_PAIRS: Final = 2_500_000_000
"""Number of vectors times queries up to which the search is exact: 50,000 against themselves."""
_CELLS: Final = 1 << 24
"""Distances held at a time."""
_GROUPS: Final = 64
"""Vectors are split into this many times ``k`` groups, so that few are looked at one by one."""

_Floats = npt.NDArray[np.float32]
_Found = tuple[npt.NDArray[np.int64], _Floats]


def nearest(vectors: _Floats, queries: _Floats, k: int) -> _Found:
    """The ``k`` nearest vectors of each query, nearest first.

    Above `EXACT_PAIRS` they come from an approximate index (HNSW, Malkov and Yashunin 2018), whose
    work grows with N log N; a caller checks what it is given.

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
    exact = len(vectors) * len(queries) <= EXACT_PAIRS
    return _exact(vectors, queries, k) if exact else _index(vectors, queries, k)


def _exact(vectors: _Floats, queries: _Floats, k: int) -> _Found:
    n_groups = min(len(vectors), _GROUPS * k)
    n_padded = -len(vectors) % n_groups
    norms = np.pad(np.einsum("ij,ij->i", vectors, vectors), (0, n_padded), constant_values=np.inf)
    columns = np.pad(vectors, ((0, n_padded), (0, 0))).T
    n_rows = max(1, _CELLS // columns.shape[1])
    members = np.arange(columns.shape[1]).reshape(-1, n_groups)
    rows = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), n_rows):
        block = queries[start : start + n_rows]
        squared = (-2 * block) @ columns
        squared += norms
        # The k nearest lie in the k groups with the nearest members.
        best = squared.reshape(len(block), *members.shape).min(axis=1)
        groups = np.argpartition(best, k - 1, axis=1)[:, :k]
        near = members[:, groups].transpose(1, 0, 2).reshape(len(block), -1)
        values = np.take_along_axis(squared, near, axis=1)
        order = np.lexsort((near, values), axis=1)[:, :k]
        rows[start : start + len(block)] = np.take_along_axis(near, order, axis=1)
        distances[start : start + len(block)] = np.take_along_axis(values, order, axis=1)
    distances += np.einsum("ij,ij->i", queries, queries)[:, None]
    return rows, np.maximum(distances, 0)


def _index(vectors: _Floats, queries: _Floats, k: int) -> _Found:
    index = Index(ndim=vectors.shape[1], metric="l2sq", dtype="f16", connectivity=16)
    # One thread builds: the graph depends on the order in which the vectors arrive.
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=1)
    found = index.search(queries, k)
    missing = np.arange(k) >= np.asarray(found.counts)[:, None]
    rows = np.where(missing, -1, found.keys.astype(np.int64))
    distances = np.where(missing, np.float32(np.inf), found.distances.astype(np.float32))
    return rows, distances
