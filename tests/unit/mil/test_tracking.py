"""A finished run in MLflow, with the real package and a store on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mil import settings, train
from mil.config import Config
from splits.artifacts import read_json, write_csv, write_json
from splits.errors import InputError

LOG = pd.DataFrame(
    {"epoch": [0, 1], "train_loss": [0.7, 0.5], "val_loss": [0.6, 0.65], "best": [1, 0]}
)
SCORE = {"value": 0.75, "ci_low": 0.5, "ci_high": 0.9}
HOSTILE = "<img src=x>;é"


def config(store: str | None) -> Config:
    document = {"data": {"root": "tiles"}, "train": {"mlflow": store, "lr": 0.25}}
    return settings.parse(document, "test")


def finished(run: Path) -> Path:
    for place in ("encoder/fold0", "aggregators/abmil/fold0", "aggregators/abmil/fold1"):
        write_csv(run / place / "log.csv", LOG)
    scores = {"accuracy": SCORE, "auroc": dict.fromkeys(SCORE)}
    metrics = {"tile": {"accuracy": SCORE}, "slide": {"abmil": scores, HOSTILE: scores}}
    write_json(run / "metrics.json", metrics, {"predictions": "a"})
    (run / "report.html").write_text("<p>report</p>", encoding="utf-8")
    return run


def test_a_missing_package_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'slidewise\[mlflow\]'"):
        train.check(config("runs/mlruns"))


def test_a_run_is_entered_once_with_its_curves_scores_and_report(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is an extra: slidewise[mlflow]")
    from mil.tracking import EXPERIMENT, track

    run, store = finished(tmp_path / "run"), tmp_path / "store"
    settings_of = config(str(store))
    entry = track(run, settings_of, str(store))
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    curve = client.get_metric_history(entry, "abmil/fold1/val_loss")
    assert [(point.step, point.value) for point in curve] == [(0, 0.6), (1, 0.65)]
    stored = client.get_run(entry).data
    assert stored.params["train.lr"] == "0.25"
    assert stored.metrics["tile/accuracy"] == 0.75
    assert stored.metrics["slide/abmil/accuracy_ci_low"] == 0.5
    assert stored.metrics["slide/_img src_x___/accuracy"] == 0.75
    assert "slide/abmil/auroc" not in stored.metrics  # not defined
    files = {item.path for item in client.list_artifacts(entry)}
    assert files == {"report.html", "metrics.json"}

    assert track(run, settings_of, str(store)) == entry
    write_json(run / "metrics.json", {"tile": None, "slide": {}}, {"predictions": "b"})
    second = track(run, settings_of, str(store))
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    entries = {found.info.run_id for found in client.search_runs([experiment])}
    assert entries == {entry, second}
    assert read_json(run / "mlflow.json")["run_id"] == second


def test_a_store_that_cannot_be_written_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is an extra: slidewise[mlflow]")
    from mil.tracking import track

    run = finished(tmp_path / "run")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is complete"):
        track(run, config("x"), str(tmp_path / "file"))
    assert not (run / "mlflow.json").exists()
