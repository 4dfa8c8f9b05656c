"""The split search beside scikit-learn's StratifiedGroupKFold, in one process on the same tables.

    python benchmarks/split_balance.py [--groups 1000 10000 100000 1000000] [--folds 5]

Synthetic cohorts: 4 classes, 30 sites by Zipf's law, one to four slides a patient, 30 % of the
patients with several slides have slides of several classes, heavy-tailed tiles a slide. The group
is the patient. `class`: largest deviation of a class's share of slides in a fold, points. `site`:
largest total variation between the site mix of a fold's slides and of all, points. `tiles`:
largest deviation of a fold's tiles from their share, percent of that share. Seconds are of the
search alone, and of scikit-learn's `split`; `whole` is everything that `slidewise split` does with
the table in memory, with a validation part in every fold.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from splits import folds
from splits.grouped import Groups

N_CLASSES, N_SITES = 4, 30
LARGEST = 100_000
"""Groups up to which scikit-learn is run: its time grows with groups, classes and folds."""


def cohort(n_groups: int, seed: int, *, single: bool) -> pd.DataFrame:
    """A slide table; with ``single``, every patient has one slide."""
    rng = np.random.default_rng(seed)
    n_slides = np.ones(n_groups, dtype=int) if single else rng.choice(4, n_groups, p=SLIDES) + 1
    group = np.repeat(np.arange(n_groups), n_slides)
    zipf = 1 / np.arange(1, N_SITES + 1)
    site = rng.choice(N_SITES, n_groups, p=zipf / zipf.sum())[group]
    classes = rng.choice(N_CLASSES, n_groups, p=[0.4, 0.3, 0.2, 0.1])[group]
    mixed = (rng.random(n_groups) < 0.3)[group] & (rng.random(len(group)) < 0.5)
    classes = np.where(mixed & (not single), rng.integers(0, N_CLASSES, len(group)), classes)
    return pd.DataFrame(
        {
            "slide_id": pd.Series(range(len(group))).map("s{:08d}".format),
            "patient_id": pd.Series(group).map("p{:08d}".format),
            "group_id": pd.Series(group).map("p{:08d}".format),
            "site_id": pd.Series(site).map("site {:02d}".format),
            "label": pd.Series(classes).map("class {}".format),
            "n_tiles": np.ceil(np.exp(rng.normal(5, 1, len(group)))).astype(int),
        }
    )


SLIDES = [0.6, 0.25, 0.1, 0.05]


def imbalance(slides: pd.DataFrame, fold: np.ndarray, n_folds: int) -> tuple[float, float, float]:
    """Class, site and tile deviations of the test parts."""
    classes = pd.crosstab(fold, slides["label"]).to_numpy()
    sites = pd.crosstab(fold, slides["site_id"]).to_numpy()
    tiles = np.bincount(fold, weights=slides["n_tiles"])
    mix = sites / sites.sum(axis=1, keepdims=True) - sites.sum(axis=0) / sites.sum()
    return (
        100 * np.abs(classes / classes.sum(axis=0) - 1 / n_folds).max(),
        50 * np.abs(mix).sum(axis=1).max(),
        100 * np.abs(tiles / tiles.sum() * n_folds - 1).max(),
    )


def main() -> None:
    """Print one row a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    print("| groups | slides | seed | scikit-learn: class, site, tiles, s | Slidewise: ", end="")
    print("class, site, tiles, s | whole, s | better on class and site |")
    print("|---|---|---|---|---|---|---|")
    for n_groups in given.groups:
        for single in (True, False):
            for seed in given.seeds:
                row(n_groups, seed, given.folds, single=single)


def row(n_groups: int, seed: int, n_folds: int, *, single: bool) -> None:
    """Run both on one table and print what they reach."""
    slides = cohort(n_groups, seed, single=single).sort_values("slide_id", ignore_index=True)
    theirs = np.zeros(len(slides), dtype=int)
    cells = "not run"
    if n_groups <= LARGEST:
        start = time.perf_counter()
        parts = StratifiedGroupKFold(n_folds).split(
            slides, pd.factorize(slides["label"])[0], pd.factorize(slides["group_id"])[0]
        )
        for number, (_, test) in enumerate(parts):
            theirs[test] = number
        seconds = time.perf_counter() - start
        reached = imbalance(slides, theirs, n_folds)
        cells = "{:.4f}, {:.2f}, {:.4f}, {:.2f}".format(*reached, seconds)
    start = time.perf_counter()
    data = Groups(slides, ("label", "site", "tiles"), "patient")
    begun = time.perf_counter()
    fold = data.assign(np.full(n_folds, 1 / n_folds), [seed, 0])[data.of]
    searched = time.perf_counter() - begun
    ours = imbalance(slides, fold, n_folds)
    start = time.perf_counter()
    folds.kfold(slides, folds=n_folds, balance=("label", "site", "tiles"), seed=seed)
    whole = time.perf_counter() - start
    better = "" if cells == "not run" else str(ours[0] <= reached[0] and ours[1] <= reached[1])
    print(
        f"| {n_groups:,} | {len(slides):,} | {seed} | {cells} | "
        + "{:.4f}, {:.2f}, {:.4f}, {:.2f}".format(*ours, searched)
        + f" | {whole:.1f} | {better} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
