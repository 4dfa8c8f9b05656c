from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from splits.errors import InputError
from splits.identity.score import score


def _cohort(n_slides: int = 20, n_tiles: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    slide = np.repeat([f"s{i:02d}" for i in range(n_slides)], n_tiles)
    path = [f"{name}/{i}.png" for i, name in enumerate(slide)]
    patient = [f"p{int(name[1:]) // 2}" for name in slide]
    truth = pd.DataFrame({"path": path, "slide_id": slide, "patient_id": patient})
    tiles = pd.DataFrame({"tile_id": path, "slide_label": "c", "group_id": patient})
    return tiles, truth


def test_true_groups_leak_nothing() -> None:
    tiles, truth = _cohort()
    found = score(tiles, truth, seed=3)
    assert found["rl_any"] == found["rl_any_patient"] == found["rl_mass"] == 0
    assert found["pair_precision"] == found["pair_recall"] == found["bcubed"] == found["ari"] == 1
    assert found["n_eff"] == pytest.approx(10)
    assert found["largest_share"] == pytest.approx(0.1)
    assert found["balance_floor"] == 0


def test_a_group_a_tile_leaks_almost_everything() -> None:
    tiles, truth = _cohort()
    found = score(tiles.assign(group_id=tiles["tile_id"]), truth)
    assert found["rl_any"] > 0.99
    assert found["rl_mass"] == pytest.approx(0.8, abs=0.05)
    assert found["pair_precision"] == 1
    assert found["pair_recall"] == 0


def test_slides_as_groups_leak_patients_and_not_slides() -> None:
    tiles, truth = _cohort()
    found = score(tiles.assign(group_id=truth["slide_id"]), truth)
    assert found["rl_any"] == 0
    assert found["rl_any_patient"] > 0.5


def test_pairs_and_bcubed_against_their_definitions() -> None:
    random = np.random.default_rng(0)
    tiles, truth = _cohort(8, 6)
    groups = random.integers(0, 7, len(tiles)).astype(str)
    found = score(tiles.assign(group_id=groups), truth)
    patients = truth["patient_id"].to_numpy()
    pairs = [
        (groups[i] == groups[j], patients[i] == patients[j])
        for i, j in itertools.combinations(range(len(groups)), 2)
    ]
    both = sum(a and b for a, b in pairs)
    assert found["pair_precision"] == pytest.approx(both / sum(a for a, _ in pairs))
    assert found["pair_recall"] == pytest.approx(both / sum(b for _, b in pairs))
    precision = np.mean(
        [np.mean(patients[groups == g] == p) for g, p in zip(groups, patients, strict=True)]
    )
    recall = np.mean(
        [np.mean(groups[patients == p] == g) for g, p in zip(groups, patients, strict=True)]
    )
    assert found["bcubed"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_one_group_has_nothing_in_train_and_a_floor() -> None:
    tiles, truth = _cohort()
    found = score(tiles.assign(group_id="all"), truth)
    assert found["rl_any"] == 0
    assert found["n_eff"] == 1
    assert found["balance_floor"] == pytest.approx(0.8)


def test_row_order_and_seed() -> None:
    tiles, truth = _cohort()
    tiles = tiles.assign(group_id=[f"g{i % 13}" for i in range(len(tiles))])
    shuffled = tiles.sample(frac=1, random_state=1), truth.sample(frac=1, random_state=2)
    assert score(tiles, truth, seed=1) == score(*shuffled, seed=1)


def test_truth_that_does_not_fit() -> None:
    tiles, truth = _cohort()
    assert score(tiles, truth.iloc[:50])["n_without_truth"] == 150
    with pytest.raises(InputError, match="patient_id"):
        score(tiles, truth.drop(columns="patient_id"))
    with pytest.raises(InputError, match="knows none"):
        score(tiles, truth.assign(path="x/" + truth["path"]))
    with pytest.raises(InputError, match="twice"):
        score(tiles, pd.concat([truth, truth]))
