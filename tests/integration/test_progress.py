"""Bars: every long stage says how much there is and ends where it said, resumed or not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from mil.run import run

from .conftest import smoke

STAGES = {
    "aggregators, epochs",
    "predictions, slides",
    "tiles taken away, slides",
    "scores, methods and files",
}


class Bars:
    """What a screen would get."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.steps: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, total: int):
        assert name not in self.totals, f"{name} begins twice"
        self.totals[name] = total
        return self.steps[name].append


def test_what_is_done_counts_at_once_and_every_bar_ends(copied: Path) -> None:
    shutil.rmtree(copied / "encoder" / "fold0")
    shutil.rmtree(copied / "aggregators" / "abmil" / "fold0")
    made = ("features/fold0.npy", "attention.parquet", "perturbation.parquet", "metrics.json")
    for name in made:
        (copied / name).unlink()
    bars = Bars()
    run(copied, smoke(), say=lambda _: None, progress=bars)
    stages = {*STAGES, "encoders, epochs", "features of fold 0, tiles"}
    assert stages <= set(bars.totals)
    for name, total in bars.totals.items():
        assert total > 0
        assert min(bars.steps[name]) >= 0
        assert sum(bars.steps[name]) == pytest.approx(total), name
    epochs = smoke().train.epochs
    assert epochs in bars.steps["encoders, epochs"]  # that of another fold, in one step


def test_a_second_run_trains_nothing_and_its_bars_are_full(copied: Path) -> None:
    bars = Bars()
    run(copied, smoke(), say=lambda _: None, progress=bars)
    assert set(bars.totals) == {"encoders, epochs", "aggregators, epochs"}
    for name, total in bars.totals.items():
        assert sum(bars.steps[name]) == pytest.approx(total)


def test_a_pipe_gets_lines_and_no_bars() -> None:
    code = (
        "from mil.terminal import screen\n"
        "with screen() as view:\n"
        "    advance = view.progress('stage', 2)\n"
        "    advance(0.5)\n"
        "    view.say('a line')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a line\n"
    assert done.stdout == ""
