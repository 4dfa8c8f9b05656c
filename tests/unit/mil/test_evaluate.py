"""Evaluation of a run folder whose answers are known by construction."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from mil.evaluate import evaluate, flipped, rival
from mil.metrics import METRICS, PER_CLASS
from mil.predictions import content_digest, read_slides
from mil.scores import score
from mil.seal import open_test_labels
from splits import split as splitting
from splits import tiles
from splits.artifacts import digests_of, read_json, read_table, write_csv, write_table
from splits.errors import InputError

CLASSES = ["p_ p", "Ganglion, Ångström", "NA"]  # names that look like columns, nulls, CSV
N_SLIDES, N_TILES, N_FOLDS = 36, 6, 3


def probability(predicted, rng):
    row = rng.dirichlet(np.ones(len(CLASSES))) * 0.3
    row[CLASSES.index(predicted)] += 0.7
    return dict(zip([f"p_{name}" for name in CLASSES], row, strict=True))


def other(label):
    return CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]


def build(run, *, annotated=True, sites=("05", None)):
    """36 slides of 18 patients; vote is wrong on slides 0 to 8, abmil on 0 to 2, mean on 0 to 8."""
    rng = np.random.default_rng(0)
    table, slides, tile_rows, attention, split = [], [], [], [], []
    wrong = {"vote": 9, "mean_probability": 9, "abmil": 3, "mean_pooling": 6}
    for i in range(N_SLIDES):
        slide, label, fold = f"{i:03d}", CLASSES[(i // 2) % 3], i % N_FOLDS
        split += [
            {"slide_id": slide, "group_id": f"g{i // 2}", "fold": k, "part": part}
            for k, part in ((fold, "test"), ((fold + 1) % N_FOLDS, "val"))
        ]
        for method, n_wrong in wrong.items():
            predicted = other(label) if i < n_wrong else label
            given = {"slide_id": slide, "method": method, "label": label, "predicted": predicted}
            slides.append({**given, "fold": fold, "part": "test", **probability(predicted, rng)})
            leaked = {**given, "predicted": label, "fold": (fold + 1) % N_FOLDS, "part": "val"}
            slides.append({**leaked, **probability(label, rng)})
        for t in range(N_TILES):
            tile = f"{slide}/{t}.png"
            table.append(
                {
                    "tile_id": tile,
                    "slide_id": slide,
                    "patient_id": f"P{i // 2:02d}",
                    "site_id": sites[i % len(sites)],
                    "group_id": f"g{i // 2}",
                    "slide_label": label,
                    "tile_label": (label if t < 2 else "stroma") if annotated else None,
                }
            )
            predicted = label if t < 4 else other(label)
            tile_rows.append(
                {
                    "tile_id": tile,
                    "slide_id": slide,
                    "fold": fold,
                    "part": "test",
                    "label": label,
                    "predicted": predicted,
                    **probability(predicted, rng),
                }
            )
            for method, weight in (("abmil", N_TILES - t), ("clam", t + 1)):
                attention.append(
                    {
                        "tile_id": tile,
                        "slide_id": slide,
                        "fold": fold,
                        "part": "test",
                        "method": method,
                        "attention": weight / 21,
                    }
                )
    write_table(run / "tiles.parquet", tiles.check(pd.DataFrame(table)), {})
    splitting.save(splitting.Split(pd.DataFrame(split), {"method": "kfold"}), run / "split.csv", {})
    write_table(run / "predictions.parquet", pd.DataFrame(slides), {})
    write_table(run / "tile_predictions.parquet", pd.DataFrame(tile_rows), {})
    write_table(run / "attention.parquet", pd.DataFrame(attention), {})
    return run


@pytest.fixture
def run(tmp_path):
    return build(tmp_path)


def quietly(run, **settings):
    """18 patients are fewer than 20: the caveat has its own test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return evaluate(run, **{"n_draws": 200, "seed": 0, **settings})


def edit(run, name, change):
    path = run / f"{name}.parquet"
    write_table(path, change(read_table(path)), {})


def test_metrics_of_a_run_are_the_planted_ones(run):
    result = quietly(run)
    assert set(result) == {
        *("n", "classes", "tile", "slide", "per_class", "paired", "interval", "cautions"),
        *("flips", "looks"),
    }
    assert result["n"] == {"tiles": 216, "slides": 36, "patients": 18, "sites": 1}
    assert result["classes"] == CLASSES
    assert list(result["slide"]) == ["vote", "mean_probability", "abmil", "mean_pooling"]
    accuracies = {name: values["accuracy"]["value"] for name, values in result["slide"].items()}
    planted = {"vote": 27, "mean_probability": 27, "abmil": 33, "mean_pooling": 30}
    assert accuracies == pytest.approx({name: right / 36 for name, right in planted.items()})
    assert result["tile"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert result["flips"] == 6
    assert result["looks"] == 1


def test_test_rows_alone_count_and_equal_scikit_learn(run):
    result = quietly(run)
    table = read_table(run / "predictions.parquet")
    rows = table[(table["method"] == "abmil") & (table["part"] == "test")]
    order = sorted(CLASSES)
    probabilities = rows[[f"p_{name}" for name in order]].to_numpy()
    found = {name: entry["value"] for name, entry in result["slide"]["abmil"].items()}
    del found["ece"]
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(rows["label"], rows["predicted"]),
            "balanced_accuracy": metrics.balanced_accuracy_score(rows["label"], rows["predicted"]),
            "auroc": metrics.roc_auc_score(
                rows["label"], probabilities, multi_class="ovr", labels=order
            ),
            "f1_macro": metrics.f1_score(rows["label"], rows["predicted"], average="macro"),
            "average_precision": metrics.average_precision_score(
                np.array(rows["label"])[:, None] == np.array(order), probabilities
            ),
            "log_loss": metrics.log_loss(rows["label"], probabilities, labels=order),
            "brier": 3
            * metrics.mean_squared_error(
                np.array(rows["label"])[:, None] == np.array(order), probabilities
            ),
        }
    )


def described(result):
    """Every value of slides with its interval."""
    by_class = result["per_class"]
    for scores in result["slide"].values():
        yield from scores.items()
    for classes in by_class["slide"].values():
        assert list(classes) == CLASSES
        for scores in classes.values():
            yield from ((name, value) for name, value in scores.items() if name != "n")


def test_intervals_surround_values(run):
    names = set()
    for name, metric in described(quietly(run)):
        names.add(name)
        assert set(metric) == {"value", "ci_low", "ci_high"}
        if metric["ci_low"] is None:  # all in order in every draw, and no exact bound for that
            assert (name, metric["value"], metric["ci_high"]) == ("average_precision", 1.0, None)
            continue
        assert metric["ci_low"] <= metric["ci_high"]
        if name != "ece":  # a sum of absolute values: its draws lie above it
            assert metric["ci_low"] - 1e-9 <= metric["value"] <= metric["ci_high"] + 1e-9
    assert names == {*METRICS, *PER_CLASS}


def test_where_every_patient_is_alike_there_is_no_interval(run):
    """Four of six tiles are right in every slide: nothing says how much others would differ."""
    found = quietly(run)["tile"]["accuracy"]
    assert found == {"value": pytest.approx(4 / 6), "ci_low": None, "ci_high": None}


def test_every_pair_of_methods_is_compared_in_every_way(run):
    result = quietly(run)
    pairs = {(row["a"], row["b"], row["metric"], row["test"]): row for row in result["paired"]}
    assert len(pairs) == len(result["paired"]) == 6 * 5
    found = pairs["abmil", "vote", "accuracy", "bootstrap"]
    assert found["difference"] == pytest.approx(6 / 36)
    assert found["ci_low"] < found["difference"] < found["ci_high"]
    # abmil alone is right on 1, 2, 2 and 1 slides of four patients: 2 of 16 choices of signs.
    assert pairs["abmil", "vote", "accuracy", "mcnemar"]["p"] == pytest.approx(2 / 16)
    assert pairs["mean_pooling", "abmil", "auroc", "delong"]["difference"] < 0
    same = pairs["mean_probability", "vote", "accuracy", "bootstrap"]
    assert (same["difference"], same["p"]) == (0, pytest.approx(1))
    assert -0.2 < same["ci_low"] == -same["ci_high"] < 0


def test_classes_are_scored_one_against_the_rest(run):
    result = quietly(run)["per_class"]
    assert {
        name: scores["n"] for name, scores in result["slide"]["abmil"].items()
    } == dict.fromkeys(CLASSES, 12)
    assert result["tile"]["NA"]["n"] == 12 * N_TILES
    # abmil is wrong on slides 0, 1, 2: two of the first class, one of the second.
    sensitivities = [result["slide"]["abmil"][name]["sensitivity"]["value"] for name in CLASSES]
    assert sensitivities == pytest.approx([10 / 12, 11 / 12, 1])
    # Nothing of 'NA' is missed by 6 patients: an exact bound.
    assert result["slide"]["abmil"]["NA"]["sensitivity"]["ci_low"] == pytest.approx(
        0.025 ** (1 / 6)
    )


def test_ordered_classes_have_a_kappa(run):
    order = ["NA", "not here", *CLASSES[:2]]
    result = quietly(run, order=order)
    rows = read_slides(run / "predictions.parquet").query("method == 'vote'")
    expected = metrics.cohen_kappa_score(
        rows["label"], rows["predicted"], labels=["NA", *CLASSES[:2]], weights="quadratic"
    )
    assert result["slide"]["vote"]["kappa_quadratic"]["value"] == pytest.approx(expected)
    with pytest.raises(InputError, match=r"lacks 'NA' \(split.label_order\)"):
        quietly(run, order=CLASSES[:2])


def test_sites_are_drawn_on_request_and_refused_where_unknown(run):
    with pytest.raises(
        InputError, match=r"18 of 36 test slides have no site_id, the first is '001'"
    ):
        quietly(run, cluster="site")
    assert not (run / "seal.json").exists()
    edit(run, "tiles", lambda t: t.assign(site_id=[f"S{int(s) // 4}" for s in t["slide_id"]]))
    result = quietly(run, cluster="site")
    expected = {"method": "bca", "level": 0.95, "cluster": "site", "n_clusters": 9, "n_draws": 200}
    assert result["interval"] == expected
    assert "only 9 site(s)" in result["cautions"][0]
    assert result["slide"]["vote"] != quietly(run)["slide"]["vote"]


def test_percentile_intervals_are_not_shifted(run):
    shifted, plain = quietly(run), quietly(run, interval="percentile")
    assert plain["interval"]["method"] == "percentile"
    a, b = (result["slide"]["vote"]["accuracy"] for result in (shifted, plain))
    assert a["value"] == b["value"]
    assert a["ci_low"] < b["ci_low"]


def test_patients_are_drawn_not_slides_or_tiles(run):
    result = quietly(run)
    rows = read_table(run / "tile_predictions.parquet").sort_values("tile_id")
    patients = read_table(run / "tiles.parquet").set_index("tile_id")["patient_id"]
    labels, predicted = (rows[c].map(CLASSES.index).to_numpy() for c in ("label", "predicted"))
    probabilities = rows[[f"p_{name}" for name in CLASSES]].to_numpy(dtype=float)
    clusters = patients[rows["tile_id"]].to_numpy(dtype=object)
    found = score(labels, predicted, probabilities, clusters, n_draws=200, seed=0)
    assert result["interval"]["n_clusters"] == 18
    for name, estimate in found.overall.items():
        assert result["tile"][name] == pytest.approx(estimate.describe(), abs=1e-6)


def test_metrics_json_is_what_was_returned_with_the_digests_given(run):
    result = quietly(run, digests={"predictions": "abc", "config": "def"})
    document = read_json(run / "metrics.json")
    assert document.pop("format_version") == 1
    assert document.pop("digests") == {"predictions": "abc", "config": "def"}
    assert document == result
    quietly(run, n_draws=10)
    first = digests_of(run / "metrics.json")
    quietly(run, n_draws=11)
    second = digests_of(run / "metrics.json")
    assert first["predictions"] == second["predictions"]
    assert first["config"] != second["config"]


def test_row_and_column_order_and_storage_types_change_nothing(run):
    expected = quietly(run)

    def scramble(table):
        table = table.sample(frac=1, random_state=1)
        for name in ("slide_id", "method", "label", "predicted", "part"):
            if name in table.columns:
                table[name] = table[name].astype("category")
        return table[[*table.columns[::-1][len(CLASSES) :], *table.columns[-len(CLASSES) :]]]

    for name in ("predictions", "tile_predictions", "attention"):
        edit(run, name, scramble if name != "attention" else lambda t: t.sample(frac=1))
    again = quietly(run)
    assert again.pop("looks") == 2
    assert expected.pop("looks") == 1
    assert json.dumps(again) == json.dumps(expected)
    assert quietly(run, seed=1)["slide"]["vote"] != expected["slide"]["vote"]


def test_every_look_is_counted_also_at_the_same_predictions(run):
    for look in (1, 2):
        assert quietly(run)["looks"] == look
    edit(run, "predictions", lambda t: t.assign(p_NA=t["p_NA"] + 1e-5))
    quietly(run)
    seal = read_json(run / "seal.json")
    digests = [entry["digest"] for entry in seal["log"]]
    assert seal["looks"] == 3
    assert digests[0] == digests[1] != digests[2]
    assert digests[2] == content_digest(read_table(run / "predictions.parquet"))
    assert [entry["same_predictions_as_look"] for entry in seal["log"]] == [None, 1, None]
    assert pd.Timestamp(seal["log"][0]["when"]).utcoffset().total_seconds() == 0


def test_the_seal_gives_labels_of_the_test_part_only(run):
    table = read_table(run / "predictions.parquet")
    few = table[(table["part"] == "val") | (table["slide_id"] == "005")]
    labels = open_test_labels(run, few, "peek")
    assert dict(labels) == {"005": CLASSES[2]}
    assert read_json(run / "seal.json")["log"][0]["stage"] == "peek"


def drop_test_slide(table):
    return table[~((table["slide_id"] == "004") & (table["method"] == "abmil"))]


def repeat_row(table):
    return pd.concat([table, table[table["part"] == "test"].iloc[:1]])


def set_first_test(table, column, value):
    row = table.index[table["part"] == "test"][0]
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("predictions", drop_test_slide, r"'abmil': 1 of 36 test slides .* '004'"),
        ("predictions", repeat_row, r"'vote' and '000' is there more than once"),
        ("tile_predictions", repeat_row, r"'000/0.png' is there more than once"),
        ("tile_predictions", lambda t: t[t["slide_id"] != "007"], r"1 of 36 test slides .* '007'"),
        ("predictions", lambda t: set_first_test(t, "fold", 2), r"in fold 2; split.csv tests it"),
        (
            "predictions",
            lambda t: set_first_test(t, "label", "NA"),
            r"label 'NA', in the tile table",
        ),
        ("tile_predictions", lambda t: set_first_test(t, "label", "NA"), r"in the tile table"),
        ("predictions", lambda t: set_first_test(t, "predicted", "NAA"), r"did you mean 'NA'"),
        ("predictions", lambda t: set_first_test(t, "p_NA", np.nan), r"sum 1, .* slide '000'"),
        ("predictions", lambda t: set_first_test(t, "p_NA", 1.5), r"1 row\(s\) with probabilities"),
        ("predictions", lambda t: t.drop(columns="method"), r"lacks the column\(s\) method"),
        ("predictions", lambda t: t[t["part"] == "val"], r"no row of the test part"),
        ("predictions", lambda t: set_first_test(t, "slide_id", None), r"null in .* slide_id"),
        ("predictions", lambda t: t.rename(columns={"p_NA": "p_N/A"}), r"'NA'"),
        ("tile_predictions", lambda t: set_first_test(t, "tile_id", "x"), r"'x' is not a tile"),
        ("attention", lambda t: set_first_test(t, "attention", 0.9), r"sum to 1 .* slide '000'"),
        ("attention", lambda t: set_first_test(t, "slide_id", "001"), r"sum to 1"),
    ],
)
def test_a_planted_fault_is_refused_and_metrics_are_not_written(run, name, change, message):
    edit(run, name, change)
    with pytest.raises(InputError, match=message):
        quietly(run)
    assert not (run / "metrics.json").exists()


def test_a_slide_tested_in_two_folds_is_refused(run):
    split = pd.read_csv(run / "split.csv", dtype=str)
    split.loc[split["slide_id"] == "003", "part"] = "test"
    write_csv(run / "split.csv", split)
    with pytest.raises(InputError, match="'003' is tested in several folds"):
        quietly(run)


def test_a_malformed_input_is_refused_before_the_seal_is_broken(run):
    edit(run, "predictions", drop_test_slide)
    with pytest.raises(InputError):
        quietly(run)
    assert not (run / "seal.json").exists()


@pytest.mark.filterwarnings("ignore:only 18 patient")
def test_few_patients_and_a_class_without_slides_are_said(run):
    with pytest.warns(UserWarning, match=r"only 18 patient\(s\)"):
        evaluate(run, n_draws=10, seed=0)
    for name in ("predictions", "tile_predictions"):
        edit(run, name, lambda t: t.assign(**{"p_new class": 0.0}))
    with pytest.warns(UserWarning, match="no test slide of class 'new class'"):
        result = evaluate(run, n_draws=10, seed=0)
    nothing = {"value": None, "ci_low": None, "ci_high": None}
    assert result["slide"]["vote"]["auroc"] == nothing
    assert result["slide"]["vote"]["accuracy"]["value"] == pytest.approx(27 / 36)
    assert any("'new class'" in caution for caution in result["cautions"])
    assert result["per_class"]["slide"]["vote"]["new class"]["ppv"] == nothing
    undefined = [row for row in result["paired"] if row["metric"] == "auroc"]
    assert {row["p"] for row in undefined} == {None}
    assert "NaN" not in (run / "metrics.json").read_text(encoding="utf-8")


def test_shuffled_labels_score_at_chance(run):
    """The same predictions against labels that were dealt out anew, a patient at a time."""
    patients = np.random.default_rng(3).permutation(N_SLIDES // 2)
    dealt = {f"{i:03d}": CLASSES[patients[i // 2] % 3] for i in range(N_SLIDES)}
    truth = {f"{i:03d}": CLASSES[(i // 2) % 3] for i in range(N_SLIDES)}
    assert sum(dealt[s] == truth[s] for s in truth) < 24
    edit(run, "tiles", lambda t: t.assign(slide_label=t["slide_id"].map(dealt)))
    for name in ("predictions", "tile_predictions"):
        edit(run, name, lambda t: t.assign(label=t["slide_id"].map(dealt)))
    auroc = quietly(run)["slide"]["abmil"]["auroc"]
    assert auroc["ci_low"] < 0.5 < auroc["ci_high"]


def test_flips_are_the_slides_that_two_methods_call_differently(run):
    table = read_table(run / "predictions.parquet")
    flips = flipped(table, "vote", "abmil")
    assert list(flips["slide_id"]) == [f"{i:03d}" for i in range(3, 9)]
    assert (flips["predicted_b"] == flips["label"]).all()
    assert (flips["predicted_a"] != flips["label"]).all()
    assert flipped(table, "vote", "mean_probability").empty
    with pytest.raises(InputError, match="did you mean 'abmil'"):
        flipped(table, "vote", "abmill")


def test_the_rival_of_the_vote_prefers_abmil_then_attention():
    attention = pd.DataFrame({"method": ["clam", "dsmil"]})
    methods = ["vote", "mean_probability", "abmil", "clam", "mean"]
    assert rival(methods, attention) == "clam"
    assert rival(methods, pd.DataFrame({"method": ["clam", "abmil"]})) == "abmil"
    assert rival(["vote", "mean", "max"], None) == "mean"
    assert rival(["vote", "mean_probability"], None) is None
    assert rival(["vote", "noisy_or", "quality_vote"], None) is None
    assert rival(["abmil"], None) is None


def test_without_trained_methods_there_are_no_flips_to_count(run):
    edit(run, "predictions", lambda t: t[t["method"].isin(["vote", "mean_probability"])])
    (run / "attention.parquet").unlink()
    assert quietly(run)["flips"] is None


def test_an_attention_table_without_rows_is_no_attention(run):
    edit(run, "attention", lambda t: t.iloc[:0])
    result = quietly(run)
    assert result["flips"] == 6
    assert not (run / "localisation.json").exists()


def test_localisation_finds_attention_on_the_tiles_that_bear_the_label(run):
    quietly(run)
    found = read_json(run / "localisation.json")
    assert found["n_test_slides"] == 36
    bound = 0.025 ** (1 / 18)  # the same in all 18 patients: the exact bound
    for method, area, low, high in (("abmil", 1.0, bound, 1.0), ("clam", 0.0, 0.0, 1 - bound)):
        assert found["methods"][method] == pytest.approx(
            {
                **dict.fromkeys(("auroc_mean", "auroc_pooled"), area),
                "ci_low": low,
                "ci_high": high,
                "n_slides": 36,
            }
        )
    build(run, annotated=False)
    quietly(run)
    assert not (run / "localisation.json").exists()
