"""Identity from pixels through the verbs, on real tiles and on what embarrasses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from splits.content.evidence import gather
from splits.content.frames import turned_each
from splits.content.links import KINDS, turned
from splits.content.signatures import sign
from splits.images import read_image
from tests.integration.test_cli import call, fails

Say = pytest.CaptureFixture[str]


def identified(root: Path, run: Path, capsys: Say, *more: object) -> dict[str, Any]:
    """What ``identify --json`` says about a folder."""
    assert call("scan", root, "--out", run) == 0
    capsys.readouterr()
    assert call("identify", run, "--json", *more) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_two_patients_on_one_tissue_are_named_and_grouped(
    tmp_path: Path, capsys: Say, shared_data: Callable[[str], Path]
) -> None:
    for organ in ("stomach", "bladder"):
        shutil.copytree(shared_data("tcga_organs") / organ, tmp_path / "data" / organ)
    report = identified(tmp_path / "data", tmp_path / "r", capsys)
    (conflict,) = report["conflicts"]
    assert conflict["level"] == "patient"
    assert conflict["ids"] == ["TCGA-KB-A93J", "TCGA-RD-A8N9"]
    assert [merge["members"] for merge in report["merges"]] == [conflict["ids"]]
    assert report["grade"] == "B"
    tiles = pd.read_parquet(tmp_path / "r" / "tiles.parquet")
    assert tiles[tiles["patient_id"].isin(conflict["ids"])]["group_id"].nunique() == 1
    assert tiles["group_id"].nunique() == tiles["patient_id"].nunique() - 1
    page = (tmp_path / "r" / "identity.html").read_text(encoding="utf-8")
    assert all(name in page for name in [*conflict["ids"], *conflict["tiles"]])


def test_tiles_of_a_deep_zoom_image_come_back_as_one_slide(
    tmp_path: Path, capsys: Say, shared_data: Callable[[str], Path]
) -> None:
    source = sorted((shared_data("wsi/deepzoom") / "C3L-00601-26_files" / "13").iterdir())
    random = np.random.default_rng(0)
    places = {}
    (tmp_path / "data").mkdir()
    for path, number in zip(source, random.permutation(len(source)), strict=True):
        name = f"{number * 7919 % 65536:04x}{number:06x}.jpeg"
        shutil.copy(path, tmp_path / "data" / name)
        places[name] = tuple(int(part) for part in path.stem.split("_"))
    report = identified(tmp_path / "data", tmp_path / "r", capsys)
    assert report["twins"]["seam"]["found"] >= 0.99 * report["twins"]["seam"]["planted"]
    layout = pd.read_parquet(tmp_path / "r" / "layout.parquet")
    saturated = [
        np.ptp(read_image(tmp_path / "data" / name).astype(int), axis=2).mean() > 12
        for name in layout["tile_id"]
    ]
    tissue = layout[saturated]
    assert len(tissue) > 130
    assert tissue["frame"].nunique() == 1
    true = np.array([places[name] for name in tissue["tile_id"]], np.float64)
    found = tissue[["col", "row"]].to_numpy(np.float64)
    exact = []
    for turn in range(8):
        miss = turned_each(found, np.full(len(found), turn, np.int8)) - true
        exact.append((np.abs(miss - np.median(miss, axis=0)) < 0.1).all(axis=1).mean())
    assert max(exact) >= 0.99


def test_a_shuffled_course_is_refused_with_the_reason(
    tmp_path: Path, capsys: Say, shared_data: Callable[[str], Path]
) -> None:
    truth = shared_data("anonymous_course_truth.csv")
    run = tmp_path / "r"
    report = identified(shared_data("anonymous_course"), run, capsys, "--truth", truth)
    known = pd.read_csv(truth).set_index("path")
    links = pd.read_parquet(run / "links.parquet")
    ends = [known.loc[links[name], "slide_id"].to_numpy() for name in ("tile_a", "tile_b")]
    assert len(links) > 600
    assert (ends[0] == ends[1]).all()
    layout = pd.read_parquet(run / "layout.parquet").set_index("tile_id")["component"]
    assert (known.loc[layout.index, "slide_id"].groupby(layout).nunique() == 1).all()
    # What it predicts errs on the safe side, and a split is made only where that suffices.
    leakage = report["leakage"]
    assert report["scores"]["rl_any"] <= leakage["predicted"] + 0.02
    assert not leakage["satisfied"]
    assert report["grade"] == "D"
    assert "predicted leakage" in fails(capsys, 1, "split", run)
    assert not (run / "split.csv").exists()


def test_turned_tiles_of_real_fields(shared_data: Callable[[str], Path]) -> None:
    random = np.random.default_rng(0)
    tiles, place = [], []
    for number, path in enumerate(sorted(shared_data("tcga_fields").glob("*.jpg"))[::4]):
        image = read_image(path)
        for y in range(4):
            for x in range(4):
                tile = image[250 * y : 250 * (y + 1), 250 * x : 250 * (x + 1)]
                tiles.append(np.ascontiguousarray(turned(tile, int(random.integers(8)))))
                place.append((number, x, y))
    order = random.permutation(len(tiles))
    tiles, field = [tiles[row] for row in order], [place[row] for row in order]
    evidence = gather([None] * len(tiles), tiles.__getitem__, sign(tiles.__getitem__, len(tiles)))
    at = {p: row for row, p in enumerate(field)}
    true = {
        tuple(sorted((row, at[n, x + dx, y + dy])))
        for (n, x, y), row in at.items()
        for dx, dy in ((1, 0), (0, 1))
        if (n, x + dx, y + dy) in at
    }
    found = set(map(tuple, evidence.links.pairs.tolist()))
    assert found <= true
    assert len(found) >= 0.99 * len(true)
    assert len(np.unique(evidence.assembly.component)) == 11


def texture(seed: int, side: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(side, side, 1))
    smooth = gaussian_filter(noise, (3, 3, 0))
    return np.clip(150 + np.array([25, 35, 20]) * smooth / smooth.std(), 13, 255).astype(np.uint8)


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def test_a_complete_anonymous_set_is_hard_linked_and_can_be_split(
    tmp_path: Path, capsys: Say
) -> None:
    names = iter(np.random.default_rng(1).permutation(10**6).tolist())
    for slide in range(8):
        image = texture(slide, 4 * 128)
        for y in range(4):
            for x in range(4):
                tile = image[128 * y : 128 * (y + 1), 128 * x : 128 * (x + 1)]
                save(tile, tmp_path / "data" / "ab"[slide % 2] / f"{next(names):x}.png")
    report = identified(tmp_path / "data", tmp_path / "r", capsys)
    assert (report["grade"], report["n"]["groups"], report["gaps"]) == ("B", 8, 0)
    assert call("split", tmp_path / "r", "--folds", 3) == 0
    split = pd.read_csv(tmp_path / "r" / "split.csv")
    assert split.loc[split["part"] == "test", "group_id"].nunique() == 8


def test_a_copy_of_a_tile_under_another_patient_is_found(tmp_path: Path, capsys: Say) -> None:
    root = tmp_path / "data"
    for patient in range(6):
        for i in range(3):
            name = f"TCGA-AA-{patient:04d}-01Z-00-DX1_r{i}_x0_y0.png"
            save(texture(10 * patient + i, 96), root / "ab"[patient % 2] / name)
    copy = turned(texture(1, 96), 5)
    save(copy, root / "b" / "TCGA-AA-0003-01Z-00-DX1_r9_x0_y0.png")
    report = identified(root, tmp_path / "r", capsys)
    (conflict,) = report["conflicts"]
    assert conflict["ids"] == ["TCGA-AA-0000", "TCGA-AA-0003"]
    assert "turned or re-saved copy" in conflict["evidence"]
    assert report["evidence"]["turned"]["used"] == 1
    # Without pixels nobody knows.
    without = identified(root, tmp_path / "r2", capsys, "--no-content")
    assert (without["grade"], without["conflicts"]) == ("A", [])


def test_blank_tiles_and_a_single_tile_link_nothing(tmp_path: Path, capsys: Say) -> None:
    random = np.random.default_rng(0)
    glass = [np.full((64, 64, 3), 255.0), *(240 + random.normal(0, 1, (9, 64, 64, 3)))]
    for number, pixels in enumerate(glass * 2):
        save(pixels.astype(np.uint8), tmp_path / "glass" / "ab"[number % 2] / f"{number}f.png")
    report = identified(tmp_path / "glass", tmp_path / "r", capsys)
    assert (report["grade"], report["n_hard_links"], report["blank"]) == ("D", 0, [])
    assert "grade D" in fails(capsys, 1, "split", tmp_path / "r")
    save(texture(0, 64), tmp_path / "one" / "a" / "lonely.png")
    report = identified(tmp_path / "one", tmp_path / "r1", capsys)
    assert (report["grade"], report["n"]["tiles"]) == ("D", 1)
    assert set(report["evidence"]) == set(KINDS)


def test_features_are_evidence_where_ids_are_missing(tmp_path: Path, capsys: Say) -> None:
    root = tmp_path / "data"
    random = np.random.default_rng(0)
    for number in range(45):
        name = f"{random.integers(16**8):08x}.png"
        for corner, (y, x) in enumerate([(0, 0), (0, 64), (64, 0)]):
            tile = texture(number, 128)[y : y + 64, x : x + 64]
            save(tile, root / "ab"[number % 2] / f"{corner}{name}")
    run = tmp_path / "r"
    assert call("scan", root, "--out", run) == 0
    tile_ids = pd.read_parquet(run / "tiles.parquet")["tile_id"].tolist()
    np.savez(tmp_path / "x.npz", tile_id=np.array(tile_ids[1:]), x=random.random((134, 8)))
    ask = ["identify", run, "--embedding", tmp_path / "x.npz"]
    assert "lacks 1 of 135 tiles" in fails(capsys, 2, *ask)
    np.savez(tmp_path / "x.npz", tile_id=np.array(tile_ids), x=random.random((135, 8)))
    assert call(*ask) == 0
    before = json.loads((run / "identity.json").read_text())["leakage"]["curve"]
    # The encoder's own weights do as well as a file, and are applied once.
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), weights)
    assert "needs weights" in fails(capsys, 2, "identify", run, "--embedding", "encoder")
    stored = yaml.safe_load((run / "config.yaml").read_text())
    stored["encoder"] |= {"name": "resnet10t", "checkpoint": str(weights), "image_px": 64}
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert call("identify", run, "--embedding", "encoder") == 0
    assert json.loads((run / "identity.json").read_text())["leakage"]["curve"] != before
    made = np.load(run / "cache" / "embedding.npz")
    assert made["tile_id"].tolist() == tile_ids
    assert made["x"].shape == (135, 512)
    stamp = (run / "cache" / "embedding.npz").stat().st_mtime_ns
    (run / "identity.json").unlink()
    assert call("identify", run) == 0
    assert (run / "cache" / "embedding.npz").stat().st_mtime_ns == stamp
    safetensors.torch.save_file(timm.create_model("resnet10t").state_dict(), weights)
    assert call("identify", run) == 0
    assert (run / "cache" / "embedding.npz").stat().st_mtime_ns != stamp
    assert "belong to a manifest" in fails(capsys, 2, "identify", run, "--columns", "slide_id=x")
