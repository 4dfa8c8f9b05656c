"""Devices: threads, precision, and memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from mil import devices
from mil.config import Compute

FAULTS = """
import resource, sys, torch
from mil import devices
if sys.argv[1] == "keep":
    assert devices.keep_memory()
def step():
    x = torch.ones(16_000_000)  # 64 MB
    del x
for _ in range(20):  # blocks move about in the heap at first
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_kept_memory_is_not_mapped_anew() -> None:
    def faults(way: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, way], check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    assert faults("return") > 1000
    assert faults("keep") < 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not devices.keep_memory()


def test_weights_follow_the_precision_and_threads_the_config() -> None:
    before = torch.get_num_threads()
    try:
        for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            made = devices.fabric(Compute(device="cpu", precision=precision, threads=1))  # type: ignore[arg-type]
            assert devices.weight_dtype(made) is dtype
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
