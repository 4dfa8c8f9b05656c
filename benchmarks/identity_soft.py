"""How far soft evidence gets where tiles are missing and names say nothing.

    python benchmarks/identity_soft.py RUN --truth TRUTH.csv [--features X.npz]
    python benchmarks/identity_soft.py RUN --draws 8

The first form scores an identified RUN against its truth (``path, slide_id, patient_id, region``):
leakage under random folds of the hard-linked components, of the groups after coarsening for 2 to 5
folds (with whatever leakage is then predicted), and of groups that nothing here can beat: every
region whole, and every slide whole.

The second form takes a RUN whose slides are declared and draws 45 of them and 70 % of their tiles,
forgets the names, and prints the predicted beside the true leakage under random folds of groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.artifacts import read_table
from splits.content.mosaic import assemble
from splits.content.seams import find_seams
from splits.content.signatures import FORM, Signatures
from splits.content.soft import coarsen
from splits.identity import embedding

Codes = npt.NDArray[np.int64]
N_SLIDES, KEPT, REPEATS = 45, 0.7, 20


def codes(values: pd.Series) -> Codes:
    """Numbers for names."""
    return np.asarray(pd.factorize(values)[0], np.int64)


def leakage(group: Codes, slide: Codes, folds: int) -> float:
    """Share of test tiles whose slide has a tile in train, over random folds of the groups."""
    random = np.random.default_rng(0)
    group = np.unique(group, return_inverse=True)[1]
    found = []
    for _ in range(REPEATS):
        fold = random.permutation(group.max() + 1)[group] % folds
        found += [np.isin(slide[fold == k], slide[fold != k]) for k in range(folds)]
    return float(np.concatenate(found).mean())


def n_eff(group: Codes) -> float:
    """Effective number of groups."""
    shares = np.unique(group, return_counts=True)[1] / len(group)
    return 1 / float((shares**2).sum())


def against_truth(run: Path, truth: Path, features: Path | None) -> None:
    """Print the first table."""
    layout = read_table(run / "layout.parquet")
    known = pd.read_csv(truth, dtype=str).set_index("path").loc[layout["tile_id"]]
    slide, region = codes(known["slide_id"]), codes(known["slide_id"] + " " + known["region"])
    component = layout["component"].to_numpy(np.int64)
    vectors = Signatures.load(next((run / "cache").glob(f"signatures-{FORM}-*.npz"))).vectors
    extra = None if features is None else embedding.read(features, layout["tile_id"].tolist())
    print("| groups | folds | n_eff | rl_any | predicted |\n|---|---|---|---|---|")
    rows = [("hard-linked components", 5, component, None)]
    for folds in (2, 3, 4, 5):
        coarse = coarsen(component, vectors, folds=folds, target=0.0, embedding=extra)
        rows.append(("coarsened", folds, coarse.group, coarse.predicted_leakage))
    rows += [("every region whole", 5, region, None), ("every slide whole", 5, slide, None)]
    for name, folds, group, predicted in rows:
        said = "" if predicted is None else f"{predicted:.3f}"
        true = leakage(group, slide, folds)
        print(f"| {name} | {folds} | {n_eff(group):.1f} | {true:.3f} | {said} |")


def draws(run: Path, n_draws: int) -> None:
    """Print the second table."""
    tiles = read_table(run / "tiles.parquet")
    layout = read_table(run / "layout.parquet")
    signatures = Signatures.load(next((run / "cache").glob(f"signatures-{FORM}-*.npz")))
    slides = tiles.set_index("tile_id")["slide_id"].reindex(layout["tile_id"])
    all_slides = codes(slides)
    print("| draw | folds | n_eff | true | predicted |\n|---|---|---|---|---|")
    for draw in range(n_draws):
        random = np.random.default_rng(draw)
        chosen = random.permutation(all_slides.max() + 1)[:N_SLIDES]
        rows = np.isin(all_slides, chosen) & (random.random(len(all_slides)) < KEPT)
        rows = np.flatnonzero(rows)
        component = assemble(len(rows), find_seams(signatures.lines[rows])).component
        for folds in (3, 5):
            coarse = coarsen(component, signatures.vectors[rows], folds=folds, target=0.0)
            true = leakage(coarse.group, all_slides[rows], folds)
            print(
                f"| {draw} | {folds} | {coarse.step.n_eff:.1f} | {true:.3f} "
                f"| {coarse.predicted_leakage:.3f} |",
                flush=True,
            )


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--draws", type=int, default=0)
    given = parser.parse_args()
    if given.truth is not None:
        against_truth(given.run, given.truth, given.features)
    if given.draws:
        draws(given.run, given.draws)


if __name__ == "__main__":
    main()
