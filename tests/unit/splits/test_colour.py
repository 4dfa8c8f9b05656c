from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from splits.content.colour import N_VALUES, vector
from splits.content.links import turned

Pixels = npt.NDArray[np.uint8]


def tile(seed: int, side: int = 250, tint: tuple[float, float, float] = (0.6, 0.9, 0.4)) -> Pixels:
    """Smoothed noise as the density of one stain over glass."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    depth = cv2.GaussianBlur(noise, (0, 0), 3)
    depth = np.clip(depth / depth.std() * 0.3 + 0.5, 0, None)
    return (255 * 10 ** (-depth[..., None] * np.array(tint) / 2)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [16, 125, 224, 250, 513])
def test_the_eight_turns_have_one_vector(side: int) -> None:
    upright = tile(0, side)
    expected = vector(upright)
    assert expected.shape == (N_VALUES,)
    assert expected.dtype == np.float32
    assert np.isfinite(expected).all()
    for turn in range(8):
        np.testing.assert_allclose(vector(turned(upright, turn)), expected, atol=2e-4)


def test_a_wide_tile_turns_too() -> None:
    wide = tile(1)[:180]
    for turn in range(8):
        np.testing.assert_allclose(vector(turned(wide, turn)), vector(wide), atol=2e-4)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_tile_has_a_finite_vector(level: int) -> None:
    assert np.isfinite(vector(np.full((64, 64, 3), level, np.uint8))).all()


@pytest.mark.parametrize("change", ["stain", "blur", "channels"])
def test_the_nearest_tile_is_of_the_same_stain_and_scanner(change: str) -> None:
    places = [tile(seed) for seed in range(6)]
    if change == "stain":
        changed = [tile(seed, tint=(0.6, 0.75, 0.5)) for seed in range(6)]
    elif change == "blur":
        changed = [cv2.GaussianBlur(place, (0, 0), 1.5) for place in places]
    else:
        changed = [np.ascontiguousarray(place[..., ::-1]) for place in places]
    vectors = np.stack([vector(pixels) for pixels in [*places, *changed]])
    varied = vectors[:, vectors.std(axis=0) > 1e-6]
    scaled = (varied - varied.mean(axis=0)) / varied.std(axis=0)
    distances = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    np.testing.assert_array_equal(nearest >= 6, np.arange(12) >= 6)


def test_a_stretched_contrast_leaves_a_comb() -> None:
    levels = np.random.default_rng(2).normal(128, 20, (128, 128, 3)).clip(64, 192)
    plain = levels.astype(np.uint8)
    stretched = np.round((plain - 64.0) * 2).clip(0, 255).astype(np.uint8)
    comb = 9  # lowest and highest level precede it, after the seven quantiles of the first channel
    assert vector(stretched)[comb] > 3 * vector(plain)[comb]
