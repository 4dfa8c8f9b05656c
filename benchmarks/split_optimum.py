"""How near the split search comes to the proved optimum of small cohorts.

    python benchmarks/split_optimum.py [--groups 12 20 30 40 60] [--folds 3 5] [--cohorts 3]

Cohorts as in split_balance.py, one to four slides a patient. The deals are made as by
`slidewise split`; the exact solver gets a larger budget here than it gives it. `worst` is the
largest cost of the deals of three seeds over the proved bound (or over 1e-5, where no error is
worth reducing), in percent, where the optimum is proved to 1 %.
"""

from __future__ import annotations

import argparse

import numpy as np
from split_balance import cohort

from splits import optimum
from splits.grouped import Groups


def main() -> None:
    """Print one row a size and number of folds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[12, 20, 30, 40, 60])
    parser.add_argument("--folds", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--cohorts", type=int, default=3)
    parser.add_argument("--balance", nargs="+", default=["label", "tiles"])
    given = parser.parse_args()
    print("| groups | folds | proved | worst over the bound, % | widest gap left, % |")
    print("|---|---|---|---|---|")
    for n_groups in given.groups:
        for n_folds in given.folds:
            worst, gaps, proved = [], [], 0
            for seed in range(given.cohorts):
                slides = cohort(n_groups, seed, single=False)
                data, shares = (
                    Groups(slides, given.balance, "patient"),
                    np.full(n_folds, 1 / n_folds),
                )
                known = optimum.best(
                    data.features,
                    shares,
                    weights=data.weights,
                    classes=data.labels,
                    rounds=6,
                    nodes=300,
                )
                bound = max(known.bound, optimum.NEGLIGIBLE)
                gaps.append(100 * max(known.cost / bound - 1, 0))
                if known.proved:
                    proved += 1
                    deals = [
                        data.assign(shares, [deal, 0], data.best(shares, prove=True))
                        for deal in range(3)
                    ]
                    worst += [100 * max(data.cost(shares, deal) / bound - 1, 0) for deal in deals]
            print(
                f"| {n_groups} | {n_folds} | {proved} of {given.cohorts} | "
                + (f"{max(worst):.2f}" if worst else "")
                + f" | {max(gaps):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
