"""What people's split files look like: ragged, reordered, re-saved by a spreadsheet, damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splits import audit, formats
from splits.errors import InputError

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"
ABC = {(0, "train"): "a d", (0, "val"): "b", (0, "test"): "c"}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _parts(split: formats.ForeignSplit, column: str = "slide_id") -> dict[tuple[int, str], str]:
    rows = split.table
    return {
        (int(fold), str(part)): " ".join(ids)
        for (fold, part), ids in rows.groupby(["fold", "part"])[column]
    }


@pytest.mark.parametrize(
    "text",
    [
        ",train,val,test\n0,a,b,c\n1,d,,\n",
        ",train,val,test\n0,a,b,c\n1,d\n",  # rows cut short
        ",test,train,val\n0,c,a,b\n1,,d,\n",
        "train,val,test\na,b,c\nd,,\n",
        "index,Train,Valid,TEST\n0,a,b,c\n1,d,,\n",
        ",Unnamed: 0,train,val,test\n0,0,a,b,c\n1,1,d,,\n",
        "\ufeff;train;val;test\r\n0;a;b;c\r\n1;d;;\r\n;;;\r\n\r\n",
        "sep=;\n;train;val;test\n0;a;b;c\n1;d;;\n",
        "\ttrain\tval\ttest\n0\ta\tb\tc\n1\td\t\t\n\t\t\t\n",
        "\n,train,val,test\n0,a,b,c\n1,d,,\n2,,,\n3,,,\n",
        ",train,val,test\na,True,False,False\nb,FALSE,TRUE,FALSE\nc,False,False,true\n"
        "d,True,False,False\n",
        ",Unnamed: 0,train,val,test\n0,a,True,False,False\n1,b,False,True,False\n"
        "2,c,False,False,True\n3,d,True,False,False\n",
        "slide_id,part\na,TRAIN\nd,Training\nb, validation \nc,Test\n,\n",
        "slide_path,train,val,test\na,True,False,False\nb,False,True,False\nc,False,False,True\n"
        "d,True,False,False\n",
    ],
)
def test_one_split_in_many_hands(tmp_path: Path, text: str) -> None:
    assert _parts(formats.read(_write(tmp_path / "splits_0.csv", text))) == ABC


def test_ids_with_separators_quotes_and_accents(tmp_path: Path) -> None:
    text = ',train,val,test\n0,"a,1","b;2","c ""x"""\n1,é 4,,\n'
    found = formats.read(_write(tmp_path / "splits_0.csv", text)).table
    assert sorted(found["slide_id"]) == ["a,1", "b;2", 'c "x"', "é 4"]


def test_ids_of_digits_are_no_counts(tmp_path: Path) -> None:
    text = ",train,val,test\n0,001,12,3\n1,4,,\n"
    assert _parts(formats.read(_write(tmp_path / "splits_0.csv", text))) == {
        (0, "train"): "001 4", (0, "val"): "12", (0, "test"): "3",
    }  # fmt: skip


def test_a_slide_again_in_its_part_is_said_and_one_in_two_parts_is_kept(tmp_path: Path) -> None:
    text = ",train,val,test\n0,a,b,c\n1,a,,a\n"
    found = formats.read(_write(tmp_path / "splits_0.csv", text))
    assert _parts(found) == {(0, "train"): "a", (0, "val"): "b", (0, "test"): "a c"}
    assert found.notes == ("1 row(s) repeat another row and were counted once",)
    assert audit.audit(found.table)["findings"][0]["ids"] == ["a"]


def test_both_files_of_a_clam_fold_must_agree(tmp_path: Path) -> None:
    _write(tmp_path / "splits_0.csv", ",train,val,test\n0,a,b,c\n1,d,,\n")
    bools = ",train,val,test\na,True,False,False\nb,False,True,False\nc,False,False,True\n"
    _write(tmp_path / "splits_0_bool.csv", bools + "d,True,False,False\ne,False,False,False\n")
    found = formats.read(tmp_path)
    assert _parts(found) == ABC
    assert found.formats == ("CLAM", "CLAM bool")
    _write(tmp_path / "splits_0_bool.csv", bools + "d,False,False,True\n")
    with pytest.raises(InputError, match=r"disagree about 'd': train in the first, test in the"):
        formats.read(tmp_path)
    _write(tmp_path / "splits_0_bool.csv", bools)
    with pytest.raises(InputError, match=r"disagree about 'd': train in the first, no part in"):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("splits_0.csv", b",train,train,test\n0,a,b,c\n", "two columns 'train'"),
        ("splits_0.csv", b",train,Train,test\n0,a,b,c\n", "two columns 'Train'"),
        ("splits_0.csv", b",train,val,valid,test\n0,a,b,c,d\n", "two columns for val: val and val"),
        ("splits_0.csv", b",train,val,test\n0,a,b,c,d\n", "has 5 cells, the header 4"),
        ("splits_0.csv", b',train,val,test\n0,"a,b,c\n', "not a readable table"),
        ("splits_0.csv", b",train,val,test\n", "holds no slide ids"),
        ("splits_0.csv", b"train,test\nTrue,False\n", "does not name"),
        ("empty.csv", b"", "is empty"),
        ("blank.csv", b"\n \n", "is empty"),
        ("split.csv", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "cannot be read as text"),
        ("book.csv", b"PK\x03\x04rest", "workbook"),
        ("splits.json", b'{"model": "abmil"}', "no split file that is recognised"),
        ("splits.json", b"[1, 2]", "no split file that is recognised"),
        ("splits.json", b'[{"strategy": "fixed", "patients": {"p": 1}, "tfrecords": {}}]',
         "no split file that is recognised"),
        ("splits.json", b'{"splits": [{"train_patients": "abc", "test_patients": []}]}', "a list"),
        ("splits.json", b'{"splits": [{"train_patients": [null], "test_patients": []}]}', "text"),
        ("splits.json", b'{"splits": [{"train_patients": ["a"], "test_patients": [], '
         b'"holdout_patients": ["b"]}]}', "unknown part 'holdout'"),
        ("table.csv", b"slide,CV3_age_standard\na,1\nb,x\n", "holds 'x', not the number"),
        ("table.csv", b"slide_id,part,fold\na,train,\n", "a number from 0"),
    ],
)  # fmt: skip
def test_a_damaged_file_gets_one_clear_error(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        formats.read(path)


def test_ids_that_a_json_file_writes_as_numbers(tmp_path: Path) -> None:
    document = {"splits": [{"train_patients": [1, "2"], "test_patients": [3], "val_patients": []}]}
    found = formats.read(_write(tmp_path / "splits.json", json.dumps(document)))
    assert _parts(found, "patient_id") == {(0, "train"): "1 2", (0, "test"): "3"}


def _slideflow(strategy: str, tfrecords: dict[str, list[str]]) -> dict[str, Any]:
    patients = {
        patient: {"outcome_label": 1, "site": "NA", "slides": [slide]}
        for patient, slide in (("p1", "a"), ("p2", "b"), ("p3", "c"))
    }
    return {"strategy": strategy, "patients": patients, "tfrecords": tfrecords}


def test_slideflow_logs_several_splits(tmp_path: Path) -> None:
    document = [
        _slideflow("fixed", {"validation": ["a"], "training": ["b", "c"]}),
        _slideflow("k-fold-preserved-site", {"k-fold-1": ["a"], "k-fold-2": ["b", "c"]}),
    ]
    path = _write(tmp_path / "splits.json", json.dumps(document))
    fixed, folds = formats.read_all(path)
    assert (fixed.name, fixed.unit) == ("0 fixed", None)
    assert _parts(fixed) == {(0, "val"): "a", (0, "train"): "b c"}
    assert (folds.name, folds.unit) == ("1 k-fold-preserved-site", "site")
    assert _parts(folds) == {
        (1, "test"): "a", (1, "train"): "b c", (2, "test"): "b c", (2, "train"): "a",
    }  # fmt: skip
    assert "read as the test part" in folds.notes[0]
    known = folds.table.drop_duplicates("slide_id")[["slide_id", "patient_id", "site_id", "label"]]
    assert known.to_numpy().tolist() == [
        ["a", "p1", "NA", "1"], ["b", "p2", "NA", "1"], ["c", "p3", "NA", "1"],
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"2 splits.*0 fixed, 1 k-fold-preserved-site"):
        formats.read(path)
    _write(path, json.dumps(document[:1]))
    assert formats.read(path).name == ""


def test_mil_baseline_with_floats_of_ragged_columns(tmp_path: Path) -> None:
    header = "train_slide_path,train_label,val_slide_path,val_label,test_slide_path,test_label\n"
    for fold, rows in ((1, "/f/a.pt,1,/f/b.pt,0.0,/f/c.pt,1.0\n/f/d.pt,0,,,,\n"), (2, "a,1,,,b,0")):
        _write(tmp_path / f"Total_5-fold_X_{fold}fold.csv", header + rows)
    found = formats.read(tmp_path)
    assert found.formats == ("MIL_BASELINE",)
    assert _parts(found) == {
        (1, "train"): "/f/a.pt /f/d.pt", (1, "val"): "/f/b.pt", (1, "test"): "/f/c.pt",
        (2, "train"): "a", (2, "test"): "b",
    }  # fmt: skip
    assert set(found.table["label"]) == {"0", "1"}
    assert found.notes == ("2 label(s) written as floats were read as whole numbers",)


def test_eva_names_images_and_their_slides(tmp_path: Path) -> None:
    text = "origin,embeddings,target,split,wsi_id\nx/1.png,1.pt,0,train,a\nx/2.png,2.pt,1,val,b\n"
    found = formats.read(_write(tmp_path / "manifest.csv", text))
    assert found.formats == ("eva",)
    assert _parts(found) == {(0, "train"): "a", (0, "val"): "b"}
    assert _parts(found, "tile_id") == {(0, "train"): "x/1.png", (0, "val"): "x/2.png"}
    text = "origin,embeddings,target,split\n1.png,1.pt,0,train\n2.png,2.pt,1,test\n"
    found = formats.read(_write(tmp_path / "manifest.csv", text))
    assert "slide_id" not in found.table.columns
    assert _parts(found, "tile_id") == {(0, "train"): "1.png", (0, "test"): "2.png"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("slide,patient,category,dataset\na,p,x,train\nb,q,y,test\n", "PathBench"),
        ("slide,patient,dataset,value\na,p,train,1\nb,q,test,2\n", "PathBench"),
        ("patient,slide,dataset,site\np,a,train,NA\nq,b,test,05\n", "slideflow"),
        ("bag_name,split\na,train\nb,test\n", "torchmil"),
        ("slide_id,group_id,fold,part\na,g,0,train\nb,h,0,test\n", "slidewise"),
        ("wsi,partition\na,train\nb,test\n", "table"),
        ("filename,split\na,train\nb,test\n", "table"),
    ],
)
def test_long_tables_are_told_apart(tmp_path: Path, text: str, kind: str) -> None:
    found = formats.read(_write(tmp_path / "x.csv", text))
    assert found.formats == (kind,)
    assert _parts(found) == {(0, "train"): "a", (0, "test"): "b"}
    if "site" in text.split("\n")[0]:
        assert found.table["site_id"].tolist() == ["NA", "05"]


def test_a_column_of_images_is_a_column_of_tiles(tmp_path: Path) -> None:
    text = "image,slide,split\nx/1.png,a,train\nx/2.png,a,test\n"
    found = formats.read(_write(tmp_path / "x.csv", text))
    assert audit.audit(found.table)["findings"][0]["kind"] == "shared_slide"
    assert _parts(found, "tile_id") == {(0, "train"): "x/1.png", (0, "test"): "x/2.png"}


def test_files_of_one_long_table_a_fold(tmp_path: Path) -> None:
    for fold, (one, other) in enumerate((("a", "b"), ("b", "a"))):
        text = f"bag_name,split\n{one},train\n{other},test\n"
        _write(tmp_path / f"folders/fold_{fold}/splits.csv", text)
        _write(tmp_path / f"names/splits_{fold}.csv", text)
        _write(tmp_path / f"others/cohort{fold}_pick.csv", text)
    for name in ("folders", "names"):
        assert _parts(formats.read(tmp_path / name)) == {
            (0, "train"): "a", (0, "test"): "b", (1, "train"): "b", (1, "test"): "a",
        }  # fmt: skip
    with pytest.raises(InputError, match="give the files of one split"):
        formats.read(tmp_path / "others")  # nothing says that these belong together


def _tree(root: Path, files: str) -> Path:
    for name in files.split():
        _write(root / name, name)
    return root


def test_folders_of_parts(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "Train/x/1.png Train/y/2.png valid/x/3.svs valid/y/4 test/x/5.h5 test/y/deep/6.png "
        "readme.md test/.hidden/7.png test/x/.DS_Store",
    )
    found = formats.read(root)
    assert found.formats == ("folders",)
    assert _parts(found, "tile_id") == {
        (0, "train"): "Train/x/1.png Train/y/2.png",
        (0, "val"): "valid/x/3.svs valid/y/4",
        (0, "test"): "test/x/5.h5 test/y/deep/6.png",
    }
    assert found.table["label"].tolist() == ["x", "y", "x", "y", "x", "y"]
    assert found.notes == ("1 file(s) lie in no folder of a part",)


def test_folders_that_are_no_classes_give_no_label(tmp_path: Path) -> None:
    for number, files in enumerate(
        ("train/s1/1.png train/s2/2.png test/s3/3.png", "train/1 val/2")
    ):
        found = formats.read(_tree(tmp_path / str(number), files))
        assert "label" not in found.table.columns
    with pytest.raises(InputError, match="holds no split file"):
        formats.read(_tree(tmp_path / "one", "test/x/1.png"))
    (tmp_path / "none/train").mkdir(parents=True)
    (tmp_path / "none/test").mkdir()
    with pytest.raises(InputError, match="hold no files"):
        formats.read(tmp_path / "none")


def test_folders_of_parts_below_classes(tmp_path: Path) -> None:
    found = formats.read(_tree(tmp_path, "x/train/1.png x/test/2.png y/train/3.png y/test/4"))
    assert found.table[["tile_id", "part", "label"]].to_numpy().tolist() == [
        ["x/test/2.png", "test", "x"],
        ["x/train/1.png", "train", "x"],
        ["y/test/4", "test", "y"],
        ["y/train/3.png", "train", "y"],
    ]


def test_preserved_site_columns_are_splits_of_their_own(tmp_path: Path) -> None:
    text = (
        "slide,submitter_id,CV3_er_preserved_site,CV3_er_standard\n"
        "a,p1,1,3\nb,p2,2,1.0\nc,p3,3,2\nd,p4,,1\n"
    )
    path = _write(tmp_path / "brca_splits.csv", text)
    site, standard = formats.read_all(path)
    assert (site.name, site.unit, site.formats) == (
        "CV3_er_preserved_site", "site", ("PreservedSiteCV",),
    )  # fmt: skip
    assert _parts(site)[1, "test"] == "a"
    assert _parts(site)[1, "train"] == "b c"
    assert site.notes == ("1 row(s) have no fold and do not take part",)
    assert (standard.name, standard.unit) == ("CV3_er_standard", None)
    assert _parts(standard, "patient_id")[1, "test"] == "p2 p4"
    with pytest.raises(InputError, match="CV3_er_preserved_site, CV3_er_standard"):
        formats.read(path)
    other = _write(tmp_path / "luad_splits.csv", text)
    names = [split.name for split in formats.read_all([path, other])]
    assert names[0].endswith("brca_splits.csv CV3_er_preserved_site")
    assert len(set(names)) == 4
    table = _write(tmp_path / "table.csv", "slide_id,part\na,train\n")
    with pytest.raises(InputError, match="holds several"):
        formats.read_all([path, table])


def test_published_splits_of_sites_keep_patients_and_sites() -> None:
    files = sorted((LISTS / "preserved_site_cv/annotation_files").glob("*_splits.csv"))
    if not files:
        pytest.skip("../shared/data is not here")
    n_splits = {"site": 0, "patient": 0}
    for file in files[:1]:
        for split in formats.read_all(file):
            unit = split.unit or "patient"
            n_splits[unit] += 1
            result = audit.audit(split.table, unit=unit)
            assert result["verdict"] == "clean", (file, split.name)
    assert min(n_splits.values()) > 10


def test_published_folders_of_parts() -> None:
    root = LISTS.parent / "anonymous_course"
    if not root.is_dir():
        pytest.skip("../shared/data is not here")
    found = formats.read(root)
    assert len(found.table) == sum(1 for _ in root.rglob("*.jpg")) == 646
    assert found.table["label"].nunique() == 4
