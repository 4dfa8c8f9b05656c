"""The last stage: tables and pictures of a run on one self-contained page, made without a model."""

from __future__ import annotations

from mil.report.page import build
from mil.report.preview import preview

__all__ = ["build", "preview"]
