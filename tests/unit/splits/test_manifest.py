from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from splits.errors import InputError
from splits.identity.manifest import match, match_slides, read


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_byte_order_marks(tmp_path: Path, separator: str, encoding: str) -> None:
    rows = [
        ["File", "case_id", "Slide", "TSS"],
        ["a/1.png", "05", "NA", "3E"],
        ["a/2.png", "", "007", "null"],
    ]
    text = "\r\n".join(separator.join(row) for row in rows)
    table = read(_write(tmp_path / "m.csv", text, encoding))
    assert table.columns.tolist() == ["path", "patient_id", "slide_id", "site_id"]
    assert table.iloc[0].tolist() == ["a/1.png", "05", "NA", "3E"]
    assert pd.isna(table["patient_id"][1])
    assert table["slide_id"][1] == "007"
    assert table["site_id"][1] == "null"


def test_parquet_stays_text(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["1.png"], "slide": ["05"]}).to_parquet(tmp_path / "m.parquet")
    assert read(tmp_path / "m.parquet")["slide_id"].tolist() == ["05"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a readable table"),
        ("colour,size\nred,1\n", "one for the tile"),
        ("path,wsi,slide_name\na,b,c\n", "both mean slide_id"),
    ],
)
def test_unusable_manifests(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(_write(tmp_path / "m.csv", text))
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "missing.csv")


def test_the_exact_column_goes_before_its_synonyms(tmp_path: Path) -> None:
    for header in ("path,batch,site_id", "path,site_id,batch"):
        text = f"{header}\nt.png,{'1,2' if header.endswith('site_id') else '2,1'}\n"
        assert read(_write(tmp_path / "m.csv", text))["site_id"].tolist() == ["2"]


def test_paths_before_stems_and_backslashes() -> None:
    table = pd.DataFrame(
        {"path": ["./a\\1.png", "elsewhere/b.tif", "a/c.png"], "slide_id": ["s1", "s2", "s3"]},
        dtype="string",
    )
    found, report = match(
        table, ["a/c.png#xywh=0,0,9,9", "x/b.png", "a/1.png", "a/c.png#xywh=9,0,9,9"]
    )
    assert found["slide_id"].tolist() == ["s3", "s2", "s1", "s3"]
    assert report == {"rows": 3, "by_path": 3, "by_stem": 1, "unmatched": 0, "unused_rows": 0}


def test_stems_that_are_not_unique_match_nothing() -> None:
    table = pd.DataFrame({"path": ["q/1.png", "r/1.png"], "slide_id": ["s1", "s2"]}, dtype="string")
    with pytest.raises(InputError, match="matches 0 of 1"):
        match(table, ["a/1.png"])
    table = pd.DataFrame({"path": ["1.png"], "slide_id": ["s1"]}, dtype="string")
    with pytest.raises(InputError, match=r"no or no unique row for 2: a/1\.png, b/1\.png"):
        match(table, ["b/1.png", "a/1.png"])


def test_misfits_are_counted_and_named() -> None:
    tiles = [f"{i}.png" for i in range(9)]
    table = pd.DataFrame({"path": ["0.png", "z.png"], "slide_id": ["s", "s"]}, dtype="string")
    with pytest.raises(InputError, match=r"for 8: 1\.png, 2\.png, 3\.png; 1 row\(s\).*z\.png"):
        match(table, tiles)
    # Without slides a tile may stay unmatched, and the report says so.
    labels = pd.DataFrame({"path": ["0.png"], "tile_label": ["tumour"]}, dtype="string")
    found, report = match(labels, tiles)
    assert found["tile_label"].notna().tolist() == [True] + [False] * 8
    assert report["unmatched"] == 8


def test_contradictions_and_empty_slides_are_refused() -> None:
    twice = pd.DataFrame({"path": ["1.png", "1.png"], "slide_id": ["s", "t"]}, dtype="string")
    with pytest.raises(InputError, match="contradicts itself"):
        match(twice, ["1.png"])
    same = pd.DataFrame({"path": ["1.png", "1.png"], "slide_id": ["s", "s"]}, dtype="string")
    assert match(same, ["1.png"])[0]["slide_id"].tolist() == ["s"]
    empty = pd.DataFrame({"path": ["1.png"], "slide_id": [pd.NA]}, dtype="string")
    with pytest.raises(InputError, match="leaves slide_id empty"):
        match(empty, ["1.png"])
    number = pd.DataFrame({"path": ["1.png"], "x_px": ["12.5"]}, dtype="string")
    with pytest.raises(InputError, match="x_px"):
        match(number, ["1.png"])


def test_a_table_of_slides_joins_over_the_barcode() -> None:
    uuid = "90E71B08-E1D9-4FC2-85AC-062E56DDF17C"
    table = pd.DataFrame(
        {"slide_id": [f"TCGA-A1-A0SH-01Z-00-DX1.{uuid}", f"S7.{uuid}"], "slide_label": ["+", "-"]},
        dtype="string",
    )
    found, report = match_slides(table, ["S7", "TCGA-A1-A0SH-01Z-00-DX1", "S7", None])
    assert found["slide_label"].fillna("").tolist() == ["-", "+", "-", ""]
    assert report["by_slide"] == 3
    with pytest.raises(InputError, match="no row for 1 of 2 slides: S8"):
        match_slides(table, ["S7", "S8"])
