from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.data.positions import grid_positions, slide_maps
from splits import tiles as tile_table


def slide(
    places: np.ndarray, *, name: str = "s", step: float = 512, **more: object
) -> pd.DataFrame:
    """Tiles at the given columns and rows."""
    x, y = np.floor(np.asarray(places) * step + 3000).astype(int).T
    table = pd.DataFrame({"slide_id": name, "x_px": x, "y_px": y})
    ids = [f"{name}/{i:05d}{''.join(map(str, more.values()))}.png" for i in range(len(x))]
    return table.assign(tile_id=ids, width_px=256, height_px=256, mpp=0.5, **more)


def placed(*tables: pd.DataFrame) -> dict[str, np.ndarray]:
    return grid_positions(tile_table.check(pd.concat(tables, ignore_index=True)))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one - one.min(axis=0) == other - other.min(axis=0)).all())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(100, 400),
    step=st.sampled_from([1.0, 224.0, 256.0, 1024.0, 1024.37]),
)
def test_tiles_of_a_grid_get_their_column_and_row(seed: int, n: int, step: float) -> None:
    places = np.random.default_rng(seed).permutation(400)[:n]
    places = np.stack(np.divmod(places, 20), axis=1)
    assert same(placed(slide(places, step=step))["s"], places)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_and_other_slides_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = np.stack(np.divmod(rng.permutation(100)[:40], 10), axis=1)
    table = tile_table.check(pd.concat([slide(places), slide(places[:9], name="t", step=99)]))
    order = rng.permutation(len(table))
    mixed = grid_positions(table.iloc[order])
    plain = grid_positions(table)
    for name in "st":
        rows = table.iloc[order]["slide_id"].eq(name).to_numpy()
        whole = np.zeros((len(table), 2), dtype=np.int64)
        whole[table["slide_id"] == name] = plain[name]
        assert (mixed[name] == whole[order][rows]).all()
    assert (placed(slide(places))["s"] == plain["s"]).all()


def test_steps_differ_along_x_and_y_and_a_line_of_tiles_knows_one() -> None:
    places = np.stack(np.divmod(np.arange(30), 6), axis=1)
    table = slide(places).assign(y_px=lambda t: t["y_px"] * 3)
    assert same(placed(table)["s"], places)
    line = np.column_stack([np.zeros(5, int), [0, 1, 2, 4, 5]])
    assert same(placed(slide(line))["s"], line)
    assert placed(slide(np.array([[4, 9]])))["s"].tolist() == [[0, 0]]


def test_regions_are_never_neighbours_and_share_the_step() -> None:
    places = np.stack(np.divmod(np.arange(30), 6), axis=1)
    far = np.array([[0, 0], [0, 3]])  # alone, these two would pass for neighbours
    found = placed(slide(places, region="a"), slide(far, region="b"))["s"]
    table = tile_table.check(pd.concat([slide(places, region="a"), slide(far, region="b")]))
    in_a = table["region"].eq("a").to_numpy()
    assert same(found[in_a], places)
    assert same(found[~in_a], far)
    away = np.abs(found[in_a, None] - found[None, ~in_a]).max(axis=2)
    assert away.min() > 16
    assert (found >= 0).all()


def test_resolutions_have_their_own_steps() -> None:
    places = np.stack(np.divmod(np.arange(30), 6), axis=1)
    coarse = slide(places[:12], step=2048, region="x").assign(mpp=2.0, region=pd.NA)
    table = tile_table.check(pd.concat([slide(places), coarse]))
    found = grid_positions(table)["s"]
    fine = table["mpp"].eq(0.5).to_numpy(dtype=bool)
    assert same(found[fine], places)
    assert same(found[~fine], places[:12])


def test_a_slide_with_a_tile_that_has_no_place_is_absent() -> None:
    places = np.stack(np.divmod(np.arange(30), 6), axis=1)
    lost = slide(places, name="t").astype({"x_px": "Int64"})
    lost.loc[7, "x_px"] = pd.NA
    assert list(placed(slide(places), lost)) == ["s"]
    assert grid_positions(tile_table.empty()) == {}


def test_deep_zoom_names_are_places() -> None:
    names = [f"s_files/11/{c}_{r}.jpeg" for c in (3, 4, 9) for r in (5, 7)]
    table = tile_table.check(pd.DataFrame({"tile_id": names, "slide_id": "s", "region": "11"}))
    expected = [[0, 0], [0, 2], [1, 0], [1, 2], [6, 0], [6, 2]]
    assert grid_positions(table)["s"].tolist() == expected


def test_tiles_off_any_grid_keep_their_neighbours() -> None:
    rng = np.random.default_rng(0)
    places = np.stack(np.divmod(np.arange(100), 10), axis=1) + rng.uniform(-0.2, 0.2, (100, 2))
    found = placed(slide(places, step=1000))["s"]
    assert np.corrcoef(found[:, 0], places[:, 0])[0, 1] > 0.98
    assert 9 <= found[:, 0].max() <= 20


def test_copies_share_a_place() -> None:
    places = np.stack(np.divmod(np.arange(30), 6), axis=1)
    found = placed(slide(np.concatenate([places, places[:4]])))["s"]
    assert same(found, np.concatenate([places, places[:4]]))


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_overlapping_tiles_have_places_of_their_own(share: float) -> None:
    places = np.stack(np.divmod(np.arange(64), 8), axis=1)
    assert same(placed(slide(places, step=256 * share))["s"], places)


def test_maps_are_drawn_where_every_tile_has_a_place_of_its_own_and_refused_with_a_reason() -> None:
    grid = np.stack(np.divmod(np.arange(20), 5), axis=1)
    unplaced = slide(grid, name="none")
    unplaced[["x_px", "y_px"]] = pd.NA
    partly = slide(grid, name="part")
    partly.loc[:2, ["x_px", "y_px"]] = pd.NA
    twice = slide(np.concatenate([grid, grid[:1] + 0.1]), name="twice")
    tables = [slide(grid, name="whole"), unplaced, partly, twice, slide(grid[:1], name="one")]
    for part in tables:
        part[["x_px", "y_px"]] = part[["x_px", "y_px"]].astype("Float64")
    table = tile_table.check(pd.concat(tables, ignore_index=True))
    drawn, refused = slide_maps(table)
    assert set(drawn) == {"whole"}
    assert same(drawn["whole"], grid)
    assert refused["none"] == "no map: its tiles have no coordinates"
    assert refused["part"] == "no map: 3 of 20 tiles have no coordinates"
    assert "21 tiles lie in 20 places" in refused["twice"]
    assert "one tile" in refused["one"]
    drawn, refused = slide_maps(table, ["none"])
    assert (drawn, list(refused)) == ({}, ["none"])
