"""The papers' equations again, one bag at a time in numpy, from nothing but the weights."""

from __future__ import annotations

from tests.contract.references import attention, clam, dsmil, dtfd, pooling, transformer
from tests.contract.references.plain import Expected, Reference

__all__ = ["REFERENCES", "VARIANTS", "Expected", "Reference"]

_MODULES = (pooling, attention, clam, dsmil, dtfd, transformer)
REFERENCES: dict[str, Reference] = {k: v for m in _MODULES for k, v in m.REFERENCES.items()}
VARIANTS: list[tuple[str, dict[str, object]]] = [v for m in _MODULES for v in m.VARIANTS]
"""Settings that together use every argument."""
