"""Scores of a reconstructed identity where the truth is known.

What counts is the leakage that is left if one splits on the groups, at the number of groups that is
left: pair precision and recall, B-cubed and ARI are secondary and mislead.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from splits.errors import InputError

__all__ = ["score"]

N_FOLDS: Final = 5
_N_REPEATS: Final = 10
_TRUTH: Final = ("path", "slide_id", "patient_id")
_Codes = npt.NDArray[np.int64]


def score(tiles: pd.DataFrame, truth: pd.DataFrame, seed: int = 0) -> dict[str, float | int]:
    """Score ``group_id`` of a tile table against true slides and patients.

    Residual leakage is measured under random 5-fold splits of the groups, averaged over the folds
    of 10 repeats.

    Args:
        tiles: Tile table with ``group_id`` (and ``slide_label`` for the floor per class).
        truth: Columns ``path`` (the tile id), ``slide_id``, ``patient_id``.
        seed: Seed of the random splits.

    Returns:
        ``rl_any``: share of test tiles whose true slide has any tile in train.
        ``rl_any_patient``: the same for the true patient.
        ``rl_mass``: mean over test tiles of the share of the slide's other tiles in train.
        ``n_eff``: effective number of groups, 1 / sum of squared shares (``n_eff_truth``: of the
        true patients). ``largest_share``: share of the largest group.
        ``balance_floor``: what the fullest of 5 folds must exceed its fair fifth by, at the least,
        in the worst class, as a share of that class.
        ``pair_precision``, ``pair_recall``, ``bcubed`` (F1), ``ari``: against the true patients,
        because a group may never be finer than a patient.
        ``n_tiles``, ``n_without_truth``: tiles scored and left out.

    Raises:
        InputError: The truth lacks a column, repeats a path or knows none of the tiles.
    """
    missing = [name for name in _TRUTH if name not in truth.columns]
    if missing:
        message = f"the truth lacks the column(s) {missing}: {', '.join(_TRUTH)} are needed"
        raise InputError(message)
    if truth["path"].duplicated().any():
        repeated = truth.loc[truth["path"].duplicated(), "path"].iloc[0]
        message = f"the truth names a path twice: {repeated!r}"
        raise InputError(message)
    known = truth[list(_TRUTH)].rename(columns={"slide_id": "true_slide", "patient_id": "true"})
    scored = tiles.merge(known, left_on="tile_id", right_on="path", how="inner")
    if scored.empty:
        message = (
            f"the truth knows none of the {len(tiles)} tiles: its path must be the tile_id, "
            f"such as {str(tiles['tile_id'].min())!r}, not {str(truth['path'].min())!r}"
        )
        raise InputError(message)
    scored = scored.sort_values("tile_id")
    group, slide, patient = (_codes(scored[name]) for name in ("group_id", "true_slide", "true"))
    leaks = _leakage(group, slide, patient, np.random.default_rng(seed))
    precision, recall = _pairs(group, patient)
    shares = np.bincount(group) / len(group)
    return {
        **leaks,
        "n_eff": 1.0 / float(np.sum(shares**2)),
        "n_eff_truth": 1.0 / float(np.sum((np.bincount(patient) / len(patient)) ** 2)),
        "largest_share": float(shares.max()),
        "balance_floor": _balance_floor(group, _codes(scored["slide_label"])),
        "pair_precision": precision,
        "pair_recall": recall,
        "bcubed": _bcubed(group, patient),
        "ari": float(adjusted_rand_score(patient, group)),
        "n_tiles": len(scored),
        "n_without_truth": len(tiles) - len(scored),
    }


def _codes(column: pd.Series) -> _Codes:
    values = column.astype("string").fillna("")
    return np.asarray(pd.factorize(values, sort=True)[0], dtype=np.int64)


def _leakage(
    group: _Codes, slide: _Codes, patient: _Codes, random: np.random.Generator
) -> dict[str, float]:
    """Mean over tested tiles; a fold without a test or a training part tests nothing."""
    sizes = np.bincount(group)
    totals = np.bincount(slide)
    any_slide: list[float] = []
    any_patient: list[float] = []
    mass: list[float] = []
    for _ in range(_N_REPEATS):
        order = random.permutation(len(sizes))
        fold_of = np.empty(len(sizes), dtype=np.int64)
        # The middle of each group in a random row of all tiles says which fifth it falls into.
        middle = np.cumsum(sizes[order]) - sizes[order] / 2
        fold_of[order] = np.minimum(middle * N_FOLDS // len(group), N_FOLDS - 1).astype(np.int64)
        fold = fold_of[group]
        for k in range(N_FOLDS):
            test = fold == k
            if not test.any() or test.all():
                continue
            in_train = np.bincount(slide[~test], minlength=len(totals))
            tested = slide[test]
            any_slide.append(float((in_train[tested] > 0).mean()))
            any_patient.append(float(np.isin(patient[test], patient[~test]).mean()))
            mass.append(float((in_train[tested] / np.maximum(totals[tested] - 1, 1)).mean()))
    return {
        "rl_any": float(np.mean(any_slide)) if any_slide else 0.0,
        "rl_any_patient": float(np.mean(any_patient)) if any_patient else 0.0,
        "rl_mass": float(np.mean(mass)) if mass else 0.0,
    }


def _balance_floor(group: _Codes, label: _Codes) -> float:
    floors = []
    for value in np.unique(label):
        sizes = np.bincount(group[label == value])
        floors.append(max(0.0, float(sizes.max() / sizes.sum()) - 1.0 / N_FOLDS))
    return max(floors)


def _cells(group: _Codes, truth: _Codes) -> tuple[_Codes, _Codes, _Codes]:
    """Cells of the contingency table that are not empty: (count, group, truth)."""
    pairs, counts = np.unique(np.stack([group, truth]), axis=1, return_counts=True)
    return counts.astype(np.int64), pairs[0], pairs[1]


def _pairs(group: _Codes, truth: _Codes) -> tuple[float, float]:
    """Precision and recall over pairs of tiles; 1 where there is no pair to be wrong about."""
    counts, _, _ = _cells(group, truth)

    def choose(n: _Codes) -> int:
        return int(np.sum(n * (n - 1) // 2))

    both, given, true = (choose(n) for n in (counts, np.bincount(group), np.bincount(truth)))
    return (both / given if given else 1.0), (both / true if true else 1.0)


def _bcubed(group: _Codes, truth: _Codes) -> float:
    """B-cubed F1 (Bagga and Baldwin 1998): precision and recall a tile, averaged over tiles."""
    counts, in_group, in_truth = _cells(group, truth)
    precision = float(np.sum(counts**2 / np.bincount(group)[in_group]) / len(group))
    recall = float(np.sum(counts**2 / np.bincount(truth)[in_truth]) / len(group))
    return 2 * precision * recall / (precision + recall)
