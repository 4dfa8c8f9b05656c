"""Randomness by name: a stage, fold and epoch each get their own seed from the one in the config.

A resumed run asks for the same names and gets the same numbers, so no generator state is stored.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["derive", "generator", "of_rows", "uniform"]


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, and on nothing else."""
    text = "\x1f".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> np.random.Generator:
    """A numpy generator seeded by :func:`derive`."""
    return np.random.default_rng(derive(seed, *names))


def of_rows(seed: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A 64-bit seed for each row, ``(n,)``: neither order nor company of the rows matters.

    SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) of the row's place.
    """
    return _split_mix(np.uint64(seed), rows)


def uniform(seeds: npt.NDArray[np.uint64], n_draws: int) -> npt.NDArray[np.float64]:
    """The first ``n_draws`` numbers of each seed's SplitMix64 stream, ``(n, n_draws)``.

    From 0 to below 1; a draw depends on its seed and its place alone.
    """
    bits = _split_mix(seeds[:, None], np.arange(n_draws))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _split_mix(
    seed: np.uint64 | npt.NDArray[np.uint64], place: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = seed + (place.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
