"""The verbs: exit codes, one-line errors, machine-readable output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.cli import main


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert call(*arguments) == code
    said = capsys.readouterr().err.strip()
    errors = [line for line in said.splitlines() if line.startswith("slidewise: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    return errors[0]


def tiles(root: Path, slides: dict[str, list[str]], n: int = 3) -> Path:
    """Small random tiles `root/<class>/<slide>_x<x>_y0.png`."""
    rng = np.random.default_rng(0)
    for label, names in slides.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for name in names:
            for i in range(n):
                pixels = rng.integers(60, 250, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / label / f"{name}_r0_x{16 * i}_y0.png")
    return root


def barcode(i: int) -> str:
    return f"TCGA-AA-{i:04d}-01Z-00-DX1"


def config(tmp_path: Path, root: Path, more: str = "") -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{root: {json.dumps(str(root))}}}\n{more}\n")
    return path


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rn" in fails(capsys, 2, "rn")
    fails(capsys, 2, "run")
    fails(capsys, 2, "run", "c.yaml", "--nonsense")
    assert "does not exist" in fails(capsys, 2, "run", "no.yaml")
    assert "not a run folder" in fails(capsys, 2, "train", "nowhere")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    said = capsys.readouterr().out
    for verb in [
        "demo",
        "run",
        "scan",
        "names",
        "preview",
        "identify",
        "plan",
        "split",
        "audit",
        "train",
        "evaluate",
        "report",
        "predict",
        "doctor",
    ]:
        assert verb in said


def test_unknown_config_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, tmp_path, "trian: {lr: 1}")
    assert "did you mean 'train'" in fails(capsys, 2, "run", path, "--out", tmp_path / "r")


@pytest.mark.parametrize(
    ("slides", "more", "code", "words"),
    [
        ({}, "", 2, "no image"),
        ({"a": [barcode(i) for i in range(6)]}, "", 2, "one class only"),
        ({"a": [barcode(0)], "b": [barcode(0)]}, "", 2, "more than one slide_label"),
        ({"a": [barcode(0)], "b": [barcode(i) for i in range(1, 9)]}, "", 2, "'a'"),
        ({"a": [barcode(0), barcode(1)], "b": [barcode(2), barcode(3)]}, "", 2, "5 folds"),
        ({"a": ["IMG_20210404"], "b": ["IMG_20210405"]}, "", 1, "grade D"),
    ],
    ids=["empty", "one class", "two labels", "class of one slide", "few groups", "no identity"],
)
def test_bad_cohorts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slides: dict[str, list[str]],
    more: str,
    code: int,
    words: str,
) -> None:
    root = tiles(tmp_path / "data", slides)
    root.mkdir(exist_ok=True)
    if "IMG_20210404" in str(slides):
        for path in list(root.rglob("*.png")):
            path.rename(path.parent / f"{abs(hash(path.name))}.png")
    said = fails(capsys, code, "run", config(tmp_path, root, more), "--out", tmp_path / "r")
    assert words in said


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, tmp_path / "nowhere")
    assert "does not exist" in fails(capsys, 2, "run", path, "--out", tmp_path / "r")


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mil.data.sources import Streamed

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "tiles.npy"))

    slides = {c: [barcode(i + 10 * k) for i in range(4)] for k, c in enumerate("ab")}
    root = tiles(tmp_path / "data", slides)
    path = config(tmp_path, root, "split: {folds: 2}")
    monkeypatch.setattr(Streamed, "__getitem__", full)
    assert "No space left" in fails(capsys, 2, "run", path, "--out", tmp_path / "r")
    for name in ("tiles.parquet", "split.csv", "audit.json", "stain.parquet"):
        assert (tmp_path / "r" / name).exists()
    assert not list((tmp_path / "r").rglob("*.tmp"))


def test_the_verbs_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = {c: [barcode(i + 10 * k) for i in range(4)] for k, c in enumerate("ab")}
    root, run = tiles(tmp_path / "data", slides), tmp_path / "r"
    assert call("scan", root, "--out", run) == 0
    assert "24 tiles" in capsys.readouterr().out
    assert call("identify", run, "--json") == 0
    identity = json.loads(capsys.readouterr().out)
    assert identity["grade"] == "A"
    assert identity["n"]["slides"] == 8
    assert call("split", run, "--folds", 2, "--unit", "slide") == 0
    capsys.readouterr()
    assert call("audit", run, "--json") == 0
    audit = json.loads(capsys.readouterr().out)
    assert set(audit) >= {"verdict", "findings", "battery", "twins", "had"}
    assert audit["verdict"] == "clean"
    assert call("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)


def test_a_leak_in_a_foreign_split_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(barcode(i), "test" if i > 6 else "train") for i in range(9)]
    path = tmp_path / "split.csv"
    pd.DataFrame(rows, columns=["slide_id", "part"]).to_csv(path, index=False)
    assert call("audit", "--split", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "clean"
    rows.append((barcode(8).replace("DX1", "DX2"), "train"))
    pd.DataFrame(rows, columns=["slide_id", "part"]).to_csv(path, index=False)
    assert call("audit", "--split", path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "leak"
    leak = next(f for f in found["findings"] if f["severity"] == "leak")
    assert {"kind", "severity", "level", "ids", "parts", "evidence"} <= set(leak)
    assert any("TCGA-AA-0008" in name for name in leak["ids"])


def test_a_table_alone_is_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"{i:05d}", f"p{i // 2}", "NA", "xy"[(i // 2) % 2]) for i in range(40)]
    source, out = tmp_path / "slides.csv", tmp_path / "out" / "split.csv"
    pd.DataFrame(rows, columns=["name", "patient", "site_id", "cohort"]).to_csv(source, index=False)
    columns = "slide_id=name,patient_id=patient,label=cohort"
    arguments = ["split", "--slides", source, "--out", out, "--folds", 4]
    assert "--columns" in fails(capsys, 2, *arguments)
    assert call(*arguments, "--columns", columns) == 0
    split = pd.read_csv(out, dtype=str)
    assert sorted(split.loc[split["part"] == "test", "slide_id"]) == [f"{i:05d}" for i in range(40)]
    parts = split.assign(patient=split["slide_id"].astype(int) // 2)
    assert (parts.groupby(["fold", "patient"])["part"].nunique() == 1).all()
    assert call("audit", "--split", out, "--slides", source, "--columns", columns) == 0


def test_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "TCGA-85-8288-01A-01-TS1/19969_43009.jpg"
    assert call("names", name, "MHIST_aaa.png", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["grammar"], first["site"], first["patient"]) == ("tcga", "85", "TCGA-85-8288")
    assert second["grammar"] == "none"
    (tmp_path / "list.txt").write_text(f"{name}\n")
    assert call("names", "--file", tmp_path / "list.txt") == 0
    assert "19969" in capsys.readouterr().out
    assert "no name given" in fails(capsys, 2, "names")


def test_preview(tmp_path: Path) -> None:
    slides = {c: [barcode(i + 10 * k) for i in range(2)] for k, c in enumerate("ab")}
    path = config(tmp_path, tiles(tmp_path / "data", slides))
    small = ["--set", "encoder.resize_px=16", "--set", "encoder.image_px=16"]
    assert call("preview", path, "--out", tmp_path / "r", *small) == 0
    with Image.open(tmp_path / "r" / "preview.png") as image:
        assert image.width > 400


def test_a_list_of_names_from_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(f"{barcode(1)}.svs\r\nMHIST_aaa.png\r\n".encode("utf-16"))
    assert call("names", "--file", path, "tab\there_1.png") == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows] == [len(header)] * 3
    assert [row[header.index("grammar")] for row in rows] == ["none", "tcga", "none"]


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """A run with two classes of four slides, three tiles each: `a/a0_r0_x0_y0.png`."""
    names = {c: [f"{c}{i}" for i in range(4)] for c in "ab"}
    assert call("scan", tiles(tmp_path / "data", names), "--out", tmp_path / "r") == 0
    return tmp_path / "r"


def _manifest(run: Path, header: str = "Bild;Biopsy;Center") -> Path:
    tile_ids = pd.read_parquet(run / "tiles.parquet")["tile_id"]
    rows = [f"D:\\tiles\\{t};{t[2:4]};{'0' + str(int(t[3]) % 3)}" for t in tile_ids]
    path = run / "ids.csv"
    path.write_bytes("\r\n".join([header, *(r.replace("/", "\\") for r in rows)]).encode("utf-16"))
    return path


def test_a_manifest_with_columns_of_its_own_and_a_site_map(
    scanned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _manifest(scanned)
    ask = ["identify", scanned, "--no-content", "--json", "--manifest", path]
    assert "slide_id=NAME" in fails(capsys, 2, *ask)
    assert "'Biopsy'" in fails(capsys, 2, *ask, "--columns", "path=Bild,slide_id=Biopsie")
    sites = scanned / "sites.csv"
    sites.write_text("TSS,site\n00,North\n01,North\n")
    capsys.readouterr()
    columns = "path=Bild,slide_id=Biopsy,site_id=Center"
    assert call(*ask, "--columns", columns, "--sites", sites) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n"]["slides"], report["n"]["sites"]) == (8, 2)
    assert report["sites"]["unmapped"] == ["02"]
    assert report["manifest"]["by_stem"] == report["n"]["tiles"] == 24


def test_rules_that_are_refused(scanned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule, words in {
        "(?P<slide>": "not a regular expression",
        r"([ab]\d)": "no named group slide",
        r"^(?P<slide>[ab])/": "a label is no identity",
        r"(?P<slide>.+)$": "tile-level split",
        r"(?P<slide>a\d)": "says nothing about 12 of 24",
        "tgca": "did you mean 'tcga'",
    }.items():
        assert words in fails(capsys, 2, "identify", scanned, "--no-content", "--rule", rule)
