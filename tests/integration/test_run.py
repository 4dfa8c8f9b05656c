"""The whole walk on the phantom: files, skipping, resuming by hash, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mil import auditing, encode, new_slides, prepare, settings, train
from mil.cohort import folds_of
from mil.models import Models, log_probabilities
from mil.predictions import read_scores
from mil.run import run, train_run
from splits.artifacts import digests_of, read_json, read_table
from splits.errors import InputError, NegativeVerdictError
from tests.integration.conftest import ROOT, smoke

METRICS = {"accuracy", "balanced_accuracy", "auroc", "f1_macro", "log_loss", "ece"}


def quiet(_: str) -> None:
    """Say nothing."""


def test_the_run_folder_is_as_designed(finished: Path) -> None:
    files = [
        "config.yaml",
        "tiles.parquet",
        "skipped.csv",
        "identity.json",
        "split.csv",
        "split.json",
        "audit.json",
        "stain.parquet",
        "cache/tiles.npy",
        "features/meta.json",
        "features/fold0.npy",
        "features/fold1.npy",
        "predictions.parquet",
        "tile_predictions.parquet",
        "attention.parquet",
        "metrics.json",
        "seal.json",
        "report.html",
    ]
    folders = [f"encoder/fold{k}" for k in (0, 1)]
    folders += [f"aggregators/{name}/fold{k}" for name in ("mean", "abmil") for k in (0, 1)]
    for folder in folders:
        files += [f"{folder}/{name}" for name in ("model.safetensors", "card.json", "log.csv")]
        assert (finished / folder / "checkpoint").is_dir()
    for name in files:
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.tmp"))
    for path in [*finished.rglob("*.json"), *finished.glob("*.parquet")]:
        assert digests_of(path), f"{path} carries no digests"
    for path in finished.rglob("*.json"):
        assert json.loads(path.read_text())["format_version"] == 1


def test_metrics_have_the_exact_keys(finished: Path) -> None:
    metrics = read_json(finished / "metrics.json")
    assert set(metrics) - {"format_version", "digests"} == {
        "n", "classes", "tile", "slide", "paired", "flips", "looks",
        "per_class", "interval", "cautions",
    }  # fmt: skip
    assert set(metrics["n"]) == {"tiles", "slides", "patients", "sites"}
    assert set(metrics["slide"]) == {"vote", "mean_probability", "mean", "abmil"}
    for scores in (metrics["tile"], *metrics["slide"].values()):
        assert set(scores) == METRICS | {"average_precision", "brier"}
        for score in scores.values():
            assert set(score) == {"value", "ci_low", "ci_high"}
    for pair in metrics["paired"]:
        assert set(pair) == {
            "a", "b", "metric", "test", "difference", "ci_low", "ci_high", "p", "p_holm",
        }  # fmt: skip


def test_every_slide_is_tested_once_and_predicted_by_every_method(finished: Path) -> None:
    table = read_table(finished / "predictions.parquet")
    test = table[table["part"] == "test"]
    for _, rows in test.groupby("method"):
        assert sorted(rows["slide_id"]) == sorted(
            read_table(finished / "tiles.parquet")["slide_id"].unique()
        )
    shares = table[[c for c in table.columns if c.startswith("p_")]].sum(axis=1)
    assert np.allclose(shares, 1)
    attention = read_table(finished / "attention.parquet")
    sums = attention.groupby(["fold", "part", "method", "slide_id"])["attention"].sum()
    assert np.allclose(sums, 1, atol=1e-5)


def test_a_second_run_does_nothing_again(copied: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file()}
    run(copied, smoke(), say=quiet)
    changed = {p for p, stamp in before.items() if p.stat().st_mtime_ns != stamp}
    # The page and what lies beside it are made anew.
    shown = {p.name for p in changed if p.parent != copied / "tables"}
    assert shown <= {"config.yaml", "report.html", "report.md", "stain.png"}
    assert read_json(copied / "metrics.json")["looks"] == 1


def test_a_changed_setting_reruns_what_depends_on_it_and_no_more(copied: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file()}
    run(copied, smoke("mil.epochs=2"), say=quiet)
    changed = {
        p.relative_to(copied).as_posix()
        for p, stamp in before.items()
        if p.stat().st_mtime_ns != stamp
    }
    assert "predictions.parquet" in changed
    assert "metrics.json" in changed
    assert not any(name.startswith(("encoder", "features", "cache", "split")) for name in changed)
    assert read_json(copied / "metrics.json")["looks"] == 2


def hashes(run: Path) -> dict[str, str]:
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*.safetensors")
        if path.name == "model.safetensors"
    }


def test_kill_and_resume_ends_with_the_same_weights(tmp_path: Path) -> None:
    changes = ["train.epochs=4", "mil.epochs=30", "split.folds=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "mil.cli", "run", str(ROOT / "configs" / "smoke.yaml")]
    for change in ["compute.threads=1", *changes]:
        command += ["--set", change]
    process = subprocess.Popen(
        [*command, "--out", str(cut)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    log = cut / "encoder" / "fold0" / "log.csv"
    deadline = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert log.exists()
    assert not (cut / "encoder" / "fold0" / "card.json").exists(), "it was killed too late"
    run(cut, smoke(*changes), say=quiet)
    run(whole, smoke(*changes), say=quiet)
    assert hashes(whole) == hashes(cut)
    assert len(hashes(whole)) == 6


def test_a_leaking_split_stops_before_training(copied: Path) -> None:
    path = copied / "split.csv"
    split = pd.read_csv(path, dtype=str)
    table = read_table(copied / "tiles.parquet")
    slides = table.drop_duplicates("slide_id")
    patient = slides[slides.duplicated("patient_id", keep=False)].iloc[0]["patient_id"]
    one, other = slides.loc[slides["patient_id"] == patient, "slide_id"].iloc[:2]
    first = split["fold"] == "0"
    split.loc[first & (split["slide_id"] == one), "part"] = "train"
    split.loc[first & (split["slide_id"] == other), "part"] = "test"
    split.to_csv(path, index=False)
    with pytest.raises(NegativeVerdictError, match="leak"):
        train_run(copied, smoke(), quiet)


def test_features_of_an_encoder_that_saw_the_slide_are_refused(copied: Path) -> None:
    meta = json.loads((copied / "features" / "meta.json").read_text())
    fold = next(folds_of(copied, smoke()))
    meta["folds"]["0"]["slides_seen"].append(fold.slides["test"][0])
    (copied / "features" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="saw 1 validation or test slide"):
        encode.read_features(copied, "0", unseen=fold.unseen)


def test_cards_name_the_slides_that_were_seen(finished: Path) -> None:
    for fold in folds_of(finished, smoke()):
        for folder in ("encoder", "aggregators/abmil"):
            card = read_json(finished / folder / f"fold{fold.number}" / "card.json")
            assert card["slides_seen"] == fold.slides["train"]
            assert card["slides_that_chose_the_epoch"] == fold.slides["val"]
            assert not set(card["slides_seen"]) & fold.unseen


def test_crossfitted_tiles_were_never_seen_by_their_judge(copied: Path, tmp_path: Path) -> None:
    config = smoke("train.crossfit=2")
    before = hashes(copied)
    run(copied, config, say=quiet)
    assert {n: h for n, h in hashes(copied).items() if n in before and n.startswith("enc")} == {
        n: h for n, h in before.items() if n.startswith("enc")
    }, "the encoders of the folds are trained again"
    meta = read_json(copied / "features" / "meta.json")["folds"]
    for fold in folds_of(copied, config):
        parts = meta[f"{fold.number}-crossfit"]["parts"]
        assert sorted(s for p in parts for s in p["slides_judged"]) == fold.slides["train"]
        scores = np.load(copied / "features" / f"fold{fold.number}-crossfit.npy")
        assert np.allclose(np.exp(scores).sum(1), 1, atol=1e-5)
        main = Models.load(copied, config, fold.number, fold.classes).encoder
        embedded = np.load(copied / "features" / f"fold{fold.number}.npy")
        said = log_probabilities(main, embedded)
        outside = fold.rows("val", "test")
        assert np.array_equal(scores[outside], said[outside])
        for number, part in enumerate(parts):
            seen = {fold.group_of[name] for name in part["slides_seen"]}
            assert not seen & {fold.group_of[name] for name in part["slides_judged"]}
            card = read_json(
                copied / "encoder" / f"fold{fold.number}-crossfit{number}" / "card.json"
            )
            assert card["slides_seen"] == part["slides_seen"]
            rows = np.concatenate([fold.rows_by_slide[name] for name in part["slides_judged"]])
            assert not np.allclose(scores[rows], said[rows])
    folder = tmp_path / "new"
    shutil.copytree(copied / "phantom" / "tiles", folder)
    assert new_slides.predict_new(copied, config, [folder])


def test_new_slides_are_classified(copied: Path, tmp_path: Path) -> None:
    table = read_table(copied / "tiles.parquet")
    slide = table[table["slide_id"] == table["slide_id"].iloc[0]]
    folder = tmp_path / "new slide"
    folder.mkdir()
    for name in slide["tile_id"]:
        source = copied / "phantom" / "tiles" / name
        (folder / Path(name).name).write_bytes(source.read_bytes())
    (folder / "broken.png").write_bytes(b"nothing")
    records = new_slides.predict_new(copied, smoke(), [folder])
    assert {r["method"] for r in records} == {"vote", "mean_probability", "mean", "abmil"}
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["skipped"] == [
            {"id": "broken.png", "cause": "not an image that Pillow can identify"}
        ]
    attention = next(r["attention"] for r in records if r["method"] == "abmil")
    assert sum(attention.values()) == pytest.approx(1, abs=1e-4)


def test_patients_as_bags_with_all_votes_and_an_ensemble(copied: Path) -> None:
    votes = ["weighted_vote", "quality_vote", "top_k_mean", "max_probability", "noisy_or"]
    config = smoke(
        "mil.bags=patient",
        "mil.seeds=2",
        "mil.aggregators=[{name: clam_mb, instance_loss: {k: 2}}, {name: transmil}]",
        f"mil.votes=[{', '.join('{name: ' + name + '}' for name in votes)}]",
    )
    run(copied, config, say=quiet)
    methods = {"vote", "mean_probability", "clam_mb", "transmil", *votes}
    assert set(read_json(copied / "metrics.json")["slide"]) == methods
    tiles = read_table(copied / "tiles.parquet")
    patient_of = tiles.drop_duplicates("slide_id").set_index("slide_id")["patient_id"]
    table = read_table(copied / "predictions.parquet")
    table = table[table["part"] == "test"].assign(patient=lambda t: t["slide_id"].map(patient_of))
    assert table["patient"].nunique() < table["slide_id"].nunique()
    shares = [name for name in table.columns if name.startswith("p_")]
    assert (table.groupby(["method", "patient"])[shares].nunique() == 1).all(axis=None)
    scores = read_scores(copied / "tile_scores.parquet")
    sums = scores[scores["method"] == "clam_mb"].groupby(["slide_id", "class"])["attention"].sum()
    assert len(sums)
    assert np.allclose(sums, 1, atol=1e-4)
    for folder in ("fold0", "fold0-seed1"):
        card = read_json(copied / "aggregators" / "clam_mb" / folder / "card.json")
        assert card["slides_seen"] == next(folds_of(copied, config)).slides["train"]
    records = new_slides.predict_new(copied, config, [copied / "phantom" / "tiles"])
    assert {record["method"] for record in records} == methods


def test_planted_faults_are_in_the_ledger(tmp_path: Path) -> None:
    config = smoke("data.phantom.n_truncated=1", "data.phantom.n_blank=2")
    prepare.scan(tmp_path, config)
    report = prepare.identify(tmp_path, config)
    skipped = pd.read_csv(tmp_path / "skipped.csv")
    assert len(skipped) == 1
    assert "decoded" in skipped["cause"].iloc[0]
    assert report["grade"] == "A", "blank tiles must link nothing"


def test_anonymous_names_are_grade_d_and_no_split(tmp_path: Path) -> None:
    config = smoke("data.phantom.names=anonymous")
    prepare.scan(tmp_path, config)
    with pytest.raises(NegativeVerdictError, match="grade D"):
        prepare.split(tmp_path, config)


def test_real_organs(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    root = shared_data("tcga_organs")
    path = ROOT / "configs" / "tcga_organs" / "he_resnet18.yaml"
    config = settings.load(path, [f"data.root={root}"])
    prepare.scan(tmp_path, config)
    assert prepare.identify(tmp_path, config)["grade"] == "A"
    prepare.split(tmp_path, config)
    assert auditing.audit(tmp_path, config)["verdict"] == "clean"
    table = prepare.read_tiles(tmp_path)
    assert len(table) == 899
    assert set(table["slide_label"]) == {"kidney", "lung", "breast", "prostate"}
    split = pd.read_csv(tmp_path / "split.csv", dtype=str)
    tested = split.loc[split["part"] == "test", "slide_id"]
    assert sorted(tested) == sorted(table["slide_id"].unique())
    for fold in folds_of(tmp_path, config):
        assert all(fold.slides[part] for part in ("train", "val", "test"))
    left = pd.read_csv(tmp_path / "skipped.csv")
    assert (left["cause"].str.contains("not in data.classes")).sum() == 1075 - 899


def test_real_breast_images_are_cut_and_grouped_by_array(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    root = shared_data("ucsb_breast")
    path = ROOT / "configs" / "ucsb_breast" / "rgb_pretrained.yaml"
    config = settings.load(path, [f"data.root={root}"])
    prepare.scan(tmp_path, config)
    prepare.split(tmp_path, config)
    auditing.audit(tmp_path, config)
    table = prepare.read_tiles(tmp_path)
    assert table["slide_id"].nunique() == 58
    assert len(table) == 58 * 42
    assert table["group_id"].nunique() == 10
    assert table["x_px"].max() == 896 - 128
    one = table[table["slide_id"] == table["slide_id"].iloc[0]]
    assert not one.duplicated(["x_px", "y_px"]).any()


def test_saved_config_is_complete(finished: Path) -> None:
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored["train"]["epochs"] == 1
    assert settings.load(finished / "config.yaml") == smoke()
    train.check(smoke())
