"""Channels on one split: nine ordinary runs on proven equal tables, compared once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil import settings
from mil.config import Config
from mil.experiments import channels as experiment
from mil.experiments.channels import channels, proof_of, require_one, rows_of
from mil.experiments.channels_compare import METRICS, compare
from mil.experiments.channels_page import table_of
from mil.experiments.probe import KINDS, probe_run
from mil.run import run
from mil.statistics import Estimate
from splits.artifacts import read_json
from splits.errors import InputError
from tests.integration.conftest import smoke

ROWS = {"rgb", "rgb-reinhard", "h", "e", "he", "h-fixed", "e-fixed", "he-fixed", "he-tile"}


RUN = {"rgb", "h", "he", "he-fixed"}
"""Rows that are run here; the others differ in channels and stain alone."""


def tiny(*changes: str) -> Config:
    """A network of 0.1 M weights, so that nine runs take seconds."""
    small = ["encoder.name=test_efficientnet", "data.phantom.slides=24", "evaluate.bootstrap=200"]
    return smoke(*small, "mil.aggregators=[{name: abmil}]", *changes)


def quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("channels") / "<b>smoke"
    channels(out, tiny(), quiet, only=sorted(RUN))
    return out


def test_every_row_is_there_and_they_share_identity_and_split(made: Path) -> None:
    result = read_json(made / "channels.json")
    assert {row["row"] for row in result["rows"]} == RUN
    assert result["not_run"] == []
    proofs = {name: proof_of(made / name) for name in ("cohort", *RUN)}
    assert require_one(proofs) == result["cohort"]
    seen = {
        (row["row"], row["channels"], settings.stored(made / row["row"]).encoder.channels)
        for row in result["rows"]
    }
    assert {(name, channels) for name, channels, _ in seen} == {
        (name, stored) for name, _, stored in seen
    }
    # What the encoders see differs, or the table compares nothing.
    features = {name: np.load(made / name / "features" / "fold0.npy") for name in RUN}
    for a in RUN:
        assert not any(np.allclose(features[a], features[b]) for b in RUN - {a})


def test_the_reference_is_what_an_ordinary_run_gives(made: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", tiny("evidence.max_slides=0"), say=quiet)
    ours, plain = (read_json(f / "metrics.json") for f in (made / "he", tmp_path / "run"))
    assert ours["slide"] == plain["slide"]
    assert ours["tile"] == plain["tile"]


def test_the_table_says_what_the_runs_say(made: Path) -> None:
    result, table = read_json(made / "channels.json"), pd.read_csv(made / "channels.csv")
    for row in result["rows"]:
        metrics = read_json(made / row["row"] / "metrics.json")
        of_level = {"tile": metrics["tile"], **metrics["slide"]}
        assert set(result["levels"]) == set(of_level)
        lines = table[table["row"] == row["row"]].set_index(["level", "metric"])
        for level, scores in of_level.items():
            for metric in METRICS:
                line = lines.loc[[(level, metric)]]
                # A level without an interval has none here: NaN in the table, null in the JSON.
                expected = np.array(
                    [[scores[metric][k] for k in ("value", "ci_low", "ci_high")]], dtype=float
                )
                given = line[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
                assert given == pytest.approx(expected, nan_ok=True)
    values = {
        (row["row"], level, metric): row["scores"][level][metric]["value"]
        for row in result["rows"]
        for level in result["levels"]
        for metric in METRICS
    }
    assert len(result["paired"]) == 3 * len(result["levels"]) * len(METRICS)
    for pair in result["paired"]:
        of = (pair["level"], pair["metric"])
        expected = values[(pair["a"], *of)] - values[(pair["b"], *of)]
        assert pair["difference"] == pytest.approx(expected)
        assert pair["p"] <= pair["p_holm"] <= 1
    _, columns, rows = table_of(result)
    assert len(rows) == len(RUN)
    assert {len(row) for row in rows} == {len(columns)}


def test_a_second_call_changes_nothing_but_the_page_and_takes_no_look(made: Path) -> None:
    kept = {
        path: path.stat().st_mtime_ns
        for path in made.rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "channels.html")
    }
    looks = {name: read_json(made / name / "seal.json")["looks"] for name in RUN}
    channels(made, tiny(), quiet, only=sorted(RUN))
    assert [p.name for p, stamp in kept.items() if p.stat().st_mtime_ns != stamp] == []
    assert {name: read_json(made / name / "seal.json")["looks"] for name in RUN} == looks
    assert set(looks.values()) == {2}, "one to evaluate, one to compare"


def test_the_page_is_one_file_and_shows_names_as_text(made: Path) -> None:
    page = (made / "channels.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;smoke" in page
    assert "<b>smoke" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/jpeg") == 4 * len(RUN)


def test_a_split_that_was_changed_by_hand_is_refused(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("cohort", "rgb"):
        shutil.copytree(made / name, out / name)
    path = out / "rgb" / "split.csv"
    split = pd.read_csv(path, dtype=str)
    split["part"] = split["part"].replace({"val": "train"})
    split.to_csv(path, index=False)
    with pytest.raises(InputError, match="rgb holds another split than cohort"):
        channels(out, tiny(), quiet, only=["rgb"])


def test_probe_writes_what_it_found_and_is_skipped_when_current(made: Path) -> None:
    config = settings.stored(made / "he")
    stamp = (made / "he" / "probe.json").stat().st_mtime_ns
    found = probe_run(made / "he", config)
    assert (made / "he" / "probe.json").stat().st_mtime_ns == stamp
    assert found["encoder"] == "trained"
    assert set(found["values"]) == set(KINDS)
    units = pd.read_csv(made / "he" / "probe.csv", dtype={"unit": str})
    slides = units[units["kind"] == "slide"]
    # The test slides of both folds, each once, in the pool of its fold.
    split = pd.read_csv(made / "he" / "split.csv")
    test = split[split["part"] == "test"]
    assert dict(zip(slides["unit"], slides["pool"], strict=True)) == dict(
        zip(test["slide_id"], test["fold"], strict=True)
    )
    assert found["values"]["slide"]["value"] == pytest.approx(slides["hit"].mean())


def test_features_are_refused_before_any_work(tmp_path: Path) -> None:
    config = Config.model_validate({"data": {"features": str(tmp_path)}})
    with pytest.raises(InputError, match=r"data\.features"):
        channels(tmp_path / "out", config, quiet)
    assert not (tmp_path / "out").exists()


def test_rows_that_an_encoder_cannot_do_are_listed_with_the_reason(tmp_path: Path) -> None:
    # Its first layer standardises its weights, so they cannot be projected onto stains.
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    changes = ("encoder.name=test_nfnet", f"encoder.checkpoint={weights}", "encoder.frozen=true")
    rows, absent = experiment._possible(tiny(*changes), tmp_path / "cohort", ())
    assert {row.name for row in rows} == {"rgb", "rgb-reinhard"}
    assert {row["row"] for row in absent} == ROWS - {"rgb", "rgb-reinhard"}
    assert all("cannot be adapted" in row["reason"] for row in absent)


def test_vahadane_is_kept_where_it_is_asked_for() -> None:
    methods = {row.name: row.stain for row in rows_of(tiny("stain.method=vahadane"))}
    assert methods["he"] == methods["h"] == methods["e"] == "vahadane"
    assert methods["he-fixed"] == "ruifrok"


def test_pairs_of_undefined_metrics_have_no_numbers() -> None:
    of_vote = {
        "accuracy": Estimate(0.5, np.linspace(0.4, 0.6, 50), 0.0, 9.0, None),
        "auroc": Estimate(None, np.full(50, np.nan), 0.0, 9.0, None),
    }
    found = compare({name: {"vote": of_vote} for name in ("he", "h", "rgb")})
    assert [(p["a"], p["b"]) for p in found if p["metric"] == "auroc"] == [
        ("h", "he"),
        ("rgb", "he"),
    ]
    assert all(p["p_holm"] is None for p in found if p["metric"] == "auroc")
    assert json.dumps(found)


def test_an_unknown_row_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'he-fixed'"):
        channels(tmp_path / "out", tiny(), quiet, only=["he-fix"])
