"""Tiles taken from slides whose label is one tile, through trained models of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from mil import encode, settings
from mil.bag_training import shuffled
from mil.cohort import folds_of
from mil.config import Config
from mil.models import Models
from mil.perturb import perturb_run
from mil.pieces import bag_of
from mil.predictions import read_slides
from mil.run import evaluate_run, run
from splits.artifacts import read_json, read_table
from splits.errors import InputError

N_SLIDES, DIM = 48, 8
TABLES = ("tiles_seen", "perturbation", "agreement", "shuffled_attention")


def files(folder: Path, labels: Path) -> None:
    """Tiles of eight kinds, equally far out; one tile of a slide is of the first or the second.

    These two kinds are the classes, all others are in slides of both.
    """
    rng = np.random.default_rng(1)
    folder.mkdir()
    lines = ["case_id,slide_id,label"]
    for i in range(N_SLIDES):
        size = 1 if i == 0 else int(rng.integers(8, 15))
        kinds = rng.integers(2, DIM, size)
        kinds[rng.integers(size)] = i % 2
        x = 4 * np.eye(DIM)[kinds] + rng.normal(size=(size, DIM)) / 2
        with h5py.File(folder / f"{i:03d}.h5", "w") as file:
            file["features"] = x.astype(np.float16)
            file["coords"] = np.stack([np.arange(size), np.zeros(size, int)], axis=1) * 512
        lines.append(f"p{i - i % 4 + i % 2 if i < 16 else i},{i:03d},{'ab'[i % 2]}")
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")


def config(base: Path, *more: str) -> Config:
    given = [f"data.features={base / 'given'}", f"data.labels={base / 'labels.csv'}"]
    given += ["split.folds=2", "mil.aggregators=[{name: abmil}, {name: max}]", "mil.seeds=2"]
    given += ["mil.epochs=40", "mil.lr=5e-3", "evaluate.bootstrap=200", "compute.threads=1"]
    given += ["evidence.shuffled_control=true"]
    document = {"data": {"features": str(base / "given")}}
    return settings.override(settings.parse(document, "test"), [*given, *more])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one tile")
    files(folder / "given", folder / "labels.csv")
    run(folder / "run", config(folder), lambda _: None)
    return folder


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base / "run", tmp_path / "run"))


def probabilities(table: pd.DataFrame) -> np.ndarray:
    return table[["p_a", "p_b"]].to_numpy(np.float64)


def test_answers_from_all_tiles_are_the_predictions_to_the_last_bit(base: Path) -> None:
    predicted = read_slides(base / "run" / "predictions.parquet")
    seen = read_table(base / "run" / "tiles_seen.parquet")
    whole = seen[seen["m"] == seen["n_tiles"]].sort_values(["method", "slide_id"])
    assert whole["slide_id"].to_list() == predicted["slide_id"].to_list()
    assert whole["predicted"].to_list() == predicted["predicted"].to_list()
    assert np.array_equal(probabilities(whole), probabilities(predicted))
    removed = read_table(base / "run" / "perturbation.parquet")
    start = removed[(removed["share"] == 0) & (removed["labels"] == "true")]
    of_class = predicted.set_index(["method", "slide_id"])
    for row in start.itertuples():
        expected = of_class.loc[(row.method, row.slide_id)]
        assert row.predicted == expected["predicted"]
        assert row.p == expected[f"p_{row.predicted}"]


def test_accuracy_from_all_tiles_is_that_of_the_metrics(base: Path) -> None:
    metrics = read_json(base / "run" / "metrics.json")["slide"]
    found = read_json(base / "run" / "beside.json")["tiles_seen"]
    assert set(found["methods"]) == set(metrics) == {"vote", "mean_probability", "abmil", "max"}
    for method, steps in found["methods"].items():
        assert [step["m"] for step in steps] == [1, 2, 4, 8, None]
        assert steps[-1]["accuracy"]["value"] == metrics[method]["accuracy"]["value"]
    abmil = [step["accuracy"]["value"] for step in found["methods"]["abmil"]]
    assert abmil[-1] > 0.9
    assert abmil[0] < 0.75  # one tile of eleven seldom is the one that says it
    assert found["methods"]["abmil"][0]["to_all"]["ci_high"] < 0


def test_attention_is_believed_where_one_tile_decides(base: Path) -> None:
    found = read_json(base / "run" / "evidence.json")
    assert set(found["methods"]) == {"abmil"}  # max weighs no tiles
    assert found["n_slides"] == found["n_slides_of"] == N_SLIDES
    measures = found["methods"]["abmil"]["measures"]
    assert set(measures) == {"attention", "contribution"}
    for measure in measures.values():
        for way in ("deletion", "insertion"):
            assert measure[way]["verdict"] == "yes"
            assert measure[way]["difference"]["ci_low"] > 0.1
            assert set(measure["shuffled"][way]) == set(measure[way])
        agreement = measure["agreement"]
        assert agreement["n_members"] == 2
        assert agreement["n_slides"] == N_SLIDES - 1  # one slide has one tile
        assert 0.1 < agreement["top_tenth"]["chance"] < 0.2


def test_agreement_is_that_of_the_attention_of_two_models(base: Path) -> None:
    path, settled = base / "run", config(base)
    pairs = read_table(path / "agreement.parquet").set_index(["slide_id", "measure", "b"])
    control = read_table(path / "shuffled_attention.parquet").set_index("tile_id")["attention"]
    real = read_table(path / "attention.parquet").set_index("tile_id")
    for fold in folds_of(path, settled):
        features = encode.read_features(path, str(fold.number), unseen=fold.unseen)
        models = Models.load(path, settled, fold.number, fold.classes)
        slide = fold.slides["test"][2]
        rows = fold.rows_by_slide[slide]
        x = torch.from_numpy(np.array(features[rows], dtype=np.float32))
        one, other = models.members("abmil", x, torch.tensor([0, len(x)]))
        row = pairs.loc[(slide, "attention", "1")]
        assert row["spearman"] == pytest.approx(spearmanr(one.attention, other.attention)[0])
        top = [set(np.argsort(-said.attention)[:2]) for said in (one, other)]
        assert len(rows) > 10 or row["overlap"] in (0, 1)
        assert len(rows) <= 10 or row["overlap"] == len(top[0] & top[1]) / 2
        tiles = fold.tile_ids[rows]
        weights = real[(real["part"] == "test") & (real["method"] == "abmil")]["attention"]
        expected = spearmanr(weights[tiles], control[tiles])[0]
        assert pairs.loc[(slide, "attention", "shuffled"), "spearman"] == pytest.approx(expected)


def test_the_control_learned_other_labels_on_the_same_slides(base: Path) -> None:
    for fold in folds_of(base / "run", config(base)):
        home = base / "run" / "aggregators"
        real = home / "abmil" / f"fold{fold.number}"
        control = home / "abmil" / "shuffled" / f"fold{fold.number}"
        seen = [read_json(f / "card.json")["slides_seen"] for f in (real, control)]
        assert seen[0] == seen[1] == fold.slides["train"]
        weights = [(f / "model.safetensors").read_bytes() for f in (real, control)]
        assert weights[0] != weights[1]
        assert not (home / "max" / "shuffled").exists()  # it weighs no tiles
        mixed = shuffled(fold, 0)
        assert mixed.slides == fold.slides
        assert dict(mixed.labels) != dict(fold.labels)
        for part in ("train", "val"):
            of_patient: dict[str, set[int]] = {}
            for name in fold.slides[part]:
                of_patient.setdefault(fold.patient_of[name], set()).add(mixed.labels[name])
            assert all(len(labels) == 1 for labels in of_patient.values())
            before = {fold.patient_of[s]: fold.labels[s] for s in fold.slides[part]}
            assert sorted(before.values()) == sorted(min(of_patient[p]) for p in before)


def test_an_answer_is_what_the_model_says_of_these_tiles_alone(base: Path) -> None:
    path, settled = base / "run", config(base)
    seen = read_table(path / "tiles_seen.parquet")
    removed = read_table(path / "perturbation.parquet")
    attention = read_table(path / "attention.parquet").set_index(["method", "tile_id"])
    for fold in folds_of(path, settled):
        features = encode.read_features(path, str(fold.number), unseen=fold.unseen)
        models = Models.load(path, settled, fold.number, fold.classes)
        slide = fold.slides["test"][1]
        rows = fold.rows_by_slide[slide]
        bag = bag_of(slide, 0, len(rows), repeats=5, seed=settled.seed)

        def said(tiles: np.ndarray, features=features, models=models, rows=rows) -> dict:
            x = torch.from_numpy(np.array(features[rows[tiles]], dtype=np.float32))
            return models.slides(x, torch.tensor([0, len(x)]))

        here = seen[(seen["slide_id"] == slide) & (seen["m"] == 4) & (seen["repeat"] == 3)]
        of_four = said(bag.orders[3][:4])
        for row in here.itertuples():
            expected = of_four[row.method].votes.probabilities[0]
            assert [row.p_a, row.p_b] == pytest.approx(expected, abs=1e-6)
        weights = attention.loc["abmil"].loc[fold.tile_ids[rows], "attention"].to_numpy()
        kept = np.argsort(-weights)[round(0.3 * len(rows)) :]
        here = removed[(removed["slide_id"] == slide) & (removed["labels"] == "true")]
        here = here[(here["order"] == "attention") & (here["end"] == "top")]
        row = here[here["share"] == 0.3].iloc[0]
        place = fold.classes.index(row["predicted"])
        expected = said(kept)["abmil"].votes.probabilities[0, place]
        assert row["p"] == pytest.approx(expected, abs=1e-6)


def test_batches_change_nothing(base: Path, copied: Path) -> None:
    # A control of its own would be trained with these batches.
    perturb_run(copied, config(base, "mil.batch_tiles=30", "evidence.shuffled_control=false"))
    for name in ("tiles_seen", "perturbation"):
        one, other = (read_table(folder / f"{name}.parquet") for folder in (base / "run", copied))
        one = one[one["labels"] == "true"] if "labels" in one else one
        keys = [c for c in one.columns if one[c].dtype.kind not in "f" or c == "share"]
        one, other = (t.sort_values(keys, ignore_index=True) for t in (one, other))
        pd.testing.assert_frame_equal(one, other, atol=1e-5, check_exact=False)


def test_what_is_current_is_kept_and_what_is_asked_anew_is_made(base: Path, copied: Path) -> None:
    def stamps() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in copied.glob("*.parquet")}

    before = stamps()
    perturb_run(copied, config(base))
    assert stamps() == before
    perturb_run(copied, config(base, "evidence.max_slides=7", "evidence.shuffled_control=false"))
    assert {n for n in before if stamps().get(n) != before[n]} == {f"{n}.parquet" for n in TABLES}
    assert not (copied / "shuffled_attention.parquet").exists()
    seen = read_table(copied / "tiles_seen.parquet")
    assert seen["slide_id"].nunique() == 7
    looks = read_json(copied / "metrics.json")["looks"]
    evaluate_run(copied, config(base))
    assert read_json(copied / "metrics.json")["looks"] == looks + 1
    found = read_json(copied / "beside.json")["tiles_seen"]
    assert (found["n_slides"], found["n_slides_of"]) == (7, N_SLIDES)
    perturb_run(copied, config(base, "evidence.max_slides=0", "evidence.shuffled_control=false"))
    assert not any((copied / f"{name}.parquet").exists() for name in TABLES)
    evaluate_run(copied, config(base))
    assert read_json(copied / "beside.json")["tiles_seen"] is None
    assert not (copied / "evidence.json").exists()


def test_slides_of_a_patient_share_the_answers_of_its_bag(base: Path, copied: Path) -> None:
    few = ["mil.bags=patient", "mil.epochs=2", "evidence.shuffled_control=false"]
    run(copied, config(base, *few), lambda _: None)
    patient_of = read_table(copied / "tiles.parquet").drop_duplicates("slide_id")
    patient_of = patient_of.set_index("slide_id")["patient_id"]
    seen = read_table(copied / "tiles_seen.parquet")
    sizes = seen.groupby("slide_id")["n_tiles"].first()
    assert sizes.groupby(patient_of).nunique().max() == 1
    assert seen["slide_id"].nunique() == N_SLIDES
    keys = [seen["slide_id"].map(patient_of), "method", "m", "repeat"]
    assert (seen.groupby(keys)[["p_a", "p_b"]].nunique() == 1).all(axis=None)
    metrics = read_json(copied / "metrics.json")["slide"]
    steps = read_json(copied / "beside.json")["tiles_seen"]["methods"]["abmil"]
    assert steps[-1]["accuracy"]["value"] == metrics["abmil"]["accuracy"]["value"]


def test_settings_without_effect_are_refused(base: Path) -> None:
    with pytest.raises(InputError, match=r"evidence\.repeats has no effect"):
        config(base, "evidence.max_slides=0", "evidence.shuffled_control=false",
               "evidence.repeats=3")  # fmt: skip
