from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from splits import folds, formats
from splits import split as splitting
from splits.errors import InputError

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"


def _parts(split: formats.ForeignSplit, column: str = "slide_id") -> dict[tuple[int, str], str]:
    rows = split.table
    return {
        (fold, part): " ".join(ids) for (fold, part), ids in rows.groupby(["fold", "part"])[column]
    }


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_our_own_split_comes_back(tmp_path: Path) -> None:
    slides = pd.DataFrame(
        {"slide_id": [f"0{i}" for i in range(12)], "label": list("ab") * 6}
    ).assign(group_id=lambda table: table["slide_id"])
    split = folds.kfold(slides, folds=3)
    splitting.save(split, tmp_path / "split.csv", {})
    for given in (tmp_path, tmp_path / "split.csv", [tmp_path / "split.csv"]):
        found = formats.read(given)
        assert found.formats == ("slidewise",)
        columns = ["slide_id", "group_id", "fold", "part"]
        ours = split.table[columns].sort_values(["fold", "slide_id"]).to_numpy().tolist()
        assert found.table[columns].to_numpy().tolist() == ours


@pytest.mark.parametrize(
    "text",
    [
        "slide_id,part\n05,train\nNA,val\n3E,test\n",
        "bag_name,split\n05,Train\nNA,valid\n3E,test\n",
        "patient,slide,dataset\np,05,training\nq,NA,validate\nr,3E,test\n",
        "slide\tsplit\tfold\n05\ttrain\t0\nNA\tval\t0\n3E\ttest\t0\n",
        "slide_id;part\n05;train\nNA;validation\n3E;testing\n",
        "\ufeffslide_id,part\r\n05,train\r\nNA,val\r\n3E,test\r\n",
    ],
)
def test_long_tables_keep_ids_as_text(tmp_path: Path, text: str) -> None:
    found = formats.read(_write(tmp_path / "splits.csv", text))
    assert _parts(found) == {(0, "train"): "05", (0, "val"): "NA", (0, "test"): "3E"}


def test_clam_ragged_columns_and_their_folds(tmp_path: Path) -> None:
    _write(tmp_path / "splits_2.csv", ",train,val,test\n0,a,b,c\n1,d,,\n")
    _write(tmp_path / "splits_10.csv", ",train,val,test\n0,c,a,b\n1,d,,\n")
    found = formats.read(tmp_path)
    assert found.formats == ("CLAM",)
    assert _parts(found) == {
        (2, "train"): "a d", (2, "val"): "b", (2, "test"): "c",
        (10, "train"): "c d", (10, "val"): "a", (10, "test"): "b",
    }  # fmt: skip


def test_clam_booleans_keep_a_slide_that_is_in_two_parts(tmp_path: Path) -> None:
    text = ",train,val,test\na,True,False,True\nb,False,True,False\nc,False,False,False\n"
    found = formats.read(_write(tmp_path / "splits_0_bool.csv", text))
    assert _parts(found) == {(0, "train"): "a", (0, "test"): "a", (0, "val"): "b"}
    assert found.notes == ("1 row(s) name no part and take part in no fold",)


def test_clam_counts_are_no_split(tmp_path: Path) -> None:
    counts = _write(tmp_path / "splits_0_descriptor.csv", ",train,val,test\nx,3,1,1\ny,2,1,1\n")
    with pytest.raises(InputError, match="class counts"):
        formats.read(counts)
    slides = _write(tmp_path / "splits_0.csv", ",train,val,test\n0,a,b,c\n")
    assert formats.read([slides, counts]).notes == (
        "splits_0_descriptor.csv holds class counts and no slides",
    )


def test_patho_bench(tmp_path: Path) -> None:
    text = (
        "case_id\tslide_id\tgrade\tfold_0\tfold_1\n"
        "p1\ts1\t0\ttrain\ttest\np2\ts2\t1\ttest\ttrain\np3\ts3\t1\t\tval\n"
    )
    found = formats.read(_write(tmp_path / "k=all.tsv", text))
    assert found.formats == ("Patho-Bench",)
    assert _parts(found) == {
        (0, "train"): "s1", (0, "test"): "s2",
        (1, "test"): "s1", (1, "train"): "s2", (1, "val"): "s3",
    }  # fmt: skip
    assert _parts(found, "patient_id")[1, "val"] == "p3"
    assert found.notes == ("1 row(s) name no part and take part in no fold",)


def test_stamp_names_patients(tmp_path: Path) -> None:
    document = {
        "splits": [
            {"train_patients": ["p1", "p2"], "test_patients": ["p3"]},
            {"train_patients": ["p3"], "test_patients": ["p1", "p2"]},
        ]
    }
    found = formats.read(_write(tmp_path / "splits.json", json.dumps(document)))
    assert found.formats == ("STAMP",)
    assert "slide_id" not in found.table.columns
    assert _parts(found, "patient_id") == {
        (0, "train"): "p1 p2", (0, "test"): "p3", (1, "train"): "p3", (1, "test"): "p1 p2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide,subtype,site\na,b,c\n", "no split file that is recognised.*STAMP"),
        # slideflow: `dataset` is the name of a project.
        ("slide,patient,dataset\na,p,TCGA\nb,q,CPTAC\n", "no split file that is recognised"),
        ("", "is empty"),
        ('{"splits": []}', "no split file that is recognised"),
        ('{"splits": [', "not a readable"),
        ("slide_id,part\na,trian\n", "unknown part 'trian'; did you mean 'train'"),
        ("slide_id,part,fold\na,train,first\n", "a number from 0"),
        ("slide_id,part\na,\n", "no row of the split names a part"),
    ],
)
def test_what_is_no_split_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        formats.read(_write(tmp_path / "table.csv", text))


def test_missing_and_mixed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        formats.read(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="no split file was given"):
        formats.read([])
    with pytest.raises(InputError, match="holds no split file"):
        formats.read(tmp_path)
    clam = _write(tmp_path / "splits_0.csv", ",train,val,test\n0,a,b,c\n")
    table = _write(tmp_path / "table.csv", "slide_id,part\na,train\n")
    with pytest.raises(InputError, match="give the files of one split"):
        formats.read([clam, table])
    with pytest.raises(InputError, match="both fold 0"):
        formats.read([clam, _copy(clam, tmp_path / "other")])


def _copy(path: Path, folder: Path) -> Path:
    folder.mkdir()
    return _write(folder / path.name, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", ["task_1_tumor_vs_normal_75", "task_2_tumor_subtyping_50"])
def test_clam_examples_say_the_same_in_both_forms(task: str) -> None:
    folder = LISTS / "clam_splits/splits" / task
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    ragged = formats.read([folder / f"splits_{k}.csv" for k in range(10)]).table
    boolean = formats.read([folder / f"splits_{k}_bool.csv" for k in range(10)]).table
    columns = ["fold", "slide_id", "part"]
    pd.testing.assert_frame_equal(ragged[columns], boolean[columns])
    for fold in range(10):  # the descriptor counts slides per class: an independent count
        counts = pd.read_csv(folder / f"splits_{fold}_descriptor.csv", index_col=0).sum()
        found = ragged[ragged["fold"] == fold]["part"].value_counts()
        assert found["val"] == counts["val"]
        assert found["test"] == counts["test"]
