from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mil.stain import vectors as sv
from mil.stain.density import is_tissue, optical_density, sample_pixels, white_point
from mil.stain.fit import METHODS, PRIOR_PX, TABLE_COLUMNS, fit_slide, from_table, to_table
from splits.errors import InputError

ORGANS = Path(__file__).resolve().parents[3] / "../shared/data/tcga_organs"
# Directions around which real slides scatter: the reference, Ruifrok's, and between.
CENTRES = (sv.REFERENCE, (sv.REFERENCE + sv.RUIFROK) / 2, sv.RUIFROK)


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def paint(
    concentrations: np.ndarray, stain: np.ndarray, white: np.ndarray, noise: np.ndarray | float = 0
) -> np.ndarray:
    """Beer-Lambert forwards, written independently of the code under test."""
    level = (white + 1) * np.exp(-(concentrations @ stain)) - 1 + noise
    return np.clip(np.rint(level), 0, 255).astype(np.uint8)


def planted(seed: int, n: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of a synthetic slide, its stain vectors and its white point."""
    rng = np.random.default_rng(seed)
    stain = np.maximum(CENTRES[seed % 3] + rng.normal(0, 0.03, (2, 3)), 0.02)
    stain /= np.linalg.norm(stain, axis=1, keepdims=True)
    white = rng.integers(225, 250) + rng.integers(-5, 6, 3).astype(float)
    strength = rng.uniform([0.8, 0.6], [2.2, 1.6])
    kind = rng.choice(4, n, p=[0.2, 0.35, 0.25, 0.2])  # glass, eosin, nuclei, both
    amount = strength * rng.uniform(0.4, 1.0, (n, 2))
    amount[:, 0] *= np.isin(kind, (2, 3)) + 0.03 * (kind == 1)
    amount[:, 1] *= np.isin(kind, (1, 3)) + 0.03 * (kind == 2)
    return paint(amount, stain, white, rng.normal(0, 1, (n, 3))), stain, white


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_planted_vectors_and_white_point_are_recovered(seed: int) -> None:
    pixels, stain, white = planted(seed)
    fit = fit_slide(pixels, "macenko")
    assert fit.source == "estimated", fit.note
    assert fit.note == ""
    assert np.abs(fit.white - white).max() <= 3
    # Hematoxylin to hematoxylin: the two are far more than 3 degrees apart, so order is tested too.
    assert degrees(fit.vectors[0], stain[0]) < 3
    assert degrees(fit.vectors[1], stain[1]) < 3
    assert (fit.vectors >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(fit.vectors, axis=1), 1)


def test_median_error_of_the_vectors_is_small() -> None:
    errors = []
    for seed in range(24):
        pixels, stain, white = planted(seed)
        density = optical_density(pixels, white)
        got = sv.macenko(density[is_tissue(density)])
        errors.append([degrees(got[i], stain[i]) for i in range(2)])
    assert (np.median(errors, axis=0) < 2).all()


def test_pixel_order_does_not_matter() -> None:
    pixels, _, _ = planted(5)
    shuffled = np.random.default_rng(0).permutation(pixels)
    a, b = fit_slide(pixels, "macenko"), fit_slide(shuffled, "macenko")
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-9)
    np.testing.assert_allclose(a.p99, b.p99, atol=1e-9)


def test_exchanged_files_are_the_same_slide_for_every_method() -> None:
    pixels, _, _ = planted(0)
    for method in METHODS:
        straight = fit_slide(pixels, method)
        reverse = fit_slide(np.ascontiguousarray(pixels[:, ::-1]), method)
        assert "exchanged" in reverse.note
        np.testing.assert_allclose(reverse.vectors, straight.vectors[:, ::-1], atol=1e-3)
        np.testing.assert_allclose(reverse.p99, straight.p99, rtol=1e-3)
        np.testing.assert_allclose(reverse.colour, straight.colour, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_exchanged_red_and_blue_keep_hematoxylin_first(seed: int) -> None:
    pixels, stain, _ = planted(3 * seed)  # around the reference
    fit = fit_slide(np.ascontiguousarray(pixels[:, ::-1]), "macenko")
    assert "exchanged" in fit.note
    assert degrees(fit.vectors[0], stain[0, ::-1]) < 5
    assert degrees(fit.vectors[1], stain[1, ::-1]) < 5


def test_concentrations_round_trip_through_pixels() -> None:
    rng = np.random.default_rng(1)
    white = np.array([240.0, 236.0, 243.0])
    truth = rng.uniform(0.05, 1.2, (40, 50, 2))
    rgb = paint(truth, sv.REFERENCE, white)
    got = sv.concentrations(rgb, white, sv.REFERENCE)
    assert got.shape == truth.shape
    assert got.dtype == np.float64
    assert np.abs(got - truth).max() < 0.1  # a grey level of 255 rounds away this much
    again = paint(got, sv.REFERENCE, white)
    assert np.abs(again.astype(int) - rgb).max() <= 1


def test_optical_density_is_zero_on_glass_and_above_and_finite_on_black() -> None:
    white = np.array([240.0, 230.0, 235.0])
    pixels = np.array([[240, 230, 235], [255, 255, 255], [0, 0, 0], [120, 120, 120]], np.uint8)
    density = optical_density(pixels, white)
    assert (density[:2] == 0).all()
    np.testing.assert_allclose(density[2:], -np.log((pixels[2:] + 1.0) / (white + 1)))


def test_white_point_of_a_frame_that_is_all_tissue_stays_bright() -> None:
    pixels = np.random.default_rng(0).integers(60, 160, (5_000, 3), dtype=np.uint8)
    np.testing.assert_array_equal(white_point(pixels), [230, 230, 230])
    assert white_point(np.empty((0, 3), np.uint8)).tolist() == [230, 230, 230]


@pytest.mark.parametrize("colour", [(255, 255, 255), (242, 240, 243), (0, 0, 0), None])
def test_slide_without_tissue_gets_the_reference_and_says_so(
    colour: tuple[int, int, int] | None,
) -> None:
    n = 30_000 if colour else 0
    pixels = np.full((n, 3), colour or 0, np.uint8)
    fit = fit_slide(pixels, "macenko")
    assert fit.source == "reference"
    assert "too little tissue" in fit.note
    assert fit.n_tissue_px == 0
    np.testing.assert_array_equal(fit.vectors, sv.REFERENCE)
    np.testing.assert_array_equal(fit.p99, sv.REFERENCE_P99)


@pytest.mark.parametrize("colour", [(120, 60, 130), (10, 250, 10), (128, 128, 128), (0, 0, 255)])
def test_slide_of_one_colour_falls_back(colour: tuple[int, int, int]) -> None:
    fit = fit_slide(np.full((30_000, 3), colour, np.uint8), "macenko")
    assert fit.source == "reference"
    assert fit.note
    assert np.isfinite(fit.p99).all()
    assert (fit.p99 > 0.2).all()


def test_less_tissue_is_nearer_to_the_reference() -> None:
    # All tissue is the same pixels again, so that nothing but its amount differs.
    pixels, _, white = planted(2, 400)
    glass = np.tile(np.rint(white).astype(np.uint8), (2_000, 1))
    away = []
    for times in (0, 1, 2, 5, 20, 100):
        fit = fit_slide(np.concatenate([glass, *[pixels] * times]), "macenko")
        assert (fit.n_tissue_px < PRIOR_PX) == ("too little tissue" in fit.note)
        away.append([degrees(a, b) for a, b in zip(fit.vectors, sv.REFERENCE, strict=True)])
    assert away[0] == pytest.approx([0, 0], abs=1e-5)
    assert (np.diff(np.array(away), axis=0) > 0).all()
    assert min(away[-1]) > 5


def test_prior_is_what_its_formula_says() -> None:
    pixels, _, _ = planted(1, 300)
    fit = fit_slide(pixels, "macenko")
    density = optical_density(pixels, fit.white)
    tissue = density[is_tissue(density)]
    own = len(tissue) / (len(tissue) + 300)
    expected = own * sv.macenko(tissue) + (1 - own) * sv.REFERENCE
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(fit.vectors, expected)
    measured = np.percentile(np.linalg.lstsq(expected.T, tissue.T)[0], 99, axis=1)
    np.testing.assert_allclose(fit.p99, own * measured + (1 - own) * sv.REFERENCE_P99)


@pytest.mark.parametrize("ink", [(20, 40, 160), (15, 120, 60), (30, 50, 140), (10, 140, 120)])
def test_pen_marks_do_not_disturb_the_estimate(ink: tuple[int, int, int]) -> None:
    pixels, _, _ = planted(6)
    rng = np.random.default_rng(0)
    marks = np.clip(rng.normal(ink, 6, (6_000, 3)), 0, 255).astype(np.uint8)
    clean, marked = (fit_slide(p, "macenko") for p in (pixels, np.concatenate([pixels, marks])))
    for i in range(2):
        assert degrees(clean.vectors[i], marked.vectors[i]) < 1
    assert clean.quality.flag == ""
    assert "such as ink" in marked.quality.flag


def test_slide_without_hematoxylin_does_not_stretch_noise() -> None:
    rng = np.random.default_rng(2)
    amount = np.stack([np.zeros(20_000), rng.uniform(0.5, 1.2, 20_000)], axis=1)
    pixels = paint(amount, sv.REFERENCE, np.full(3, 240.0), rng.normal(0, 1, (20_000, 3)))
    fit = fit_slide(pixels, "macenko")
    assert fit.source == "reference"
    assert "degrees apart" in fit.note
    assert "hardly any hematoxylin" in fit.note
    assert fit.p99[0] == pytest.approx(sv.REFERENCE_P99[0] / 4)


def test_black_padding_does_not_disturb_the_estimate() -> None:
    pixels, stain, _ = planted(9)
    padded = np.concatenate([pixels, np.zeros((8_000, 3), np.uint8)])
    fit = fit_slide(padded, "macenko")
    assert fit.source == "estimated"
    assert max(degrees(fit.vectors[i], stain[i]) for i in range(2)) < 5


@pytest.mark.parametrize(
    ("stain", "says"),
    [
        ([[0.7, 0.7, -0.14], [0.1, 0.9, 0.4]], "negative"),
        ([[0.56, 0.72, 0.41], [0.55, 0.73, 0.40]], "degrees apart"),
        ([[1.0, 0.0, 0.0], [0.2, 0.8, 0.56]], "degrees apart"),
        ([[0.1, 0.5, 0.86], [0.02, 0.35, 0.94]], "from the reference"),
    ],
)
def test_implausible_vectors_are_named(stain: list[list[float]], says: str) -> None:
    unit = np.array(stain) / np.linalg.norm(stain, axis=1, keepdims=True)
    assert says in sv.implausible(unit)


def test_published_vectors_are_plausible() -> None:
    assert sv.implausible(sv.REFERENCE) == ""
    assert sv.implausible(sv.RUIFROK) == ""


def test_ruifrok_is_fixed_and_equals_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    expected = color.rgb_from_hed[:2]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    pixels, _, _ = planted(4)
    fit = fit_slide(pixels, "ruifrok")
    assert (fit.source, fit.method) == ("fixed", "ruifrok")
    np.testing.assert_allclose(fit.vectors, expected)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'macenko'"):
        fit_slide(np.zeros((10, 3), np.uint8), "mazenko")


def test_estimate_without_tissue_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 tissue pixels"):
        sv.macenko(np.full((1, 3), 0.4))
    with pytest.raises(ValueError, match="uint8"):
        fit_slide(np.full((100, 3), 0.5), "macenko")  # type: ignore[arg-type]


def test_table_keeps_ids_as_text_and_is_sorted() -> None:
    blank = fit_slide(np.full((100, 3), 250, np.uint8), "macenko")
    real = fit_slide(planted(2)[0], "macenko", 0.2)
    table = to_table({"NA": blank, "05": real, "3E": blank})
    assert list(table["slide_id"]) == ["05", "3E", "NA"]
    assert list(table.columns) == list(TABLE_COLUMNS)
    row = table.iloc[0]
    np.testing.assert_allclose(row[["e_r", "e_g", "e_b"]].astype(float), real.vectors[1])
    np.testing.assert_allclose(row[["h_p99", "e_p99"]].astype(float), real.p99)
    assert list(to_table({}).columns) == list(table.columns)
    back = from_table(table)["05"]
    assert back.quality == real.quality
    for name in ("white", "vectors", "p99", "colour"):
        np.testing.assert_array_equal(getattr(back, name), getattr(real, name))


def test_sample_pixels_is_uniform_and_repeatable() -> None:
    tile = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
    a = sample_pixels(tile, 500, np.random.default_rng(3))
    b = sample_pixels(tile, 500, np.random.default_rng(3))
    assert a.shape == (500, 3)
    np.testing.assert_array_equal(a, b)
    there = {tuple(pixel) for pixel in tile.reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in a.tolist()} <= there
    np.testing.assert_array_equal(sample_pixels(tile, 10_000, np.random.default_rng(0)),
                                  tile.reshape(-1, 3))  # fmt: skip


def test_real_slides() -> None:
    if not ORGANS.is_dir():
        pytest.skip("../shared/data is not here")
    rng = np.random.default_rng(0)
    pooled: dict[str, list[np.ndarray]] = {}
    for path in sorted(ORGANS.rglob("*.jpg")):
        tiles = pooled.setdefault(path.name.split("_r")[0], [])
        if len(tiles) < 6:
            tiles.append(sample_pixels(np.asarray(Image.open(path).convert("RGB")), 4_000, rng))
    fits = {s: fit_slide(np.concatenate(tiles), "macenko") for s, tiles in pooled.items()}
    plausible = []
    for fit in fits.values():
        ordered = fit.vectors[:, ::-1] if "exchanged" in fit.note else fit.vectors
        away = max(degrees(ordered[i], sv.REFERENCE[i]) for i in range(2))
        plausible.append(fit.source == "estimated" and away < 25)
    assert len(plausible) >= 50
    assert np.mean(plausible) >= 0.95
