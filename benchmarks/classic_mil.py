"""The classic sets of multiple-instance learning: accuracy of the aggregators and two baselines.

python benchmarks/classic_mil.py [--sets musk1 fox] [--methods abmil] [--out classic.json]
python benchmarks/classic_mil.py --table classic.json OTHER.json

Stratified 10-fold, repeated with another deal of the folds. Settings are chosen within the nine
training folds alone, by the log loss of a stratified third of them, and trained again on all nine.
The standard error is that of the mean over the repeats' means: it says how far another deal of the
same bags moves the mean, not how far other bags would. On the newsgroup sets, whose tiles have
labels of their own, the AUROC of attention is the mean over the positive bags of the test folds.

Results are written after every repeat of a set and method; with the same ``--out`` a stopped run
goes on. Two processes with sets of their own use two cores: start each with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mil.classifier import SlideClassifier

FEATURES = Path(__file__).resolve().parents[1] / "../shared/data/mil_features"
SETS = (
    *("musk1", "musk2", "fox", "tiger", "elephant"),
    *("alt_atheism", "sci_med", "talk_politics_guns"),
)
WIDTHS = {
    "abmil": {"hidden": 64, "attention_dim": 64},
    "gated_abmil": {"hidden": 64, "attention_dim": 64},
    "dsmil": {"hidden": 64, "query_dim": 64},
    "clam_sb": {"hidden": 64, "attention_dim": 64},
}
METHODS = ("logistic, mean", "logistic, mean+min+max", *WIDTHS)
EPOCHS, OUTER = 50, 10


class Set(NamedTuple):
    """A set of bags, with the truth of each tile where it is known."""

    bags: list[np.ndarray]
    y: np.ndarray
    tile_truth: list[np.ndarray] | None


def load(name: str) -> Set:
    """A set; a column that tells the label by itself is an error.

    Public copies of some of these sets carry the label as their last column.
    """
    with np.load(FEATURES / f"{name}.npz") as file:
        x, y = file["X"].astype(np.float32), file["y"]
        cuts = np.flatnonzero(np.diff(file["bag"])) + 1
        truth = np.split(file["inst_label"], cuts) if "inst_label" in file else None
    bags = np.split(x, cuts)
    for pool in (np.mean, np.min, np.max):
        pooled = np.stack([pool(bag, axis=0) for bag in bags])
        for column, values in enumerate(pooled.T):
            if roc_auc_score(y, values) in (0.0, 1.0):
                message = f"{name}: column {column} tells the label of every bag by itself"
                raise SystemExit(message)
    return Set(bags, y, truth)


def means(bags: list[np.ndarray]) -> np.ndarray:
    """The mean of each bag, ``(n_bags, dim)``."""
    return np.stack([bag.mean(axis=0) for bag in bags])


def extremes(bags: list[np.ndarray]) -> np.ndarray:
    """Mean, minimum and maximum of each bag, ``(n_bags, 3 * dim)``."""
    return np.stack([np.concatenate([b.mean(0), b.min(0), b.max(0)]) for b in bags])


def estimator(method: str, seed: int) -> Any:
    """What is fitted on the training folds; an aggregator chooses its settings there."""
    if method not in WIDTHS:
        pooling = means if method == "logistic, mean" else extremes
        model = LogisticRegression(C=0.1, max_iter=5000)
        return make_pipeline(FunctionTransformer(pooling), StandardScaler(), model)
    widths = WIDTHS[method]
    grid = [
        {"lr": [1e-3, 3e-3], "args": [widths]},
        {"lr": [3e-3], "args": [{**widths, "dropout": 0.5}]},
    ]
    return GridSearchCV(
        SlideClassifier(method, epochs=EPOCHS, weight_decay=0.1, seed=seed),
        grid,
        scoring="neg_log_loss",
        cv=StratifiedShuffleSplit(1, test_size=1 / 3, random_state=seed),
        error_score="raise",
    )


def repeat(found: Set, method: str, seed: int) -> dict[str, Any]:
    """One 10-fold: accuracy, AUROC of attention, how often each setting was chosen, seconds."""
    accuracies, aurocs, chosen = [], [], Counter()
    began = time.perf_counter()
    folds = StratifiedKFold(OUTER, shuffle=True, random_state=seed)
    for train, test in folds.split(found.y, found.y):
        model = estimator(method, seed).fit([found.bags[i] for i in train], found.y[train])
        held = [found.bags[i] for i in test]
        accuracies.append(float((model.predict(held) == found.y[test]).mean()))
        if method not in WIDTHS:
            continue
        best = model.best_params_
        chosen[f"lr {best['lr']:g}, dropout {best['args'].get('dropout', 0)}"] += 1
        if found.tile_truth is not None:
            weights = model.best_estimator_.attention(held)
            aurocs += [
                roc_auc_score(found.tile_truth[i], weights[place])
                for place, i in enumerate(test)
                if found.y[i] == 1
            ]
    return {
        "accuracy": float(np.mean(accuracies)),
        "attention_auroc": float(np.mean(aurocs)) if aurocs else None,
        "chosen": dict(chosen),
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a set, a column a method."""
    methods = [m for m in METHODS if any(key.split("/")[1] == m for key in results)]
    lines = ["| set | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name in SETS:
        runs = {m: list(results.get(f"{name}/{m}", {}).values()) for m in methods}
        for score, title in (("accuracy", name), ("attention_auroc", f"{name}, attention")):
            cells = [cell([r[score] for r in runs[m] if r[score] is not None]) for m in methods]
            if any(cells):
                lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Mean and standard error over the repeats, with their number where it is not 5."""
    if not values:
        return ""
    note = "" if len(values) == 5 else f" ({len(values)} of 5 repeats)"
    spread = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return f"{np.mean(values):.3f}" + (f" ± {spread:.3f}" if spread is not None else "") + note


def main() -> None:
    """Run what is asked for and not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, metavar="SET")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("classic_mil.json"))
    parser.add_argument("--table", type=Path, nargs="+", help="print these results and do nothing")
    args = parser.parse_args()
    if args.table:
        parts = [json.loads(file.read_text()) for file in args.table]
        print(table({key: runs for part in parts for key, runs in part.items()}))
        return
    torch.set_num_threads(1)
    sets = {name: load(name) for name in args.sets}
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for seed in range(args.repeats):  # a stopped run has some repeats of everything
        for name in args.sets:
            for method in args.methods:
                runs = results.setdefault(f"{name}/{method}", {})
                if str(seed) not in runs:
                    runs[str(seed)] = repeat(sets[name], method, seed)
                    args.out.write_text(json.dumps(results, indent=1))
                    print(f"{name}, {method}, repeat {seed}: {runs[str(seed)]}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
