"""What is written for another tool says the same when it is read again, but for what is named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from splits import folds, formats
from splits.errors import InputError

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"
NASTY = ("NA", "05", "3E", "123.0", "7", "007", "a,b", 'q "x"', "é 1", "s;1", "True", "-", "nan")
TABLES = [kind for kind in formats.WRITABLE if kind != "folders"]


def _slides(n: int = 40) -> pd.DataFrame:
    names = [*NASTY, *(f"s{i}" for i in range(n - len(NASTY)))]
    return pd.DataFrame(
        {
            "slide_id": names,
            "patient_id": [f"0{i // 2}" for i in range(n)],
            "site_id": ["NA" if i % 3 else None for i in range(n)],
            "label": ["be nign" if (i // 2) % 2 else "malignant" for i in range(n)],
        }
    )


def _split(slides: pd.DataFrame, n_folds: int, seed: int, *, val: bool = True) -> pd.DataFrame:
    """Any dealing of patients to parts, some of them in no fold, in any order of rows."""
    generator = random.Random(seed)
    parts = ("train", "val", "test") if val else ("train", "test")
    rows = []
    for fold in range(n_folds):
        dealt = {patient: generator.choice((*parts, "")) for patient in slides["patient_id"]}
        rows += [
            (slide, patient, fold, dealt[patient])
            for slide, patient in zip(slides["slide_id"], slides["patient_id"], strict=True)
        ]
    table = pd.DataFrame(rows, columns=["slide_id", "group_id", "fold", "part"])
    return table[table["part"] != ""].sample(frac=1, random_state=seed)


def _places(table: pd.DataFrame, column: str = "slide_id") -> set[tuple[str, int, str]]:
    columns = (table[column], table["fold"], table["part"])
    return {(str(name), int(fold), str(part)) for name, fold, part in zip(*columns, strict=True)}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("n_folds", "val"), [(1, True), (1, False), (3, True), (12, False)])
def test_what_is_written_is_read_again(tmp_path: Path, kind: str, n_folds: int, val: bool) -> None:  # noqa: FBT001
    slides = _slides()
    for seed in range(3):
        split = _split(slides, n_folds, seed, val=val)
        folder = tmp_path / str(seed)
        made = formats.write(split, kind, folder, slides=slides)
        assert all(file.is_file() for file in made.files)
        found = formats.read(folder)
        assert _places(formats.read(made.files).table, found.table.columns[0]) == _places(
            found.table, found.table.columns[0]
        )
        if kind == "stamp":
            assert "slides: STAMP holds patients" in made.lost[0]
            split = split.assign(patient_id=split["group_id"])
            assert _places(found.table, "patient_id") == _places(split, "patient_id")
        else:
            assert _places(found.table) == _places(split)
        said = " | ".join(made.lost)
        reads_no_val = kind in ("stamp", "torchmil")
        assert ("the validation part" in said) == (val and reads_no_val)
        assert "groups: which slides were kept together" in said


@pytest.mark.parametrize("kind", TABLES)
def test_what_a_format_keeps_comes_back_and_the_rest_is_named(tmp_path: Path, kind: str) -> None:
    slides = _slides()
    made = formats.write(_split(slides, 1, 0), kind, tmp_path / "out", slides=slides)
    found = formats.read(tmp_path / "out").table
    if kind == "stamp":
        return
    known = slides.set_index("slide_id")
    said = " | ".join(made.lost)
    for column, word in (("patient_id", "patients:"), ("site_id", "sites:"), ("label", "labels")):
        if column in found.columns:
            assert word not in said
            given = found["slide_id"].map(known[column]).fillna("").tolist()
            if column == "label" and "written as numbers" in said:
                assert "0 = be nign, 1 = malignant" in said
                given = [{"be nign": "0", "malignant": "1"}[name] for name in given]
            assert found[column].fillna("").tolist() == given
        else:
            assert word in said


def test_class_numbers_stay_numbers(tmp_path: Path) -> None:
    slides = _slides().assign(label="10")
    slides.loc[3, "label"] = "2"
    made = formats.write(_split(slides, 1, 1), "eva", tmp_path / "out", slides=slides)
    assert "numbers:" not in " ".join(made.lost)
    found = formats.read(tmp_path / "out").table
    assert set(found["label"]) <= {"10", "2"}


def test_the_files_are_those_that_the_tools_open(tmp_path: Path) -> None:
    slides = pd.DataFrame(
        {"slide_id": ["a", "b", "c"], "patient_id": ["p", "q", "r"], "label": ["x", "y", "x"]}
    )
    split = slides.assign(fold=0, part=["train", "val", "test"])
    text = {
        kind: {
            file.relative_to(tmp_path / kind).as_posix(): file.read_text(encoding="utf-8")
            for file in formats.write(split, kind, tmp_path / kind).files
        }
        for kind in TABLES
    }
    assert text["clam"] == {"splits_0.csv": ",train,val,test\n0,a,b,c\n"}
    assert text["patho-bench"] == {
        "k=all.tsv": "case_id\tslide_id\tlabel\tfold_0\n"
        "p\ta\t0\ttrain\nq\tb\t1\tval\nr\tc\t0\ttest\n"
    }
    assert json.loads(text["stamp"]["splits.json"]) == {
        "splits": [{"train_patients": ["p"], "val_patients": ["q"], "test_patients": ["r"]}]
    }
    assert text["torchmil"] == {"splits.csv": "bag_name,split\na,train\nb,val\nc,test\n"}
    assert text["slideflow"] == {
        "annotations.csv": "patient,slide,label,dataset\np,a,x,train\nq,b,y,val\nr,c,x,test\n"
    }
    assert text["mil-baseline"] == {
        "split_0fold.csv": "train_slide_path,train_label,val_slide_path,val_label,"
        "test_slide_path,test_label\na,0,b,1,c,0\n"
    }
    assert text["eva"] == {
        "manifest.csv": "origin,embeddings,target,split,wsi_id\n"
        "a,a.pt,0,train,a\nb,b.pt,1,val,b\nc,c.pt,0,test,c\n"
    }


def test_a_split_of_ours_and_a_foreign_one_are_written(tmp_path: Path) -> None:
    slides = _slides().assign(group_id=lambda table: table["patient_id"])
    split = folds.kfold(slides, folds=3, unit="patient")
    formats.write(split.table, "clam", tmp_path / "clam", slides=slides)
    foreign = formats.read(tmp_path / "clam").table
    formats.write(foreign, "torchmil", tmp_path / "torchmil")
    assert _places(formats.read(tmp_path / "torchmil").table) == _places(split.table)
    assert (tmp_path / "torchmil/fold_2/splits.csv").is_file()


@pytest.mark.parametrize("kind", ["clam", "torchmil"])
def test_published_clam_splits_are_written_as_they_were(tmp_path: Path, kind: str) -> None:
    tasks = sorted((LISTS / "clam_splits/splits").glob("task_*"))
    if not tasks:
        pytest.skip("../shared/data is not here")
    assert len(tasks) == 2
    for task in tasks:
        given = formats.read(task).table
        formats.write(given, kind, tmp_path / task.name)
        found = formats.read(tmp_path / task.name).table
        assert _places(found) == _places(given)
        for fold in range(10) if kind == "clam" else ():
            ours, theirs = (
                pd.read_csv(folder / f"splits_{fold}.csv", index_col=0)
                for folder in (tmp_path / task.name, task)
            )
            for part in ("train", "val", "test"):
                assert set(ours[part].dropna()) == set(theirs[part].dropna())


def test_other_numbers_of_folds(tmp_path: Path) -> None:
    split = pd.DataFrame(
        {"slide_id": ["a", "b", "a", "b"], "patient_id": ["p", "q", "p", "q"],
         "fold": [2, 2, 5, 5], "part": ["train", "test", "test", "train"]}
    )  # fmt: skip
    formats.write(split, "clam", tmp_path / "clam")
    assert _places(formats.read(tmp_path / "clam").table) == _places(split)
    made = formats.write(split, "stamp", tmp_path / "stamp")
    assert "the numbers of the folds: 2, 5 are counted from 0" in made.lost


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    slides = _slides()
    split = _split(slides, 2, 0)
    with pytest.raises(InputError, match="did you mean 'clam'"):
        formats.write(split, "clan", tmp_path / "x")
    with pytest.raises(InputError, match="patho-bench needs patient_id of every slide"):
        formats.write(split, "patho-bench", tmp_path / "x")
    unlabelled = slides.assign(label=slides["label"].mask(slides["slide_id"] == "s1", None))
    whole = slides.assign(fold=0, part="train")[["slide_id", "fold", "part"]]
    with pytest.raises(InputError, match="needs label of every slide; 1 have none"):
        formats.write(whole, "eva", tmp_path / "x", slides=unlabelled)
    leak = pd.DataFrame({"slide_id": ["a", "a"], "part": ["train", "test"]})
    with pytest.raises(InputError, match="stands twice in fold 0"):
        formats.write(leak, "clam", tmp_path / "x")
    cut = leak.assign(slide_id=["a", "b"], patient_id="p")
    with pytest.raises(InputError, match="patient 'p' has slides in several parts of fold 0"):
        formats.write(cut, "stamp", tmp_path / "x")
    with pytest.raises(InputError, match="unknown part 'tset'"):
        formats.write(pd.DataFrame({"slide_id": ["a"], "part": ["tset"]}), "clam", tmp_path / "x")
    with pytest.raises(InputError, match="give tiles"):
        formats.write(split, "folders", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(InputError, match="nothing is overwritten"):
        formats.write(split, "clam", tmp_path / "full")


@pytest.mark.parametrize("n_folds", [1, 2])
def test_folders_of_links_to_the_tiles(tmp_path: Path, n_folds: int) -> None:
    slides = _slides()
    tiles = pd.DataFrame(
        [
            (f"{label.replace(' ', '_')}/{i}_{tile}.png", slide)
            for i, (slide, label) in enumerate(
                zip(slides["slide_id"], slides["label"], strict=True)
            )
            for tile in range(2)
        ],
        columns=["tile_id", "slide_id"],
    )
    for name in tiles["tile_id"]:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    split = _split(slides, n_folds, 3)
    folder = tmp_path / "out"
    made = formats.write(split, "folders", folder, tiles=tiles, root=tmp_path / "data")
    assert all(path.is_dir() for path in made.files)
    found = formats.read(folder).table
    assert set(found["label"]) == {"be_nign", "malignant"}
    of_part = found.assign(tile_id=found["tile_id"].str.split("/", n=1).str[1])
    assert _places(of_part, "tile_id") == _places(tiles.merge(split, on="slide_id"), "tile_id")
    first = next(path for path in folder.rglob("*.png"))
    assert first.is_symlink()
    assert first.read_text() == first.relative_to(made.files[0].parent).as_posix().split("/", 1)[1]
    with pytest.raises(InputError, match="have no tile, the first is"):
        formats.write(split, "folders", tmp_path / "y", tiles=tiles[:2], root=tmp_path / "data")
    with pytest.raises(InputError, match="are no files below"):
        formats.write(split, "folders", tmp_path / "y", tiles=tiles, root=tmp_path)
