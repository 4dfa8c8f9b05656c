"""Answers about new slides: a class, or not sure, from the validation slides of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from mil import settings
from mil.cli import app
from mil.cohort import folds_of
from mil.config import Config
from mil.conformal import NOT_SURE
from mil.models import Models
from mil.new_slides import _from_pixels, predict_new
from mil.predictions import read_slides
from mil.run import evaluate_run
from splits.artifacts import digests_of, read_json, read_table, write_table
from splits.errors import InputError
from tests.integration.conftest import smoke

pytestmark = pytest.mark.filterwarnings("ignore:.*patient:UserWarning")


def new_slide(run: Path, to: Path) -> Path:
    """A folder with the tiles of one slide of the run."""
    table = read_table(run / "tiles.parquet")
    to.mkdir()
    for name in table.loc[table["slide_id"] == table["slide_id"].iloc[0], "tile_id"]:
        shutil.copy(run / "phantom" / "tiles" / name, to / Path(name).name)
    return to


def test_answers_are_the_p_values_over_the_validation_slides_of_all_folds(
    copied: Path, tmp_path: Path
) -> None:
    config = smoke("evaluate.level=0.7")
    (copied / "seal.json").unlink()
    records = predict_new(copied, config, [new_slide(copied, tmp_path / "new")])
    assert not (copied / "seal.json").exists(), "answering is no look at test labels"
    val = read_slides(copied / "predictions.parquet", "val")
    patient_of = next(folds_of(copied, config)).patient_of
    assert {r["level"] for r in records} == {0.7}
    for record in records:
        assert record["answer"] == (record["set"][0] if len(record["set"]) == 1 else NOT_SURE)
        assert set(record["set"]) <= set(record["probabilities"])
    # The same from the tables, with the plain formula, for one method of one model a fold.
    record = next(r for r in records if r["method"] == "abmil")
    of_folds = folds_alone(copied, config, tmp_path / "new")
    rows = val[val["method"] == "abmil"].assign(patient=lambda t: t["slide_id"].map(patient_of))
    for name in record["probabilities"]:
        beyond = [
            1 - row[f"p_{row['label']}"] >= 1 - of_folds[row["fold"]][name] - 1e-9
            for row in rows.to_dict("records")
        ]
        shares = pd.Series(beyond).groupby(rows["patient"].to_numpy()).mean()
        p = (1 + shares.sum()) / (len(shares) + 1)
        assert (name in record["set"]) == (p > 0.3 + 1e-9)


def folds_alone(run: Path, config: Config, folder: Path) -> dict[int, dict[str, float]]:
    """What the abmil of each fold says of a new slide."""
    found = {}
    slide = next(_from_pixels(folder, config))
    for fold in folds_of(run, config):
        models = Models.load(run, config, fold.number, fold.classes)
        x = torch.from_numpy(slide.embed(models.encoder))
        said = models.slides(x, torch.tensor([0, len(x)]))["abmil"]
        found[fold.number] = dict(
            zip(fold.classes, said.votes.probabilities[0].tolist(), strict=True)
        )
    return found


def test_too_few_validation_patients_are_told(copied: Path, tmp_path: Path) -> None:
    folder = new_slide(copied, tmp_path / "new")
    with pytest.warns(UserWarning, match=r"patient\(s\) validate in this run, .* needs 19"):
        records = predict_new(copied, smoke("evaluate.level=0.95"), [folder])
    for record in records:
        assert record["answer"] == NOT_SURE
        assert set(record["set"]) == set(record["probabilities"])


def test_the_verb_prints_answers(copied: Path, tmp_path: Path) -> None:
    settings.save(smoke("evaluate.level=0.95"), copied / "config.yaml")
    folder = new_slide(copied, tmp_path / "new")
    said = CliRunner().invoke(app, ["predict", str(copied), str(folder), "--json"])
    start = said.stdout.index("[")
    assert {r["answer"] for r in json.loads(said.stdout[start:])} == {NOT_SURE}
    table = CliRunner().invoke(app, ["predict", str(copied), str(folder)])
    assert "95%" in table.stdout  # words may stand on two lines of a cell
    assert "sure:" in table.stdout


def test_validation_slides_of_other_weights_are_refused(copied: Path, tmp_path: Path) -> None:
    folder = new_slide(copied, tmp_path / "new")
    path = copied / "predictions.parquet"
    write_table(path, read_table(path), {**digests_of(path), "models": "others"})
    with pytest.raises(InputError, match=r"made for another models .*run `slidewise train"):
        predict_new(copied, smoke(), [folder])
    path.unlink()
    with pytest.raises(InputError, match="does not exist: run `slidewise train"):
        predict_new(copied, smoke(), [folder])


def test_a_run_has_calibration_and_answers_and_another_level_is_another_look(copied: Path) -> None:
    found = read_json(copied / "calibration.json")
    assert set(found["methods"]) == {"vote", "mean_probability", "mean", "abmil"}
    answers = read_table(copied / "answers.parquet")
    tested = read_slides(copied / "predictions.parquet")
    assert len(answers) == len(tested)
    assert digests_of(copied / "answers.parquet") == digests_of(copied / "metrics.json")
    evaluate_run(copied, smoke())
    assert read_json(copied / "metrics.json")["looks"] == 1
    evaluate_run(copied, smoke("evaluate.level=0.6"))
    assert read_json(copied / "metrics.json")["looks"] == 2
    sets = read_json(copied / "calibration.json")["conformal"]["abmil"]
    assert sets["level"] == 0.6
    assert all(fold["threshold"] is not None for fold in sets["folds"])
