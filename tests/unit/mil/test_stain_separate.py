from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from mil.stain import vectors as sv
from mil.stain.fit import StainFit, fit_slide, to_table
from mil.stain.separate import UNIT, Separate, _gather, decode
from splits.errors import InputError


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Five slides whose vectors, white points and strengths all differ."""
    rng = np.random.default_rng(0)
    fits = {}
    for i in range(5):
        stain = (sv.REFERENCE * (4 - i) + sv.RUIFROK * i) / 4 + rng.uniform(0, 0.05, (2, 3))
        stain /= np.linalg.norm(stain, axis=1, keepdims=True)
        white, p99 = rng.uniform(215, 252, 3), rng.uniform([0.8, 0.5], [3, 2])
        fits[f"0{i}"] = StainFit("macenko", "estimated", "", 9_999, white, stain, p99)
    return to_table(fits)


def tiles(n: int, height: int = 24, width: int = 17, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, height, width), dtype=np.uint8))


def reference(rgb: np.ndarray, row: pd.Series) -> np.ndarray:
    """One tile in float64 from the definition: OD, least squares by lstsq, scale; not rounded."""
    white = row[["white_r", "white_g", "white_b"]].to_numpy(float)
    stain = row[["h_r", "h_g", "h_b", "e_r", "e_g", "e_b"]].to_numpy(float).reshape(2, 3)
    p99 = row[["h_p99", "e_p99"]].to_numpy(float)
    density = -np.log((rgb.reshape(3, -1).astype(float) + 1) / (white[:, None] + 1))
    amount = np.linalg.lstsq(stain.T, np.maximum(density, 0), rcond=None)[0]
    scaled = np.clip(amount / p99[:, None], 0, 1.5) * 170
    return scaled.reshape(2, *rgb.shape[1:])


def test_equals_the_float64_definition_with_each_slide_its_own_vectors(table: pd.DataFrame) -> None:
    slide = torch.tensor([3, 0, 4, 0, 2, 1, 3])
    rgb = tiles(len(slide))
    got = Separate.from_table(table)(rgb, slide)
    assert got.dtype == torch.uint8
    assert got.shape == (7, 2, 24, 17)
    for one, index, tile in zip(got.numpy(), slide.tolist(), rgb.numpy(), strict=True):
        expected = reference(tile, table.iloc[index])
        # Nothing but ties of the rounding may differ.
        assert np.abs(one - expected).max() <= 0.5 + 1e-3


def test_other_devices_get_the_same_bits(table: pd.DataFrame) -> None:
    layer = Separate.from_table(table)
    rgb, slide = tiles(40, 64, 80, seed=3), torch.arange(40) % 5
    assert torch.equal(layer(rgb, slide), _gather(rgb, layer.table, slide))


def test_a_tile_larger_than_a_block_is_whole(table: pd.DataFrame) -> None:
    layer, slide = Separate.from_table(table), torch.tensor([1])
    rgb = tiles(1, 300, 401)
    assert torch.equal(layer(rgb, slide), _gather(rgb, layer.table, slide))


def test_every_grey_level_of_every_channel(table: pd.DataFrame) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    rgb = torch.full((3, 3, 1, 256), 200, dtype=torch.uint8)
    for channel in range(3):
        rgb[channel, channel, 0] = levels
    got = Separate.from_table(table)(rgb, torch.tensor([1, 1, 1])).numpy()
    for one, tile in zip(got, rgb.numpy(), strict=True):
        assert np.abs(one - reference(tile, table.iloc[1])).max() <= 0.5 + 1e-3


def test_splitting_or_permuting_a_batch_changes_nothing(table: pd.DataFrame) -> None:
    layer = Separate.from_table(table)
    rgb, slide = tiles(9, seed=1), torch.tensor([0, 1, 2, 3, 4, 4, 2, 0, 1])
    whole = layer(rgb, slide)
    parts = torch.cat([layer(rgb[a:b], slide[a:b]) for a, b in ((0, 1), (1, 5), (5, 9))])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole, parts)
    assert torch.equal(whole[order], layer(rgb[order], slide[order]))


def test_memory_layout_does_not_matter(table: pd.DataFrame) -> None:
    layer, slide = Separate.from_table(table), torch.tensor([0, 3])
    rgb = tiles(2)
    interleaved = rgb.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(layer(rgb, slide), layer(interleaved, slide))
    assert layer(rgb[:0], slide[:0]).shape == (0, 2, 24, 17)


def test_unit_means_the_99th_percentile_and_decode_inverts(table: pd.DataFrame) -> None:
    row = table.iloc[2]
    white = row[["white_r", "white_g", "white_b"]].to_numpy(float)
    stain = row[["h_r", "h_g", "h_b", "e_r", "e_g", "e_b"]].to_numpy(float).reshape(2, 3)
    p99 = row[["h_p99", "e_p99"]].to_numpy(float)
    share = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.5], [0.0, 0.0]])
    level = np.rint((white + 1) * np.exp(-(share * p99) @ stain) - 1)
    rgb = torch.from_numpy(level.astype(np.uint8).T.reshape(1, 3, 2, 2).copy())
    encoded = Separate.from_table(table)(rgb, torch.tensor([2]))
    got = decode(encoded).reshape(2, 4).T.numpy()
    np.testing.assert_allclose(got, share, atol=0.05)
    assert UNIT == 170
    assert decode(torch.tensor([255], dtype=torch.uint8)).item() == 1.5


def test_fit_and_layer_together_scale_real_strengths_alike() -> None:
    rng = np.random.default_rng(4)
    amount = rng.uniform(0, 1, (30_000, 2)) * rng.choice([[1, 0.05], [0.05, 1], [1, 1]], 30_000)
    fits, rgbs = {}, []
    for name, strength in (("a", [1.0, 0.7]), ("b", [2.0, 1.4])):
        level = 241 * np.exp(-(amount * strength) @ sv.REFERENCE) - 1
        pixels = np.rint(level).astype(np.uint8)
        fits[name] = fit_slide(pixels, "macenko")
        rgbs.append(pixels.T.reshape(3, 150, 200))
    layer = Separate.from_table(to_table(fits))
    pale, strong = layer(torch.from_numpy(np.stack(rgbs)), torch.tensor([0, 1])).float()
    for channel in range(2):  # twice the dye, the same picture
        assert (pale[channel] - strong[channel]).abs().mean() < 6


def test_state_travels_and_has_no_gradient(table: pd.DataFrame) -> None:
    layer, other = Separate.from_table(table), Separate.from_table(table.iloc[::-1])
    assert layer.slides == ("00", "01", "02", "03", "04")
    rgb = tiles(5, seed=2)
    ours = layer(rgb, torch.arange(5))
    assert torch.equal(ours, other(rgb, torch.arange(4, -1, -1)))
    assert not ours.requires_grad
    assert not list(layer.parameters())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(ours, other(rgb, torch.arange(5)))


def test_wrong_calls_are_refused(table: pd.DataFrame) -> None:
    layer = Separate.from_table(table)
    with pytest.raises(ValueError, match="rgb must be uint8"):
        layer(tiles(1).float(), torch.tensor([0]))
    with pytest.raises(ValueError, match="slide must be int64"):
        layer(tiles(2), torch.tensor([0]))
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match="0 to 4"):
            layer(tiles(2), torch.tensor([0, wrong]))


def test_wrong_tables_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="e_p99"):
        Separate.from_table(table.drop(columns="e_p99"))
    with pytest.raises(InputError, match=r"'03'.*more than once"):
        Separate.from_table(pd.concat([table, table.iloc[[3]]]))
    for column, value in (("h_p99", 0.0), ("white_g", np.nan), ("e_b", np.inf)):
        broken = table.copy()
        broken.loc[1, column] = value
        with pytest.raises(InputError, match="'01' is not usable"):
            Separate.from_table(broken)
    with pytest.raises(InputError, match="0 rows"):
        Separate.from_table(table.iloc[:0])
