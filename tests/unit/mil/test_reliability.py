"""What is fitted on the validation slides of a fold is applied to its test slides alone."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from mil.calibration import probabilities_of, temper
from mil.conformal import NOT_SURE
from mil.predictions import read_validation
from mil.reliability import assess, write
from splits.artifacts import read_json, read_table, write_table
from splits.errors import InputError

QUICK = {"n_draws": 50, "seed": 0}


def cohort(n_patients=60, n_folds=2, classes=("x", "y", "z"), too_sure=3.0, seed=0):
    """Two slides a patient; each is tested in one fold and validates the next one."""
    rng = np.random.default_rng(seed)
    n, k = 2 * n_patients, len(classes)
    patient = np.arange(n) // 2
    z = rng.normal(scale=1.5, size=(n, k))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    truth = (p.cumsum(1) < rng.random(n)[:, None]).sum(1)
    label = np.array(classes, dtype=object)[truth]
    slide = [f"s{i:03d}" for i in range(n)]
    rows = []
    for method, sharper in (("vote", too_sure), ("abmil", 1.0)):
        said = p**sharper / (p**sharper).sum(1, keepdims=True)
        table = pd.DataFrame(said, columns=[f"p_{c}" for c in classes])
        predicted = np.array(classes, dtype=object)[said.argmax(1)]
        table = table.assign(slide_id=slide, method=method, label=label, predicted=predicted)
        fold = patient % n_folds
        rows.append(table.assign(part="test", fold=fold))
        rows.append(table.assign(part="val", fold=(fold + 1) % n_folds))
    table = pd.concat(rows, ignore_index=True)
    parts = [table[table["part"] == part].reset_index(drop=True) for part in ("test", "val")]
    labels = pd.Series(label, index=slide)
    return (*parts, labels, pd.Series([f"p{i}" for i in patient], index=slide), list(classes))


def test_what_is_too_sure_is_tempered_and_what_is_right_is_left():
    test, val, labels, patients, classes = cohort(300)
    found, answers = assess(test, val, labels, patients, classes, **QUICK)
    sure, right = found["methods"]["vote"], found["methods"]["abmil"]
    assert [entry["value"] for entry in sure["temperature"]] == pytest.approx([3, 3], rel=0.2)
    assert [entry["value"] for entry in right["temperature"]] == pytest.approx([1, 1], rel=0.2)
    assert sure["temperature"][0] == {**sure["temperature"][0], "fold": 0, "n_val": 300}
    for loss in ("log_loss", "brier"):
        assert sure["change"][loss]["ci_high"] < 0
        after, before = (sure[at][loss]["value"] for at in ("after", "before"))
        assert after - before == pytest.approx(sure["change"][loss]["value"])
    assert sure["after"]["ece"]["value"] < sure["before"]["ece"]["value"] / 2
    # The values are scikit-learn's, on what answers.parquet holds.
    mine = answers[answers["method"] == "vote"]
    said = mine[[f"p_{c}" for c in classes]].to_numpy()
    assert sure["after"]["log_loss"]["value"] == pytest.approx(log_loss(mine["label"], said))
    assert sure["after"]["brier"]["value"] == pytest.approx(
        brier_score_loss(mine["label"], said, scale_by_half=False)
    )


def test_sets_cover_what_they_say_and_answers_follow_from_them():
    test, val, labels, patients, classes = cohort(400)
    found, answers = assess(test, val, labels, patients, classes, level=0.8, **QUICK)
    for method, sets in found["conformal"].items():
        rows = answers[answers["method"] == method]
        covered = [label in held for label, held in zip(rows["label"], rows["set"], strict=True)]
        assert sets["coverage"]["value"] == pytest.approx(np.mean(covered))
        assert 0.74 < sets["coverage"]["value"] < 0.86
        assert sets["coverage"]["ci_low"] < sets["coverage"]["value"] < sets["coverage"]["ci_high"]
        size = rows["set"].map(len)
        assert sets["mean_set_size"] == pytest.approx(size.mean())
        sure = rows["answer"] != NOT_SURE
        assert (sure == (size == 1)).all()
        assert sets["n_not_sure"] == (~sure).sum() > 0
        assert sets["n_empty"] == (size == 0).sum()
        right = (rows["answer"] == rows["label"])[sure].mean()
        assert sets["accuracy_when_sure"]["value"] == pytest.approx(right)
        assert right > (rows["predicted"] == rows["label"]).mean() + 0.05
        assert [fold["n_calibration_patients"] for fold in sets["folds"]] == [200, 200]


def test_no_label_of_a_test_slide_reaches_its_own_fold():
    """Slide s000 is tested in fold 0 and validates fold 1: planted labels change only fold 1."""
    test, val, labels, patients, classes = cohort(24)
    planted = val.copy()
    tested_in_0 = set(test.loc[test["fold"] == 0, "slide_id"])
    lies = planted["slide_id"].isin(tested_in_0)
    assert set(planted.loc[lies, "fold"]) == {1}
    planted.loc[lies, "label"] = planted.loc[lies, "label"].map({"x": "y", "y": "z", "z": "x"})
    one, other = (assess(test, v, labels, patients, classes, **QUICK) for v in (val, planted))

    def of(result, fold):
        found, answers = result
        rows = answers[answers["fold"] == fold].astype({"set": str})
        temperatures = [m["temperature"][fold] for m in found["methods"].values()]
        sets = [m["folds"][fold] for m in found["conformal"].values()]
        return rows.to_json(), json.dumps([temperatures, sets])

    assert of(one, 0) == of(other, 0)
    assert all(a != b for a, b in zip(of(one, 1), of(other, 1), strict=True))


def test_test_labels_score_and_fit_nothing():
    test, val, labels, patients, classes = cohort(24)
    shuffled = pd.Series(labels.to_numpy()[::-1], index=labels.index)
    one, other = (assess(test, val, of, patients, classes, **QUICK) for of in (labels, shuffled))
    same = [name for name in one[1].columns if name != "label"]
    pd.testing.assert_frame_equal(one[1][same], other[1][same])


def test_rows_of_another_part_are_refused():
    test, val, labels, patients, classes = cohort(10)
    mixed = pd.concat([val, test.head(3)])
    with pytest.raises(InputError, match=r"3 row\(s\) of the test part is refused"):
        assess(test, mixed, labels, patients, classes, **QUICK)
    for level in (0, 1, 90):
        with pytest.raises(InputError, match=f"level is {level}"):
            assess(test, val, labels, patients, classes, level=level, **QUICK)


def test_too_few_patients_are_told_and_not_papered_over():
    test, val, labels, patients, classes = cohort(16)
    found, answers = assess(test, val, labels, patients, classes, **QUICK)
    sets = found["conformal"]["vote"]
    assert [entry["threshold"] for entry in sets["folds"]] == [None, None]
    assert "8 validation patient(s), and a set at level 0.9 needs 9" in sets["folds"][0]["note"]
    assert "highest level that so many allow is 0.89" in sets["folds"][0]["note"]
    assert sets["coverage"]["value"] == 1.0
    assert (sets["mean_set_size"], sets["n_not_sure"], sets["n_too_few"]) == (3, 32, 32)
    assert sets["accuracy_when_sure"]["value"] is None
    assert set(answers["answer"]) == {NOT_SURE}
    assert answers["set"].map(len).eq(3).all()


def test_a_fold_without_validation_slides_keeps_its_probabilities():
    test, val, labels, patients, classes = cohort(40)
    found, answers = assess(test, val[val["fold"] == 1], labels, patients, classes, **QUICK)
    assert found["methods"]["vote"]["temperature"][0] == {"fold": 0, "value": None, "n_val": 0}
    mine = answers[(answers["fold"] == 0) & (answers["method"] == "vote")]
    raw = test[(test["fold"] == 0) & (test["method"] == "vote")]
    columns = [f"p_{c}" for c in classes]
    np.testing.assert_allclose(mine[columns], raw[columns])
    assert mine["set"].map(len).eq(3).all()
    assert answers.loc[answers["fold"] == 1, "set"].map(len).lt(3).any()


def test_two_classes_have_thresholds_and_more_have_a_word():
    test, val, labels, patients, classes = cohort(60, classes=("no", "yes"))
    thresholds = assess(test, val, labels, patients, classes, **QUICK)[0]["thresholds"]
    assert thresholds["note"] is None
    entry = thresholds["methods"]["vote"]
    assert [fold["fold"] for fold in entry["folds"]] == [0, 1]
    assert all(0 < fold["value"] < 1 for fold in entry["folds"])
    assert 0 < entry["balanced_accuracy"] < 1
    test, val, labels, patients, classes = cohort(10)
    thresholds = assess(test, val, labels, patients, classes, **QUICK)[0]["thresholds"]
    assert thresholds["methods"] == {}
    assert "between two classes; of 3" in thresholds["note"]


def test_files_with_and_without_validation_rows(tmp_path):
    test, val, labels, patients, classes = cohort(24)
    path = tmp_path / "predictions.parquet"
    given = {"labels": labels, "patients": patients, "classes": classes, "level": 0.9, **QUICK}
    for rows, expected in ((pd.concat([test, val]), True), (test, False)):
        write_table(path, rows, {})
        validation = read_validation(path)
        assert (validation is not None) == expected
        write(tmp_path, predictions=test, validation=validation, digests={"a": "b"}, **given)
        found = read_json(tmp_path / "calibration.json")
        assert found["validation"] == expected
        assert (tmp_path / "answers.parquet").exists() == expected
        assert list(found["risk_coverage"]) == ["vote", "abmil"]
        assert ("after" in found["methods"]["vote"]) == expected
        assert bool(found["conformal"]) == expected
        if expected:
            answers = read_table(tmp_path / "answers.parquet")
            assert list(answers.columns)[:7] == [
                *("slide_id", "fold", "method", "label", "predicted", "answer", "set"),
            ]
            fitted = found["methods"]["vote"]["temperature"][1]["value"]
            mine = answers[(answers["fold"] == 1) & (answers["method"] == "vote")]
            raw = test[(test["fold"] == 1) & (test["method"] == "vote")]
            np.testing.assert_allclose(
                probabilities_of(mine, classes), temper(probabilities_of(raw, classes), fitted)
            )
