from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from splits.errors import InputError
from splits.identity import parse
from splits.identity import sites as site_maps
from splits.identity.manifest import match, match_slides, read

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"


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
    assert (report["rows"], report["by_path"], report["by_stem"]) == (3, 3, 1)
    assert report["unmatched"] == report["ambiguous"] == report["unused_rows"] == 0


def test_stems_that_are_not_unique_match_nothing() -> None:
    table = pd.DataFrame({"path": ["q/1.png", "r/1.png"], "slide_id": ["s1", "s2"]}, dtype="string")
    with pytest.raises(InputError, match="matches 0 of 1"):
        match(table, ["a/1.png"])
    table = pd.DataFrame({"path": ["1.png"], "slide_id": ["s1"]}, dtype="string")
    with pytest.raises(InputError, match=r"no unique row for 2 .*: a/1\.png, b/1\.png"):
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


# ---- files as people have them ----


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path\tslide\r\nä/1.png\t007\r\n", "utf-16"),
        ("path;slide\r\nä/1.png;007\r\n", "cp1252"),
        ("sep=;\r\npath;slide;;\r\nä/1.png;007;;\r\n;;;\r\n", "utf-8"),
        (" Path , Slide-ID \nä/1.png, 007 \n", "utf-8"),
        (",path,SlideID\n0,ä/1.png,007\n", "utf-8"),
        ('path,slide,remark\n"ä/1.png",007,"two\nlines, ""quoted"""\n', "utf-8"),
    ],
    ids=["excel unicode", "excel csv", "excel hint", "spaces", "index", "quotes"],
)
def test_files_from_other_programs(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode(encoding))
    table = read(path)
    assert table[["path", "slide_id"]].to_numpy().tolist() == [["ä/1.png", "007"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,slide\na,b.png,S1\n", "line 2 has 3 cells, the header 2"),
        ('path,slide\n"a,b\nc,d\n', "line 3"),
        ("path,slide,slide\na,b,c\n", "two columns 'slide'"),
        ("PK\x03\x04", "a workbook"),
        ("a\0b", "cannot be read as text"),
    ],
)
def test_tables_that_would_be_read_wrongly(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(_write(tmp_path / "m.csv", text))


def test_parquet_with_an_index_and_ids_that_became_floats(tmp_path: Path) -> None:
    table = pd.DataFrame({"slide": [5.0, None]}, index=pd.Index(["1.png", "2.png"], name="tile_id"))
    table.to_parquet(tmp_path / "m.parquet")
    found = read(tmp_path / "m.parquet")
    assert found["path"].tolist() == ["1.png", "2.png"]
    assert found["slide_id"].fillna("").tolist() == ["5", ""]


def test_columns_that_the_user_maps(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", "Bild,image,Biopsy\na.png,i.png,07\n")
    table = read(path, {"slide_id": "Biopsy", "path": "Bild"})
    assert table.to_numpy().tolist() == [["a.png", "07"]]
    with pytest.raises(InputError, match="did you mean 'slide_id'"):
        read(path, {"slideid": "Biopsy"})
    with pytest.raises(InputError, match="did you mean 'Biopsy'"):
        read(path, {"slide_id": "Biopsie"})


# ---- rows and tiles ----


def test_a_manifest_written_under_another_root_is_matched_by_the_end_of_its_paths() -> None:
    table = pd.DataFrame(
        {"path": [r"C:\study\a\1.png", r"C:\study\b\1.png"], "slide_id": ["s", "t"]}, dtype="string"
    )
    assert match(table, ["b/1.png", "a/1.png"])[0]["slide_id"].tolist() == ["t", "s"]
    table["path"] = ["a/1.png", "b/1.png"]
    assert match(table, ["x/b/1.png", "x/a/1.png"])[0]["slide_id"].tolist() == ["t", "s"]


def test_missing_and_doubtful_tiles_and_unused_rows_are_counted_and_named() -> None:
    table = pd.DataFrame(
        {"path": ["q/1.png", "r/1.png", "q/2.png", "q/9.png"], "slide_id": list("stuv")},
        dtype="string",
    )
    tiles = ["x/1.png", "x/2.png", "y/3.png", "y/4.png"]
    with pytest.raises(InputError) as caught:
        match(table, tiles)
    said = str(caught.value)
    assert "matches 1 of 4 tiles; no row for 2: y/3.png, y/4.png" in said
    assert "no unique row for 1" in said
    assert "3 row(s) match no tile: q/1.png, q/9.png, r/1.png" in said
    labels = table.rename(columns={"slide_id": "tile_label"})
    report = match(labels, tiles)[1]
    assert (report["unmatched"], report["ambiguous"], report["unused_rows"]) == (3, 1, 3)


def test_a_contradiction_says_what_differs() -> None:
    table = pd.DataFrame(
        {"path": ["a/1.png", ".\\a\\1.png"], "slide_id": ["s", "t"], "patient_id": ["p", "p"]},
        dtype="string",
    )
    with pytest.raises(InputError, match=r"a/1\.png has slide_id s and t"):
        match(table, ["a/1.png"])


# ---- label tables of other packages ----


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("case_id,slide_id,label", ["patient_id", "slide_id", "slide_label"]),  # CLAM
        ("patient,slide,site,category", ["patient_id", "slide_id", "site_id", "slide_label"]),
        ("wsi,mpp", ["slide_id", "mpp"]),  # TRIDENT
        ("slide_path,label", ["slide_id", "slide_label"]),  # MIL_BASELINE
        ("PATIENT,isMSIH", ["patient_id"]),  # STAMP's clinical table
        ("submitter_id,label", ["patient_id", "slide_label"]),
    ],
)
def test_label_tables_are_read_as_they_are(tmp_path: Path, header: str, columns: list[str]) -> None:
    row = ",".join("0.5" for _ in header.split(","))
    assert read(_write(tmp_path / "m.csv", f"{header}\n{row}\n")).columns.tolist() == columns


def test_stamps_two_tables(tmp_path: Path) -> None:
    slides = _write(
        tmp_path / "slides.csv", "PATIENT,FILENAME\nTCGA-A1-A0SK,TCGA-A1-A0SK-01Z-00-DX1.h5\n"
    )
    clinical = _write(tmp_path / "clini.csv", "PATIENT,isMSIH\nTCGA-A1-A0SK,MSIH\n")
    table = read(slides, {"slide_label": "isMSIH"}, clinical)
    found, report = match_slides(table, ["TCGA-A1-A0SK-01Z-00-DX1"] * 2)
    assert found["slide_label"].tolist() == ["MSIH", "MSIH"]
    assert report["by_slide"] == 2
    _write(clinical, "PATIENT,isMSIH\nTCGA-A1-A0SK,MSIH\nTCGA-A1-A0SK,MSS\n")
    with pytest.raises(InputError, match="contradicts itself about 1 patient"):
        read(slides, {"slide_label": "isMSIH"}, clinical)


def test_a_table_of_patients_joins_over_the_names() -> None:
    table = pd.DataFrame(
        {"patient_id": ["TCGA-A1-A0SK", "TCGA-A1-A0SH"], "slide_label": ["+", "-"]}, dtype="string"
    )
    slides = ["TCGA-A1-A0SH-01Z-00-DX1", "TCGA-A1-A0SK-01Z-00-DX2", "TCGA-A1-A0SH-01Z-00-DX2"]
    assert match_slides(table, slides)[0]["slide_label"].tolist() == ["-", "+", "-"]
    with pytest.raises(InputError, match="no row for 1 of 2 patients: TCGA-A1-ZZZZ"):
        match_slides(table, ["a", "b"], ["TCGA-A1-ZZZZ", "TCGA-A1-A0SK"])


def test_short_barcodes_mean_a_slide_and_long_ones_never_another() -> None:
    long = "TCGA-A1-A0SK-01Z-00-DX"
    table = pd.DataFrame(
        {"slide_id": [f"{long}1.svs", f"{long}2.svs"], "slide_label": ["1", "2"]}, dtype="string"
    )
    assert match_slides(table, ["TCGA-A1-A0SK-DX2"])[0]["slide_label"].tolist() == ["2"]
    for slide in (f"{long}3", "TCGA-A1-A0SK", "TCGA-A1-A0SK-11A-01-DX1"):
        with pytest.raises(InputError, match="no row for 1 of 1 slides"):
            match_slides(table, [slide])


@pytest.mark.parametrize("name", ["lung_labels", "breast_labels", "thyroid_labels"])
def test_real_label_tables_of_slideflow(name: str) -> None:
    path = LISTS / f"slideflow/{name}.csv"
    if not path.exists():
        pytest.skip(f"../shared/data/slide_lists/slideflow/{name}.csv is not here")
    table = read(path)
    barcodes = [str(slide).split(".")[0] for slide in table["slide_id"]]
    assert len(barcodes) > 300
    found, report = match_slides(table, [code for code in barcodes for _ in range(2)])
    assert report["unmatched"] == report["unused_rows"] == 0
    assert found["patient_id"][::2].tolist() == [code[:12] for code in barcodes]
    sites = [said.site for code in barcodes if (said := parse(code)) is not None]
    if name == "lung_labels":
        institutions = site_maps.read(LISTS / "tss_to_institution_slideflow_lung.csv")
        merged, counts = site_maps.merge(pd.Series(sites, dtype="string"), institutions)
        sites = merged.tolist()
        assert (counts["codes"], counts["institutions"], counts["unmapped"]) == (68, 39, [])
    assert found["site_id"][::2].tolist() == sites


# ---- site maps ----


def test_codes_of_one_institution_become_one_site(tmp_path: Path) -> None:
    path = _write(tmp_path / "map.csv", "TSS Code,Source Site,BCR\n05,Leeds,N\nNA,Leeds,N\n")
    sites = pd.Series(["05", "NA", "3E", None, "Leeds"], dtype="string")
    merged, report = site_maps.merge(sites, site_maps.read(path))
    assert merged.fillna("").tolist() == ["Leeds", "Leeds", "3E", "", "Leeds"]
    assert report == {"codes": 4, "institutions": 2, "mapped": 3, "unmapped": ["3E"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("code,institution\n05,a\n05,b\n", "two institutions, the first is '05'"),
        ("a,b,c\n1,2,3\n", "one for the code"),
        ("code,institution\n", "no code"),
    ],
)
def test_site_maps_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        site_maps.read(_write(tmp_path / "map.csv", text))
