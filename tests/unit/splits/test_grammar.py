from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splits.errors import InputError
from splits.identity import parse, parse_folder
from splits.identity.grammar import GRAMMARS, describe

SHARED = Path(__file__).resolve().parents[3] / "../shared"


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/{name} is not here")
    return path


def test_every_listed_name_is_read_exactly() -> None:
    with _shared("names.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) > 40
    columns = ("grammar", "site", "patient", "slide", "x", "y")
    wrong = {
        row["name"]: (found, row)
        for row in rows
        if any((found := describe(row["name"]))[key] != (row[key] or "") for key in columns)
    }
    assert wrong == {}


def test_every_barcode_of_the_gdc_manifests_is_read_exactly() -> None:
    folder = _shared("data/slide_lists/gdc_manifests")
    names = []
    for path in (
        folder / f"gdc_manifest.2020-09-06-TCGA-{cancer}.txt" for cancer in ("LUAD", "LUSC")
    ):
        with path.open(encoding="utf-8", newline="") as file:
            names += [row["filename"] for row in csv.DictReader(file, delimiter="\t")]
    assert len(names) == 1042
    for name in names:
        found = parse(name)
        # The independent reference: a barcode is the text before the first dot, cut at its hyphens.
        barcode = name.split(".")[0]
        assert found is not None
        assert (found.grammar, found.slide) == ("tcga", barcode)
        assert (found.patient, found.site) == ("-".join(barcode.split("-")[:3]), barcode[5:7])


@pytest.mark.parametrize(
    "name",
    [
        "ADI-TCGA-AAICEQFN.tif",
        "XTCGA-05-4395-01Z-00-DX1.png",
        "TCGA-05-43955-01Z-00-DX1.png",
        "TCGA-21-5784-01Z-00-DX1_vs_TCGA-05-4395-01Z-00-DX1.png",  # two patients contradict
        "TCGA-21-5784/TCGA-05-4395-01Z-00-DX1.png",
        "tile_12_34.png",
        "patch_224_448.png",
        "img_x_100_y_200.png",
        "IMG_20210404_104214.jpg",
        "20210404_104214_7.jpg",
        "benign_17.png",
        "lungaca1352.jpeg",
        "f38a6374c348f90b587e046aac6079959adf3835.tif",
        "image [x=0,y=256,w=256,h=256].tif",
        "13_files/../0.png",
        "",
        "/",
        ".png",
    ],
)
def test_a_name_that_says_nothing_gives_no_slide(name: str) -> None:
    found = parse(name)
    assert found is None or found.slide is None, (name, found)


@pytest.mark.parametrize(
    ("name", "slide", "x", "y"),
    [
        ("tcga-a1-a0sk-01z-00-dx1_100_200.png", "TCGA-A1-A0SK-01Z-00-DX1", 100, 200),
        ("TCGA-A1-A0SK-01Z-00-DX1 (1).png", "TCGA-A1-A0SK-01Z-00-DX1", None, None),
        (r"a\TCGA-A1-A0SK-01Z-00-DX1\3_4.png", "TCGA-A1-A0SK-01Z-00-DX1", 3, 4),
        ("TCGA-A1-A0SK/TCGA-A1-A0SK-01Z-00-DX1.png", "TCGA-A1-A0SK-01Z-00-DX1", None, None),
        ("x_9_y_9/TCGA-A1-A0SK-01Z-00-DX1.png", "TCGA-A1-A0SK-01Z-00-DX1", None, None),
        ("S12_x_100_y_200.png", "S12", 100, 200),
        ("S12_x100_y200.png", "S12", 100, 200),
        ("S12_[x=100,y=200].png", "S12", 100, 200),
        ("S12_100_200.png", "S12", 100, 200),
        ("S12.20205276-ca16-46b2-914a-fe5e576a5cf9_100_200.png", "S12", 100, 200),
        ("c/S12.20205276-ca16-46b2-914a-fe5e576a5cf9/100_200.png", "S12", 100, 200),
        ("S12_tile_3_level1_5-6-7-8.png", "S12", 5, 6),
        ("S12.svs [d=2,x=10,y=20,w=512,h=512].png", "S12", 10, 20),
    ],
)
def test_exporters(name: str, slide: str, x: int | None, y: int | None) -> None:
    found = parse(name)
    if name.endswith("/100_200.png"):
        found = GRAMMARS["slide_folder"].read(name.removesuffix(".png"))
    assert found is not None
    assert (found.slide, found.x, found.y) == (slide, x, y)


def test_details_that_the_list_does_not_hold() -> None:
    ucsb = parse("ytma10_010704_benign1_ccd.tif")
    assert ucsb is not None
    assert ucsb.batch == "ytma10_010704"
    mpp = parse("TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png")
    truncated = parse("TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0_448_2240_size224.png")
    assert mpp is not None
    assert truncated is not None
    assert (mpp.mpp, truncated.mpp) == (0.25, None)
    region = parse("TCGA-EW-A1OZ-01Z-00-DX1_r2_x250_y500.jpg")
    assert region is not None
    assert region.region == "2"


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(max_size=300),
        st.text(alphabet="TCGA-0123456789_xy[]=,./\\() dwh#", min_size=200, max_size=300),
        st.from_regex(
            r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}.{0,40}_x[0-9]{1,40}_y[0-9]{1,40}", fullmatch=True
        ),
    )
)
def test_no_name_crashes_and_no_slide_is_empty(name: str) -> None:
    found = parse(name)
    if found is not None:
        assert found.slide is None or found.slide.strip()
        assert all(value is None or abs(value) < 2**63 for value in (found.x, found.y))
    parse_folder([name], "auto")


# ---- the folder-wide test ----


def test_tcga_organs_is_accepted() -> None:
    root = _shared("data/tcga_organs")
    ids = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    found = parse_folder(ids, labels=[[name.split("/")[0] for name in ids]])
    truth = [Path(name).name.rsplit("_r", 1)[0] for name in ids]
    assert found.rule == "tcga"
    assert found.coverage == 1
    assert [name and name.slide for name in found.names] == truth
    assert {name.patient for name in found.names if name} == {slide[:12] for slide in truth}


def test_anonymous_names_are_believed_by_no_rule() -> None:
    root = _shared("data/anonymous_course")
    ids = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    found = parse_folder(ids)
    assert found.rule is None
    assert set(found.names) == {None}


def _weak(n_slides: int = 6, n_tiles: int = 5) -> list[str]:
    return [f"c{s % 2}/{s:02d}_{i}.png" for s in range(n_slides) for i in range(n_tiles)]


def test_weak_names_need_several_tiles_a_group() -> None:
    assert parse_folder(_weak()).rule == "weak"
    assert parse_folder(_weak(30, 1)).rule is None
    # A cut file has several tiles, and still proves nothing about a counter.
    cut = [f"{s:02d}_0.png#xywh={x},0,9,9" for s in range(30) for x in (0, 9)]
    assert parse_folder(cut).rule is None


def test_weak_names_that_recur_in_two_classes_are_refused() -> None:
    ids = [f"{label}/{s:02d}_{i}.png" for label in "ab" for s in range(4) for i in range(5)]
    found = parse_folder(ids, labels=[[name[0] for name in ids]])
    assert found.rule is None
    assert any("two classes" in row["reason"] for row in found.candidates)


@pytest.mark.parametrize("step", [1, 256])
def test_grid_places_are_no_patients(step: int) -> None:
    ids = [f"c/{x * step}_{y * step}.png" for x in range(6) for y in range(9)]
    assert parse_folder(ids).rule is None


def test_slide_folders() -> None:
    ids = [f"c{s % 2}/S{s}/{x}_{y}.png" for s in range(4) for x in (0, 256) for y in (0, 256)]
    found = parse_folder(ids, labels=[[name[:2] for name in ids]])
    assert found.rule == "slide_folder"
    assert {name.slide for name in found.names if name} == {"S0", "S1", "S2", "S3"}
    # The folder is the class: no slide.
    ids = [f"c{s}/{x}_{y}.png" for s in range(4) for x in (0, 256) for y in (0, 256)]
    assert parse_folder(ids, labels=[[name[:2] for name in ids]]).rule is None


def test_colliding_positions() -> None:
    weak = [f"S1x{s}_{x}_0_{kind}.png" for s in range(3) for x in (0, 9, 18) for kind in "ab"]
    assert parse_folder(weak).rule is None
    tcga = [
        f"TCGA-AA-{s:04d}-01Z-00-DX1_x{x}_y0_{kind}.png"
        for s in range(3)
        for x in (0, 9, 18)
        for kind in "ab"
    ]
    found = parse_folder(tcga)
    assert (found.rule, found.confidence) == ("tcga", 0.8)
    assert all(name is not None and name.x is None for name in found.names)
    copies = [
        f"{part}/TCGA-AA-{s:04d}-01Z-00-DX1_x{x}_y0.png"
        for part in ("train", "test")
        for s in (1, 2)
        for x in (0, 9)
    ]
    assert parse_folder(copies).confidence == 0.99


def test_cut_tiles_compose_positions() -> None:
    ids = [
        f"D1 [d=5,x=1000,y=2000,w=500,h=500].tif#xywh={x},{y},50,50"
        for x in (0, 50)
        for y in (0, 50)
    ]
    found = parse_folder(ids)
    assert found.rule == "qupath"
    assert [(name.x, name.y) for name in found.names if name] == [
        (1000, 2000), (1000, 2250), (1250, 2000), (1250, 2250),
    ]  # fmt: skip


def test_two_archives_in_one_folder() -> None:
    ids = [f"TCGA-AA-{s:04d}-01Z-00-DX1_x{x}_y0.png" for s in range(3) for x in (0, 9)]
    ids += [f"C3L-{s:05d}-21_x{x}_y0.png" for s in range(3) for x in (0, 9)]
    found = parse_folder(ids)
    assert found.rule == "cptac+tcga"
    assert found.coverage == 1


def test_coverage_of_95_percent_is_needed() -> None:
    good = [f"TCGA-AA-{s:04d}-01Z-00-DX1_x{x}_y0.png" for s in range(12) for x in range(8)]
    assert parse_folder([*good, *(f"n{i}.png" for i in range(5))]).rule == "tcga"
    assert parse_folder([*good, *(f"n{i}.png" for i in range(6))]).rule is None


# ---- rules that the user gives ----


def test_a_regex_rule() -> None:
    ids = [f"c/case{p}-s{s}-t{t}.png" for p in range(3) for s in range(2) for t in range(2)]
    rule = r"(?P<slide>(?P<patient>case\d+)-s\d+)-t(?P<x>\d+)"
    found = parse_folder(ids, rule)
    assert {name.slide for name in found.names if name} == {
        f"case{p}-s{s}" for p in range(3) for s in range(2)
    }
    assert {name.patient for name in found.names if name} == {"case0", "case1", "case2"}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("tgca", "did you mean 'tcga'"),
        ("(?P<slide>", "not a regular expression"),
        (r"(\d+)", r"(?P<slide>...)"),
        (r"(?P<slide>\d+)(?P<scanner>.)", "scanner"),
        (r"(?P<slide>[^/]+)$", "tile-level split"),
        (r"^(?P<slide>[^/]+)/", "a label is no identity"),
        (r"(?P<slide>zebra.)", "says nothing about 30 of 30"),
    ],
)
def test_rules_that_are_refused(rule: str, words: str) -> None:
    ids = _weak()
    with pytest.raises(InputError, match=re.escape(words)):
        parse_folder(ids, rule, [[name.split("/")[0] for name in ids]])


def test_the_label_within_train_and_test_is_no_identity_either() -> None:
    ids = [f"{part}/{label}/{i}.png" for part in ("train", "test") for label in "ab" for i in "123"]
    labels = [name.split("/")[1] for name in ids]
    with pytest.raises(InputError, match="label is no identity"):
        parse_folder(ids, r"^(?P<slide>\w+/\w+)/", [labels])
