"""What this machine has, and what each missing piece costs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mil.config import Compute
from mil.devices import fabric

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, what follows."""

    what: str
    found: str
    remark: str


def examine() -> list[Finding]:
    """Versions, devices, precision, optional readers, free space."""
    chosen = fabric(Compute())
    precision = str(chosen._precision.precision)
    half = "bf16" in precision
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    packages = (
        "slidewise",
        "torch",
        "torchvision",
        "timm",
        "lightning-fabric",
        "scikit-learn",
        "h5py",
    )
    return [
        Finding("python", platform.python_version(), ""),
        *(Finding(name, _version(name), "") for name in packages),
        Finding("device", str(chosen.device), _device_remark()),
        Finding(
            "precision",
            precision,
            "" if half else "no bfloat16 units here: float32 is used, several times slower",
        ),
        Finding("cores", str(os.cpu_count()), ""),
        Finding(
            "openslide",
            "found" if importlib.util.find_spec("openslide") else "missing",
            "whole-slide files are not read by this release; cut them into tiles first",
        ),
        Finding(
            "free space",
            f"{free:.1f} GB",
            "the tile cache takes channels x size^2 bytes a tile: 33 kB for H/E at 128 px",
        ),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _device_remark() -> str:
    return "" if torch.cuda.is_available() else "no CUDA device: encoders train on the CPU"
