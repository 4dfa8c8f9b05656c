"""The shortcut probe against planted truths, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from mil.experiments import probe as module
from mil.experiments.probe import Pool, Probed, difference, draw_tiles, probe
from mil.experiments.probe_design import held_out
from splits.errors import InputError


def cohort(
    seed: int,
    *,
    patients: int = 24,
    tiles: int = 8,
    dim: int = 20,
    sites: int = 4,
    slide: float = 0.0,
    site: float = 0.0,
    label: float = 0.0,
    site_is_class: bool = False,
) -> tuple[Pool, pd.DataFrame]:
    """Gaussian tiles with an offset a slide, a site and a class of the given strengths."""
    random = np.random.default_rng(seed)
    of_site = random.permutation(np.arange(patients) % sites)
    of_class = of_site if site_is_class else random.permutation(np.arange(patients) % 3)
    rows = np.repeat(np.arange(patients), tiles)
    x = random.standard_normal((len(rows), dim))
    for strength, code in ((slide, np.arange(patients)), (site, of_site), (label, of_class)):
        x += (strength * random.standard_normal((code.max() + 1, dim)))[code[rows]]
    names = [f"s{i:02}" for i in range(patients)]
    slides = pd.DataFrame(
        {
            "patient_id": [f"p{i:02}" for i in range(patients)],
            "label": [f"class {k}" for k in of_class],
            "site": [f"site {k}" for k in of_site],
            "preparation": None,
        },
        index=names,
    )
    return Pool(x, np.array(names, dtype=object)[rows]), slides


def found(pool: Pool, slides: pd.DataFrame, seed: int = 0) -> Probed:
    return probe([pool], slides, n_draws=300, seed=seed)


def test_held_out_predictions_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    z, y = random.standard_normal((60, 7)), random.standard_normal((60, 3))
    fold = random.integers(0, 4, 60)
    ours = held_out(z, fold, alpha=3.0) @ y
    for k in range(4):
        model = Ridge(alpha=3.0).fit(z[fold != k], y[fold != k])
        assert ours[fold == k] == pytest.approx(model.predict(z[fold == k]), abs=1e-5)


def test_a_slide_signature_is_found_and_its_absence_too() -> None:
    with_it = found(*cohort(1, slide=1.5)).values["slide"]
    assert with_it["value"] > 0.8
    assert with_it["ci_low"] > with_it["class_alone"]
    assert with_it["p"] == 1 / (1 + module.N_PERMUTATIONS)
    without = found(*cohort(1)).values["slide"]
    assert without["chance"] == pytest.approx(1 / 24, abs=0.01)
    assert without["p"] > 0.05


def test_a_site_offset_is_found_in_patients_who_were_held_out() -> None:
    values = found(*cohort(2, slide=0.5, site=1.5)).values["site"]
    assert values["value"] > 0.8
    assert values["ci_low"] > values["class_alone"]
    assert values["p"] == 1 / (1 + module.N_PERMUTATIONS)


def test_a_site_that_is_the_class_says_nothing_beyond_it() -> None:
    values = found(*cohort(3, slide=0.3, label=2.0, site_is_class=True)).values["site"]
    assert values["value"] > 0.9
    # Within a class there is one site: no permutation changes anything.
    assert values["class_alone"] == pytest.approx(values["value"])
    assert values["p"] == 1.0
    assert values["chance"] < 0.5


def test_without_a_planted_name_intervals_cover_and_p_is_rarely_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "N_PERMUTATIONS", 79)
    n, inside, small = 40, {"slide": 0, "site": 0}, {"slide": 0, "site": 0}
    for seed in range(n):
        # For the slide no signature; for the site slides may well differ, sites do not.
        for kind, strength in (("slide", 0.0), ("site", 0.7)):
            drawn = cohort(100 + seed, patients=18, tiles=6, dim=12, sites=3, slide=strength)
            values = found(*drawn, seed=seed).values[kind]
            inside[kind] += values["ci_low"] <= values["class_alone"] <= values["ci_high"]
            small[kind] += values["p"] <= 0.05
    # 95 % of 40 are 38; fewer than 33 has a chance of 1 in 500, more than 6 small p of 1 in 100.
    assert min(inside.values()) >= 33, inside
    assert max(small.values()) <= 6, small


def test_who_is_left_out_is_listed() -> None:
    pool, slides = cohort(4, patients=12, sites=3)
    slides.iloc[0, slides.columns.get_loc("site")] = "alone"
    slides.iloc[1, slides.columns.get_loc("site")] = None
    slides.iloc[3, slides.columns.get_loc("patient_id")] = slides["patient_id"].iloc[2]
    slides.iloc[2:4, slides.columns.get_loc("site")] = ["site 0", "site 1"]
    result = found(pool, slides)
    values = result.values["site"]
    assert values["left_out"] == [
        {"name": None, "why": "no site known", "n_patients": 1},
        {"name": None, "why": "of several sites", "n_patients": 1},
        {"name": "alone", "why": "one patient", "n_patients": 1},
    ]
    assert values["n_units"] == 12 - 1 - 3
    assert "note" in result.values["preparation"]


def test_a_slide_of_one_tile_is_left_out_of_the_slides() -> None:
    pool, slides = cohort(5, patients=6)
    keep = np.flatnonzero((pool.slide != "s00") | (np.arange(len(pool.slide)) == 0))
    values = found(Pool(pool.x[keep], pool.slide[keep]), slides).values["slide"]
    assert values["left_out"] == [{"name": "s00", "why": "one tile"}]
    assert values["n_units"] == 5


def test_pools_are_probed_for_themselves() -> None:
    # Both pools have a strong signature, in different directions: nothing carries over.
    (a, slides_a), (b, slides_b) = cohort(6, slide=1.5), cohort(7, slide=1.5)
    slides_b.index = [f"t{name}" for name in slides_b.index]
    slides_b["patient_id"] = "t" + slides_b["patient_id"]
    second = Pool(b.x, np.array([f"t{name}" for name in b.slide], dtype=object))
    both = probe([a, second], pd.concat([slides_a, slides_b]), n_draws=100, seed=0)
    alone = [found(a, slides_a), found(second, slides_b)]
    units = both.units[both.units["kind"] == "slide"].set_index("unit")["hit"]
    first = alone[0].units[alone[0].units["kind"] == "slide"].set_index("unit")["hit"]
    assert units[first.index].equals(first)
    assert both.values["slide"]["n_pools"] == 2
    mean = np.mean([one.values["slide"]["value"] for one in alone])
    assert both.values["slide"]["value"] == pytest.approx(mean, abs=0.05)


def test_less_signature_is_seen_as_a_difference_on_the_same_tiles() -> None:
    pool, slides = cohort(8, slide=1.5)
    plain, _ = cohort(8, slide=0.3)
    more, less = found(pool, slides), found(plain, slides)
    gap = difference(less.units, more.units, "slide", n_draws=300, seed=0)
    assert gap is not None
    expected = less.values["slide"]["value"] - more.values["slide"]["value"]
    assert gap["value"] == pytest.approx(expected)
    assert gap["ci_high"] < 0
    assert difference(less.units, more.units, "preparation", n_draws=9, seed=0) is None
    with pytest.raises(InputError, match="not made on the same"):
        difference(less.units[:-1], more.units, "site", n_draws=9, seed=0)


def test_tiles_are_drawn_evenly_and_the_same_for_every_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slide = np.repeat(np.array(["a", "b", "c"], dtype=object), [100, 40, 3])
    rows = draw_tiles(slide, seed=0)
    assert np.array_equal(rows, draw_tiles(slide, seed=0))
    assert not np.array_equal(rows, draw_tiles(slide, seed=1))
    assert pd.Series(slide[rows]).value_counts().to_dict() == {"a": 32, "b": 32, "c": 3}
    # Another slide changes no draw of these.
    more = np.concatenate([slide, np.repeat(np.array(["d"], dtype=object), 50)])
    assert np.array_equal(draw_tiles(more, seed=0)[: len(rows)], rows)
    monkeypatch.setattr(module, "_SLIDES", 2)
    assert len(set(slide[draw_tiles(slide, seed=0)])) == 2


def test_the_same_seed_gives_the_same_probe() -> None:
    drawn = cohort(9, slide=0.5, site=0.5)
    assert found(*drawn).values == found(*drawn).values


def test_a_slide_without_a_row_is_refused() -> None:
    pool, slides = cohort(0)
    with pytest.raises(InputError, match="without a row, the first is 's00'"):
        found(pool, slides.drop("s00"))
