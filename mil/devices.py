"""The device, precision and memory that models run with, through Lightning Fabric."""

from __future__ import annotations

import ctypes
import os
import platform

import torch
from lightning_fabric import Fabric

from mil.config import Compute

__all__ = ["fabric", "keep_memory", "weight_dtype"]


def fabric(compute: Compute) -> Fabric:
    """Fabric for one device; on a CPU also the number of threads and :func:`keep_memory`.

    ``precision: auto`` takes bfloat16 only where the hardware multiplies it: on a CPU without
    AVX-512 BF16 or AMX it is emulated and more than ten times slower than float32.
    """
    torch.set_num_threads(compute.threads or os.cpu_count() or 1)
    accelerator = compute.device
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            accelerator = "mps"
    if accelerator == "cpu":
        keep_memory()
    half = compute.precision == "bfloat16" or (
        compute.precision == "auto" and _has_bfloat16(accelerator)
    )
    return Fabric(accelerator=accelerator, devices=1, precision="bf16-mixed" if half else "32-true")


def weight_dtype(fabric: Fabric) -> torch.dtype:
    """The type in which a model that only reads keeps its weights on this fabric."""
    return torch.bfloat16 if "bf16" in str(fabric._precision.precision) else torch.float32


def keep_memory() -> bool:
    """Keep freed memory for the next step instead of returning it to the system.

    A step frees and asks for the same large blocks; glibc maps each anew, and the kernel clears
    every page again. ``python benchmarks/training.py`` prints what it is worth. The process then
    holds its peak until it ends.

    Returns:
        Whether the C library took it: glibc does; musl, macOS and Windows have no such switch.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # <malloc.h>: M_MMAP_MAX is -4, M_TRIM_THRESHOLD is -1.
    return bool(libc.mallopt(-4, 0)) and bool(libc.mallopt(-1, 2**31 - 1))


def _has_bfloat16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
