"""How much a random tile split flatters: one linear classifier, one feature matrix, two splits.

    python benchmarks/random_tiles.py RUN

RUN is a finished run with a frozen encoder, so its features saw no label. Tiles are classified by
scikit-learn's logistic regression on standardised features, 5 folds, the same seeds for both ways.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from splits.artifacts import read_json, read_table

SEEDS = (0, 1, 2)


def main(run: Path) -> None:
    """Print tile accuracy under both splits, and the plurality vote under the patient split."""
    seen = read_json(run / "features" / "meta.json")["folds"]["0"]["slides_seen"]
    if seen:
        sys.exit("the encoder of this run was trained on its slides: use a frozen one")
    features = np.load(run / "features" / "fold0.npy")
    table = read_table(run / "tiles.parquet")
    label = table["slide_label"].to_numpy(dtype=object).astype(str)
    patient = table["patient_id"].to_numpy(dtype=object).astype(str)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    for seed in SEEDS:
        row = [f"seed {seed}"]
        for name, cutter in (("random tiles", StratifiedKFold), ("patients", StratifiedGroupKFold)):
            folds = cutter(5, shuffle=True, random_state=seed)
            groups = patient if cutter is StratifiedGroupKFold else None
            said = cross_val_predict(model, features, label, groups=groups, cv=folds)
            row.append(f"{name}: tile accuracy {(said == label).mean():.3f}")
        votes = table.assign(said=said).groupby("slide_id")
        right = votes["said"].agg(lambda s: s.mode()[0]) == votes["slide_label"].first()
        print("  ".join([*row, f"vote {right.mean():.3f}"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
