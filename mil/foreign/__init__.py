"""Predictions of other tools: read, checked, and scored by the code that scores our own."""

from __future__ import annotations

from mil.foreign.score import Scored, is_foreign, score

__all__ = ["Scored", "is_foreign", "score"]
