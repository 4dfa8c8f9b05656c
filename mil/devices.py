"""The device and precision that models run with, through Lightning Fabric."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric

from mil.config import Compute

__all__ = ["fabric"]


def fabric(compute: Compute) -> Fabric:
    """Fabric for one device; sets the number of CPU threads.

    ``precision: auto`` takes bfloat16 only where the hardware multiplies it: on a CPU without
    AVX-512 BF16 or AMX it is emulated and more than ten times slower than float32.
    """
    torch.set_num_threads(compute.threads or os.cpu_count() or 1)
    accelerator = compute.device
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            accelerator = "mps"
    half = compute.precision == "bfloat16" or (
        compute.precision == "auto" and _has_bfloat16(accelerator)
    )
    return Fabric(accelerator=accelerator, devices=1, precision="bf16-mixed" if half else "32-true")


def _has_bfloat16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
