from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mil.report import build
from mil.report.inputs import read
from mil.report.slide_map import draw
from mil.report.thumbnails import Thumbnails, sprite
from splits.artifacts import write_table
from tests.report_run import Page, add_results, make_run, paint


def _map(run: Path, n_slides: int) -> list[dict[str, object]]:
    inputs = read(run)
    tiles = inputs.tiles
    bags = dict(iter(tiles.groupby("slide_id")))
    budget = {"n_chars": 10**6, "n_tiles": 100}
    slides = sorted(bags)[:n_slides]
    return [draw(bags[name], None, Thumbnails(paint), **budget) for name in slides]


def test_a_map_follows_coordinates_and_not_the_order_of_tiles(tmp_path: Path) -> None:
    run = add_results(make_run(tmp_path, n_slides=4), placed=1)
    tiles = pd.read_parquet(run / "tiles.parquet")
    one = _map(run, 1)[0]
    assert (one["width"], one["height"], one["fields"]) == (448, 448, 1)
    at = tiles.set_index("tile_id")[["x_px", "y_px"]].astype(int)
    assert len(one["boxes"]) == 16
    for left, top, side, score, tile in one["boxes"]:
        assert [left, top] == [round(7 / 4 * v) for v in at.loc[tile]]
        assert (side, score) == (112, None)
    canvas = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["uri"].split(",")[1]))))
    left, top, side, _, tile = one["boxes"][6]
    seen = canvas[top : top + side, left : left + side].astype(float)
    wanted = np.asarray(Image.fromarray(paint(tile)).resize((side, side))).astype(float)
    others = [np.asarray(Image.fromarray(paint(b[4])).resize((side, side))) for b in one["boxes"]]
    errors = [np.abs(seen - other).mean() for other in others]
    assert np.abs(seen - wanted).mean() == min(errors) < 15
    shuffled = tiles.sample(frac=1, random_state=1)
    write_table(run / "tiles.parquet", shuffled, {})
    again = _map(run, 1)[0]
    assert sorted(again["boxes"], key=str) == sorted(one["boxes"], key=str)


def test_a_slide_without_every_coordinate_has_no_map_and_says_why(tmp_path: Path) -> None:
    run = add_results(make_run(tmp_path, n_slides=4), placed=1)
    tiles = pd.read_parquet(run / "tiles.parquet")
    first = tiles.index[tiles["slide_id"] == min(tiles["slide_id"])][3]
    tiles.loc[first, ["x_px", "y_px"]] = pd.NA
    write_table(run / "tiles.parquet", tiles, {})
    lost, kept = _map(run, 2)
    assert set(lost) == {"why"}
    assert "1 of its 16 tiles have no coordinates" in lost["why"]
    assert "uri" in kept


def test_pictures_keep_to_their_budget() -> None:
    names = [f"t{place}" for place in range(8)]
    sizes = [len(sprite(Thumbnails(paint), names, n)["uri"]) for n in (10**6, 12_000, 9_000)]
    assert sizes[0] > 12_000 >= sizes[1] > 9_000 >= sizes[2]
    assert sprite(Thumbnails(None), names, 10**6) is None

    def lost(name: str) -> np.ndarray:
        if name == "t3":
            raise OSError(name)
        return paint(name)

    assert sprite(Thumbnails(lost), names, 10**6)["unread"] == [3]


def test_page_of_50_slides_is_under_8_mb(tmp_path: Path) -> None:
    run = add_results(make_run(tmp_path, n_slides=50), placed=1)
    path = build(run, read_tile=lambda name: np.kron(paint(name), np.ones((4, 4, 1), np.uint8)))
    assert path.stat().st_size < 8_000_000
    slides = Page(path).slides()["slides"]
    assert sum("sprite" in slide for slide in slides) == 50
    assert sum("uri" in slide["map"] for slide in slides) > 40
