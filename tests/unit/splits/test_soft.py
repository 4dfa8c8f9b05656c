from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from splits.content.signature_model import learn, likely_pairs, missed
from splits.content.soft import coarsen

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
N_SLIDES = 90
N_REGIONS = 2
N_TILES = 5


def planted(seed: int, *, between: float, region: float) -> tuple[Codes, Codes, Floats]:
    """Slide and hard component of tiles, and vectors: tile noise 1, mixed over 30 columns."""
    random = np.random.default_rng(seed)
    slide = np.repeat(np.arange(N_SLIDES), N_REGIONS * N_TILES)
    component = np.repeat(np.arange(N_SLIDES * N_REGIONS), N_TILES)
    slides = random.normal(size=(N_SLIDES, 10)) * between
    regions = random.normal(size=(N_SLIDES * N_REGIONS, 10)) * region
    signal = slides[slide] + regions[component] + random.normal(size=(len(slide), 10))
    order = random.permutation(len(slide))
    noise = random.normal(size=(len(slide), 30)) * 0.1
    vectors = (signal @ random.normal(size=(10, 30)) + noise) * np.geomspace(0.01, 100, 30)
    return slide[order], component[order], vectors[order]


def split_slides(group: Codes, slide: Codes) -> float:
    """Share of the tiles whose slide lies in several groups."""
    n_groups = [len(np.unique(group[slide == one])) for one in slide]
    return float(np.mean(np.array(n_groups) > 1))


def test_regions_of_one_slide_come_together() -> None:
    slide, component, vectors = planted(0, between=8, region=0.5)
    coarse = coarsen(component, vectors, folds=5)
    assert coarse.satisfied
    assert split_slides(component, slide) == 1.0
    assert split_slides(coarse.group, slide) <= 0.1
    assert coarse.step.n_eff >= N_SLIDES / 2


def test_it_only_coarsens_keeps_the_bounds_and_is_the_same_twice() -> None:
    _, component, vectors = planted(1, between=2, region=1)
    coarse = coarsen(component, vectors, folds=4)
    for one in np.unique(component):
        assert len(np.unique(coarse.group[component == one])) == 1
    shares = np.bincount(coarse.group) / len(coarse.group)
    assert coarse.step.largest_share == pytest.approx(shares.max())
    assert coarse.step.n_eff == pytest.approx(1 / np.sum(shares**2))
    assert shares.max() <= 1 / 8
    assert coarse.step.n_eff >= 24
    np.testing.assert_array_equal(coarsen(component, vectors, folds=4).group, coarse.group)


def test_the_units_of_the_vectors_do_not_matter() -> None:
    _, component, vectors = planted(2, between=3, region=0.5)
    scaled = vectors * np.geomspace(1e-3, 1e3, vectors.shape[1]) + 7
    expected = coarsen(component, vectors, folds=5).group
    np.testing.assert_array_equal(coarsen(component, scaled, folds=5).group, expected)


def test_vectors_that_say_nothing_about_the_slide_do_not_satisfy() -> None:
    _, component, vectors = planted(3, between=3, region=0.5)
    shuffled = np.random.default_rng(0).permutation(vectors)
    assert missed(shuffled, component) > 0.9
    assert missed(vectors, component) < 0.1
    coarse = coarsen(component, shuffled, folds=5)
    assert coarse.predicted_leakage > 0.7
    assert not coarse.satisfied


def test_regions_that_differ_like_slides_do_not_satisfy() -> None:
    slide, component, vectors = planted(3, between=3, region=3)
    coarse = coarsen(component, vectors, folds=5)
    assert split_slides(coarse.group, slide) > 0.5
    assert coarse.predicted_leakage > 0.3
    assert not coarse.satisfied


def test_the_fitted_share_of_pairs_is_the_planted_one() -> None:
    slide, component, vectors = planted(4, between=4, region=0.5)
    true = (N_REGIONS - 1) / (N_SLIDES * N_REGIONS - 1)
    pairs = likely_pairs(learn(vectors, component))
    assert true / 2 < pairs.prior < true * 2
    of = np.array([slide[component == one][0] for one in np.unique(component)])
    same = of[pairs.pairs[:, 0]] == of[pairs.pairs[:, 1]]
    assert pairs.probability[same].mean() > 0.8
    assert pairs.probability[~same].mean() < 0.02


@pytest.mark.parametrize("folds", [2, 10])
def test_predicted_leakage_falls_along_the_curve(folds: int) -> None:
    _, component, vectors = planted(5, between=2, region=1)
    coarse = coarsen(component, vectors, folds=folds, target=0.0)
    leakages = [step.predicted_leakage for step in coarse.curve]
    assert leakages[0] <= 1 - 1 / folds
    assert leakages[-1] <= leakages[0]
    n_effs = [step.n_eff for step in coarse.curve]
    assert n_effs == sorted(n_effs, reverse=True)


def test_an_embedding_can_carry_the_signature() -> None:
    slide, component, vectors = planted(6, between=4, region=0.5)
    weak = np.random.default_rng(1).normal(size=(len(slide), 20))
    group = coarsen(component, weak, folds=5, embedding=vectors).group
    assert split_slides(group, slide) < 0.2
    assert split_slides(coarsen(component, weak, folds=5).group, slide) > 0.5


def test_where_nothing_can_be_learned_the_components_stay() -> None:
    alone = np.arange(100)
    coarse = coarsen(alone, np.random.default_rng(0).normal(size=(100, 5)), folds=5)
    assert not coarse.satisfied
    assert "hard-linked" in coarse.reason
    assert coarse.predicted_leakage == pytest.approx(0.8)
    np.testing.assert_array_equal(coarse.group, alone)


def test_components_that_are_too_coarse_stay_and_do_not_satisfy() -> None:
    component = np.repeat([0, *range(1, 61)], [200, *[1] * 60])
    coarse = coarsen(component, np.random.default_rng(0).normal(size=(260, 5)), folds=5)
    assert not coarse.satisfied
    assert "77%" in coarse.reason
    np.testing.assert_array_equal(coarse.group, component)


def test_the_summary_is_json() -> None:
    _, component, vectors = planted(7, between=4, region=0.5)
    summary = json.loads(json.dumps(coarsen(component, vectors, folds=5).summary()))
    assert summary["satisfied"] == (summary["predicted"] <= summary["target"])
    assert summary["curve"]
