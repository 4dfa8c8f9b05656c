"""Names as people and programs really write them, and the ways in which they mislead."""

from __future__ import annotations

import unicodedata

import pytest

from splits.errors import InputError
from splits.identity import parse, parse_folder
from splits.identity.grammar import describe

SLIDE = "TCGA-A1-A0SK-01Z-00-DX1"
UUID = "A44D70FA-4D96-43F4-9DD7-A61535786297"
EXPORTERS = {
    "_100_200": ("100", "200"),
    "-100-200": ("100", "200"),  # slideflow
    "_x_100_y_200": ("100", "200"),
    "_X100_Y200": ("100", "200"),
    "_y200_x100": ("100", "200"),
    "_x100.0_y200.0": ("100", "200"),
    "_(100, 200)": ("100", "200"),
    "_[100, 200, 612, 712]": ("100", "200"),
    "_100_200_612_712": ("100", "200"),
    " [d=2,x=100,y=200,w=512,h=512]": ("100", "200"),  # QuPath
    " [d=5,x=1000,y=2000,w=9,h=9] [d=1,x=10,y=20,w=5,h=5]": ("1050", "2100"),
    "_tile_5_level0_100-200-612-712": ("100", "200"),  # histolab
    "/tile_5_level0_100-200-612-712": ("100", "200"),
    "-tile-r34-c54-x100-y200-w1024-h1024": ("100", "200"),  # deep-histopath
    "/Tile_20_100_200": ("100", "200"),  # TIAToolbox
    "_files/17/3_4": ("col 3", "row 4"),
    "_row3_col5": ("col 5", "row 3"),
    "-r3-c5": ("col 5", "row 3"),
    "/TileGroup0/5-3-2": ("", ""),  # Zoomify: level, column, row
    "_00017": ("", ""),
    "_100_200 (1)": ("100", "200"),
    "_100_200 - Kopie (2)": ("100", "200"),
    ".svs_100_200": ("100", "200"),
}


@pytest.mark.parametrize("written", [SLIDE, SLIDE.lower(), f"{SLIDE}.{UUID}"])
@pytest.mark.parametrize("suffix", [".png", ".JPG", ".ome.tiff", ".svs.png", ".h5"])
@pytest.mark.parametrize("end", list(EXPORTERS))
def test_a_barcode_keeps_its_identity_under_every_exporter(
    end: str, suffix: str, written: str
) -> None:
    found = describe(f"a/{written}{end}{suffix}")
    assert (found["grammar"], found["slide"], found["site"]) == ("tcga", SLIDE, "A1")
    assert (found["x"], found["y"]) == EXPORTERS[end]


@pytest.mark.parametrize(
    "path",
    [
        f"Kopie von {SLIDE}.png",
        "TCGA_A1_A0SK_01Z_00_DX1.png",
        "tcga a1 a0sk 01z 00 dx1.png",
        f"slides%2F{SLIDE}%20%281%29.png",
        rf"C:\Daten\Präparate (neu)\{SLIDE}.ndpi",
        f"病理/шлиф/{SLIDE}.czi",
        f"{'x' * 250}/{SLIDE}.mrxs",
        f"line\nbreak\t/{SLIDE}.png",
    ],
)
def test_a_barcode_is_found_in_any_surroundings(path: str) -> None:
    found = describe(path)
    assert (found["grammar"], found["slide"]) == ("tcga", SLIDE)


@pytest.mark.parametrize(
    ("name", "patient", "slide"),
    [
        ("TCGA-A1-A0SK_1_2.png", "TCGA-A1-A0SK", "TCGA-A1-A0SK"),
        ("TCGA-A1-A0SK-01A-11D-A12B-09.png", "TCGA-A1-A0SK", "TCGA-A1-A0SK-01A-11D"),
        ("c3l_00189_21_x1_y2.png", "C3L-00189", "C3L-00189-21"),
        ("gtex-1117f-0126.svs", "GTEX-1117F", "GTEX-1117F-0126"),
        ("Patient_004_Node_4.tif", "patient_004", "patient_004_node_4"),
        ("Tumor_076.tif", "tumor_076", "tumor_076"),
        ("SOB_M_DC-14-10990-100-001_3.jpg", "14-10990", "14-10990"),
        ("8863_idx5_x51_y1251_class0_flip.png", "8863", "8863"),
        ("TUPAC-TR-001-tile-r34-c54-x1-y2-w9-h9.png", "TUPAC-TR-001", "TUPAC-TR-001"),
        ("Copy of S12_1_2.png", "S12", "S12"),
        ("S12_patch_17_x1_y2.png", "S12", "S12"),
        ("S12_r2_x1_y2.png", "S12", "S12"),
        ("шлиф7_x1_y2.png", "шлиф7", "шлиф7"),
    ],
)
def test_what_belongs_to_a_slide_is_not_part_of_its_id(name: str, patient: str, slide: str) -> None:
    found = parse(name)
    assert found is not None
    assert (found.patient, found.slide) == (patient, slide)


@pytest.mark.parametrize(
    "name",
    [
        "MUS-TCGA-QKLLSSEW.tif",
        "TCGA_05.png",
        "slide_files/17/3_4.jpeg",
        "slide [x=1,y=2,w=3,h=4].png",
        "TileGroup0/5-3.jpg",
        "notumor_001.png",
        "tumor_0001.png",
        "WIN_20210404_10_42_14_Pro.jpg",
        "Screenshot 2021-04-04 at 10.42.14.png",
        "20210404_1.png",  # a day is no slide
        "20210404_12_34.png",
        "550e8400-e29b-41d4-a716-446655440000.png",
        "class1/tile_0_level2_1-2-3-4.png",
        "test_12_3.png",
        "名前.png",
        "a" * 300 + ".png",
        "\n.png",
    ],
)
def test_more_names_that_say_nothing(name: str) -> None:
    found = parse(name)
    assert found is None or found.slide is None


def test_an_underscore_counter_is_no_barcode() -> None:
    found = parse("TCGA_05_1024_2048.png")
    assert found is not None
    assert found.grammar == "weak"


def test_composed_and_decomposed_letters_are_one_slide() -> None:
    ids = [f"Präp{s}_{x}_0.png" for s in (1, 2) for x in (0, 9)]
    ids += [unicodedata.normalize("NFD", f"Präp1_{x}_0.png") for x in (18, 27)]
    for rule in ("auto", r"(?P<slide>Präp\d)"):
        found = parse_folder(ids, rule)
        assert {name.slide for name in found.names if name} == {"Präp1", "Präp2"}


# ---- one name in several folders ----


@pytest.mark.parametrize("tile", ["HE [x={x},y=0,w=9,h=9].png", "HE_files/10/{x}_0.png"])
def test_one_image_name_in_each_patients_folder_is_several_slides(tile: str) -> None:
    ids = [f"P{p}/{tile.format(x=x)}" for p in range(3) for x in (0, 9, 18)]
    found = parse_folder(ids)
    assert {name.slide for name in found.names if name} == {"P0/HE", "P1/HE", "P2/HE"}
    assert "recur" in found.notes[0]
    # In the parts of a split the same place is a copy.
    ids = [f"{part}/{tile.format(x=x)}" for part in ("train", "test") for x in (0, 9, 18)]
    assert {name.slide for name in parse_folder(ids).names if name} == {"HE"}


def test_counters_that_start_anew_in_each_folder_are_no_patients() -> None:
    ids = [f"{h}/{s:02d}_{i}.png" for h in ("north", "south") for s in range(4) for i in range(4)]
    found = parse_folder(ids)
    assert found.rule is None
    assert "count in each anew" in found.candidates[0]["reason"]


@pytest.mark.parametrize(
    "ids", [[], ["a.png"], ["04_7.png"], [f"p{i}/tile.png" for i in range(9)]], ids=len
)
def test_too_little_to_believe_anything(ids: list[str]) -> None:
    found = parse_folder(ids)
    assert found.rule is None
    assert found.names == (None,) * len(ids)


def test_a_folder_of_one_tile_with_a_barcode() -> None:
    found = parse_folder([f"{SLIDE}.png"])
    assert (found.rule, found.confidence) == ("tcga", 0.8)
    assert parse_folder([], "tcga").names == ()


# ---- two grammars in one folder ----


def _barcodes(n: int) -> list[str]:
    return [
        f"TCGA-AA-{s:04d}-01Z-00-DX1 [x={x},y=0,w=9,h=9].png" for s in range(n) for x in (0, 9, 18)
    ]


def test_of_two_grammars_that_fit_the_table_says_which_won_and_why() -> None:
    found = parse_folder(_barcodes(3))
    assert found.rule == "tcga"
    rows = {row["rule"]: row["reason"] for row in found.candidates}
    assert rows["tcga"].startswith("taken: covers 100.0%")
    assert rows["qupath"].startswith("fits too, but tcga was taken: its ids are more certain")


def test_foreign_slides_in_a_folder_of_barcodes_do_not_cost_the_patients() -> None:
    ids = _barcodes(33) + [f"S1 [x={x},y=0,w=9,h=9].png" for x in (0, 9, 18)]
    found = parse_folder(ids)
    assert (found.rule, found.coverage) == ("qupath+tcga", 1)
    assert found.names[0] is not None
    assert found.names[0].patient == "TCGA-AA-0000"


def test_a_rule_that_gives_the_label_as_the_patient_is_refused() -> None:
    ids = [f"{label}/{s}_{i}.png" for label in "ab" for s in range(3) for i in range(3)]
    with pytest.raises(InputError, match="label is no identity"):
        parse_folder(ids, r"(?P<patient>[ab])/(?P<slide>\d+)_", [[name[0] for name in ids]])


def test_a_rule_reads_whole_numbers_only() -> None:
    with pytest.raises(InputError, match="a whole number is needed"):
        parse_folder(["s1_a.png", "s1_b.png"], r"(?P<slide>s\d)_(?P<x>\w)")
