"""Kill a run at random moments and run it again: do the final weights agree by hash?

    python benchmarks/kill_resume.py OUT [--times 20] [--seed 0]

The unbroken run is made first; each of the others is killed (SIGKILL) once, at a moment drawn
uniformly from its duration, in whatever stage that is, and finished by the same command.
Checkpoints are written every second instead of every thirty, so that most kills find one in the
middle of a fold. Compared are all `model.safetensors` (encoders and aggregators), all features and
all tables of predictions, by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml"
SETTINGS = (
    "data.phantom.slides=24",
    "data.phantom.tiles_per_slide=12",
    "encoder.resize_px=64",
    "encoder.image_px=64",
    "train.epochs=6",
    "mil.epochs=20",
)
START = (
    "import sys, mil.checkpoint as c; c._SECONDS, c._COST_SHARE = 1.0, 1.0; "
    "from mil.cli import main; main(sys.argv[1:])"
)


def main() -> None:
    """Print a line a kill and the count of equal ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    whole = options.out / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    began = time.perf_counter()
    start(whole).wait()
    seconds = time.perf_counter() - began
    wanted = hashes(whole)
    print(f"unbroken run: {seconds:.0f} s, {len(wanted)} files compared")
    equal = 0
    for number in range(options.times):
        run = options.out / f"killed{number}"
        shutil.rmtree(run, ignore_errors=True)
        after = rng.uniform(0, seconds)
        process = start(run)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reached = stage(run)
        code = start(run).wait()
        same = code == 0 and hashes(run) == wanted
        equal += same
        print(f"killed after {after:5.1f} s ({reached}): {'equal' if same else 'DIFFERENT'}")
        sys.stdout.flush()
        if same:
            shutil.rmtree(run)
    print(f"{equal} of {options.times} identical")
    sys.exit(equal != options.times)


def start(run: Path) -> subprocess.Popen[bytes]:
    """The run, or its continuation, in a process group of its own."""
    command = [sys.executable, "-c", START, "run", str(CONFIG), "--out", str(run)]
    for setting in SETTINGS:
        command += ["--set", setting]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


def stage(run: Path) -> str:
    """The last thing that was written."""
    files = [path for path in run.rglob("*") if path.is_file()]
    if not files:
        return "nothing written yet"
    return max(files, key=lambda path: path.stat().st_mtime_ns).relative_to(run).as_posix()


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of everything that a run learned and predicted."""
    # Other tables name the listing of the drawn files, and so when those were written.
    tables = [run / f"{name}.parquet" for name in ("predictions", "tile_predictions", "attention")]
    found = [*run.rglob("model.safetensors"), *run.rglob("fold*.npy"), *tables]
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


if __name__ == "__main__":
    main()
