"""Repeated, nested, site-preserved and leave-one-site-out splits, amounts, floors and real bars."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_folds import cohort

from splits import folds
from splits import split as splitting
from splits.deviation import floor_points
from splits.errors import InputError, NegativeVerdictError

LISTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "slide_lists"


# --- repeated and nested -------------------------------------------------------------------


def test_every_repeat_tests_every_slide_once_and_differs() -> None:
    table = cohort(40)
    split = folds.kfold(table, folds=4, repeats=3)
    splitting.check(split, table)
    tests = split.table[split.table["part"] == "test"]
    assert sorted(tests["fold"].unique()) == list(range(12))
    deals = set()
    for repeat in range(3):
        mine = tests[tests["fold"] // 4 == repeat]
        assert sorted(mine["slide_id"]) == sorted(table["slide_id"])
        deals.add(frozenset(frozenset(ids) for ids in mine.groupby("fold")["slide_id"].agg(list)))
    assert len(deals) == 3


def test_the_first_repeat_is_the_split_without_repeats() -> None:
    table = cohort(40)
    once, twice = folds.kfold(table, folds=4), folds.kfold(table, folds=4, repeats=2)
    pd.testing.assert_frame_equal(once.table, twice.table[twice.table["fold"] < 4])


def test_a_slide_that_a_repeat_does_not_test_is_noticed() -> None:
    table = cohort(40)
    split = folds.kfold(table, folds=4, repeats=2)
    broken = split.table.copy()
    row = broken.index[(broken["fold"] == 5) & (broken["part"] == "test")]
    broken = broken[broken["group_id"] != broken.loc[row[0], "group_id"]]
    broken = pd.concat([broken, split.table[split.table["fold"] < 4]]).drop_duplicates()
    with pytest.raises(NegativeVerdictError, match="tested 1 times, not 2"):
        splitting.check(splitting.Split(broken, split.meta), table)


def test_nested_folds_stay_within_training_and_validation() -> None:
    table = cohort(60)
    split = folds.kfold(table, folds=3, inner=4)
    splitting.check(split, table)
    assert split.inner is not None
    group = table.set_index("slide_id")["group_id"]
    for fold in range(3):
        parts = splitting.parts(split, fold)
        inside = sorted(parts["train"] + parts["val"])
        rows = split.inner[split.inner["fold"] == fold]
        validated = rows[rows["part"] == "val"]
        assert sorted(validated["slide_id"]) == inside  # each slide validates once
        for _, inner in rows.groupby("inner_fold"):
            assert sorted(inner["slide_id"]) == inside
            sides = [set(group[ids]) for _, ids in inner.groupby("part")["slide_id"]]
            assert not sides[0] & sides[1]
            trained = set(inner.loc[inner["part"] == "train", "slide_id"])
            assert set(table.set_index("slide_id")["label"][sorted(trained)]) == {"a", "b", "c"}


def test_a_cut_in_an_inner_fold_is_noticed() -> None:
    table = cohort(60)
    split = folds.kfold(table, folds=3, inner=3)
    assert split.inner is not None
    cut = split.inner.copy()
    group = cut["group_id"].value_counts().index[0]
    row = cut.index[cut["group_id"] == group][0]
    cut.loc[row, "part"] = "val" if cut.loc[row, "part"] == "train" else "train"
    with pytest.raises(NegativeVerdictError, match="of inner fold"):
        splitting.check(splitting.Split(split.table, split.meta, cut), table)


def test_a_nested_split_reads_back_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    split = folds.kfold(cohort(60), folds=3, inner=3)
    splitting.save(split, path, {})
    again = splitting.load(tmp_path)
    assert split.inner is not None
    assert again.inner is not None
    columns = [*splitting.load(tmp_path).table.columns, "inner_fold"]
    left, right = (
        inner[columns].sort_values(columns).to_numpy().tolist()
        for inner in (split.inner, again.inner)
    )
    assert left == right
    splitting.save(folds.kfold(cohort(60), folds=3), path, {})
    assert splitting.load(tmp_path).inner is None


def test_what_nesting_needs_is_said() -> None:
    table = cohort(40)
    rare = pd.DataFrame({"slide_id": ["x", "y"], "patient_id": ["x", "y"], "label": "rare"})
    rare = rare.assign(group_id=rare["slide_id"], site_id="00", n_tiles=10)
    with pytest.raises(InputError, match=r"fold \d .* class 'rare'.* ask for fewer folds or merge"):
        folds.kfold(pd.concat([table, rare]), folds=4, inner=3)
    with pytest.raises(InputError, match="at least 2 inner folds"):
        folds.kfold(table, inner=1)
    with pytest.raises(InputError, match="repeats is 0"):
        folds.kfold(table, repeats=0)


# --- sites ---------------------------------------------------------------------------------


def test_leave_one_site_out_tests_one_site_a_fold() -> None:
    table = folds.regroup(cohort(60, n_sites=7), "site")
    split = folds.leave_one_site_out(table)
    splitting.check(split, table)
    site = table.set_index("slide_id")["site_id"]
    for fold, name in split.meta["left_out"].items():
        parts = splitting.parts(split, fold)
        assert set(site[parts["test"]]) == {name}
        assert name not in set(site[parts["train"] + parts["val"]])
    assert split.n_folds == 7


def test_leave_one_site_out_says_what_it_cannot_do() -> None:
    table = cohort(60, n_sites=7)
    with pytest.raises(InputError, match="regroup first"):
        folds.leave_one_site_out(table)
    one = folds.regroup(table.assign(site_id="05"), "site")
    with pytest.raises(InputError, match=r"one site \('05'\)"):
        folds.leave_one_site_out(one)
    alone = folds.regroup(
        table.assign(label=table["label"].where(table["site_id"] != "03", "own")), "site"
    )
    with pytest.raises(InputError, match=r"class 'own' has 1 group.*of one site"):
        folds.leave_one_site_out(alone)


def test_a_patient_of_two_sites_ties_them_and_that_is_said() -> None:
    table = cohort(60, n_sites=15)
    table.loc[table["patient_id"] == "003", "site_id"] = ["01", "02", "03", "04"][
        : (table["patient_id"] == "003").sum()
    ]
    split = folds.kfold(folds.regroup(table, "site"), folds=2, unit="site")
    assert any("hold several sites that share a patient" in w for w in split.meta["warnings"])


def test_one_group_with_most_tiles_is_named() -> None:
    table = cohort(40)
    table.loc[table["patient_id"] == "007", "n_tiles"] = 10**6
    split = folds.kfold(table, folds=4)
    assert any(
        "group '007' holds" in note and "of the tiles" in note for note in split.meta["warnings"]
    )
    assert split.meta["floor_size"]["tiles"] > 60


# --- amounts, floors, policies --------------------------------------------------------------


def test_tissue_and_stain_are_balanced_where_asked() -> None:
    table = cohort(120)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(4, 0.4), len(table))
    counts = np.round(shares * table["n_tiles"].to_numpy()[:, None])
    for column in range(4):
        table[f"tissue:T{column}"] = counts[:, column]
    table["stain:low"] = (rng.random(len(table)) < 0.4).astype(int)
    table["stain:high"] = 1 - table["stain:low"]
    plain = _worst(folds.kfold(table, balance=("label", "tiles")), table)
    both = _worst(folds.kfold(table, balance=("label", "tiles", "tissue", "stain")), table)
    assert both["tissue"] < plain["tissue"] / 3
    assert both["stain"] < plain["stain"]


def _worst(split: splitting.Split, table: pd.DataFrame) -> dict[str, float]:
    """Largest total variation of a test part's mix, computed apart from the search's account."""
    result = {}
    for kind in ("tissue", "stain"):
        amounts = table.set_index("slide_id").filter(like=f"{kind}:")
        whole = amounts.sum() / amounts.to_numpy().sum()
        result[kind] = max(
            float((amounts.loc[ids].sum() / amounts.loc[ids].to_numpy().sum() - whole).abs().sum())
            for ids in (splitting.parts(split, fold)["test"] for fold in range(split.n_folds))
        )
    return result


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=2, max_size=7).filter(any),
    shares=st.sampled_from([(0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.15, 0.15), (0.8, 0.2)]),
)
def test_no_deal_is_below_the_floor(counts: list[int], shares: tuple[float, ...]) -> None:
    amounts = np.array(counts, dtype=float)
    least = min(
        max(
            abs(amounts[np.array(deal) == part].sum() / amounts.sum() - share)
            for part, share in enumerate(shares)
        )
        for deal in itertools.product(range(len(shares)), repeat=len(amounts))
    )
    assert floor_points(amounts, np.array(shares)) <= 100 * least + 1e-3


def test_the_floor_knows_that_slides_are_whole() -> None:
    # Nine groups of one in five parts: 2, 2, 2, 2, 1; the last is 0.8 of 9 short.
    assert floor_points(np.ones(9), np.full(5, 0.2)) == pytest.approx(100 * 0.8 / 9, abs=1e-3)
    assert floor_points(np.ones(10), np.full(5, 0.2)) == 0


def test_seeds_differ_where_one_deal_is_best() -> None:
    table = cohort(25)
    deals = {
        frozenset(frozenset(splitting.parts(split, fold)["test"]) for fold in range(split.n_folds))
        for split in (folds.kfold(table, folds=5, seed=seed) for seed in range(4))
    }
    assert len(deals) > 1


def test_a_proof_comes_with_the_split_where_asked() -> None:
    table = cohort(20).drop(columns="n_tiles")
    split = folds.kfold(table, folds=2, balance=("label",), prove=True)
    best = split.meta["optimum"]
    assert 0 <= best["bound"] <= best["cost"]
    assert best["proved"]
    assert folds.kfold(cohort(80), prove=True).meta["optimum"] is None


# --- bars of others -------------------------------------------------------------------------


@pytest.mark.skipif(not LISTS.exists(), reason="needs ../shared/data/slide_lists")
@pytest.mark.parametrize(
    ("file", "label", "n_folds", "bar"),
    [
        ("preserved_site_cv/example.csv", "feature", 3, 6),
        ("slideflow/breast_labels.csv", "ER_Status_By_IHC", 3, 12),
        ("slideflow/lung_labels.csv", "subtype", 3, 6),
        ("slideflow/lung_labels.csv", "subtype", 5, 50),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_site_preserved_folds_are_as_even_as_folds_without_sites_can_be(
    file: str, label: str, n_folds: int, bar: int, seed: int
) -> None:
    # Objective of PreservedSiteCV (Howard et al. 2021): sum of (K n_fold,class - N_class)^2.
    given = pd.read_csv(LISTS / file, dtype=str, keep_default_na=False)
    slide = given["slide"] if "slide" in given else given["patient"]
    table = pd.DataFrame(
        {"slide_id": slide, "patient_id": given["patient"], "site_id": given["site"]}
    ).assign(label=given[label], group_id=slide)
    split = folds.kfold(folds.regroup(table, "site"), folds=n_folds, unit="site", seed=seed)
    tests = split.table[split.table["part"] == "test"].merge(
        table[["slide_id", "patient_id", "site_id", "label"]], on="slide_id"
    )
    assert (tests.groupby("site_id")["fold"].nunique() == 1).all()
    patients = tests.drop_duplicates("patient_id")
    counts = pd.crosstab(patients["fold"], patients["label"]).to_numpy()
    assert ((n_folds * counts - counts.sum(axis=0)) ** 2).sum() == bar
