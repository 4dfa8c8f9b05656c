"""Two processes make the updates of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from splits.artifacts import read_json
from tests.integration.conftest import ROOT

# Plain gradient descent: AdamW divides by a gradient's size, and so makes much of a rounding error.
CHANGES = (
    "compute.device=cpu",
    "compute.precision=float32",
    "compute.threads=1",
    "train.epochs=2",
    "train.optimizer.name=sgd",
    "train.mixup=0.4",
    "train.label_smoothing=0.1",
    "train.batch_size=15",
    "mil.epochs=1",
)


def slidewise(*changes: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mil.cli", "run", str(ROOT / "configs" / "smoke.yaml")]
    for change in (*CHANGES, *changes):
        command += ["--set", change]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """ResNet18 with its batch normalisation, batches that two do not divide, mixup."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path, devices in ((one, 1), (two, 2)):
        done = slidewise(f"compute.devices={devices}", out=path)
        assert done.returncode == 0, done.stderr
    for fold in ("fold0", "fold1"):
        logs = [pd.read_csv(path / "encoder" / fold / "log.csv") for path in (one, two)]
        assert logs[1]["train_loss"].tolist() == pytest.approx(logs[0]["train_loss"], rel=1e-4)
        weights = [load_file(p / "encoder" / fold / "model.safetensors") for p in (one, two)]
        for name, tensor in weights[0].items():
            apart = (tensor.double() - weights[1][name].double()).abs().max()
            assert apart <= 1e-4 * tensor.double().abs().max().clamp(min=1e-3), name
    metrics = [read_json(path / "metrics.json") for path in (one, two)]
    assert metrics[1]["n"] == metrics[0]["n"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.phantom=null", "data.root=nowhere"), "nowhere"),  # one process meets it
        (("train.crossfit=40",), "allowed is 2 to"),  # both do
    ],
)
def test_an_error_is_said_once(tmp_path: Path, changes: tuple[str, ...], words: str) -> None:
    done = slidewise("compute.devices=2", *changes, out=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert [line for line in lines if words in line] == lines[-1:]
    assert "Traceback" not in done.stderr
