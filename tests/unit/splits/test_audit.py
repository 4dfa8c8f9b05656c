from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splits import folds, formats
from splits.audit import audit, summarise
from splits.errors import InputError

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"


def cohort(n_patients: int = 24, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (f"s{patient:02d}{slide}", f"p{patient:02d}", f"0{patient % 4}", "ab"[patient % 2])
        for patient in range(n_patients)
        for slide in range(int(rng.integers(2, 4)))
    ]
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "site_id", "label"])
    return table.assign(group_id=table["patient_id"])


def tiles_of(slides: pd.DataFrame) -> pd.DataFrame:
    rows = [
        (f"{slide}/{tile}.png", slide, f"hash-{slide}-{tile}")
        for slide in slides["slide_id"]
        for tile in range(3)
    ]
    return pd.DataFrame(rows, columns=["tile_id", "slide_id", "sha256"])


def of_kind(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [finding for finding in result["findings"] if finding["kind"] == kind]


def pair_across(split: pd.DataFrame, slides: pd.DataFrame) -> tuple[str, str]:
    """A train slide and a test slide of fold 0."""
    fold = split[split["fold"] == 0]
    return tuple(fold.loc[fold["part"] == part, "slide_id"].min() for part in ("train", "test"))


@pytest.fixture
def slides() -> pd.DataFrame:
    return cohort()


@pytest.fixture
def split(slides: pd.DataFrame) -> pd.DataFrame:
    return folds.kfold(slides, folds=4).table


def test_a_clean_split_is_clean_and_the_result_is_json(
    split: pd.DataFrame, slides: pd.DataFrame
) -> None:
    result = audit(split, slides, tiles_of(slides))
    assert result["verdict"] == "clean"
    # Every site of this cohort holds one class, and sites are not what the split keeps whole.
    assert {f["kind"] for f in result["findings"]} <= {"shared_site", "site_of_one_class"}
    assert summarise(json.loads(json.dumps(result))).startswith("clean: ")
    assert "patient_id from the slide table" in result["had"]


def test_a_hundred_clean_splits_raise_no_alarm() -> None:
    for seed in range(100):
        table = cohort(10 + seed % 7, seed)
        rng = np.random.default_rng(seed)
        part = {
            group: rng.choice(["train", "val", "test"]) for group in sorted(set(table["group_id"]))
        }
        dealt = table[["slide_id"]].assign(part=table["group_id"].map(part))
        result = audit(dealt, table, tiles_of(table))
        assert result["verdict"] == "clean", summarise(result)


def test_a_slide_on_both_sides(split: pd.DataFrame) -> None:
    planted = split[split["fold"] == 2].iloc[[0]]
    other = "test" if planted["part"].item() != "test" else "val"
    result = audit(pd.concat([split, planted.assign(part=other)]))
    (finding,) = of_kind(result, "shared_slide")
    assert finding["severity"] == "leak"
    assert finding["fold"] == 2
    assert finding["ids"] == [planted["slide_id"].item()]
    assert set(finding["parts"]) == {planted["part"].item(), other}
    assert result["verdict"] == "leak"
    assert "shared slide (1)" in summarise(result)


@settings(max_examples=30, deadline=None)
@given(row=st.integers(0, 10**6), part=st.sampled_from(["train", "val", "test"]))
def test_any_moved_slide_is_found_with_its_patient(row: int, part: str) -> None:
    slides = cohort()
    split = folds.holdout(slides).table
    row %= len(split)
    moved = split.assign(part=split["part"].where(split.index != row, part))
    is_leak = split.loc[row, "part"] != part  # every patient has two slides or more
    result = audit(moved, slides)
    assert result["verdict"] == ("leak" if is_leak else "clean")
    for kind in ("shared_patient", "shared_group"):
        ids = [name for finding in of_kind(result, kind) for name in finding["ids"]]
        assert ids == ([split.loc[row, "group_id"]] if is_leak else [])


def test_a_shared_patient_is_judged_by_the_unit(slides: pd.DataFrame) -> None:
    by_slide = folds.regroup(slides, "slide")
    split = folds.holdout(by_slide).table
    assert audit(split, by_slide, unit="patient")["verdict"] == "leak"
    result = audit(split, by_slide, unit="slide")
    assert result["verdict"] == "clean"
    assert {finding["severity"] for finding in of_kind(result, "shared_patient")} == {"warning"}


def test_a_shared_site_is_a_note_unless_sites_are_the_unit(
    split: pd.DataFrame, slides: pd.DataFrame
) -> None:
    notes = of_kind(audit(split, slides), "shared_site")
    assert {finding["severity"] for finding in notes} == {"note"}
    assert notes[0]["ids"] == ["00", "01", "02", "03"]
    assert audit(split, slides, unit="site")["verdict"] == "leak"
    by_site = folds.regroup(cohort().assign(site_id=lambda t: "t" + t["patient_id"].str[1:2]
                            + t["patient_id"].str[2:].radd("-")), "site")  # fmt: skip
    assert audit(folds.holdout(by_site).table, by_site, unit="site")["verdict"] == "clean"


def test_a_group_that_is_no_patient(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    first, second = pair_across(split, slides)
    tied = slides.assign(
        group_id=slides["group_id"].where(~slides["slide_id"].isin([first, second]), "tied")
    )
    result = audit(split, tied)
    assert "tied" in {name for f in of_kind(result, "shared_group") for name in f["ids"]}
    assert result["verdict"] == "leak"
    assert not of_kind(result, "shared_patient")


def test_identical_pixels(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    tiles = tiles_of(slides)
    first, second = pair_across(split, slides)
    for slide in (first, second):
        tiles.loc[tiles["tile_id"] == f"{slide}/1.png", "sha256"] = "twin"
    result = audit(split, slides, tiles)
    findings = of_kind(result, "identical_pixels")
    assert result["verdict"] == "leak"
    assert all(finding["ids"] == ["twin"] for finding in findings)
    assert f"train ({first}/1.png)" in findings[0]["evidence"][0]
    assert f"test ({second}/1.png)" in findings[0]["evidence"][0]
    assert audit(split, slides, tiles, blank={"twin"})["verdict"] == "clean"

    # An image that is in many slides is graded down: most likely a blank tile.
    tiles.loc[tiles["tile_id"].str.endswith("/2.png"), "sha256"] = "white"
    tiles.loc[tiles["sha256"] == "twin", "sha256"] = "white"
    result = audit(split, slides, tiles)
    assert result["verdict"] == "clean"
    assert {f["severity"] for f in of_kind(result, "identical_pixels")} == {"warning"}


def test_copies_within_a_slide_are_no_leak(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    tiles = tiles_of(slides).assign(sha256=lambda table: table["slide_id"])
    assert audit(split, slides, tiles)["verdict"] == "clean"


def test_planted_twins_are_all_found() -> None:
    slides = cohort(200)
    split = folds.holdout(slides).table
    tiles = tiles_of(slides)
    part = split.set_index("slide_id")["part"]
    rng = np.random.default_rng(0)
    train, test = (
        tiles.index[tiles["slide_id"].map(part) == name].to_numpy() for name in ("train", "test")
    )
    n_twins = max(1, len(tiles) // 200)
    sources = rng.choice(train, n_twins, replace=False)
    copies = rng.choice(test, n_twins, replace=False)
    tiles.loc[copies, "sha256"] = tiles.loc[sources, "sha256"].to_numpy()
    (finding,) = of_kind(audit(split, slides, tiles), "identical_pixels")
    assert finding["ids"] == sorted(tiles.loc[sources, "sha256"])


def test_tiles_dealt_at_random_share_their_slides(slides: pd.DataFrame) -> None:
    tiles = tiles_of(slides)
    rng = np.random.default_rng(0)
    dealt = tiles[["tile_id"]].assign(part=rng.choice(["train", "test"], len(tiles)))
    result = audit(dealt, slides, tiles)
    truth = dealt.assign(slide=tiles["slide_id"]).groupby("slide")["part"].nunique()
    assert of_kind(result, "shared_slide")[0]["ids"] == sorted(truth.index[truth > 1])
    assert not of_kind(result, "shared_tile")
    twice = pd.concat([dealt, dealt.iloc[[0]].assign(part="val")])
    (finding,) = of_kind(audit(twice, slides, tiles), "shared_tile")
    assert finding["ids"] == [dealt["tile_id"].iloc[0]]


def test_class_missing_in_a_part(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    label = split["slide_id"].map(slides.set_index("slide_id")["label"])
    gone = (split["fold"] == 1) & (split["part"] == "val") & (label == "b")
    (finding,) = of_kind(audit(split[~gone], slides), "class_missing")
    assert (finding["ids"], finding["parts"], finding["fold"]) == (["b"], ["val"], 1)
    assert finding["severity"] == "warning"


def test_tested_twice_or_never(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    test = split["part"] == "test"
    name = split.loc[test & (split["fold"] == 0), "slide_id"].iloc[0]
    never = audit(
        split.assign(part=split["part"].where(~test | (split["slide_id"] != name), "val"))
    )
    assert of_kind(never, "never_tested")[0]["ids"] == [name]
    again = split.assign(
        part=split["part"].where((split["slide_id"] != name) | (split["fold"] != 1), "test")
    )
    assert of_kind(audit(again), "tested_twice")[0]["ids"] == [name]
    assert {f["severity"] for f in of_kind(audit(again), "tested_twice")} == {"warning"}
    (note,) = of_kind(audit(again, claims="monte-carlo"), "tested_twice")
    assert note["severity"] == "note"
    assert not of_kind(audit(split), "tested_twice") + of_kind(audit(split), "never_tested")
    assert not of_kind(audit(split[split["fold"] == 0]), "never_tested")


def test_label_conflicts(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    other = slides.assign(label=slides["label"].where(slides.index != 0, "z"))
    (finding,) = of_kind(audit(split, other), "label_conflict")
    assert (finding["level"], finding["ids"]) == ("patient", ["p00"])
    assert finding["evidence"] == ["p00: a, z"]
    tiles = tiles_of(slides).assign(slide_label="a")
    found = of_kind(audit(split, slides, tiles), "label_conflict")
    expected = sorted(slides.loc[slides["label"] == "b", "slide_id"])
    assert next(f for f in found if f["level"] == "slide")["ids"] == expected


def test_slides_that_only_one_side_knows(split: pd.DataFrame, slides: pd.DataFrame) -> None:
    result = audit(split[split["slide_id"] != "s000"], slides[slides["slide_id"] != "s010"])
    assert of_kind(result, "not_in_split")[0]["ids"] == ["s000"]
    assert of_kind(result, "not_in_table")[0]["ids"] == ["s010"]


def test_a_split_of_patients_is_joined_with_its_slides(slides: pd.DataFrame) -> None:
    patients = sorted(slides["patient_id"].unique())
    table = pd.DataFrame({"patient_id": [*patients, "ghost"], "fold": 0, "part": "train"})
    table.loc[::3, "part"] = "test"
    result = audit(table, slides)
    assert result["verdict"] == "clean"
    assert of_kind(result, "not_in_table")[0]["ids"] == ["ghost"]
    again = pd.concat([table, pd.DataFrame({"patient_id": ["p00"], "fold": 0, "part": "val"})])
    leak = audit(again, slides)
    assert of_kind(leak, "shared_patient")[0]["ids"] == ["p00"]
    assert of_kind(leak, "shared_slide")[0]["ids"] == sorted(
        slides.loc[slides["patient_id"] == "p00", "slide_id"]
    )


def test_patients_come_from_names_where_nothing_else_says() -> None:
    names = [f"TCGA-33-45{patient}-01Z-00-DX{k}" for patient in (47, 83) for k in (1, 2)]
    table = pd.DataFrame({"slide_id": names, "part": ["train", "test", "train", "train"]})
    result = audit(table)
    assert of_kind(result, "shared_patient")[0]["ids"] == ["TCGA-33-4547"]
    assert any("names of 4 of 4" in line for line in result["had"])
    silent = audit(table.assign(slide_id=["a", "b", "c", "d"]))
    assert silent["verdict"] == "clean"
    assert any("no patient_id for 4 slide(s)" in line for line in silent["had"])


def test_empty_ids_are_unknown_and_na_is_an_id() -> None:
    table = pd.DataFrame({"slide_id": list("abcd"), "part": ["train", "test"] * 2})
    assert audit(table.assign(patient_id=""))["verdict"] == "clean"
    assert audit(table.assign(patient_id="NA"))["verdict"] == "leak"


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        ({"slide_id": ["a"]}, {}, "needs part"),
        ({"part": ["train"]}, {}, "one of slide_id"),
        ({"slide_id": ["a"], "part": ["trian"]}, {}, "did you mean 'train'"),
        ({"slide_id": ["a"], "part": ["train"]}, {"unit": "slid"}, "did you mean 'slide'"),
        ({"slide_id": ["a"], "part": ["train"]}, {"claims": "k-fold"}, "did you mean 'kfold'"),
    ],
)
def test_bad_input(table: dict[str, list[str]], options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        audit(pd.DataFrame(table), **options)


# --- real lists ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dataset1_multi_classification_pathologic_stage", 3),
        ("dataset3_binary_classification_treatment_type", 2),
        ("dataset4_regression_percent_tumor_cells", 5),
        ("dataset5_multi_classification_primary_diagnosis", 4),
    ],
)
@pytest.mark.parametrize("source", ["column", "names"])
def test_published_tables_with_patients_on_both_sides(name: str, count: int, source: str) -> None:
    path = LISTS / f"pathbench_patient_leak/pathbench/test/{name}.csv"
    if not path.exists():
        pytest.skip("../shared/data is not here")
    table = formats.read(path).table
    result = audit(table if source == "column" else table.drop(columns="patient_id"))
    (finding,) = of_kind(result, "shared_patient")
    assert len(finding["ids"]) == count
    assert result["verdict"] == "leak"


@pytest.mark.parametrize(
    ("task", "labels", "n_tested"),
    [
        ("task_1_tumor_vs_normal_75", "tumor_vs_normal", 322),
        ("task_2_tumor_subtyping_50", "tumor_subtyping", 328),
    ],
)
def test_clam_examples(task: str, labels: str, n_tested: int) -> None:
    folder = LISTS / "clam_splits"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    slides = pd.read_csv(
        folder / f"dataset_csv/{labels}_dummy_clean.csv", dtype=str, keep_default_na=False
    ).rename(columns={"case_id": "patient_id"})
    result = audit(formats.read(folder / "splits" / task).table, slides)
    assert result["verdict"] == "clean"
    assert of_kind(result, "tested_twice")
    never = of_kind(result, "never_tested")[0]["ids"]
    assert len(slides) - len(never) == n_tested


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_fold_without_a_part_is_told(split: pd.DataFrame, part: str) -> None:
    without = split[(split["fold"] != 1) | (split["part"] != part)]
    (found,) = of_kind(audit(without), "empty_part")
    assert (found["severity"], found["ids"], found["parts"]) == ("warning", ["1"], [part])
    assert not of_kind(audit(split), "empty_part")
