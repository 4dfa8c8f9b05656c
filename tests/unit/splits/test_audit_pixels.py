from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from splits.audit import audit
from splits.auditing.pixels import Pixels
from splits.content.links import KINDS


def tiles_of(n_slides: int = 8, n_tiles: int = 6) -> pd.DataFrame:
    """Slides of two rows of tiles, 100 px wide, side by side."""
    rows = [
        (f"s{slide}/{tile}.png", f"s{slide}", 100 * (tile % 3), 100 * (tile // 3), 100, 100)
        for slide in range(n_slides)
        for tile in range(n_tiles)
    ]
    names = ["tile_id", "slide_id", "x_px", "y_px", "width_px", "height_px"]
    return pd.DataFrame(rows, columns=names)


def slides_of(n_slides: int = 8) -> pd.DataFrame:
    parts = ["train", "train", "val", "test"]
    return pd.DataFrame(
        {
            "slide_id": [f"s{slide}" for slide in range(n_slides)],
            "part": [parts[slide % 4] for slide in range(n_slides)],
            "label": ["ab"[slide // 4] for slide in range(n_slides)],
        }
    )


def found(tiles: pd.DataFrame, *links: tuple[str, str, str, str]) -> Pixels:
    table = pd.DataFrame(links, columns=["tile_a", "tile_b", "kind", "state"]).assign(score=0.9)
    n = len(tiles)
    return Pixels(
        tiles["tile_id"].tolist(),
        table,
        np.arange(n),
        np.zeros(n, bool),
        np.random.default_rng(0).normal(size=(n, 4)),
        {"seam": {"planted": 10, "found": 9}},
    )


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("state", "severity"), [("used", "leak"), ("held", "warning"),
                                                 ("cut", "warning")])  # fmt: skip
def test_a_link_across_parts(kind: str, state: str, severity: str) -> None:
    tiles = tiles_of()
    pixels = found(
        tiles,
        ("s0/1.png", "s3/2.png", kind, state),  # train and test
        ("s0/1.png", "s1/2.png", kind, state),  # train and train
        ("s2/0.png", "s7/0.png", kind, state),  # val and test
    )
    result = audit(slides_of(), None, tiles, found=pixels)
    (finding,) = [one for one in result["findings"] if one["kind"] == kind]
    assert finding["severity"] == severity
    assert finding["ids"] == ["s0/1.png", "s2/0.png", "s3/2.png", "s7/0.png"]
    assert finding["parts"] == ["train", "val", "test"]
    assert finding["pairs"] == [
        {"tiles": ["s0/1.png", "s3/2.png"], "parts": ["train", "test"]},
        {"tiles": ["s2/0.png", "s7/0.png"], "parts": ["val", "test"]},
    ]
    line = f"s0/1.png (train) and s3/2.png (test): {kind}, score 0.90, {state}"
    assert finding["evidence"][0] == line
    assert result["verdict"] == ("leak" if severity == "leak" else "clean")
    assert "pixels: 9 of 10 planted twins found" in result["had"]
    assert result["twins"] == {"seam": {"planted": 10, "found": 9}}


def test_links_between_the_tiles_of_a_split_of_tiles() -> None:
    tiles = tiles_of()[["tile_id"]]
    split = tiles.assign(part="train")
    split.loc[3, "part"] = "test"
    pixels = found(tiles, ("s0/2.png", "s0/3.png", "seam", "used"))
    # No slide is known: neither names nor a table say one.
    result = audit(split, None, None, found=pixels)
    (finding,) = [one for one in result["findings"] if one["severity"] == "leak"]
    assert (finding["kind"], finding["fold"]) == ("seam", 0)
    elsewhere = split.assign(part="train", fold=1)
    assert audit(elsewhere, None, None, found=pixels)["verdict"] == "clean"


def test_a_link_is_judged_within_its_fold() -> None:
    tiles = tiles_of()
    folds = pd.concat([slides_of().assign(fold=0), slides_of().assign(fold=1, part="train")])
    pixels = found(tiles, ("s0/1.png", "s3/2.png", "turned", "used"))
    leaks = [one for one in audit(folds, None, tiles, found=pixels)["findings"]
             if one["severity"] == "leak"]  # fmt: skip
    assert [(one["kind"], one["fold"]) for one in leaks] == [("turned", 0)]


def test_blank_tiles_are_known_from_the_pixels() -> None:
    tiles = tiles_of().assign(sha256=lambda table: table["tile_id"])
    last = tiles["tile_id"].str.endswith("/5.png")
    tiles.loc[last, "sha256"] = "white"
    (many,) = [f for f in audit(slides_of(), None, tiles)["findings"]
               if f["kind"] == "identical_pixels"]  # fmt: skip
    assert many["severity"] == "warning"
    pixels = found(tiles)
    blank = Pixels(pixels.tile_ids, pixels.links, pixels.component, last.to_numpy(), pixels.vectors)
    for seen, verdict in ((blank, "clean"), (pixels, "leak")):
        result = audit(slides_of(), None, tiles, found=seen)
        assert result["verdict"] == verdict
        kinds = [finding["kind"] for finding in result["findings"]]
        assert ("identical_pixels" in kinds) == (verdict == "leak")


@pytest.mark.parametrize(("x_px", "share"), [(0, 100), (50, 50), (99, 1), (100, None)])
def test_coordinates_that_overlap(x_px: int, share: int | None) -> None:
    tiles = tiles_of()
    split = tiles[["tile_id"]].assign(part="train")
    split.loc[1, "part"] = "test"
    tiles.loc[1, ["x_px", "y_px"]] = [x_px, 0]
    tiles.loc[2:5, "y_px"] = 500
    result = audit(split, None, tiles)
    overlaps = [f for f in result["findings"] if f["kind"] == "overlapping_coordinates"]
    assert len(overlaps) == (share is not None)
    if share is not None:
        assert overlaps[0]["pairs"][0]["tiles"] == ["s0/0.png", "s0/1.png"]
        assert f"{share} % of the area, slide s0" in overlaps[0]["evidence"][0]
    other = tiles.assign(region=tiles["tile_id"].where(tiles.index != 1, "elsewhere"))
    other["region"] = other["region"].where(other.index == 1, "here")
    kinds = {finding["kind"] for finding in audit(split, None, other)["findings"]}
    assert "overlapping_coordinates" not in kinds


def test_windows_of_one_image_are_of_one_slide() -> None:
    names = [f"field.tif#xywh={x},0,100,100" for x in (0, 60, 300)]
    tiles = pd.DataFrame({"tile_id": names, "x_px": [0, 60, 300], "y_px": 0}).assign(
        width_px=100, height_px=100, slide_id=None
    )
    split = tiles[["tile_id"]].assign(part=["train", "test", "test"])
    (finding,) = [f for f in audit(split, None, tiles)["findings"]
                  if f["kind"] == "overlapping_coordinates"]  # fmt: skip
    assert [pair["tiles"] for pair in finding["pairs"]] == [names[:2]]


@pytest.mark.parametrize(("part", "severity"), [("train", None), ("val", "warning"),
                                                ("test", "leak")])  # fmt: skip
def test_an_encoder_that_saw_a_slide(part: str, severity: str | None) -> None:
    split = slides_of().assign(patient_id=[f"p{k}" for k in (0, 1, 2, 3, 0, 1, 2, 3)])
    slide = split.loc[split["part"] == part, "slide_id"].iloc[0]
    result = audit(split, seen={0: [slide], 1: split["slide_id"]})
    hit = [f for f in result["findings"] if f["kind"].startswith("encoder_saw")]
    assert [f["severity"] for f in hit] == ([severity] if severity else [])
    if severity:
        # Its patient's other slide lies in the same part.
        assert hit[0]["kind"] == f"encoder_saw_{part}"
        assert hit[0]["ids"] == split.loc[split["part"] == part, "slide_id"].tolist()
        assert "another slide of this patient" in hit[0]["evidence"][1]
        alone = audit(split, seen={0: [slide]}, unit="slide")["findings"]
        assert next(f for f in alone if f["kind"] == hit[0]["kind"])["ids"] == [slide]


def test_classes_and_sites_that_give_each_other_away() -> None:
    split = pd.concat([slides_of(8).assign(slide_id=lambda t, k=k: t["slide_id"] + f"-{k}")
                       for k in range(2)])  # fmt: skip
    mixed = split.assign(site_id=["x", "y"] * 8)
    kinds = {f["kind"] for f in audit(mixed)["findings"]}
    assert not kinds & {"class_of_one_site", "site_of_one_class"}
    site = split["label"].map({"a": "one", "b": "two"}).where(split.index != 0, "two")
    result = audit(split.assign(site_id=site))["findings"]
    (alone,) = [f for f in result if f["kind"] == "class_of_one_site"]
    assert (alone["severity"], alone["ids"]) == ("warning", ["b"])
    (pure,) = [f for f in result if f["kind"] == "site_of_one_class"]
    assert (pure["severity"], pure["ids"]) == ("note", ["one"])
