from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from splits import folds
from splits import split as splitting
from splits.errors import InputError, NegativeVerdictError

Builder = Callable[[pd.DataFrame], splitting.Split]


def cohort(n_patients: int = 40, seed: int = 0, n_sites: int = 5) -> pd.DataFrame:
    """Patients of one to four slides, mostly of one class, with ids that look like numbers."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        label = "abc"[patient % 3]
        for slide in range(int(rng.integers(1, 5))):
            mixed = "abc"[int(rng.integers(3))] if rng.random() < 0.1 else label
            rows.append(
                (f"{patient:03d}-{slide}", f"{patient:03d}", f"0{patient % n_sites}", mixed)
            )
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "site_id", "label"])
    table["n_tiles"] = rng.integers(1, 500, len(table))
    return table.assign(group_id=table["patient_id"])


@st.composite
def tables(draw: st.DrawFn, *, mixed: bool) -> pd.DataFrame:
    """Two or three classes of three to eight groups of one to four slides."""
    classes = draw(st.sampled_from(["ab", "abc"]))
    rows = []
    for label in classes:
        for group, size in enumerate(draw(st.lists(st.integers(1, 4), min_size=3, max_size=8))):
            rows += [(f"{label}{group}", label)] * size
    frame = pd.DataFrame(rows, columns=["group_id", "label"])
    if mixed:
        for row in draw(st.lists(st.integers(0, len(frame) - 1), max_size=6)):
            frame.loc[row, "label"] = draw(st.sampled_from(classes))
    return frame.assign(slide_id=[f"s{row}" for row in range(len(frame))])


def _check_kfold(table: pd.DataFrame, split: splitting.Split) -> None:
    splitting.check(split, table)
    group = table.set_index("slide_id")["group_id"]
    tested: list[str] = []
    for fold in range(split.n_folds):
        parts = splitting.parts(split, fold)
        assert all(parts.values())
        everyone = sorted(slide for ids in parts.values() for slide in ids)
        assert everyone == sorted(table["slide_id"])
        sides = [set(group[ids]) for ids in parts.values()]
        assert len(set.union(*sides)) == sum(len(side) for side in sides)
        train = set(table.set_index("slide_id").loc[parts["train"], "label"])
        assert train == set(table["label"])
        tested += parts["test"]
    assert sorted(tested) == sorted(table["slide_id"])


@settings(max_examples=25, deadline=None)
@given(
    table=tables(mixed=False),
    n_folds=st.integers(3, 6),
    val_share=st.floats(0.05, 0.6),
    seed=st.integers(0, 99),
)
def test_kfold_keeps_every_promise(
    table: pd.DataFrame, n_folds: int, val_share: float, seed: int
) -> None:
    _check_kfold(table, folds.kfold(table, folds=n_folds, val_share=val_share, seed=seed))


@settings(max_examples=25, deadline=None)
@given(table=tables(mixed=True), n_folds=st.integers(2, 5))
def test_kfold_of_mixed_groups_keeps_every_promise_or_refuses(
    table: pd.DataFrame, n_folds: int
) -> None:
    try:
        split = folds.kfold(table, folds=n_folds)
    except InputError:  # groups of several classes can make the request unattainable
        return
    _check_kfold(table, split)


@settings(max_examples=25, deadline=None)
@given(table=tables(mixed=False), seed=st.integers(0, 99))
def test_holdout_keeps_every_promise(table: pd.DataFrame, seed: int) -> None:
    split = folds.holdout(table, ratios=(0.6, 0.2, 0.2), seed=seed)
    splitting.check(split, table)
    label = table.set_index("slide_id")["label"]
    for ids in splitting.parts(split, 0).values():
        assert set(label[ids]) == set(table["label"])


@pytest.mark.parametrize("build", [folds.kfold, folds.holdout])
@pytest.mark.parametrize("seed", range(3))
def test_row_order_changes_nothing(build: Builder, seed: int) -> None:
    table = cohort()
    shuffled = table.sample(frac=1, random_state=seed)
    first, second = build(table), build(shuffled)
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.meta == second.meta
    assert first.digest == second.digest


def test_digests_follow_the_content() -> None:
    table = cohort()
    first = folds.kfold(table)
    other = folds.kfold(table.assign(n_tiles=table["n_tiles"] + 1))
    assert first.meta["digest"] != other.meta["digest"]
    edited = first.table.copy()
    edited.loc[0, "part"] = "val" if edited.loc[0, "part"] != "val" else "train"
    assert replace(first, table=edited).digest != first.digest


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_patients", [30, 90, 300])
def test_classes_are_balanced_as_well_as_by_scikit_learn(n_patients: int, seed: int) -> None:
    table = cohort(n_patients, seed)
    ours = folds.kfold(table, seed=seed, balance=("label",))
    test = ours.table[ours.table["part"] == "test"].set_index("slide_id")["fold"]
    theirs = pd.Series(-1, index=table["slide_id"])
    splitter = StratifiedGroupKFold(5)
    for fold, (_, rows) in enumerate(
        splitter.split(table, table["label"], groups=table["group_id"])
    ):
        theirs.iloc[rows] = fold

    def deviation(fold_of: pd.Series) -> float:
        shares = pd.crosstab(fold_of.loc[table["slide_id"]].to_numpy(), table["label"].to_numpy())
        return float((100 * (shares / shares.sum() - 0.2)).pow(2).to_numpy().sum())

    # Squared points over folds and classes; one slide of the rarest class is the tolerance.
    slide = 100 / table["label"].value_counts().min()
    assert deviation(test) <= deviation(theirs) + slide**2


def test_sites_and_tiles_are_balanced_on_request() -> None:
    table = cohort(300, 1)
    plain = splitting.balance_table(folds.kfold(table, balance=("label",)))
    both = splitting.balance_table(folds.kfold(table, balance=("label", "site", "tiles")))
    test_plain, test_both = (t[t["part"] == "test"] for t in (plain, both))
    assert test_both["site_deviation_points"].max() < test_plain["site_deviation_points"].max() / 2
    tiles = test_both["n_tiles"] / table["n_tiles"].sum()
    assert (tiles - 0.2).abs().max() < 0.01


def test_balance_records_count_what_the_table_says() -> None:
    table = cohort()
    split = folds.kfold(table, folds=3)
    merged = split.table.merge(table[["slide_id", "label", "n_tiles", "site_id"]], on="slide_id")
    assert len(split.meta["balance"]) == 9
    for record in split.meta["balance"]:
        rows = merged[(merged["fold"] == record["fold"]) & (merged["part"] == record["part"])]
        assert record["n_slides"] == len(rows)
        assert record["n_tiles"] == rows["n_tiles"].sum()
        assert record["n_groups"] == rows["group_id"].nunique()
        assert record["n_sites"] == rows["site_id"].nunique()
        for name, count in record["classes"].items():
            assert count == (rows["label"] == name).sum()
    flat = splitting.balance_table(split)
    assert {"fold", "part", "class a", "class b", "class c"} <= set(flat.columns)


def test_floor_is_the_unavoidable_part() -> None:
    rows = [("g0", "a")] * 6 + [(f"g{i}", "a") for i in range(1, 5)]
    rows += [(f"h{i}", "b") for i in range(10)]
    table = pd.DataFrame(rows, columns=["group_id", "label"])
    table["slide_id"] = [f"s{i}" for i in range(len(table))]
    split = folds.kfold(table, folds=5)
    assert split.meta["floor"] == {"a": pytest.approx(60 - 20), "b": 0}


def test_validation_has_about_its_share() -> None:
    table = cohort(200)
    for record in folds.kfold(table, val_share=0.25).meta["balance"]:
        if record["part"] == "val":
            assert record["n_slides"] / (0.8 * len(table)) == pytest.approx(0.25, abs=0.02)


def test_a_rare_class_is_never_tested_without_training() -> None:
    table = cohort(30)
    rare = pd.DataFrame(
        {"slide_id": ["x", "y"], "patient_id": ["x", "y"], "group_id": ["x", "y"], "label": "rare"}
    ).assign(site_id="00", n_tiles=10)
    split = folds.kfold(pd.concat([table, rare]), folds=5)
    for fold in range(5):
        parts = splitting.parts(split, fold)
        in_test = {"x", "y"} & set(parts["test"])
        assert len(in_test) <= 1
        assert {"x", "y"} & set(parts["train"])
    assert any("'rare' has 2 group(s)" in note for note in split.meta["warnings"])
    assert any("'rare' is missing from the test part" in note for note in split.meta["warnings"])


def test_group_of_several_classes_is_counted_and_told() -> None:
    split = folds.kfold(cohort(60, 3))
    assert any("slides of several classes" in note for note in split.meta["warnings"])


# --- units ---------------------------------------------------------------------------------


def test_regroup_takes_the_closure_of_patient_and_site() -> None:
    table = pd.DataFrame(
        {
            "slide_id": ["1", "2", "3", "4", "5"],
            "patient_id": ["p", "p", "q", "r", "r"],
            "site_id": ["NA", "05", "05", "3E", "3E"],
            "label": list("aabba"),
        }
    )
    assert folds.regroup(table, "slide")["group_id"].tolist() == list("12345")
    assert folds.regroup(table, "patient")["group_id"].tolist() == list("ppqrr")
    # Patient p ties NA to 05, which holds q.
    assert folds.regroup(table, "site")["group_id"].tolist() == ["05", "05", "05", "3E", "3E"]
    linked = table.assign(group_id=["u", "u", "v", "v", "v"])
    assert folds.regroup(linked, "patient")["group_id"].nunique() == 2


def test_unit_is_recorded_and_checked() -> None:
    table = cohort()
    assert folds.kfold(table).meta["unit"] == "patient"
    by_slide = folds.regroup(table, "slide")
    assert folds.kfold(by_slide).meta["unit"] == "slide"
    assert folds.kfold(folds.regroup(cohort(60, n_sites=9), "site")).meta["unit"] == "site"
    with pytest.raises(InputError, match="do not keep every patient whole"):
        folds.kfold(by_slide, unit="patient")


# --- requests that cannot be met -------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: folds.kfold(t, folds=41), "40 group.* 41 folds"),
        (lambda t: folds.kfold(t, folds=1), "at least 2"),
        (lambda t: folds.kfold(t, val_share=0.0), "between 0 and 1"),
        (lambda t: folds.kfold(t.assign(label="a")), "two classes"),
        (lambda t: folds.kfold(t, balance=("tissue",)), "columns that begin with .tissue:."),
        (lambda t: folds.kfold(t, balance=("lable",)), "did you mean 'label'"),
        (lambda t: folds.kfold(t.assign(site_id=None), balance=("site",)), "no slide has one"),
        (lambda t: folds.holdout(t, ratios=(0.7, 0.2, 0.2)), "sum of 1"),
        (lambda t: folds.holdout(t, ratios=(0.8, 0.2)), "three positive shares"),
        (lambda t: folds.kfold(pd.concat([t, t.head(1)])), "unique"),
        (lambda t: folds.kfold(t.assign(group_id=None)), "no group_id"),
        (lambda t: folds.kfold(t.assign(label=t["label"].where(t.index > 0))), "1 of .* no label"),
        (lambda t: folds.regroup(t.assign(site_id=None), "site"), "needs site_id"),
        (lambda t: folds.regroup(t, "pateint"), "did you mean 'patient'"),
    ],
)
def test_bad_requests_say_what_is_wrong(call: Builder, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(cohort())


@pytest.mark.parametrize(("build", "count"), [(folds.kfold, 1), (folds.holdout, 2)])
def test_a_class_with_too_few_groups_is_named_with_a_way_out(build: Builder, count: int) -> None:
    table = cohort()
    table.loc[table.index[-1], ["group_id", "label", "patient_id"]] = ["x", "rare", "x"]
    if count == 2:
        table.loc[table.index[-2], ["group_id", "label", "patient_id"]] = ["y", "rare", "y"]
    with pytest.raises(InputError, match=rf"'rare' has {count} group.*merge it.*data\.classes"):
        build(table)


def test_nothing_left_to_validate_is_an_error() -> None:
    table = pd.DataFrame(
        {"slide_id": list("1234"), "group_id": list("1234"), "label": list("aabb")}
    )
    with pytest.raises(InputError, match="no group is left to validate"):
        folds.kfold(table, folds=2)


# --- check, save, load -----------------------------------------------------------------------


def test_check_raises_on_planted_faults() -> None:
    table = cohort()
    split = folds.kfold(table)

    first = split.table.iloc[[0]]
    both = first.assign(part="val" if first["part"].item() != "val" else "train")
    with pytest.raises(NegativeVerdictError, match=r"slide .* is in 2 parts"):
        splitting.check(replace(split, table=pd.concat([split.table, both])), table)

    counts = table["group_id"].value_counts()
    patient = counts.index[counts > 1][0]
    slide = table.loc[table["group_id"] == patient, "slide_id"].iloc[0]
    cut = split.table.copy()
    row = cut.index[(cut["slide_id"] == slide) & (cut["part"] == "test")][0]
    cut.loc[row, "part"] = "train"
    with pytest.raises(NegativeVerdictError, match=rf"group '{patient}' is in 2 parts"):
        splitting.check(replace(split, table=cut), table)

    with pytest.raises(NegativeVerdictError, match="tested 0 times"):
        splitting.check(replace(split, table=split.table[split.table["fold"] > 0]), table)
    with pytest.raises(InputError, match="other slides"):
        splitting.check(split, table.iloc[1:])


def test_check_believes_the_slide_table_and_not_the_split() -> None:
    table = cohort()
    split = folds.kfold(folds.regroup(table, "slide"))
    with pytest.raises(NegativeVerdictError, match="leak: group"):
        splitting.check(split, table)


def test_saved_split_reads_back(tmp_path: Path) -> None:
    table = cohort()
    split = folds.kfold(table, seed=4)
    splitting.save(split, tmp_path / "split.csv", {"identity": "abc"})
    again = splitting.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, split.table, check_dtype=False)
    assert again.table["slide_id"].iloc[0] == "000-0"  # leading zeros survive
    assert again.meta == json.loads(json.dumps(split.meta))
    assert again.digest == split.digest
    assert json.loads((tmp_path / "split.json").read_text())["digests"] == {"identity": "abc"}
    splitting.check(again, table)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("slide_id,group_id,fold,part", "slide_id,group_id,fold,portion", "no column 'part'"),
        (",0,test", ",0,tset", "did you mean 'test'"),
        (",0,test", ",zero,test", "a number from 0"),
    ],
)
def test_damaged_split_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    splitting.save(folds.kfold(cohort()), tmp_path / "split.csv", {})
    path = tmp_path / "split.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=words):
        splitting.load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        splitting.load(tmp_path / "nowhere")


def test_unknown_fold() -> None:
    with pytest.raises(InputError, match="folds 0 to 4"):
        splitting.parts(folds.kfold(cohort()), 5)
