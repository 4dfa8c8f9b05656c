"""Random views: geometry of known pictures, draws of their own for every sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from mil.config import Augment
from mil.encoders.augment import centre_view, random_view
from mil.seeds import of_rows, uniform

ALL: dict[str, Any] = {
    "crop_scale": (0.3, 0.9),
    "crop_ratio": (0.7, 1.4),
    "horizontal_flip": True,
    "quarter_turns": True,
    "blur": 1.5,
    "stain_jitter": 0.3,
}


def random_tiles(n: int = 8, size: int = 24, n_channels: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, n_channels, size, size), dtype=np.uint8))


def seeds(n: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    return of_rows(seed, np.arange(n))


def test_draws_are_the_published_splitmix64() -> None:
    # First outputs for seed 0 of the authors' reference program.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert of_rows(0, np.arange(3)).tolist() == published
    first = uniform(np.zeros(1, np.uint64), 3)[0]
    assert first == pytest.approx([word / 2**64 for word in published], abs=1e-15)


def test_draws_are_uniform_and_neighbours_unrelated() -> None:
    draws = uniform(seeds(20_000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square, 19 degrees: p = 1e-4
    together = np.concatenate([draws, np.roll(draws, 1, axis=0)], axis=1)
    assert np.abs(np.corrcoef(together.T) - np.eye(8)).max() < 0.03


@pytest.mark.parametrize("scales", [(1,), (1, 4)])
@pytest.mark.parametrize("channels", ["stains", "rgb"])
def test_a_tile_alone_has_the_view_that_it_has_in_any_batch(
    scales: tuple[int, ...], channels: str
) -> None:
    optical = channels == "stains"
    x, each = random_tiles(9, 40, 4), seeds(9)
    views = random_view(x, 24, each, scales=scales, optical=optical, **ALL)
    order = np.random.default_rng(1).permutation(9)[:5]
    shuffled = random_view(x[order], 24, each[order], scales=scales, optical=optical, **ALL)
    assert torch.equal(shuffled, views[order])
    for i in range(9):
        alone = random_view(
            x[i : i + 1], 24, each[i : i + 1], scales=scales, optical=optical, **ALL
        )
        assert torch.equal(alone[0], views[i])
    assert not torch.equal(views, random_view(x, 24, seeds(9, seed=1), scales=scales, **ALL))


def test_no_augmentation_is_the_tile() -> None:
    x = random_tiles()
    assert torch.equal(random_view(x, 24, seeds(8)), x.float())
    assert torch.equal(centre_view(x, 24), x.float())
    assert torch.equal(centre_view(x, 20), x[..., 2:22, 2:22].float())
    assert random_view(x[:0], 24, seeds(0)).shape == (0, 2, 24, 24)


def test_without_a_change_of_scale_a_view_is_a_window_of_the_tile() -> None:
    x = random_tiles(1, 12).repeat(200, 1, 1, 1)
    windows = x[0].float().unfold(1, 9, 1).unfold(2, 9, 1)  # (2, 4, 4, 9, 9)
    places = set()
    for view in random_view(x, 9, seeds(200)):
        same = (windows == view[:, None, None]).all(-1).all(-1).all(0)
        assert same.sum() == 1
        places.add(int(same.flatten().int().argmax()))
    assert places == set(range(16))


def test_flips_and_turns_are_exact_members_of_the_dihedral_group() -> None:
    x = random_tiles(400, 9)
    views = random_view(x, 9, seeds(400), horizontal_flip=True, quarter_turns=True)
    seen = []
    for tile, view in zip(x.float(), views, strict=True):
        group = [torch.rot90(m, k, (1, 2)) for m in (tile, tile.flip(2)) for k in range(4)]
        matches = [i for i, member in enumerate(group) if torch.equal(member, view)]
        assert len(matches) == 1
        seen += matches
    counts = np.bincount(seen, minlength=8)
    assert counts.min() > 25  # of 50 each
    upright = random_view(x, 9, seeds(400), horizontal_flip=True)
    mirrored = (upright == x.float().flip(3)).all(-1).all(-1).all(-1).float().mean()
    assert 0.4 < mirrored < 0.6


def test_a_crop_is_the_rectangle_that_was_asked_for() -> None:
    n, size, image_px = 300, 65, 40
    ramp = (torch.arange(size) * 3).byte().repeat(size, 1)
    x = torch.stack([ramp, ramp.T])[None].repeat(n, 1, 1, 1)
    views = random_view(x, image_px, seeds(n), crop_scale=(0.2, 0.6), crop_ratio=(0.7, 1.4))
    along = [views[:, 0].mean(1) / 3, views[:, 1].mean(2) / 3]  # column and row numbers, (n, 40)
    sides, centres = [], []
    for line in along:
        steps = line[:, 2:-2].diff(dim=1)  # the outer pixels may see the reflected border
        sides.append(steps.mean(1).numpy() * image_px)
        centres.append(line.mean(1).numpy())
        # Grey levels are rounded: each end of a step by a sixth of a pixel.
        assert (steps - steps.mean(1, keepdim=True)).abs().max() < 1 / 3 + 0.02
    width, height = sides
    area = width * height / size**2
    assert area.min() == pytest.approx(0.2, abs=0.015)
    assert area.max() == pytest.approx(0.6, abs=0.015)
    assert (width / height).min() == pytest.approx(0.7, abs=0.03)
    assert (width / height).max() == pytest.approx(1.4, abs=0.04)
    for side, centre in zip(sides, centres, strict=True):
        assert (centre + 0.5 - side / 2).min() > -0.3
        assert (centre + 0.5 + side / 2).max() < size + 0.3
        place = (centre + 0.5 - side / 2) / (size - side)
        assert np.histogram(place, 4, (-0.02, 1.02))[0].min() > n / 8


def test_blur_keeps_the_mean_and_takes_contrast() -> None:
    x = random_tiles(60, 64)
    sharp, soft = (random_view(x, 64, seeds(60), blur=blur) for blur in (0.0, 2.0))
    assert (soft.mean((2, 3)) - sharp.mean((2, 3))).abs().max() < 1
    kept = (soft.std((1, 2, 3)) / sharp.std((1, 2, 3))).numpy()
    # White noise under a Gaussian of deviation 2 keeps 1 / (4 sqrt(pi)) of its deviation.
    assert kept.min() == pytest.approx(0.141, abs=0.03)
    assert kept.max() > 0.9


def test_stain_jitter_keeps_order_and_stays_in_range() -> None:
    levels = torch.arange(256).byte().view(1, 1, 16, 16).repeat(200, 2, 1, 1)
    for optical in (True, False):
        views = random_view(levels, 16, seeds(200), stain_jitter=0.5, optical=optical)
        table = views.flatten(2)
        assert table.min() >= 0
        assert table.max() <= 255
        assert (table.diff(dim=2) >= 0).all()
        assert not torch.equal(views[:, 0], views[:, 1])
    gain = (table := random_view(levels, 16, seeds(200), stain_jitter=0.5).flatten(2))[..., 100]
    shift = table[..., 0]  # negative shifts are cut at 0
    assert shift.max() <= 0.1 * 0.5 * 255
    assert 50 - 12.75 < gain.min() < 75
    assert 125 < gain.max() < 150 + 12.75


def landmarks(n: int, size: int, scale: int) -> npt.NDArray[np.uint8]:
    """A spot for each tile, as it stands in the tile and in its surroundings at ``scale``."""
    place = (uniform(seeds(n, seed=7), 2) - 0.5) * size / 3  # x, y from the tile's centre
    axis = np.arange(size) + 0.5 - size / 2
    pictures = []
    for zoom in (1, scale):
        x, y = (np.exp(-((axis - p[:, None] / zoom) ** 2) / (2 * 1.5**2)) for p in place.T)
        pictures.append(np.round(255 * y[:, :, None] * x[:, None, :]).astype(np.uint8))
    return np.stack(pictures, axis=1)


def centroid(view: torch.Tensor) -> npt.NDArray[np.float64]:
    axis = torch.arange(view.shape[-1]) + 0.5 - view.shape[-1] / 2
    weight = view / view.sum((1, 2), keepdim=True)
    return np.stack([(weight.sum(1) * axis).sum(1), (weight.sum(2) * axis).sum(1)], axis=1)


@pytest.mark.parametrize("crop_scale", [(0.5, 0.9), (1.0, 1.0)])
def test_a_landmark_is_at_its_place_at_every_scale(crop_scale: tuple[float, float]) -> None:
    n, size, image_px = 200, 96, 72
    tiles = torch.from_numpy(landmarks(n, size, 4))
    settings = {**ALL, "crop_scale": crop_scale, "crop_ratio": (0.8, 1.25), "stain_jitter": 0}
    views = random_view(tiles, image_px, seeds(n), scales=(1, 4), **settings)
    near, far = centroid(views[:, 0]), centroid(views[:, 1])
    inside = np.abs(near).max(1) < image_px / 2 - 8  # the spot is not cut by the view's edge
    assert inside.sum() > n / 2
    assert np.abs(near[inside]).max() > 20
    assert np.abs(far[inside] * 4 - near[inside]).max() < 0.8  # a fifth of a far pixel


def test_ranges_that_are_none_are_refused() -> None:
    for wrong in ({"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.9, 0.5)}, {"crop_ratio": (2, 1)}):
        with pytest.raises(ValidationError, match="low, high"):
            Augment(**wrong)  # type: ignore[arg-type]
