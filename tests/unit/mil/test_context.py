from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil import settings
from mil.config import Config, Data, Encoder, Stain
from mil.data.context import Neighbourhood, Surroundings, name_positions, places
from mil.pixels import new_pixels
from splits import tiles as tile_table
from splits.errors import InputError

PX = 16


def slide(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Two channels of a slide, ``(2, rows * PX, columns * PX)``."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (2, rows * PX, columns * PX), dtype=np.uint8)


def cut(
    big: np.ndarray, name: str = "s", *, step: int = PX, unit: int = 1
) -> tuple[pd.DataFrame, np.ndarray]:
    """Tiles of PX px every ``step`` px; coordinates count ``unit`` a pixel."""
    rows, pixels = [], []
    for y in range(0, big.shape[1] - PX + 1, step):
        for x in range(0, big.shape[2] - PX + 1, step):
            place = {"x_px": unit * x, "y_px": unit * y, "width_px": PX, "height_px": PX}
            rows.append({"tile_id": f"{name}_x{x}_y{y}.png", "slide_id": name, **place})
            pixels.append(big[:, y : y + PX, x : x + PX])
    table = pd.DataFrame(rows)
    return tile_table.check(table), np.stack(pixels)[np.argsort(table["tile_id"].to_numpy(str))]


def expected(big: np.ndarray, x: int, y: int, scale: int, glass: int = 0) -> np.ndarray:
    """The area average of the surroundings, cut out of the whole slide."""
    margin = scale * PX
    padded = np.pad(big, ((0, 0), (margin,) * 2, (margin,) * 2), constant_values=glass)
    x, y = (at + margin - (scale - 1) * PX // 2 for at in (x, y))
    window = padded[:, y : y + scale * PX, x : x + scale * PX].astype(float)
    return window.reshape(2, PX, scale, PX, scale).mean(axis=(2, 4))


def around(table: pd.DataFrame, pixels: np.ndarray, scale: int, glass: int = 0) -> Surroundings:
    return Surroundings(pixels, Neighbourhood(places(table), scale), glass=glass)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("step", "unit"), [(PX, 1), (PX, 4), (PX // 2, 1)])
def test_context_is_the_downscaled_slide_and_glass_beyond_it(
    scale: int, step: int, unit: int
) -> None:
    big = slide(5, 6)
    table, pixels = cut(big, step=step, unit=unit)
    got = around(table, pixels, scale, glass=7)[:]
    for row, tile in enumerate(table.itertuples()):
        want = expected(big, tile.x_px // unit, tile.y_px // unit, scale, glass=7)
        assert np.abs(got[row] - want).max() <= 0.5 + 1e-6


def test_the_order_of_rows_and_the_company_do_not_matter() -> None:
    table, pixels = cut(slide(4, 4))
    whole = around(table, pixels, 4)[:]
    shuffled = np.random.default_rng(1).permutation(len(table))
    mixed = around(table.iloc[shuffled], pixels[shuffled], 4)
    assert (mixed[:] == whole[shuffled]).all()
    assert (mixed[np.array([3, 9])] == whole[shuffled[[3, 9]]]).all()
    assert Neighbourhood(places(table), 4).digest == mixed._hood.digest
    moved = table.assign(x_px=table["x_px"] * 2)
    assert Neighbourhood(places(moved.assign(y_px=0)), 4).digest != mixed._hood.digest


def test_only_the_same_slide_region_and_image_are_neighbours() -> None:
    table, pixels = cut(slide(3, 3))
    alone = np.full((1, 2, PX, PX), 200, np.uint8)
    middle = table.index[(table["x_px"] == PX) & (table["y_px"] == PX)]
    for change in ({"slide_id": "t"}, {"region": "2"}, {"mpp": 0.5}):
        other = table.loc[middle].assign(tile_id="z.png", **change)
        both = pd.concat([table, tile_table.check(other)], ignore_index=True)
        got = around(both, np.concatenate([pixels, alone]), 3)[:]
        assert (got[:9] == around(table, pixels, 3)[:]).all()
        assert (got[9] > 0).sum() == 2 * (PX // 3 + 1) ** 2
    names = [f"{image}.png#xywh={x},0,{PX},{PX}" for image in "ab" for x in (0, PX)]
    cuts = pd.DataFrame({"tile_id": names, "slide_id": "s", "x_px": [0, PX] * 2, "y_px": 0})
    cuts = tile_table.check(cuts.assign(width_px=PX, height_px=PX))
    hood = Neighbourhood(places(cuts), 2)
    assert [sorted(hood.around(row)) for row in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_copy_at_the_same_place_never_hides_the_tile() -> None:
    big = slide(3, 3)
    table, pixels = cut(big)
    both = pd.concat([table.assign(tile_id="copy_" + table["tile_id"]), table], ignore_index=True)
    got = around(both, np.concatenate([255 - pixels, pixels]), 3)[:]
    for row, tile in enumerate(both.itertuples()):
        want = expected(255 - big if row < 9 else big, tile.x_px, tile.y_px, 3)
        assert np.abs(got[row] - want)[:, 6:10, 6:10].max() <= 0.5 + 1e-6


def test_covered_is_the_share_of_the_area() -> None:
    table, _ = cut(slide(5, 5))
    covered = Neighbourhood(places(table), 3).covered
    at = table[["x_px", "y_px"]].to_numpy(dtype=int) // PX
    edges = (at % 4 == 0).sum(axis=1)  # of 9 tiles, an edge lacks 3 and a corner 5
    assert covered == pytest.approx(np.array([1, 6 / 9, 4 / 9])[edges])


def test_places_on_a_grid_and_downsampled_coordinates() -> None:
    deep = [f"s_files/11/{c}_{r}.jpeg" for c in range(3) for r in range(3)]
    table = pd.DataFrame({"tile_id": deep, "slide_id": "s", "region": "11"})
    table = tile_table.check(table.assign(width_px=PX, height_px=PX))
    hood = Neighbourhood(places(table), 3)
    assert hood.covered[table["tile_id"] == "s_files/11/1_1.jpeg"] == pytest.approx(1)
    # At its border the overlap of a pixel is missing: no line of glass may show between tiles.
    table.loc[table["tile_id"].str.contains("/0_"), "width_px"] = PX - 1
    full = np.full((9, 1, PX, PX), 255, np.uint8)
    assert (around(table, full, 3)[:][4] == 255).all()
    # A stated downsample counts where overlapping tiles would look like touching ones.
    names = [f"s [d=4,x={x},y=0,w=64,h=64].png" for x in (0, 32, 64, 96)]
    table = pd.DataFrame({"tile_id": names, "slide_id": "s", "x_px": [0, 32, 64, 96], "y_px": 0})
    where = places(tile_table.check(table.assign(width_px=PX, height_px=PX)))
    assert (where.side == 4 * PX).all()


def test_tiles_without_coordinates_are_an_error_that_says_how_many() -> None:
    table, _ = cut(slide(3, 3))
    table.loc[[0, 4], "x_px"] = pd.NA
    with pytest.raises(InputError, match=r"2 of 9 have no coordinates, the first is 's_x0_y0"):
        places(table)


@pytest.mark.parametrize("given", ["[4]", "[1,4,2]", "[1,1]", "[]", "[1,17]", "[0,1]"])
def test_scales_that_make_no_sense_are_refused(given: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {root: x}")
    with pytest.raises(InputError, match="context"):
        settings.load(path, [f"encoder.context={given}"])


def test_new_slides_get_their_context_from_the_names(tmp_path: Path) -> None:
    big = np.repeat(slide(3, 3)[:1], 3, axis=0)
    table, pixels = cut(big)
    for name, tile in zip(table["tile_id"], pixels, strict=True):
        Image.fromarray(tile.transpose(1, 2, 0)).save(tmp_path / name)
    encoder = Encoder(channels="rgb", context=(1, 3), resize_px=PX, image_px=PX)
    config = Config(data=Data(root=tmp_path), stain=Stain(method="none"), encoder=encoder)
    unplaced = table.assign(x_px=pd.NA, y_px=pd.NA)
    got = new_pixels(tmp_path, name_positions(tile_table.check(unplaced)), None, config)
    assert got.shape == (9, 6, PX, PX)
    assert (got[:][:, :3] == pixels).all()
    want = Surroundings(pixels, Neighbourhood(places(table), 3), glass=255)[:]
    assert (got[:][:, 3:] == want).all()
