"""The page of ``slidewise channels``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mil.config import Config

__all__ = ["write_channels"]


def write_channels(out: Path, result: Mapping[str, Any], config: Config) -> Path:
    return out / "channels.html"
