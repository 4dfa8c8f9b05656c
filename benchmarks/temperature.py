"""What keeps a temperature that is fitted on few patients in bounds, and what it costs.

    python benchmarks/temperature.py

Slides of three classes whose true log odds are known; a method that says ``k`` times these log
odds (k > 1: too sure, so that the right temperature is k). The temperature is fitted on few
patients and judged by the log loss on 20,000 slides, as what it costs over the true probabilities.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mil import calibration
from mil.calibration import fit_temperature, temper
from mil.seeds import generator

CLASSES = ["a", "b", "c"]
REPEATS, N_TEST = 200, 20_000
PRIORS = {"no prior": 1e6, "s = 1": 1.0, "s = 0.5": 0.5, "s = 0.25": 0.25}


def slides(n: int, too_sure: float, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Validation rows of ``n`` patients with a slide each, and the true log odds."""
    z = rng.normal(scale=2.0, size=(n, len(CLASSES)))
    p = np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None])
    truth = (p.cumsum(1) < rng.random(n)[:, None]).sum(1)
    said = np.exp(too_sure * z - np.logaddexp.reduce(too_sure * z, axis=1)[:, None])
    table = pd.DataFrame({f"p_{name}": said[:, k] for k, name in enumerate(CLASSES)})
    table = table.assign(slide_id=[f"s{i}" for i in range(n)], fold=0, part="val", method="m")
    return table.assign(label=np.array(CLASSES, dtype=object)[truth]), p


def excess(table: pd.DataFrame, true: np.ndarray, temperature: float) -> float:
    """Cost in nats a slide over the true probabilities."""
    said = temper(calibration.probabilities_of(table, CLASSES), temperature)
    return float((true * (np.log(true) - np.log(said))).sum(1).mean())


def main() -> None:
    """Print the table."""
    print("| validation patients | too sure by | T = 1 |" + " | ".join(PRIORS) + " |")
    print("|---|---|---|" + "---|" * len(PRIORS))
    for n in (6, 12, 30, 100):
        for too_sure in (0.5, 1.0, 2.0, 4.0):
            rng = generator(0, n, too_sure)
            test, true = slides(N_TEST, too_sure, rng)
            grid = np.exp(np.linspace(-np.log(20.5), np.log(20.5), 241))
            cost = np.array([excess(test, true, t) for t in grid])
            drawn = [slides(n, too_sure, rng)[0] for _ in range(REPEATS)]
            cells = [f"{excess(test, true, 1.0):.3f}"]
            for sd in PRIORS.values():
                calibration._PRIOR_SD = sd
                fitted = [
                    fit_temperature(
                        table, CLASSES, pd.Series(table["slide_id"].array, table["slide_id"])
                    )
                    for table in drawn
                ]
                of_each = np.interp(np.log(fitted), np.log(grid), cost)
                cells.append(f"{of_each.mean():.3f} (worst {of_each.max():.2f})")
            print(f"| {n} | {too_sure:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
