"""Four cancers, 5 folds: encoders, channels and context on one split, in one table.

    python benchmarks/encoder_table.py OUT [--root DATA] [--only TEXT]

Every row is one `slidewise run` of a config of `configs/tcga_organs` with the settings that the
table names; the split is the same in all rows of a validation share (frozen encoders take a tenth of
the other slides for it, trained ones a fifth). Finished rows are only read. Decoded tiles are
shared between runs (`compute.cache_dir`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from splits.artifacts import read_json

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tcga_organs"
ENCODERS = {"resnet18": "he_resnet18", "vit_tiny": "he_vit", "lite0, frozen": "he_pretrained"}
CHANNELS = {
    "RGB": ["stain.method=none", "encoder.channels=rgb"],
    "H/E": ["stain.method=macenko", "encoder.channels=he"],
}
CONTEXTS = {"none": "[1]", "1, 4": "[1,4]"}
METHODS = ("vote", "mean_probability", "mean", "abmil", "gated_abmil")


def main() -> None:
    """Run what is not finished, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| encoder | sees | context | tile |", " | ".join(METHODS), "| s |")
    print("|---" * (5 + len(METHODS)) + "|")
    for encoder, channels, context in product(ENCODERS, CHANNELS, CONTEXTS):
        name = f"{ENCODERS[encoder]}-{channels.replace('/', '')}-{CONTEXTS[context]}"
        if options.only not in name:
            continue
        run = options.out / name
        settings = [
            *CHANNELS[channels],
            f"encoder.context={CONTEXTS[context]}",
            f"compute.cache_dir={options.out / 'cache'}",
        ]
        if options.root is not None:
            settings.append(f"data.root={options.root}")
        seconds = finish(run, CONFIGS / f"{ENCODERS[encoder]}.yaml", settings)
        metrics = read_json(run / "metrics.json")
        cells = [score(metrics["tile"]), *(score(metrics["slide"][m]) for m in METHODS)]
        print(f"| {encoder} | {channels} | {context} |", " | ".join(cells), f"| {seconds:.0f} |")
        sys.stdout.flush()


def finish(run: Path, config: Path, settings: list[str]) -> float:
    """Seconds of the run; read from the first time that it was made."""
    clock = run / "seconds.txt"
    if not clock.exists():
        command = [sys.executable, "-m", "mil.cli", "run", str(config), "--out", str(run)]
        for setting in settings:
            command += ["--set", setting]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        clock.write_text(f"{time.perf_counter() - began:.1f}\n")
    return float(clock.read_text())


def score(metrics: dict[str, Any]) -> str:
    """Accuracy with its interval."""
    value = metrics["accuracy"]
    return f"{value['value']:.3f} ({value['ci_low']:.2f} to {value['ci_high']:.2f})"


if __name__ == "__main__":
    main()
