from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from splits import slide_table
from splits.errors import InputError

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"


def _write(folder: Path, text: str) -> Path:
    path = folder / "slides.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "slide_id,patient_id,site_id,label\n05,p1,NA,x\n3E,p2,05,y\n",
        "case_id,slide_id,label,site\np1,05,x,NA\np2,3E,y,05\n",
        "PATIENT;FILENAME;TARGET;TSS\np1;05;x;NA\np2;3E;y;05\n",
        "\ufeffslide\tsubject\tdiagnosis\tinstitution\r\n05\tp1\tx\tNA\r\n3E\tp2\ty\t05\r\n",
        "patient,slide,site,category\np1,05,NA,x\np2,3E,05,y\n",
    ],
)
def test_the_usual_columns_are_known(tmp_path: Path, text: str) -> None:
    table, notes = slide_table.read(_write(tmp_path, text))
    assert table[["slide_id", "patient_id", "site_id", "label"]].to_numpy().tolist() == [
        ["05", "p1", "NA", "x"],
        ["3E", "p2", "05", "y"],
    ]
    assert notes == []


def test_what_stays_of_a_table(tmp_path: Path) -> None:
    text = (
        "slide_id,label,n_tiles,group_id,tissue:fat,stain:Dark,age\n"
        "TCGA-05-4244-01Z-00-DX1,x,3,g,0.5,1,60\nodd,y,4,g,0,2,70\n"
    )
    table, notes = slide_table.read(_write(tmp_path, text))
    assert table["n_tiles"].tolist() == [3, 4]
    assert table["tissue:fat"].tolist() == [0.5, 0.0]
    assert table["stain:dark"].tolist() == [1.0, 2.0]
    assert "age" not in table.columns
    assert table["patient_id"].tolist() == ["TCGA-05-4244", "odd"]
    assert table["site_id"].tolist()[0] == "05"
    assert table["site_id"].isna().tolist() == [False, True]
    assert notes[0].startswith("no patient_id: 1 of 2 taken from the slide's name")


def test_one_column_may_be_mapped_to_several_meanings(tmp_path: Path) -> None:
    path = _write(tmp_path, "patient,feature\n0,A\n1,B\n")
    table, _ = slide_table.read(
        path, {"slide_id": "patient", "patient_id": "patient", "label": "feature"}
    )
    assert table["slide_id"].tolist() == table["patient_id"].tolist() == ["0", "1"]


def test_a_label_may_be_missing_only_where_none_is_needed(tmp_path: Path) -> None:
    path = _write(tmp_path, "slide,ER,age\na,neg,1\nb,pos,2\nc,neg,3\nd,neg,4\n")
    with pytest.raises(InputError, match=r"it has slide, ER, age.*--columns label=ER"):
        slide_table.read(path)
    assert "label" not in slide_table.read(path, labels=False)[0].columns
    assert slide_table.read(path, {"label": "ER"})[0]["label"].tolist()[1] == "pos"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide_id,label\na,x\na,y\n", "'a' has label 'x' and 'y'"),
        ("slide_id,label\na,x\n,y\n", r"1 row\(s\) have no slide_id, the first is row 2"),
        ("slide_id,label,label\na,x,y\n", "two columns 'label'"),
        ("slide_id,class,diagnosis\na,x,y\n", "class and diagnosis could all be label"),
        ("name,label\na,x\n", "--columns slide_id=NAME"),
        ("slide_id,label,n_tiles\na,x,0\n", "n_tiles must be a number of 1 or more"),
        ("slide_id,label,tissue:fat\na,x,\n", "tissue:fat must be a number of 0 or more"),
        ("slide_id,label,tissue:fat\na,x,-1\n", "tissue:fat must be a number of 0 or more"),
        ("slide_id,label\na,x,y\n", "has 3 cells, the header 2"),
        ("", "is empty"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        slide_table.read(_write(tmp_path, text))


def test_columns_to_map_must_exist(tmp_path: Path) -> None:
    path = _write(tmp_path, "slide_id,cohort\na,x\n")
    with pytest.raises(InputError, match="did you mean 'cohort'"):
        slide_table.read(path, {"label": "cohrt"})
    with pytest.raises(InputError, match="unknown column to map"):
        slide_table.read(path, {"lable": "cohort"})


def test_damage_is_said(tmp_path: Path) -> None:
    text = "slide_id,patient_id,label\n12.0,007,x\n13.0,8,y\nNA,9,x\nNA,9,x\n"
    table, notes = slide_table.read(_write(tmp_path, text))
    assert table["slide_id"].tolist() == ["12.0", "13.0", "NA"]
    said = " | ".join(notes)
    assert "1 row(s) repeat another row" in said
    assert "floats: a spreadsheet read them as numbers, such as '12.0'" in said
    assert "missing value" in said
    assert "2 patient(s) are numbers without the leading zeros" in said


def test_published_tables_are_read_as_they_are() -> None:
    clam = LISTS / "clam_splits/dataset_csv/tumor_subtyping_dummy_clean.csv"
    if not clam.exists():
        pytest.skip("../shared/data is not here")
    table, notes = slide_table.read(clam)
    assert len(table) == pd.read_csv(clam)["slide_id"].nunique() == 500
    assert table["patient_id"].nunique() == pd.read_csv(clam)["case_id"].nunique()
    assert notes == []
    lung = LISTS / "slideflow/lung_labels.csv"
    with pytest.raises(InputError, match="--columns label=subtype"):
        slide_table.read(lung)
    table, notes = slide_table.read(lung, {"label": "subtype"})
    assert (len(table), table["site_id"].isna().sum(), notes) == (941, 0, [])
