"""Randomness by name: a stage, fold and epoch each get their own seed from the one in the config.

A resumed run asks for the same names and gets the same numbers, so no generator state is stored.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["derive", "generator"]


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, and on nothing else."""
    text = "\x1f".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> np.random.Generator:
    """A numpy generator seeded by :func:`derive`."""
    return np.random.default_rng(derive(seed, *names))
