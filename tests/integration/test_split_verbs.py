"""`split`, `plan` and `audit` on tables as people have them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from splits import formats
from tests.integration.test_cli import call, fails


def table(path: Path, n_patients: int = 30, **changes: object) -> Path:
    """Slides of two a patient, ids with leading zeros, five sites, a site called NA."""
    rows = [
        (f"{2 * p + s:04d}", f"{p:03d}", ["NA", "05", "3E", "A1", "7"][p % 5], "xy"[p % 2])
        for p in range(n_patients)
        for s in range(2)
    ]
    frame = pd.DataFrame(rows, columns=["slide_id", "patient_id", "site_id", "label"])
    frame.assign(**changes).to_csv(path, index=False)
    return path


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    return table(tmp_path / "slides.csv")


@pytest.mark.parametrize(
    ("options", "folds", "method"),
    [
        (["--folds", 3], 3, "kfold"),
        (["--folds", 3, "--repeats", 2], 6, "kfold"),
        (["--folds", 2, "--inner", 3], 2, "kfold"),
        (["--holdout", "0.6,0.2,0.2"], 1, "holdout"),
        (["--unit", "site", "--folds", 2], 2, "kfold"),
        (["--leave-one-site-out"], 5, "leave-one-site-out"),
    ],
)
def test_ways_to_split_a_table(
    slides: Path, tmp_path: Path, options: list[object], folds: int, method: str
) -> None:
    out = tmp_path / "s" / "split.csv"
    assert call("split", "--slides", slides, "--out", out, *options) == 0
    meta, rows = json.loads(out.with_suffix(".json").read_text()), read(out)
    assert meta["method"] == method
    assert rows["fold"].nunique() == folds
    assert set(rows["slide_id"]) == set(read(slides)["slide_id"])
    assert (out.parent / "split_inner.csv").exists() == ("--inner" in options)
    # What was made is clean by the audit that anybody's split gets.
    claims = ["--claims", "monte-carlo"] if "--repeats" in options else []
    unit = ["--unit", "site"] if meta["unit"] == "site" else []
    assert call("audit", "--split", out, "--slides", slides, *claims, *unit) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", 61], "60 group(s) cannot fill 61 folds: ask for 60 folds or fewer"),
        (["--folds", 1], "split.folds"),
        (["--folds", 3, "--holdout", "0.6,0.2,0.2"], "exclude each other"),
        (["--leave-one-site-out", "--repeats", 2], "exclude each other"),
        (["--balance", "label,tissue"], "columns that begin with 'tissue:'"),
        (["--balance", "lable"], "'lable'"),
        (["--label-policy", "most"], "'most'"),
        (["--export", "clam"], "--export KIND and --to FOLDER go together"),
        (["--export", "clan", "--to", "not-made"], "did you mean 'clam'"),
    ],
)
def test_requests_that_cannot_be_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[object], words: str
) -> None:
    slides = table(tmp_path / "slides.csv", 60)
    given = ["split", "--slides", slides, "--out", tmp_path / "split.csv", *options]
    assert words in fails(capsys, 2, *given)
    assert not (tmp_path / "split.csv").exists()


@pytest.mark.parametrize("n_patients", [0, 1])
def test_no_group_or_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n_patients: int
) -> None:
    slides = table(tmp_path / "slides.csv", n_patients)
    fails(capsys, 2, "split", "--slides", slides, "--out", tmp_path / "split.csv")


def test_measurements_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = tmp_path / "slides.csv"
    rows = "".join(f"s{i:02d},{i / 7 - 1:.6f}\n" for i in range(20))
    slides.write_text(f"slide_id,label\n{rows}", encoding="utf-8")
    said = fails(capsys, 2, "split", "--slides", slides, "--out", tmp_path / "split.csv")
    assert "measurements (20 values" in said


def test_label_policies_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = read(table(tmp_path / "slides.csv"))
    frame.loc[0, "label"] = "y"  # patient 000 now has y and x
    frame.to_csv(tmp_path / "slides.csv", index=False)
    given = ["split", "--slides", tmp_path / "slides.csv", "--out", tmp_path / "split.csv"]
    assert "000: x, y" in fails(capsys, 2, *given, "--label-policy", "reject")
    assert "lowest to highest" in fails(capsys, 2, *given, "--label-policy", "max")
    assert call(*given, "--label-policy", "max", "--label-order", "x,y") == 0
    meta = json.loads((tmp_path / "split.json").read_text())
    assert meta["label_policy"] == "max"
    assert meta["relabelled"] == {"0001": "y"}


def test_the_order_of_the_rows_changes_nothing(slides: Path, tmp_path: Path) -> None:
    read(slides).sample(frac=1, random_state=3).to_csv(tmp_path / "other.csv", index=False)
    for name, source in (("a.csv", slides), ("b.csv", tmp_path / "other.csv")):
        assert call("split", "--slides", source, "--out", tmp_path / name) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("kind", sorted(set(formats.WRITABLE) - {"folders"}))
def test_what_is_exported_audits_clean(slides: Path, tmp_path: Path, kind: str) -> None:
    out, to = tmp_path / "split.csv", tmp_path / "export"
    given = ["split", "--slides", slides, "--out", out, "--folds", 2, "--export", kind, "--to", to]
    assert call(*given) == 0
    written = [path for path in to.rglob("*") if path.is_file()]
    assert written
    folders = sorted({path.parent for path in written})
    for folder in folders:
        assert call("audit", "--split", folder, "--slides", slides) == 0, folder


def test_damaged_ids_are_matched_and_a_leak_among_them_is_found(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A spreadsheet took the zeros of one file, another tool added an extension.
    rows = [
        (f"{int(name)}.svs", "train" if i % 3 else "test")
        for i, name in enumerate(read(slides)["slide_id"])
    ]
    pd.DataFrame(rows, columns=["slide_id", "part"]).to_csv(tmp_path / "split.csv", index=False)
    capsys.readouterr()
    code = call("audit", "--split", tmp_path / "split.csv", "--slides", slides, "--json")
    result = json.loads(capsys.readouterr().out)
    assert code == 1
    shared = next(f for f in result["findings"] if f["kind"] == "shared_patient")
    assert "000" in shared["ids"]
    assert any(f["kind"] == "id_hygiene" for f in result["findings"])


def test_strangers_on_either_side_are_named(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = read(slides)["slide_id"].tolist()
    parts = ["train" if int(name) < 40 else "test" for name in names]
    rows = [*zip(names[2:], parts[2:], strict=True), ("stranger", "train")]
    pd.DataFrame(rows, columns=["slide_id", "part"]).to_csv(tmp_path / "split.csv", index=False)
    capsys.readouterr()
    assert call("audit", "--split", tmp_path / "split.csv", "--slides", slides, "--json") == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    by_kind = {(f["kind"], f["level"]): f["ids"] for f in found}
    assert by_kind["not_in_table", "slide"] == ["stranger"]
    assert by_kind["not_in_split", "slide"] == names[:2]


def test_a_plan_in_numbers(capsys: pytest.CaptureFixture[str], slides: Path) -> None:
    assert call("plan", "--slides", 120, "--patients", 60, "--accuracy", 0.8, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert call("plan", "--slides-table", slides, "--accuracy", 0.8, "--json") == 0
    real = json.loads(capsys.readouterr().out)
    assert np.isclose(real["test_slides"], 60)
    # Half the patients: the interval is wider by about the square root of two.
    ratio = real["now"]["width"] / made["now"]["width"]
    assert 1.2 < ratio < 1.7
    assert "give --slides" in fails(capsys, 2, "plan")
    assert "0.85" in fails(capsys, 2, "plan", "--slides", 100, "--accuracy", 85)
    assert "exclude" in fails(capsys, 2, "plan", "--slides", 9, "--slides-table", slides)


def test_json_is_all_that_is_printed(slides: Path, tmp_path: Path) -> None:
    # In a process of its own: the solver prints from C, past what Python captures.
    script = "from mil.cli import main; main()"
    given = ["split", "--slides", slides, "--out", tmp_path / "split.csv", "--json"]
    command = [sys.executable, "-c", script, *map(str, given)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(made.stdout)["method"] == "kfold"
