"""Deletion, insertion, agreement and localisation, on tables whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid
from sklearn import metrics

from mil.evidence import evidence, localisation, means
from mil.pieces import SHARES, bag_of, removals
from mil.statistics import mean_interval

DRAWS = {"n_draws": 300, "seed": 0}
N_TILES = 20


def cohort(n_slides, per_patient=2):
    slides = [f"s{i:03d}" for i in range(n_slides)]
    labels = pd.Series(["ab"[(i // per_patient) % 2] for i in range(n_slides)], slides)
    patients = pd.Series([f"p{i // per_patient:03d}" for i in range(n_slides)], slides)
    return labels, patients


def answers(n_slides, attend, answer, *, seed=0, repeats=5):
    """What a model says that answers by the tiles it sees: ``attend`` and ``answer`` are it."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_slides):
        name = f"s{i:03d}"
        key = int(rng.integers(N_TILES))
        bag = bag_of(name, 0, N_TILES, repeats=repeats, seed=seed)
        down = bag.ordered(attend(key, rng))
        orders = [("attention", 0, "top", down), ("attention", 0, "bottom", down[::-1])]
        orders += [("random", repeat, "top", order) for repeat, order in enumerate(bag.orders)]
        for order, repeat, end, tiles in orders:
            chosen = {"order": order, "repeat": repeat, "end": end}
            for piece in removals(bag, tiles, chosen):
                rows += [
                    {
                        "slide_id": name,
                        "fold": 0,
                        "method": "abmil",
                        "labels": "true",
                        **chosen,
                        "share": share,
                        "n_removed": piece.chosen["n_removed"],
                        "predicted": "a",
                        "p": answer(key, set(piece.tiles.tolist())),
                    }
                    for share in piece.chosen["shares"]
                ]
    return pd.DataFrame(rows)


def key_first(key, _):
    return (np.arange(N_TILES) == key).astype(float)


def at_random(_, rng):
    return rng.random(N_TILES)


def by_key(key, tiles):
    """The label of the bag is one tile, and the model uses it."""
    return 0.95 if key in tiles else 0.05


NO_PAIRS = pd.DataFrame(
    columns=["slide_id", "method", "measure", "a", "b", "n_tiles", "spearman", "overlap"]
)


def judge(table, n_slides, pairs=NO_PAIRS):
    found = evidence(table, pairs, *cohort(n_slides), **DRAWS)
    return found["methods"]["abmil"]["measures"]["attention"]


def test_attention_on_the_one_tile_that_decides_is_believed():
    found = judge(answers(24, key_first, by_key), 24)
    deletion, insertion = found["deletion"], found["insertion"]
    assert [point["share"] for point in deletion["curve"]] == list(SHARES)
    assert deletion["curve"][0]["p"] == pytest.approx(0.95)
    assert all(point["p"] == pytest.approx(0.05) for point in deletion["curve"][1:])
    # Random removal keeps the tile as often as it keeps any: p falls on a straight line.
    for point in deletion["random"]:
        assert point["p"] == pytest.approx(0.95 - 0.9 * point["share"], abs=0.12)
    assert all(point["p"] == pytest.approx(0.95) for point in insertion["curve"])
    assert insertion["curve"][0]["share"] == pytest.approx(0.05)
    assert deletion["area"] == pytest.approx(0.05 + 0.9 * 0.025 / 0.95)
    assert deletion["difference"]["value"] == pytest.approx(
        deletion["area_random"] - deletion["area"]
    )
    assert insertion["difference"]["value"] == pytest.approx(
        insertion["area"] - insertion["area_random"]
    )
    for way in (deletion, insertion):
        assert way["difference"]["ci_low"] > 0.3
        assert way["verdict"] == "yes"


def test_attention_on_the_wrong_end_is_worse_than_random():
    found = judge(answers(24, lambda key, rng: -key_first(key, rng), by_key), 24)
    assert found["deletion"]["verdict"] == "no"
    assert found["insertion"]["verdict"] == "no"


def test_random_attention_shows_nothing_at_the_nominal_rate():
    shown = 0
    for seed in range(30):
        found = judge(answers(16, at_random, by_key, seed=seed), 16)
        difference = found["deletion"]["difference"]
        inside = difference["ci_low"] <= 0 <= difference["ci_high"]
        assert (found["deletion"]["verdict"] == "cannot be shown") == inside
        shown += found["deletion"]["verdict"] != "cannot be shown"
    assert shown <= 6  # 1.5 expected at 95 %, and few patients make intervals too narrow


def test_a_model_that_ignores_its_tiles_shows_nothing():
    found = judge(answers(8, key_first, lambda key, tiles: 0.7), 8)
    for way in ("deletion", "insertion"):
        assert found[way]["difference"] == {"value": 0.0, "ci_low": None, "ci_high": None}
        assert found[way]["verdict"] == "cannot be shown"
        assert all(point["p"] == pytest.approx(0.7) for point in found[way]["curve"])


def test_areas_equal_an_independent_integral_of_every_slide():
    table = answers(6, at_random, lambda key, tiles: len(tiles) / N_TILES * (key in tiles))
    found = judge(table, 6)["insertion"]
    areas = {}
    for kind in ("attention", "random"):
        rows = table[(table["order"] == kind)]
        rows = rows[rows["end"] == ("bottom" if kind == "attention" else "top")]
        of_slides = []
        for _, slide in rows.groupby("slide_id"):
            p = slide.groupby("share")["p"].mean()
            kept = 1 - p.index.to_numpy()[::-1]
            of_slides.append(trapezoid(p.to_numpy()[::-1], kept) / np.ptp(kept))
        areas[kind] = np.mean(of_slides)
    assert found["area"] == pytest.approx(areas["attention"], abs=1e-12)
    assert found["area_random"] == pytest.approx(areas["random"], abs=1e-12)


def test_agreement_is_the_mean_over_slides_and_says_where_it_was_not_measured():
    table = answers(4, key_first, by_key)
    note = judge(table, 4)["agreement"]["note"]
    assert "mil.seeds=2" in note
    assert "evidence.shuffled_control" in judge(table, 4)["shuffled"]["note"]
    pairs = pd.DataFrame(
        [
            ["s000", "abmil", "attention", "0", "1", 20, 0.2, 0.0],
            ["s000", "abmil", "attention", "0", "2", 20, 0.4, 0.5],
            ["s000", "abmil", "attention", "1", "2", 20, 0.6, 1.0],
            *(["s001", "abmil", "attention", a, b, 5, 1.0, 1.0] for a, b in ("01", "02", "12")),
            *(["s002", "abmil", "attention", a, b, 5, np.nan, 1.0] for a, b in ("01", "02", "12")),
            *(["s003", "abmil", "attention", a, b, 2, np.nan, 1.0] for a, b in ("01", "02", "12")),
        ],
        columns=NO_PAIRS.columns,
    )
    found = judge(table, 4, pairs)["agreement"]
    assert found["value"] == pytest.approx((0.4 + 1.0) / 2)
    assert (found["n_members"], found["n_slides"]) == (3, 2)
    assert found["top_tenth"]["value"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["top_tenth"]["chance"] == pytest.approx((2 / 20 + 1 / 5 + 1 / 5) / 3)


def test_the_shuffled_control_is_apart_from_the_model():
    real = answers(24, key_first, by_key)
    control = answers(24, at_random, by_key, seed=5).assign(labels="shuffled")
    pairs = NO_PAIRS.copy()
    pairs.loc[0] = ["s000", "abmil", "attention", "true", "shuffled", 20, 0.1, 0.0]
    found = judge(pd.concat([real, control]), 24, pairs)
    assert found["deletion"]["verdict"] == "yes"
    assert found["shuffled"]["deletion"]["verdict"] == "cannot be shown"
    assert found["shuffled"]["agreement"]["value"] == pytest.approx(0.1)
    assert "note" in found["agreement"]


def test_no_method_that_weighs_tiles_is_no_evidence():
    table = answers(2, key_first, by_key).iloc[:0]
    assert evidence(table, NO_PAIRS, *cohort(2), **DRAWS) is None


def test_means_equal_numpy_and_widen_with_clusters():
    labels, patients = cohort(40, per_patient=4)
    rng = np.random.default_rng(0)
    of_patient = {name: rng.standard_normal() for name in patients.unique()}
    values = pd.DataFrame({"x": patients.map(of_patient), "y": rng.standard_normal(40)})
    values.loc["s003", "y"] = np.nan
    found = means(values, labels, patients, n_draws=2000, seed=0)
    assert [one.value for one in found] == pytest.approx([values["x"].mean(), values["y"].mean()])
    alone = pd.Series(patients.index, patients.index)
    narrow = means(values, labels, alone, n_draws=2000, seed=0)
    assert np.std(found[0].draws) > 1.5 * np.std(narrow[0].draws)
    order = rng.permutation(40)
    again = means(values.iloc[order], labels, patients, n_draws=2000, seed=0)
    assert [one.describe() for one in again] == [one.describe() for one in found]


def test_the_interval_of_a_mean_is_the_one_that_every_metric_has():
    labels, patients = cohort(40, per_patient=4)
    values = pd.DataFrame({"x": np.random.default_rng(0).standard_normal(40)}, labels.index)
    codes = np.unique(labels, return_inverse=True)[1]
    expected = mean_interval(values["x"], codes, patients.to_numpy(object), n_draws=300, seed=1)
    found = means(values, labels, patients, n_draws=300, seed=1)[0].describe()
    assert found == pytest.approx(expected, abs=1e-12)
    nothing = means(values * np.nan, labels, patients, n_draws=30, seed=1)[0].describe()
    assert nothing == {"value": None, "ci_low": None, "ci_high": None}


def located(table, attention, slides):
    labels = pd.Series("tumor", slides)
    return localisation(table, attention, labels, pd.Series(slides, slides), **DRAWS)


def test_localisation_counts_only_slides_with_tiles_of_both_kinds():
    rows = []
    for i, kinds in enumerate(
        (
            ["normal"] * 6,
            ["tumor"] * 6,
            ["normal", "tumor", None, None, None, "normal"],  # ranks 1, 2 and 6 from the top
            ["tumor", "tumor", *["normal"] * 4],
        )
    ):
        rows += [
            {
                "tile_id": f"{i}/{t}",
                "slide_id": f"{i}",
                "slide_label": "tumor",
                "tile_label": kind,
                "part": "test",
                "method": "abmil",
                "attention": (6 - t) / 21,
            }
            for t, kind in enumerate(kinds)
        ]
    table = pd.DataFrame(rows)
    found = located(table, table, ["0", "1", "2", "3"])
    assert found["n_test_slides"] == 4
    abmil = found["methods"]["abmil"]
    assert abmil["n_slides"] == 2
    assert abmil["auroc_mean"] == pytest.approx((0.5 + 1) / 2)
    assert abmil["ci_low"] < 0.75 < abmil["ci_high"]
    assert located(table, table, ["0", "1"]) is None


def test_pooled_localisation_does_not_depend_on_slide_size():
    """Raw weights of a large slide are all below those of a small one; ranks within are not."""
    rows = []
    for slide, n in (("small", 4), ("large", 400)):
        weights = np.arange(n, 0, -1) / np.arange(n + 1).sum()
        rows += [
            {
                "tile_id": f"{slide}/{t}",
                "slide_id": slide,
                "slide_label": "tumor",
                "tile_label": "tumor" if t < n // 2 else "normal",
                "part": "test",
                "method": "abmil",
                "attention": weights[t],
            }
            for t in range(n)
        ]
    table = pd.DataFrame(rows)
    found = located(table, table, ["small", "large"])["methods"]["abmil"]
    assert found["auroc_pooled"] == 1.0
    assert metrics.roc_auc_score(table["tile_label"] == "tumor", table["attention"]) < 1


def test_localisation_equals_scikit_learn_slide_by_slide():
    rng = np.random.default_rng(0)
    n = 300
    table = pd.DataFrame(
        {
            "tile_id": [f"{t}" for t in range(n)],
            "slide_id": rng.choice(["a", "b", "c"], n, p=[0.1, 0.3, 0.6]),
            "slide_label": "tumor",
            "tile_label": rng.choice(["tumor", "normal"], n),
            "part": "test",
            "method": "abmil",
            "attention": rng.integers(0, 5, n) / n,  # ties
        }
    )
    found = located(table, table, ["a", "b", "c"])["methods"]["abmil"]
    areas = [
        metrics.roc_auc_score(rows["tile_label"] == "tumor", rows["attention"])
        for _, rows in table.groupby("slide_id")
    ]
    assert found["auroc_mean"] == pytest.approx(np.mean(areas))
