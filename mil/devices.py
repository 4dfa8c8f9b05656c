"""The device, precision and memory that models run with, through Lightning Fabric."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from mil.config import Compute
from splits.errors import InputError, SlidewiseError

__all__ = ["fabric", "first", "keep_memory", "memory", "said_once", "weight_dtype"]

T = TypeVar("T")

# The others wait while the first process scans or builds the cache.
_LONGEST_WAIT: Final = timedelta(days=2)


def fabric(compute: Compute, *, processes: int | None = None) -> Fabric:
    """Fabric with its processes started; on a CPU sets threads and calls :func:`keep_memory`.

    With several processes (``compute.devices`` times ``compute.nodes``) it starts the others of
    this machine by running the same command again, unless ``torchrun`` or SLURM started them.

    Args:
        compute: Device, precision, threads and processes.
        processes: 1 for a stage that runs in one process, whatever the config says.

    ``precision: auto`` takes bfloat16 only where the hardware multiplies it: on a CPU without
    AVX-512 BF16 or AMX it is emulated and more than ten times slower than float32.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells its precision
    alone = processes == 1 or compute.devices * compute.nodes == 1
    n_local = 1 if alone else compute.devices
    torch.set_num_threads(compute.threads or max(1, (os.cpu_count() or 1) // n_local))
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
    precision = "bf16-mixed" if half else "32-true"
    if alone:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    # Buffers need no broadcast: synchronised normalisations hold the same numbers everywhere.
    strategy = DDPStrategy(timeout=_LONGEST_WAIT, broadcast_buffers=False)
    many = Fabric(
        accelerator=accelerator,
        devices=compute.devices,
        num_nodes=compute.nodes,
        strategy=strategy,
        precision=precision,
    )
    many.launch()
    atexit.register(_leave)
    return many


def _leave() -> None:
    """Close the connection to the other processes; gloo's threads abort a process that does not."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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


def first(fabric: Fabric, work: Callable[[], T]) -> T | None:
    """Let the first process do ``work`` while the others wait; its result, None in the others.

    Where it fails, the others end without a word: the first one says what is wrong.
    """
    result, error = None, None
    if fabric.is_global_zero:
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised again below, once the others know
            error = caught
    failed = fabric.broadcast(error is not None)
    if error is not None:
        raise error
    if failed:
        raise SystemExit(1)
    return result


@contextmanager
def said_once(fabric: Fabric) -> Iterator[None]:
    """An error that all processes meet at the same place is said by the first alone."""
    try:
        yield
    except SlidewiseError as error:
        if fabric.is_global_zero:
            raise
        raise SystemExit(error.exit_code) from error


@contextmanager
def memory(lower: str) -> Iterator[None]:
    """Say which settings to lower where memory does not suffice.

    Raises:
        InputError: The block ran out of memory, on the device or in RAM.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError)
            or "not enough memory" in text
            or "can't allocate memory" in text
        ):
            raise
        message = f"out of memory ({text.splitlines()[0] if text else 'RAM'}): lower {lower}"
        raise InputError(message) from error
