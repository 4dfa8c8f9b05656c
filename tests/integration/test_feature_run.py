"""A run that starts from feature files and a label table, without pixels."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mil import settings
from mil.cli import app
from mil.config import Config
from mil.features import find
from mil.features.export import export
from mil.new_slides import predict_new
from mil.run import run
from splits import ledger
from splits.artifacts import read_json, read_table
from splits.errors import InputError, NegativeVerdictError

N_SLIDES, DIM = 60, 8


def quiet(_: str) -> None:
    """Say nothing."""


def files(folder: Path, labels: Path, *, shuffled: bool = False, n: int = N_SLIDES) -> None:
    """TRIDENT's files; in slides of class b a third of the tiles are moved along one direction."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    classes = np.array(["a", "b"])[np.arange(n) % 2]
    told = rng.permutation(classes) if shuffled else classes
    lines = ["case_id,slide_id,label"]
    for i, (truth, label) in enumerate(zip(classes, told, strict=True)):
        size = int(rng.integers(6, 12))
        x = rng.normal(size=(size, DIM))
        if truth == "b":
            x[: size // 3 + 1, 0] += 4
        with h5py.File(folder / f"{i:03d}.h5", "w") as file:
            file["features"] = x.astype(np.float16)
            file["features"].attrs["encoder"] = "uni_v1"
            file["coords"] = np.stack([np.arange(size), np.zeros(size, int)], axis=1) * 512
            file["coords"].attrs["patch_size_level0"] = 512
        lines.append(f"p{i // 2 if i < 8 else i},{i:03d},{label}")
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")


def config(folder: Path, labels: Path, *more: str) -> Config:
    given = [f"data.features={folder}", f"data.labels={labels}", "split.folds=2"]
    given += ["mil.aggregators=[{name: abmil}]", "mil.epochs=40", "mil.lr=5e-3"]
    given += ["evaluate.bootstrap=50", "compute.threads=1"]
    document = {"data": {"features": str(folder)}}
    return settings.override(settings.parse(document, "test"), [*given, *more])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config, list[str]]:
    base = tmp_path_factory.mktemp("features")
    files(base / "uni", base / "labels.csv")
    (base / "labels.csv").write_text((base / "labels.csv").read_text() + "p9,999,a\n")
    made = config(base / "uni", base / "labels.csv")
    said: list[str] = []
    run(base / "run", made, said.append)
    return base, made, said


def auroc(path: Path, method: str) -> float:
    return float(read_json(path / "metrics.json")["slide"][method]["auroc"]["value"])


def test_the_planted_signal_is_found_by_every_method(
    cohort: tuple[Path, Config, list[str]],
) -> None:
    for method in ("vote", "mean_probability", "abmil"):
        assert auroc(cohort[0] / "run", method) > 0.9, method


def test_shuffled_labels_are_at_chance(tmp_path: Path) -> None:
    files(tmp_path / "uni", tmp_path / "labels.csv", shuffled=True)
    run(tmp_path / "run", config(tmp_path / "uni", tmp_path / "labels.csv"), quiet)
    for method in ("vote", "mean_probability", "abmil"):
        assert 0.3 < auroc(tmp_path / "run", method) < 0.7, method


def test_the_matrix_is_one_file_in_the_order_of_the_table(
    cohort: tuple[Path, Config, list[str]],
) -> None:
    base, _, _ = cohort
    path = base / "run"
    table = read_table(path / "tiles.parquet")
    matrix = np.load(path / "features" / "fold0.npy", mmap_mode="r")
    assert matrix.dtype == np.float16
    assert len(matrix) == len(table)
    found = find(base / "uni")
    assert list(table["tile_id"][:2]) == ["000.h5#0000000", "000.h5#0000001"]
    for name, rows in table.groupby("slide_id").indices.items():
        np.testing.assert_array_equal(matrix[np.sort(rows)], found.read(str(name)).x)
    same = {(path / name).stat().st_ino for name in ("features/fold0.npy", "features/fold1.npy")}
    assert same == {(path / "cache" / "features.npy").stat().st_ino}
    assert (table["width_px"] == 512).all()
    assert table["x_px"].tolist()[:3] == [0, 512, 1024]
    # Ids stay text, and the patients of the table are kept whole.
    assert table["slide_id"].iloc[0] == "000"
    split = pd.read_csv(path / "split.csv", dtype=str)
    test = split[split["part"] == "test"].set_index("slide_id")["fold"]
    assert test["000"] == test["001"]


def test_what_is_unknown_of_the_encoder_is_said_once_and_kept(
    cohort: tuple[Path, Config, list[str]],
) -> None:
    base, _, said = cohort
    assert sum("unknown" in line for line in said) == 1
    entry = read_json(base / "run" / "features" / "meta.json")["folds"]["0"]
    assert (entry["slides_seen"], entry["encoder_saw"]) == ([], "unknown")
    audit = read_json(base / "run" / "audit.json")
    assert audit["verdict"] == "clean"
    assert any("no word on the encoder" in line for line in audit["had"])
    # The features are there, so the tests on features are run.
    probes = {entry["name"]: entry["value"] for entry in audit["battery"]}
    assert probes["train_against_test"] is not None
    assert probes["slide_probe"] is not None
    left = ledger.read(base / "run")
    assert left[["level", "id", "cause"]].to_numpy().tolist() == [
        ["slide", "999", "it has no feature file"]
    ]


def test_a_column_that_holds_the_label_stops_the_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bag, y = np.repeat(np.arange(20), 4), np.arange(20) % 2
    x = np.c_[rng.normal(size=(80, 5)), y[bag]].astype(np.float32)
    np.savez(tmp_path / "set.npz", X=x, bag=bag, y=y)
    given = settings.parse({"data": {"features": str(tmp_path / "set.npz")}}, "test")
    with pytest.raises(NegativeVerdictError, match=r"column\(s\) 5 hold the label"):
        run(tmp_path / "run", given, quiet)
    assert not (tmp_path / "run" / "tiles.parquet").exists()


def test_the_report_asks_for_no_pixels(cohort: tuple[Path, Config, list[str]]) -> None:
    page = (cohort[0] / "run" / "report.html").read_text(encoding="utf-8")
    assert "Features that this run began with" in page
    assert "uni_v1" in page
    assert "Stain of each site" not in page
    assert "data:image/jpeg" not in page


def test_a_second_run_does_nothing_and_a_changed_file_is_read_anew(
    cohort: tuple[Path, Config, list[str]], tmp_path: Path
) -> None:
    files(tmp_path / "uni", tmp_path / "labels.csv", n=12)
    made = config(tmp_path / "uni", tmp_path / "labels.csv", "mil.epochs=1")
    path = tmp_path / "run"
    run(path, made, quiet)
    names = ["cache/features.npy", "tiles.parquet", "predictions.parquet", "metrics.json"]
    before = [(path / name).stat().st_mtime_ns for name in names]
    run(path, made, quiet)
    assert [(path / name).stat().st_mtime_ns for name in names] == before
    with h5py.File(tmp_path / "uni" / "003.h5", "r+") as file:
        file["features"][0] = 1.5
    run(path, made, quiet)
    table = read_table(path / "tiles.parquet")
    row = int(np.flatnonzero(table["tile_id"] == "003.h5#0000000")[0])
    for fold in (0, 1):
        assert (np.load(path / "features" / f"fold{fold}.npy")[row] == 1.5).all()
    assert read_json(path / "seal.json")["looks"] == 2


def test_predict_takes_a_feature_file(
    cohort: tuple[Path, Config, list[str]], tmp_path: Path
) -> None:
    base, _, _ = cohort
    new = tmp_path / "new.npz"
    x = np.random.default_rng(1).normal(size=(9, DIM)).astype(np.float32)
    x[:4, 0] += 4
    np.savez(new, features=x)
    said = CliRunner().invoke(app, ["predict", str(base / "run"), str(new), "--json"])
    assert said.exit_code == 0, said.output
    records = {record["method"]: record for record in json.loads(said.stdout)}
    assert records["abmil"]["predicted"] == "b"
    attention = records["abmil"]["attention"]
    assert next(iter(attention)) == "new.npz#0000000"
    assert sum(attention.values()) == pytest.approx(1)
    np.savez(new, features=x[:, :5])
    with pytest.raises(InputError, match="dimension 5, the models of this run read 8"):
        predict_new(base / "run", settings.stored(base / "run"), [new])


def test_copies_under_two_names_are_one_group(tmp_path: Path) -> None:
    files(tmp_path / "uni", tmp_path / "labels.csv", n=12)
    (tmp_path / "uni" / "011.h5").write_bytes((tmp_path / "uni" / "009.h5").read_bytes())
    path = tmp_path / "run"
    run(path, config(tmp_path / "uni", tmp_path / "labels.csv", "mil.epochs=1"), quiet)
    table = read_table(path / "tiles.parquet").drop_duplicates("slide_id").set_index("slide_id")
    assert table["group_id"]["009"] == table["group_id"]["011"]
    assert table["group_id"].nunique() == 7  # 12 slides, 4 pairs of one patient, and the copies
    identity = read_json(path / "identity.json")
    assert {"group_id": "p11", "members": ["p11", "p9"]} in identity["merges"]
    assert any("'009' and '011'" in note for note in identity["notes"])
    assert read_json(path / "audit.json")["verdict"] == "clean"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"002.h5": np.full((4, DIM), np.nan, np.float16)}, r"002.*tile 0, column 0 is nan"),
        ({"002.h5": np.zeros((0, DIM), np.float16)}, r"002.*has no tiles"),
        ({"002.h5": np.zeros((4, 5), np.float16)}, r"002.*dimension 5 .*before 8"),
        ({"uni_v2": np.zeros((4, DIM))}, r"two encoders: uni_v1 \(slide '000'\) and uni_v2"),
    ],
)
def test_a_bad_file_stops_the_run_by_name(
    tmp_path: Path, spoil: dict[str, np.ndarray], said: str
) -> None:
    files(tmp_path / "uni", tmp_path / "labels.csv", n=12)
    for name, x in spoil.items():
        with h5py.File(tmp_path / "uni" / "002.h5", "w") as file:
            file["features"], file["coords"] = x, np.zeros((len(x), 2), int)
            file["features"].attrs["encoder"] = name if name != "002.h5" else "uni_v1"
    with pytest.raises(InputError, match=said):
        run(tmp_path / "run", config(tmp_path / "uni", tmp_path / "labels.csv"), quiet)
    assert not (tmp_path / "run" / "cache" / "features.npy").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": {"features": "f", "root": "r"}}, "one of the three"),
        ({"data": {"root": "r", "labels": "l.csv"}}, "go with data.features"),
        ({"data": {"features": "f", "tile_px": 64}}, "data.tile_px is about images"),
        ({"data": {"features": "f"}, "encoder": {"image_px": 64}}, "encoder needs pixels"),
        ({"data": {"features": "f"}, "train": {"epochs": 3}}, "train.epochs needs pixels"),
        ({"data": {"features": "f"}, "split": {"balance": ["tissue"]}}, "balance=tissue needs"),
        (
            {"data": {"features": "f"}, "mil": {"votes": [{"name": "quality_vote"}]}},
            "quality_vote .* needs pixels",
        ),
    ],
)
def test_settings_without_effect_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings.parse(given, "test")


@pytest.mark.parametrize("kind", ["trident", "clam-h5", "clam-pt", "torchmil", "slideflow", "npz"])
def test_features_of_a_run_go_out_and_come_back(
    cohort: tuple[Path, Config, list[str]], tmp_path: Path, kind: str
) -> None:
    run_folder = cohort[0] / "run"
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(run_folder), "--format", kind, "--out", str(out)])
    assert done.exit_code == 0, done.output
    ours, back = find(run_folder), find(out)
    assert back.slide_ids == ours.slide_ids
    assert back.seen is None  # what was unknown stays unknown
    for name in back.slide_ids[:5]:
        np.testing.assert_array_equal(back.read(name).x, ours.read(name).x)
    with pytest.raises(InputError, match="not empty"):
        export(run_folder, kind, out)


def test_stamp_is_refused_without_micrometres(
    cohort: tuple[Path, Config, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no mpp"):
        export(cohort[0] / "run", "stamp", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_our_own_encoder_is_never_tested_on_what_it_saw(finished: Path, tmp_path: Path) -> None:
    """Features of a trained encoder carry the slides it saw, through another tool's files, too."""
    with pytest.raises(InputError, match=r"one a fold.*--fold"):
        export(finished, "npz", tmp_path / "out")
    done = export(finished, "trident", tmp_path / "out", fold=1)
    assert "trained on" in done.notes[-1]
    table = read_table(finished / "tiles.parquet").drop_duplicates("slide_id")
    labels = tmp_path / "labels.csv"
    named = table[["slide_id", "patient_id", "slide_label"]]
    named.rename(columns={"slide_label": "label"}).to_csv(labels, index=False)
    made = config(tmp_path / "out", labels)
    with pytest.raises(InputError, match=r"encoder saw .* validation or test slide"):
        run(tmp_path / "run", made, quiet)
