"""The leakage gap on planted features: slides with and without a signature of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from mil import settings
from mil.cli import app
from mil.config import Config
from mil.experiments import gap_page
from mil.experiments.gap import measure
from mil.experiments.schemes import deal
from mil.run import evaluate_run, prepare_run, train_run
from splits import tiles
from splits.artifacts import digests_of, file_digest, read_json, read_table
from splits.errors import InputError

from .conftest import smoke

DIM, N_PATIENTS, N_TILES = 32, 20, 8


def quiet(_: str) -> None:
    """Say nothing."""


def files(base: Path, *, signature: float) -> None:
    """Two slides a patient; the class moves one direction a little, a signature all of them."""
    rng, lines = np.random.default_rng(1), ["slide_id,patient_id,label"]
    (base / "bags").mkdir(parents=True)
    for p in range(N_PATIENTS):
        for s in range(2):
            own = signature * rng.normal(size=DIM)
            x = own + rng.normal(size=(N_TILES, DIM))
            x[:, 0] += 0.8 if p % 2 else -0.8
            name = f"p{p:02d}s{s}"
            with h5py.File(base / "bags" / f"{name}.h5", "w") as file:
                file["features"] = x.astype(np.float32)
            lines.append(f"{name},p{p:02d},{'ab'[p % 2]}")
    (base / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def config(base: Path, *more: str) -> Config:
    given = [f"data.labels={base / 'labels.csv'}", "split.folds=2", "evaluate.bootstrap=300"]
    given += ["mil.aggregators=[{name: mean}]", "mil.epochs=2", "compute.threads=1"]
    return settings.override(
        settings.parse({"data": {"features": str(base / "bags")}}, "test"), [*given, *more]
    )


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("gap")
    files(base, signature=1.5)
    measure(base / "out", config(base), n_seeds=2, say=quiet)
    return base


@pytest.fixture
def result(signed: Path) -> dict[str, Any]:
    return read_json(signed / "out" / "gap.json")


def trained(path: Path, made: Config) -> None:
    """An ordinary run up to its scores."""
    prepare_run(path, made, quiet)
    train_run(path, made, quiet)
    evaluate_run(path, made)


def gap(result: dict[str, Any], a: str, b: str, method: str | None = None) -> dict[str, Any]:
    found = (a, b, method, "accuracy")
    keys = ("from", "to", "method", "metric")
    return next(one for one in result["gaps"] if tuple(one[k] for k in keys) == found)


def test_a_signature_of_slides_is_a_gap_and_the_interval_says_so(result: dict[str, Any]) -> None:
    for method in (None, "vote", "mean_probability"):
        assert gap(result, "tile", "patient", method)["ci_low"] > 0, method
    assert gap(result, "tile", "slide")["ci_low"] > 0
    # Slides of a patient have nothing in common but their label.
    step = gap(result, "slide", "patient")
    assert step["ci_low"] < 0 < step["ci_high"]


def test_without_a_signature_the_interval_contains_0(tmp_path: Path) -> None:
    files(tmp_path, signature=0.0)
    found = measure(tmp_path / "out", config(tmp_path), n_seeds=1, null=False, say=quiet)
    assert found is not None
    for method in (None, "vote"):
        one = gap(found, "tile", "patient", method)
        assert one["ci_low"] <= 0 <= one["ci_high"], method
    assert found["null"] == {"reason": "not asked for", "schemes": {}}
    assert gap_page.sentences(found)[0].startswith("No leakage gap can be shown.")


def test_the_steps_add_up(result: dict[str, Any]) -> None:
    steps = [gap(result, *pair) for pair in (("tile", "slide"), ("slide", "patient"))]
    whole = gap(result, "tile", "patient")
    assert sum(s["difference"] for s in steps) == pytest.approx(whole["difference"], abs=1e-12)
    sums = np.sum([s["by_seed"] for s in steps], axis=0)
    assert sums == pytest.approx(np.array(whole["by_seed"]), abs=1e-12)


def test_shuffled_labels_are_at_chance_under_patients_alone(result: dict[str, Any]) -> None:
    null = result["null"]["schemes"]
    honest, leaking = (null[name]["tile"]["auroc"] for name in ("patient", "tile"))
    assert honest["ci_low"] <= 0.5 <= honest["ci_high"]
    assert leaking["ci_low"] > 0.6


def test_the_audit_refuses_what_leaks(result: dict[str, Any]) -> None:
    verdicts = {s["scheme"]: s["audit"]["verdict"] for s in result["schemes"] if s["run"]}
    assert verdicts["tile"] == verdicts["slide"] == "leak"
    assert verdicts["patient"] == "clean"


def test_the_split_of_patients_is_that_of_a_run_to_the_last_digit(
    signed: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    trained(tmp_path / "run", config(signed))
    metrics = read_json(tmp_path / "run" / "metrics.json")
    patient = next(s for s in result["schemes"] if s["scheme"] == "patient")
    for metric in ("accuracy", "auroc"):
        assert patient["tile"][metric]["by_seed"][0] == metrics["tile"][metric]["value"]
        for method, scores in metrics["slide"].items():
            value = patient["slide"][method][metric]["by_seed"][0]
            assert value == pytest.approx(scores[metric]["value"], abs=1e-12), method


def test_random_tiles_score_what_a_plain_classifier_scores_on_the_same_folds(
    signed: Path, result: dict[str, Any]
) -> None:
    out, made = signed / "out", config(signed)
    table, x = read_table(out / "tiles.parquet"), np.load(out / "cache" / "features.npy")
    label = table["slide_label"].to_numpy(dtype=object).astype(str)
    part = deal("tile", tiles.check(table), made.split, seed=made.split.seed).part
    right, votes = [], np.zeros(len(table))
    for fold in part:
        train, test = np.flatnonzero(fold == "train"), np.flatnonzero(fold == "test")
        mean, std = x[train].mean(0), x[train].std(0)
        n = table.iloc[train].groupby("slide_id")["tile_id"].transform("size").to_numpy()
        model = LogisticRegression(max_iter=1000)
        model.fit((x[train] - mean) / std, label[train], (1 / n) / (1 / n).mean())
        said = model.predict((x[test] - mean) / std)
        right.append((said == label[test]).mean() * len(test))
        votes[test] = said == "b"
    scheme = next(s for s in result["schemes"] if s["scheme"] == "tile")
    assert scheme["tile"]["accuracy"]["by_seed"][0] == pytest.approx(sum(right) / len(table))
    # A slide is judged by the votes of all its tiles, whichever fold they came from.
    share = pd.Series(votes).groupby(table["slide_id"].to_numpy(dtype=object)).mean()
    truth = table.groupby("slide_id")["slide_label"].first().astype(str)
    clear = (share - 0.5).abs() > 1e-9
    hits = ((share > 0.5) == (truth[share.index] == "b"))[clear].sum()
    n_tied = int((~clear).sum())
    value = scheme["slide"]["vote"]["accuracy"]["by_seed"][0] * len(share)
    assert hits <= round(value) <= hits + n_tied


def test_what_is_there_is_kept_and_what_is_missing_comes_back_the_same(
    signed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(signed / "out", tmp_path / "out"))
    before = (out / "gap.json").read_bytes()
    kept, gone = (out / "deals" / "tile" / "seed1" / f"fold{n}" for n in (0, 1))
    was = file_digest(gone / "tile_predictions.parquet")
    stamp = (kept / "tile_predictions.parquet").stat().st_mtime_ns
    shutil.rmtree(gone)
    (out / "gap.json").unlink()
    measure(out, config(signed), n_seeds=2, say=quiet)
    assert file_digest(gone / "tile_predictions.parquet") == was
    assert (kept / "tile_predictions.parquet").stat().st_mtime_ns == stamp
    assert (out / "gap.json").read_bytes() == before
    assert read_json(out / "seal.json")["looks"] == 2
    measure(out, config(signed), n_seeds=2, say=quiet)
    assert read_json(out / "seal.json")["looks"] == 2, "nothing changed: no look was needed"


def test_a_fold_is_no_run_and_keeps_no_weights(signed: Path) -> None:
    fold = signed / "out" / "deals" / "tile" / "seed0" / "fold0"
    assert not list(fold.rglob("*.safetensors"))
    assert read_json(fold / "fold.json")["split"]["warnings"]
    with pytest.raises(InputError, match="is not a run folder"):
        settings.stored(fold)


def test_one_slide_a_patient_makes_slides_and_patients_one_row(tmp_path: Path) -> None:
    files(tmp_path, signature=0.5)
    labels = pd.read_csv(tmp_path / "labels.csv")
    sites = [f"site{place // 2 % 8}" for place in range(len(labels))]
    labels.assign(patient_id=labels["slide_id"], site_id=sites).to_csv(
        tmp_path / "labels.csv", index=False
    )
    found = measure(tmp_path / "out", config(tmp_path), n_seeds=1, null=False, say=quiet)
    assert found is not None
    slide = next(s for s in found["schemes"] if s["scheme"] == "slide")
    assert (slide["run"], slide["same_as"]) == (False, "patient")
    steps = {("tile", "patient"), ("patient", "site"), ("tile", "site")}
    assert {(g["from"], g["to"]) for g in found["gaps"]} == steps
    assert any("one seed" in line for line in found["cautions"])


def test_without_sites_that_scheme_is_not_run_and_not_made_up(result: dict[str, Any]) -> None:
    site = result["schemes"][3]
    assert (site["scheme"], site["run"], site["same_as"]) == ("site", False, None)
    assert "site_id for every slide" in site["reason"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("split.method=holdout", "split.method=kfold"),
        ("split.inner=2", "inner folds"),
        ("mil.bags=patient", "mil.bags=slide"),
    ],
)
def test_what_cannot_be_compared_is_refused(signed: Path, change: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(signed / "new", config(signed, change), say=quiet)
    assert not (signed / "new").exists()


def test_the_folder_of_a_run_is_refused(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is the folder of a run"):
        measure(tmp_path, config(signed), say=quiet)


def test_names_that_look_like_html_are_text(signed: Path, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    out = tmp_path / evil
    out.mkdir()
    document = read_json(signed / "out" / "gap.json")
    document["cautions"] = [f"no slide of {evil}"]
    document["null"]["reason"] = document["model"] = evil
    document["schemes"][3]["reason"] = evil
    document["trained"] = [evil]
    for scheme in [*document["schemes"], *document["null"]["schemes"].values()]:
        if "slide" in scheme:
            scheme["slide"][evil] = scheme["slide"].pop("mean")
    for one in document["gaps"]:
        one["method"] = evil if one["method"] == "mean" else one["method"]
    (out / "gap.json").write_text(json.dumps(document), encoding="utf-8")
    page = gap_page.write(out).read_text(encoding="utf-8")
    drawn = (out / "gap.svg").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "<img" not in drawn
    assert "&lt;img" in page
    assert "&lt;img" in drawn
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_table_holds_every_number(signed: Path, result: dict[str, Any]) -> None:
    table = pd.read_csv(signed / "out" / "gap.csv", keep_default_na=False)
    row = table[
        (table["what"] == "gap")
        & (table["from"] == "tile")
        & (table["to"] == "patient")
        & (table["method"] == "vote")
        & (table["metric"] == "accuracy")
    ].iloc[0]
    one = gap(result, "tile", "patient", "vote")
    assert float(row["value"]) == pytest.approx(one["difference"])
    assert [float(v) for v in row["by_seed"].split()] == pytest.approx(one["by_seed"], abs=1e-5)
    assert set(table["labels"]) == {"true", "shuffled"}


def test_the_verb_on_tiles_trains_an_encoder_a_fold(tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = ["compute.threads=1", "mil.aggregators=[{name: mean}]", "mil.epochs=1"]
    changes += ["data.phantom.sites=1", "data.phantom.slides=12", "identity.content=false"]
    changes += ["encoder.name=test_resnet.r160_in1k"]
    given = ["gap", "configs/smoke.yaml", "--seeds", "1", "--no-null", "--out", str(out), "--json"]
    found = CliRunner().invoke(app, [*given, *[word for c in changes for word in ("--set", c)]])
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["n"]["tiles"] == 48
    assert [s["scheme"] for s in result["schemes"] if s["run"]] == ["tile", "slide", "patient"]
    pixels = {digests_of(f)["input"] for f in (out / "deals").rglob("fold.json")}
    assert len(pixels) == 1, "all folds see the same stained tiles"


def test_a_frozen_encoder_reads_every_tile_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet.r160_in1k").state_dict(), weights)
    made = smoke(
        "stain.method=none", "encoder.channels=rgb", "encoder.frozen=true",
        "encoder.name=test_resnet.r160_in1k", f"encoder.checkpoint={weights}",
        "mil.aggregators=[{name: mean}]", "mil.epochs=1", "identity.content=false",
        "data.phantom.slides=12", "data.phantom.sites=1",
    )  # fmt: skip
    trained(tmp_path / "run", made)
    found = measure(tmp_path / "out", made, n_seeds=1, null=False, say=quiet)
    assert found is not None
    metrics = read_json(tmp_path / "run" / "metrics.json")
    patient = next(s for s in found["schemes"] if s["scheme"] == "patient")
    assert patient["tile"]["auroc"]["by_seed"][0] == metrics["tile"]["auroc"]["value"]
    for method, scores in metrics["slide"].items():
        value = patient["slide"][method]["auroc"]["by_seed"][0]
        assert value == pytest.approx(scores["auroc"]["value"], abs=1e-12), method
