"""Selection within folds on whole runs: honest under shuffled labels, blind to test slides, exact
after a kill."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from mil import checkpoint, devices, encode, prepare, select, selection, settings, train
from mil.bag_training import fit
from mil.checkpoint import load_weights
from mil.cohort import folds_of, label_names
from mil.config import Config
from mil.data.bags import Bags, Batch
from mil.models import Models, new_aggregator, said_together
from mil.new_slides import predict_new
from mil.pixels import pixels
from mil.predict import predict_run
from mil.predictions import read_slides
from mil.run import evaluate_run, report_run, run, train_run
from mil.selection import SELECTED, chosen
from splits.artifacts import read_json, read_table, write_json
from splits.errors import InputError
from tests.integration.conftest import smoke

VOTE = "{vote: {name: mean_probability}}"
GOOD = "{aggregator: {name: mean}, lr: 0.3, epochs: 12}"
BAD = "{aggregator: {name: abmil}, lr: 1e-6, epochs: 1}"
N_TILES, DIM = 5, 6
SHUFFLES = range(2)


class StopHereError(Exception):
    pass


def quiet(_: str) -> None:
    """Say nothing."""


def cohort(base: Path, n: int = 64, *, shuffled: int | None = None) -> None:
    """Bags in one file; slides of class b are moved along one direction, some patients have two."""
    rng = np.random.default_rng(3)
    base.mkdir()
    truth = np.array(["a", "b"])[(np.arange(n) // 2) % 2]
    told = truth if shuffled is None else np.random.default_rng(shuffled).permutation(truth)
    x = rng.normal(size=(n, N_TILES, DIM)) + 2.5 * (truth == "b")[:, None, None] * np.eye(DIM)[0]
    names = [f"s{i:03d}" for i in range(n)]
    patients = [f"p{i // 2 if i < 12 and shuffled is None else i}" for i in range(n)]
    (base / "bags").mkdir()
    for name, bag in zip(names, x, strict=True):
        np.savez(base / "bags" / f"{name}.npz", features=bag.astype(np.float32))
    table = pd.DataFrame({"slide_id": names, "case_id": patients, "label": told})
    table.to_csv(base / "labels.csv", index=False)


def config(base: Path, candidates: list[str], *more: str) -> Config:
    given = ["split.folds=2", "split.inner=4", "compute.threads=1", "evaluate.bootstrap=20"]
    given += ["mil.epochs=6", "mil.aggregators=[{name: mean}]", f"data.labels={base}/labels.csv"]
    given += [f"select.candidates=[{', '.join(candidates)}]"]
    document = {"data": {"features": str(base / "bags")}}
    return settings.override(settings.parse(document, "test"), [*given, *more])


def hashes(path: Path, *folders: str) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        for file in sorted((path / folder).rglob("*"))
        if file.name == "model.safetensors" or (file.suffix == ".json" and "fold" in file.stem)
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    base = tmp_path_factory.mktemp("select") / "cohort"
    cohort(base)
    made = config(base, [BAD, GOOD])
    said: list[str] = []
    run(base / "run", made, said.append)
    assert sum("16 trainings inside" in line for line in said) == 1
    return base, made


def models_of(path: Path) -> dict[Path, int]:
    """Every model inside, and when it was written."""
    inside = (path / "selection").rglob("model.safetensors")
    return {file.relative_to(path): file.stat().st_mtime_ns for file in inside}


def test_the_better_candidate_is_chosen_in_every_fold(done: tuple[Path, Config]) -> None:
    path = done[0] / "run"
    found = read_json(path / "selection.json")
    names = [each.title for each in done[1].select.candidates]
    assert [fold["chosen"] for fold in found["folds"]] == [names[1]] * 2
    assert [each["n_chosen"] for each in found["candidates"]] == [0, 2]
    metrics = read_json(path / "metrics.json")["slide"]
    assert metrics[SELECTED]["auroc"]["value"] > 0.9
    assert metrics[SELECTED]["log_loss"]["value"] == pytest.approx(found["outer"], abs=0.05)
    for fold in folds_of(path, done[1]):
        record = read_json(path / "selection" / f"fold{fold.number}.json")
        parts = record["inner_folds"]
        assert not {s for part in parts for names in part.values() for s in names} & set(
            fold.slides["test"]
        )
        for number, part in enumerate(parts):
            for card in (path / "selection").rglob(f"fold{fold.number}-inner{number}/card.json"):
                said = read_json(card)
                assert said["slides_seen"] == part["train"]
                assert said["slides_that_chose_the_epoch"] == part["val"]
        card = read_json(path / "aggregators" / SELECTED / f"fold{fold.number}" / "card.json")
        assert card["slides_seen"] == fold.slides["train"]


def test_a_second_run_does_nothing_again(done: tuple[Path, Config]) -> None:
    path = done[0] / "run"
    kinds = {".safetensors", ".json", ".parquet", ".npy"}  # the page and its tables are made anew
    files = [file for file in path.rglob("*") if file.suffix in kinds]
    before = {file: file.stat().st_mtime_ns for file in files}
    run(path, done[1], quiet)
    assert [file for file in files if file.stat().st_mtime_ns != before[file]] == []
    assert read_json(path / "seal.json")["looks"] == 1


def test_what_is_tested_has_no_say(done: tuple[Path, Config], tmp_path: Path) -> None:
    """Test slides whose signal is turned round: the worse candidate would win on them."""
    base, made = done
    path = Path(shutil.copytree(base / "run", tmp_path / "run"))
    fold = next(folds_of(path, made))
    rows = fold.rows("test")
    for file in [path / "features" / "fold0.npy", *path.glob("features/fold0-*.npy")]:
        matrix = np.load(file)
        matrix[rows] *= -1
        np.save(file, matrix)
    told = dict.fromkeys(fold.slides["test"], 1)
    poisoned = replace(fold, labels={**fold.labels, **told})
    before = hashes(path, "selection", f"aggregators/{SELECTED}")
    for folder in ("selection", f"aggregators/{SELECTED}"):
        shutil.rmtree(path / folder)
    fabric = devices.fabric(made.compute, processes=1)
    select.choose(path, made, poisoned, fabric, quiet, lambda _: None)
    after = hashes(path, "selection", f"aggregators/{SELECTED}")
    assert len(after) == 10
    assert after == {name: before[name] for name in after}

    features = encode.read_features(path, "0", unseen=fold.unseen)
    truth = label_names(path)
    losses = []
    for candidate in made.select.candidates:
        alone = made.model_copy(update={"mil": candidate.within(made.mil)})
        choice = candidate.aggregator
        fit(path, alone, fold, choice, fabric, features, "", tmp_path / candidate.title)
        model = new_aggregator(alone, choice, DIM, 2)
        load_weights(model, tmp_path / candidate.title / "fold0" / "model.safetensors")
        bags = Bags(features, fold.rows_by_slide, fold.labels)
        batch = next(bags.batches(fold.slides["test"], max_tiles=4096))
        share = said_together([model.eval()], batch.x, batch.offsets, None).votes.probabilities
        losses.append(log_loss([truth[slide] for slide in batch.slide_ids], share))
    assert losses[0] < losses[1], "the worse candidate was to win on test"
    assert chosen(path, 0) == made.select.candidates[1]


def test_another_candidate_trains_itself_alone(done: tuple[Path, Config], tmp_path: Path) -> None:
    base, _ = done
    path = Path(shutil.copytree(base / "run", tmp_path / "run"))
    before = models_of(path)
    more = config(base, [VOTE, GOOD, "{aggregator: {name: max}}", BAD])
    run(path, more, quiet)
    after = models_of(path)
    assert {file: after[file] for file in before} == before
    assert len(after) == len(before) + 8
    for fold in read_json(path / "selection.json")["folds"]:
        assert fold["chosen"] != more.select.candidates[3].title


@pytest.mark.parametrize("stop_after", [7, 40])
def test_killed_inside_it_ends_with_the_same_weights(
    done: tuple[Path, Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_COST_SHARE", 0.0)
    base, made = done
    cut = Path(shutil.copytree(base / "run", tmp_path / "cut"))
    folders = ("selection", f"aggregators/{SELECTED}")
    whole = hashes(cut, *folders)
    for folder in folders:
        shutil.rmtree(cut / folder)
    with monkeypatch.context() as patch:
        drawn, batch_of = itertools.count(), Bags.batch

        def batch(bags: Bags, *args: Any, **kwargs: Any) -> Batch:
            if next(drawn) == stop_after:
                raise StopHereError
            return batch_of(bags, *args, **kwargs)

        patch.setattr(Bags, "batch", batch)
        with pytest.raises(StopHereError):
            train.aggregators(cut, made, quiet)
    finished = {f: s for f, s in models_of(cut).items() if (cut / f.parent / "card.json").exists()}
    assert 0 < len(finished) < 16
    train.aggregators(cut, made, quiet)
    assert hashes(cut, *folders) == whole
    after = models_of(cut)
    assert {file: after[file] for file in finished} == finished


def test_folds_may_choose_differently(done: tuple[Path, Config], tmp_path: Path) -> None:
    """One fold by a vote, one by a method that attends: tables, new slides, and nothing stale."""
    base, _ = done
    path = Path(shutil.copytree(base / "run", tmp_path / "run"))
    both = config(base, [VOTE, "{aggregator: {name: abmil}, epochs: 1}"], "mil.aggregators=[]")
    train.encoders(path, both, None, devices.fabric(both.compute, processes=1), quiet)
    train.aggregators(path, both, quiet)
    for number in (0, 1):
        file = path / "selection" / f"fold{number}.json"
        record = read_json(file)
        digests = record.pop("digests")
        write_json(file, {**record, "winner": number}, digests)
    train_run(path, both, quiet)
    assert not (path / "aggregators" / SELECTED / "fold0").exists()
    evaluate_run(path, both)
    report_run(path, both)
    attention = read_table(path / "attention.parquet")
    assert set(attention.loc[attention["method"] == SELECTED, "fold"]) == {1}
    table = read_table(path / "predictions.parquet")
    in_fold = table[table["fold"] == 0].set_index(["slide_id", "part"])
    share = [in_fold.loc[in_fold["method"] == m, "p_b"] for m in (SELECTED, "mean_probability")]
    pd.testing.assert_series_equal(*share)
    for answer in predict_new(path, both, [base / "bags"]):
        if answer["method"] == SELECTED:
            assert "attention" not in answer
    models = [Models.load(path, both, number, ["a", "b"]) for number in (0, 1)]
    assert [SELECTED in model.aggregators for model in models] == [False, True]


def test_patients_as_bags_and_several_seeds(done: tuple[Path, Config], tmp_path: Path) -> None:
    base, _ = done
    path = Path(shutil.copytree(base / "run", tmp_path / "run"))
    settled = config(
        base, [GOOD, VOTE], "mil.bags=patient", "mil.seeds=2", "select.criterion=auroc"
    )
    run(path, settled, quiet)
    folder = path / "aggregators" / SELECTED
    if chosen(path, 0).aggregator is not None:
        assert (folder / "fold0-seed1" / "model.safetensors").exists()
    assert len(list((path / "selection").rglob("fold*-inner?-seed1/card.json"))) == 8
    assert read_json(path / "selection.json")["higher_is_better"]


def test_shuffled_labels_show_what_the_inner_score_promises(tmp_path: Path) -> None:
    """The best score inside flatters; the nested score does not."""
    candidates = [VOTE, "{vote: {name: max_probability}}"]
    candidates += [f"{{aggregator: {{name: {name}}}}}" for name in ("mean", "max", "abmil")]
    same = ["select.criterion=auroc", "mil.lr=0.1", "mil.epochs=4", "mil.aggregators=[]"]
    inner, outer = [], []
    for seed in SHUFFLES:
        base = tmp_path / str(seed)
        path = base / "run"
        cohort(base, shuffled=seed)
        made = config(base, candidates, *same)
        settings.save(made, path / "config.yaml")
        prepare.scan(path, made)
        prepare.split(path, made)
        train.encoders(path, made, None, devices.fabric(made.compute, processes=1), quiet)
        train.aggregators(path, made, quiet)
        predict_run(path, made)
        rows = read_slides(path / "predictions.parquet")
        truth = pd.Series(label_names(path))
        selection.write(path, rows, truth, ["a", "b"], {"test": "x"})
        found = read_json(path / "selection.json")
        inner.append(np.mean([fold["inner_best"] for fold in found["folds"]]))
        outer.append(found["outer"])
    assert np.mean(inner) > np.mean(outer) + 0.05
    assert 0.35 < np.mean(outer) < 0.6


def test_a_trained_encoder_is_trained_again_inside(tmp_path: Path) -> None:
    made = smoke(
        "data.phantom={slides: 48, tiles_per_slide: 2, tile_px: 32}",
        "data.classes=[healthy, solid]",
        "identity.content=false",
        "split.inner=3",
        f"select.candidates=[{VOTE}, {BAD}]",
    )
    settings.save(made, tmp_path / "config.yaml")
    prepare.scan(tmp_path, made)
    prepare.split(tmp_path, made)
    fabric = devices.fabric(made.compute, processes=1)
    train.encoders(tmp_path, made, pixels(tmp_path, made), fabric, quiet)
    for fold in folds_of(tmp_path, made):
        own = encode.read_features(tmp_path, str(fold.number), unseen=fold.unseen)
        for part in select.folds_within(tmp_path, fold):
            card = read_json(tmp_path / "encoder" / f"fold{part.key}" / "card.json")
            assert card["slides_seen"] == part.slides["train"]
            inside = encode.read_features(tmp_path, part.key, unseen=part.unseen)
            assert not np.allclose(inside, own)
            with pytest.raises(InputError, match="encoder saw"):
                encode.read_features(tmp_path, str(fold.number), unseen=part.unseen)
            with pytest.raises(InputError, match="encoder saw"):
                encode.read_features(
                    tmp_path, select.scores_key(part), unseen=set(part.slides["train"])
                )
