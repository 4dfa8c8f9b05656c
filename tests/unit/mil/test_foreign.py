"""Predictions of other tools: scored as our own, and refused with a reason where they cannot be."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn import metrics
from test_evaluate import build as build_run

from mil import foreign
from mil.cli import main
from mil.evaluate import evaluate
from mil.foreign.answers import Answers, Remarks, summed
from mil.foreign.shape import Shape, recognise
from mil.report import build
from splits.artifacts import read_json, read_table
from splits.errors import InputError

HOSTILE = "<img src=x onerror=alert(1)>"
FORMULA = "=HYPERLINK(1)"
N = 30


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def cohort(n: int = N, names: tuple[str, str] = ("normal", "tumour"), seed: int = 0):
    """Slides, labels, and the probability of the second class."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    p = np.clip(0.5 + 0.25 * (truth - 0.5) + rng.normal(0, 0.2, n), 0.02, 0.98).round(6)
    slides = [f"S{i:03d}" for i in range(n)]
    return slides, [names[k] for k in truth], truth, p


def plain(**changes) -> pd.DataFrame:
    slides, label, _, p = cohort()
    table = {"slide_id": slides, "label": label, "p_normal": (1 - p).round(6), "p_tumour": p}
    return pd.DataFrame({**table, **changes})


def labels(path: Path, **changes) -> Path:
    slides, label, _, _ = cohort()
    table = {"slide_id": slides, "patient_id": [f"P{i // 2}" for i in range(N)], "label": label}
    pd.DataFrame({**table, **changes}).to_csv(path, index=False)
    return path


def score(folder: Path, *tables: pd.DataFrame, **settings) -> foreign.Scored:
    files = []
    for place, table in enumerate(tables):
        files.append(str(folder / f"{'abc'[place]}.csv"))
        table.to_csv(files[-1], index=False)
    return foreign.score(files, folder / "out", n_draws=20, **settings)


def values(scored: foreign.Scored, method: str = "a") -> dict[str, float | None]:
    return {name: entry["value"] for name, entry in scored.metrics["slide"][method].items()}


def expected(label, p_second, predicted=None) -> dict[str, float]:
    """Straight from scikit-learn, two classes."""
    truth, p = np.asarray(label), np.asarray(p_second, dtype=float)
    called = (p > 0.5).astype(int) if predicted is None else predicted
    return {
        "accuracy": metrics.accuracy_score(truth, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
        "auroc": metrics.roc_auc_score(truth, p),
        "f1_macro": metrics.f1_score(truth, called, average="macro"),
        "log_loss": metrics.log_loss(truth, np.column_stack([1 - p, p])),
    }


def same(found, wanted) -> None:
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_the_numbers_are_those_of_scikit_learn_on_the_csv(tmp_path):
    scored = score(tmp_path, plain())
    table = pd.read_csv(tmp_path / "a.csv")
    same(values(scored), expected((table["label"] == "tumour").astype(int), table["p_tumour"]))
    assert scored.metrics["n"] == {"tiles": None, "slides": N, "patients": N, "sites": 0}
    assert scored.metrics["tile"] is None
    assert "every other slide is its own patient" in " ".join(scored.metrics["cautions"])


def test_three_classes_equal_scikit_learn(tmp_path):
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(3), 60)
    truth = rng.integers(0, 3, 60)
    names = np.array(["a", "b", "c"])
    table = pd.DataFrame({"slide_id": [f"x{i}" for i in range(60)], "label": names[truth]})
    table[["p_c", "p_a", "p_b"]] = p[:, [2, 0, 1]]
    scored = score(tmp_path, table)
    wanted = {
        "accuracy": metrics.accuracy_score(truth, p.argmax(1)),
        "auroc": metrics.roc_auc_score(truth, p, multi_class="ovr"),
        "f1_macro": metrics.f1_score(truth, p.argmax(1), average="macro"),
        "log_loss": metrics.log_loss(truth, p),
    }
    same(values(scored), wanted)


def test_our_own_run_through_the_foreign_door_has_the_same_numbers(tmp_path):
    run = build_run(tmp_path / "run", sites=("05", "06"))
    ours = evaluate(run, n_draws=50, seed=3)
    table = read_table(run / "tiles.parquet").drop_duplicates("slide_id")
    names = {"slide_id": "slide_id", "patient_id": "patient_id", "site_id": "site_id"}
    slides = table[[*names, "slide_label"]].rename(columns={"slide_label": "label"})
    slides.astype(str).to_csv(tmp_path / "slides.csv", index=False)
    theirs = foreign.score(
        [str(run / "predictions.parquet")],
        tmp_path / "out",
        slides=tmp_path / "slides.csv",
        tiles=run / "tile_predictions.parquet",
        n_draws=50,
        seed=3,
    ).metrics
    for name in ("classes", "tile", "slide", "paired"):
        assert theirs[name] == ours[name], name
    assert theirs["n"] == ours["n"]
    for name in ("calibration.json", "answers.parquet"):
        assert (tmp_path / "out" / name).exists() == (run / name).exists()


def _clam(slides, label, truth, p):
    columns = {"slide_id": slides, "Y": truth.astype(float), "Y_hat": (p > 0.5).astype(int)}
    return pd.DataFrame({**columns, "p_0": 1 - p, "p_1": p}), "0 1"


def _stamp(slides, label, truth, p):
    called = np.where(p > 0.5, "tumour", "normal")
    table = {"PATIENT": slides, "status": label, "pred": called}
    return pd.DataFrame(
        {**table, "status_normal": 1 - p, "status_tumour": p, "loss": -np.log(p)}
    ), "normal tumour"


def _slideflow(slides, label, truth, p):
    return pd.DataFrame({"slide": slides, "y_true": truth, "y_pred0": 1 - p, "y_pred1": p}), "0 1"


def _slideflow_outcome(slides, label, truth, p):
    table = {"patient": slides, "slide": slides, "status-y_true": truth}
    return pd.DataFrame({**table, "status-y_pred0": 1 - p, "status-y_pred1": p}), "0 1"


def _torchmil(slides, label, truth, p):
    called = (p > 0.5).astype(int)
    return pd.DataFrame({"bag_name": slides, "Y": truth, "Y_pred": called, "prob": p}), "0 1"


def _patho_bench(slides, label, truth, p):
    table = {"case_id": slides, "slide_id": slides, "label": label, "prob_normal": 1 - p}
    return pd.DataFrame({**table, "prob_tumour": p, "fold": np.arange(N) % 3}), "normal tumour"


def _named_after_classes(slides, label, truth, p):
    table = {"slide": slides, "label": label, "Tumour": p, "Normal": 1 - p}
    return pd.DataFrame(table), "tumour normal"


def _one_score(slides, label, truth, p):
    return pd.DataFrame({"slide_id": slides, "label": truth, "y_pred": p}), "0 1"


def _one_named(slides, label, truth, p):
    return pd.DataFrame({"wsi": slides, "target": label, "p_tumour": p}), "normal tumour"


@pytest.mark.parametrize(
    "shape",
    [
        _clam,
        _stamp,
        _slideflow,
        _slideflow_outcome,
        _torchmil,
        _patho_bench,
        _named_after_classes,
        _one_score,
        _one_named,
    ],
)
def test_files_of_other_tools_are_read_as_they_are(tmp_path, shape):
    slides, label, truth, p = cohort()
    table, classes = shape(slides, label, truth, p)
    scored = score(tmp_path, table)
    same(values(scored), expected(truth, p))
    assert set(scored.metrics["classes"]) == set(classes.split())


@pytest.mark.parametrize(
    ("separator", "decimal", "encoding"),
    [(",", ".", "utf-8"), (";", ",", "utf-8-sig"), ("\t", ".", "utf-16"), ("\t", ",", "utf-8")],
)
def test_separators_marks_and_decimal_commas(tmp_path, separator, decimal, encoding):
    path = tmp_path / "method.csv"
    plain().to_csv(path, index=False, sep=separator, decimal=decimal, encoding=encoding)
    scored = foreign.score([str(path)], tmp_path / "out", n_draws=20)
    _, _, truth, p = cohort()
    same(values(scored, "method"), expected(truth, p))


def test_numbers_stand_for_names_only_where_labels_prove_it(tmp_path):
    slides, label, truth, p = cohort()
    table = labels(tmp_path / "labels.csv", slide_id=[f"{name}.svs" for name in slides])
    clam, _ = _clam(slides, label, truth, p)
    scored = score(tmp_path, clam, slides=table)
    assert scored.metrics["classes"] == ["normal", "tumour"]
    assert any("class '0' is 'normal', '1' is 'tumour'" in note for note in scored.notes)
    assert any("file extension" in note for note in scored.notes)
    same(values(scored), expected(truth, p))
    # Turned round, numbers and names still find each other by the labels.
    turned, _ = _clam(slides, label, 1 - truth, 1 - p)
    again = score(tmp_path, turned, slides=table)
    assert set(again.metrics["classes"]) == {"normal", "tumour"}
    same(values(again), expected(truth, p))
    # Without labels of its own nothing says which is which.
    with pytest.raises(InputError, match="say which number is which class"):
        score(tmp_path, clam.drop(columns=["Y", "Y_hat"]), slides=table)
    mapped = {"p_normal": "p_0", "p_tumour": "p_1"}
    bare = clam.drop(columns=["Y", "Y_hat"])
    same(values(score(tmp_path, bare, slides=table, columns=mapped)), expected(truth, p))


def test_names_that_differ_in_spelling_are_said_and_taken(tmp_path):
    table = plain().rename(columns={"p_normal": "p_Normal ", "p_tumour": "p_TUMOUR"})
    scored = score(tmp_path, table)
    _, _, truth, p = cohort()
    same(values(scored), expected(truth, p))
    assert scored.metrics["classes"] == ["normal", "tumour"]
    assert any("'TUMOUR' is taken for 'tumour'" in note for note in scored.notes)


def test_ids_that_a_spreadsheet_changed_find_their_slides(tmp_path):
    known = [f"{i:04d}" for i in range(N)]
    table = labels(tmp_path / "labels.csv", slide_id=known)
    floats = plain(slide_id=[f"{i}.0" for i in range(N)]).drop(columns="label")
    scored = score(tmp_path, floats, slides=table)
    assert scored.metrics["n"]["slides"] == N
    assert any("leading zeros" in caution for caution in scored.cautions)


def test_a_patient_a_row_is_scored_over_patients(tmp_path):
    _, label, _, _ = cohort()
    table = labels(tmp_path / "labels.csv", label=[label[i // 2] for i in range(N)])
    rows = pd.DataFrame({"PATIENT": [f"P{i}" for i in range(N // 2)]})
    rows["status"] = label[: N // 2]
    rows["status_normal"] = [0.8 if name == "normal" else 0.1 for name in rows["status"]]
    rows["status_tumour"] = 1 - rows["status_normal"]
    scored = score(tmp_path, rows, slides=table)
    assert scored.metrics["n"]["slides"] == scored.metrics["n"]["patients"] == N // 2
    assert values(scored)["accuracy"] == 1
    mixed = labels(tmp_path / "mixed.csv")
    with pytest.raises(InputError, match="several labels"):
        score(tmp_path, rows, slides=mixed)


def test_files_of_one_name_are_the_folds_of_a_method(tmp_path):
    table = plain()
    for k in range(3):
        table[k::3].to_csv(tmp_path / f"fold_{k}.csv", index=False)
    files = [str(tmp_path / f"fold_{k}.csv") for k in range(3)]
    scored = foreign.score([f"clam={name}" for name in files], tmp_path / "out", n_draws=20)
    assert list(scored.metrics["slide"]) == ["clam"]
    slides = read_table(tmp_path / "out" / "slides.parquet").set_index("slide_id")["fold"]
    assert slides.tolist() == [i % 3 for i in range(N)]
    with pytest.raises(InputError, match=r"'fold_0' has no prediction for 20 of 30"):
        foreign.score(files, tmp_path / "out", n_draws=20)


def test_training_rows_are_left_out_and_validation_rows_calibrate(tmp_path):
    table = plain(part=["test", "val", "train"] * 10, fold=0)
    scored = score(tmp_path, table)
    assert scored.metrics["n"]["slides"] == 10
    assert any("10 row(s) of the training part" in note for note in scored.notes)
    assert (tmp_path / "out" / "answers.parquet").exists()


def test_looks_are_counted_and_the_same_files_are_not_looked_at_again(tmp_path):
    assert score(tmp_path, plain()).metrics["looks"] == 1
    stamp = (tmp_path / "out" / "metrics.json").stat().st_mtime_ns
    assert score(tmp_path, plain()).metrics["looks"] == 1
    assert (tmp_path / "out" / "metrics.json").stat().st_mtime_ns == stamp
    assert score(tmp_path, plain(p_tumour=0.25, p_normal=0.75)).metrics["looks"] == 2


def test_tiles_give_the_tile_level_and_need_every_slide(tmp_path):
    slides, _, truth, p = cohort()
    rows = [
        {"slide_id": name, "tile_id": f"t{i}", "p_normal": 1 - q, "p_tumour": q}
        for name, q in zip(slides, p, strict=True)
        for i in range(2)
    ]
    path = tmp_path / "tiles.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    scored = score(tmp_path, plain(), tiles=path)
    assert scored.metrics["n"]["tiles"] == 2 * N
    same({k: v["value"] for k, v in scored.metrics["tile"].items()}, expected(truth, p))
    pd.DataFrame(rows[2:]).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"no tile of 1 scored slide\(s\): 'S000'"):
        score(tmp_path, plain(), tiles=path)
    assert score(tmp_path, plain()).metrics["tile"] is None
    assert not (tmp_path / "out" / "tile_predictions.parquet").exists()


def _row(column: str, value: object, row: int = 3) -> pd.DataFrame:
    table = plain().astype({column: object})
    table.loc[row, column] = value
    return table


BAD = {
    "sum": (_row("p_tumour", 0.9), "do not sum to 1; those of slide 'S003'"),
    "per cent": (plain(p_normal=25, p_tumour=75), "per cent"),
    "logits": (plain(p_normal=-1.5, p_tumour=2.25), "logits"),
    "log probabilities": (
        plain(p_normal=math.log(0.25), p_tumour=math.log(0.75)),
        "log probabilities",
    ),
    "sigmoids": (plain(p_normal=0.25, p_tumour=0.35), "sigmoids"),
    "negative": (plain(p_normal=1.25, p_tumour=-0.25), "outside 0 to 1.*'S000'"),
    "nan": (_row("p_tumour", "NaN"), "column 'p_tumour' of slide 'S003' is empty or NaN"),
    "empty": (_row("p_tumour", ""), "empty or NaN"),
    "infinite": (_row("p_tumour", "inf"), "is infinite"),
    "empty column": (plain(p_tumour=""), "the column 'p_tumour' is empty"),
    "text": (_row("p_tumour", "high"), "no number, the first is 'high' of slide 'S003'"),
    "excel": (_row("p_tumour", "#DIV/0!"), "a spreadsheet left an error"),
    "formula": (_row("p_tumour", "=A1/2"), "a formula"),
    "percent sign": (_row("p_tumour", "83%"), "not per cent"),
    "no id": (_row("slide_id", ""), r"1 row\(s\) have no slide_id, the first is row 4"),
    "label": (_row("label", "tumor"), "unknown label .*'tumor'; did you mean 'tumour'"),
    "no label": (_row("label", ""), r"1 predicted slide\(s\) have no label: 'S003'"),
    "predicted": (plain(predicted="tumr"), "unknown predicted .*'tumr'; did you mean 'tumour'"),
    "twice": (pd.concat([plain(), plain()[:2]]), "'S000', 'S001'; 'S000' 2 times"),
    "repeats": (
        pd.concat([plain(fold=0), plain(fold=1)]),
        r"30 slide\(s\) more than once.*folds 0, 1",
    ),
    "no column": (plain().rename(columns={"slide_id": "code"}), "known as slide_id.*--columns"),
    "no scores": (plain().drop(columns=["p_normal", "p_tumour"]), "no column of probabilities"),
    "no rows": (plain()[:0], "a header and no rows"),
    "no test": (plain(part="val"), "no row of the test part"),
    "part": (plain(part="holdout"), "unknown part 'holdout'"),
    "two ids": (plain(slide="x").drop(columns="slide_id").assign(wsi="y"), "could all be slide_id"),
    "whose score": (
        plain(score=0.5).drop(columns=["p_normal", "p_tumour"]),
        "of which class is the column 'score'.*p_tumour=score",
    ),
    "one class known": (
        plain(label="tumour").drop(columns="p_normal"),
        "the probability of one class, 'tumour'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_scored_is_named_with_the_reason(tmp_path, case):
    table, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        score(tmp_path, table)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_slides_of_the_label_table_have_to_be_predicted(tmp_path):
    table = labels(tmp_path / "labels.csv")
    with pytest.raises(InputError, match=r"3 of 30 slide.*'S000', 'S001', 'S002'.*--partial"):
        score(tmp_path, plain()[3:], slides=table)
    scored = score(tmp_path, plain()[3:], slides=table, partial=True)
    assert scored.metrics["n"]["slides"] == 27
    assert any("3 of 30 slide(s) are not scored" in text for text in scored.metrics["cautions"])


def test_slides_that_nobody_knows_are_refused_with_the_nearest(tmp_path):
    table = labels(tmp_path / "labels.csv")
    strange = pd.concat([plain(), plain()[:1].assign(slide_id="S005-b")])
    with pytest.raises(InputError, match=r"1 of 31 slide.*'S005-b'; nearest to .* is 'S005'"):
        score(tmp_path, strange, slides=table, partial=True)


def test_methods_are_compared_over_the_same_slides(tmp_path):
    with pytest.raises(InputError, match=r"'b' has no prediction for 2 of 30.*'S000', 'S001'"):
        score(tmp_path, plain(), plain()[2:])
    scored = score(tmp_path, plain(), plain()[2:], partial=True)
    assert scored.metrics["n"]["slides"] == 28
    with pytest.raises(InputError, match="no slide is predicted by all"):
        score(tmp_path, plain()[:10], plain()[10:], partial=True)


def test_files_that_disagree_are_refused(tmp_path):
    other = _row("label", "tumour", row=0)
    with pytest.raises(InputError, match=r"'S000' is 'tumour' here and 'normal' there"):
        score(tmp_path, plain(), other)
    with pytest.raises(InputError, match=r"another label.*'S000'"):
        score(tmp_path, other, slides=labels(tmp_path / "labels.csv"))
    with pytest.raises(InputError, match="over the same classes"):
        score(tmp_path, plain(), plain(p_other=0.0))
    with pytest.raises(InputError, match="patient_id of slide 'S000'"):
        score(tmp_path, plain(case_id="P1"), plain(case_id="P2"))
    with pytest.raises(InputError, match=r"a slide in .* and a patient in"):
        score(tmp_path, plain(), plain().rename(columns={"slide_id": "patient"}))


def test_constant_scores_are_scored_with_a_caution(tmp_path):
    scored = score(tmp_path, plain(p_normal=0.5, p_tumour=0.5))
    assert values(scored)["auroc"] == 0.5
    said = " ".join(scored.metrics["cautions"])
    assert "'a' gives every slide the same probabilities" in said
    assert "two classes of highest probability" in said


def test_one_class_alone_leaves_metrics_undefined_and_says_so(tmp_path):
    scored = score(tmp_path, plain(label="tumour"))
    assert values(scored)["auroc"] is None
    assert any("no test slide of class 'normal'" in text for text in scored.metrics["cautions"])


def test_one_class_in_a_fold_is_no_matter(tmp_path):
    _, label, truth, p = cohort()
    scored = score(tmp_path, plain(fold=[0 if name == "normal" else 1 for name in label]))
    same(values(scored), expected(truth, p))


def test_a_class_and_a_slide_may_be_called_na(tmp_path):
    slides, _, truth, p = cohort()
    slides[0] = "NA"
    label = np.where(truth == 1, "NA", "null")
    table = pd.DataFrame({"slide_id": slides, "label": label, "p_null": 1 - p, "p_NA": p})
    scored = score(tmp_path, table)
    assert scored.metrics["n"]["slides"] == N
    assert set(scored.metrics["classes"]) == {"NA", "null"}
    assert any("codes for a missing value" in text for text in scored.cautions)


def test_ordered_classes_have_a_kappa(tmp_path):
    _, _, truth, p = cohort()
    scored = score(tmp_path, plain(), label_order=["normal", "tumour"])
    wanted = metrics.cohen_kappa_score(truth, (p > 0.5).astype(int), weights="quadratic")
    same(values(scored), {"kappa_quadratic": wanted})
    with pytest.raises(InputError, match="tumr"):
        score(tmp_path, plain(), label_order=["normal", "tumr"])


def test_a_predicted_class_counts_as_given(tmp_path):
    _, _, truth, p = cohort()
    called = (p > 0.4).astype(int)
    scored = score(tmp_path, plain(predicted=np.where(called, "tumour", "normal")))
    same(values(scored), expected(truth, p, called))
    n = int((called != (p > 0.5)).sum())
    assert n
    assert any(f"in {n} of {N} row(s) the predicted class" in note for note in scored.notes)


def test_rounded_probabilities_are_scaled_and_that_is_said(tmp_path):
    table = plain()
    table["p_tumour"] = table["p_tumour"].round(2)
    table["p_normal"] = table["p_normal"].round(2) - 0.01 * (table.index == 4)
    scored = score(tmp_path, table)
    assert any("rounding" in note for note in scored.notes)


def test_markup_and_formulas_are_text_everywhere(tmp_path, capsys):
    slides, _, truth, p = cohort()
    slides[:2] = [HOSTILE, FORMULA]
    label = np.where(truth == 1, HOSTILE, "plain")
    table = pd.DataFrame({"slide_id": slides, "label": label, "method": f"{HOSTILE}[red]"})
    table[f"p_{HOSTILE}"], table["p_plain"] = p, 1 - p
    path = tmp_path / "hostile.csv"
    table.to_csv(path, index=False)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--predictions", str(path), "--out", str(out), "--json"])
    assert caught.value.code == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert HOSTILE in found["classes"]
    assert list(found["slide"]) == [f"{HOSTILE}[red]"]
    assert set(read_table(out / "predictions.parquet")["slide_id"]) == set(slides)
    page = build(out, read_tile=None).read_text(encoding="utf-8")
    assert not re.search(r"<img[^>]*onerror", page)


def test_the_page_says_what_is_not_there(tmp_path):
    score(tmp_path, plain(), plain())
    page = build(tmp_path / "out", read_tile=None).read_text(encoding="utf-8")
    assert "every other slide is its own patient" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "give a run folder, or --predictions FILE with --out"),
        (["evaluate", "--predictions", "a.csv"], "with --out FOLDER"),
        (["evaluate", "RUN", "--slides", "a.csv"], "--slides goes with --predictions"),
        (["evaluate", "--predictions", "no.csv", "--out", "OUT"], "no.csv cannot be read"),
    ],
)
def test_calls_that_are_wrong_end_with_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in said
    assert said.count("\n") == 1


def test_runs_and_foreign_folders_are_kept_apart(tmp_path):
    run = build_run(tmp_path / "run")
    plain().to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match="is a run"):
        foreign.score([str(tmp_path / "a.csv")], run)
    shutil.copy(tmp_path / "a.csv", tmp_path / "run" / "a.csv")
    with pytest.raises(InputError, match="would both be the method 'a'"):
        foreign.score([str(tmp_path / "a.csv"), str(run / "a.csv")], tmp_path / "out")
    with pytest.raises(InputError, match="unknown column of these files 'scor'"):
        score(tmp_path, plain(), columns={"p_tumour": "scor"})


def test_the_source_names_files_columns_and_what_was_not_used(tmp_path):
    score(tmp_path, plain(loss=0.1))
    source = read_json(tmp_path / "out" / "source.json")["files"][0]
    assert source["unused_columns"] == ["loss"]
    assert source["columns"]["p_tumour"] == "p_tumour"
    assert source["rows"] == N


def answers(values: np.ndarray) -> Answers:
    names = tuple("abcdef"[: values.shape[1]])
    rows = pd.DataFrame({"slide_id": [f"s{i}" for i in range(len(values))]})
    return Answers(Path("x.csv"), Shape({"slide_id": "slide_id"}, {}, ()), rows, names, values)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_rounding_is_forgiven_and_orders_are_kept(n_classes, decimals, seed):
    rng = np.random.default_rng(seed)
    exact = rng.dirichlet(np.ones(n_classes), 8)
    rounded = exact.round(decimals)
    if np.abs(rounded.sum(1) - 1).max() > 0.02:
        return
    found = summed(answers(rounded), tuple("abcdef"[:n_classes])[::-1], Remarks())
    assert np.allclose(found.sum(1), 1, atol=1e-3)
    assert np.allclose(found[:, ::-1], exact, atol=n_classes * 10.0**-decimals)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.floats(0.021, 0.9), st.booleans(), st.integers(0, 2**32 - 1))
def test_no_other_sum_is_ever_scored(n_classes, off, more, seed):
    rng = np.random.default_rng(seed)
    values = rng.dirichlet(np.ones(n_classes), 8)
    values[3] *= 1 + off if more else 1 - off
    with pytest.raises(InputError, match=r"x\.csv"):
        summed(answers(values), tuple("abcdef"[:n_classes]), Remarks())


NAMES = st.text(min_size=1, max_size=12).map(str.strip).filter(lambda s: s and "\0" not in s)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=2, max_size=4, unique_by=str.casefold), st.randoms())
def test_classes_of_any_name_are_found_by_their_prefix(names, random):
    columns = ["slide_id", "label", *(f"p_{name}" for name in names)]
    random.shuffle(columns)
    cells = pd.DataFrame([["0.5"] * len(columns)], columns=columns)
    shape = recognise(cells, Path("x.csv"), {})
    assert shape.fields["slide_id"] == "slide_id"
    assert shape.scores == {name: f"p_{name}" for name in names}


@hypothesis_settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms())
def test_the_order_of_rows_and_columns_changes_nothing(tmp_path, random):
    table = plain(patient_id=[f"P{i // 2}" for i in range(N)])
    rows, columns = list(range(N)), list(table.columns)
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = score(tmp_path, table.iloc[rows][columns])
    _, _, truth, p = cohort()
    same(values(shuffled), expected(truth, p))
