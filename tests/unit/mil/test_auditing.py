"""Audits with tiles: foreign splits, the page, and the control with labels that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil import auditing, prepare
from mil.auditing import audit_files
from mil.config import Config, Data, Split
from mil.phantom import Phantom, render
from mil.phantom_plan import plan
from mil.report.audit import MAX_PAIRS, audit_run, build, write
from mil.report.audit_words import BATTERY, KINDS
from splits import folds
from splits.artifacts import write_json
from splits.auditing.battery import NAMES
from splits.content.links import KINDS as LINKS
from splits.content.nearest import nearest
from splits.content.signatures import sign
from splits.errors import InputError
from splits.scan import list_folder
from tests.unit.mil.test_identity_page import HOSTILE, Page

PARTS = ["train", "train", "val", "test"]
SETTINGS = Phantom(slides=12, tiles_per_slide=16, tile_px=128)


@pytest.fixture(scope="module")
def phantom() -> tuple[pd.DataFrame, np.ndarray]:
    """The truth of a small phantom and its pixels, ``(n_tiles, height, width, 3)``."""
    truth = plan(SETTINGS)
    pixels = np.concatenate([render(SETTINGS, slide) for slide in range(SETTINGS.slides)])
    assert len(truth) == len(pixels)
    return truth, pixels


@pytest.fixture(scope="module")
def vectors(phantom: tuple[pd.DataFrame, np.ndarray]) -> np.ndarray:
    x = sign(phantom[1].__getitem__, len(phantom[1])).vectors.astype(np.float32)
    return (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)


def accuracy(x: np.ndarray, label: np.ndarray, fold: np.ndarray) -> float:
    """Of a nearest-neighbour classifier over all folds."""
    right = 0
    for number in np.unique(fold):
        test = fold == number
        near, _ = nearest(x[~test], x[test], 1)
        right += int((label[~test][near[:, 0]] == label[test]).sum())
    return right / len(x)


def test_labels_that_mean_nothing_are_learned_only_where_slides_are_cut(
    phantom: tuple[pd.DataFrame, np.ndarray], vectors: np.ndarray
) -> None:
    truth, _ = phantom
    random = np.random.default_rng(0)
    slide = pd.factorize(truth["slide_id"])[0]
    slides = truth.drop_duplicates("slide_id")[["slide_id", "patient_id"]]
    slides = slides.assign(label="none", group_id=slides["patient_id"])
    slides["label"] = np.where(np.arange(len(slides)) % 2, "a", "b")
    dealt = folds.kfold(slides, folds=3).table
    tested = dealt[dealt["part"] == "test"].set_index("slide_id")["fold"]
    of_patient = truth["slide_id"].map(tested).to_numpy()
    of_tile = random.integers(0, 3, len(truth))
    n_draws = 40
    by_patient, by_tile = [], []
    for _ in range(n_draws):
        label = random.integers(0, 2, SETTINGS.slides)[slide]  # a coin for every true slide
        by_patient.append(accuracy(vectors, label, of_patient))
        by_tile.append(accuracy(vectors, label, of_tile))
    # With whole patients the coin of a test slide is independent of all that was learned, so that
    # every tile is right with probability 1/2 whatever the features: the mean over draws has no
    # bias, and may be off by its standard error only.
    tolerance = 4 * np.std(by_patient) / np.sqrt(n_draws)
    assert tolerance < 0.1
    assert abs(np.mean(by_patient) - 0.5) < tolerance
    assert np.mean(by_tile) > 0.8


@pytest.fixture(scope="module")
def thrown(tmp_path_factory: pytest.TempPathFactory, phantom: tuple) -> Path:
    """Tiles of a few phantom slides thrown at random into train, valid and test, names hidden."""
    truth, pixels = phantom
    root = tmp_path_factory.mktemp("thrown")
    random = np.random.default_rng(0)
    for row in range(6 * SETTINGS.tiles_per_slide):
        part = random.choice(["train", "train", "valid", "test"])
        folder = root / part / str(truth["path"].iloc[row]).split("/")[0]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(folder / f"{random.integers(16**8):08x}.png")
    return root


def test_a_folder_of_parts_is_audited_by_its_pixels(thrown: Path, tmp_path: Path) -> None:
    result, material = audit_files([thrown])
    write(tmp_path, "course", result, material)
    assert result["verdict"] == "leak"
    (seams,) = [f for f in result["findings"] if f["kind"] == "seam" and f["severity"] == "leak"]
    assert set(seams["parts"]) == {"train", "val", "test"}
    assert len(seams["pairs"]) > 30
    battery = {one["name"]: one for one in result["battery"]}
    assert battery["nearest_across"]["severity"] == "warning"
    assert any("planted twins found" in line for line in result["had"])
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["findings"] == result["findings"]
    page = Page(tmp_path / "audit.html")
    assert not page.unbalanced
    assert not page.open
    assert "Leak" in page.text
    pictures = [a for tag, a in page.tags if tag == "img"]
    held = [f for f in result["findings"] if f["pairs"]]
    assert len(pictures) == sum(min(MAX_PAIRS, len(f["pairs"])) for f in held)
    assert all(picture["src"].startswith("data:image/jpeg") for picture in pictures)
    assert f"{len(seams['pairs']) - MAX_PAIRS:,} more in audit.json" in page.text


def test_a_split_of_slides_with_a_folder_of_tiles(
    tmp_path: Path, phantom: tuple[pd.DataFrame, np.ndarray]
) -> None:
    truth, pixels = phantom
    root = tmp_path / "tiles"
    rows = range(4 * SETTINGS.tiles_per_slide)
    for row in rows:
        folder = root / f"case {truth['slide_id'].iloc[row]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(folder / f"{row}.png")
    names = sorted({f"case {truth['slide_id'].iloc[row]}" for row in rows})
    copy = max((root / names[0]).iterdir(), key=lambda path: np.asarray(Image.open(path)).std())
    Image.open(copy).transpose(Image.Transpose.ROTATE_90).save(root / names[3] / "copy.png")
    split = tmp_path / "split.csv"
    dealt = {"slide_id": [f"{name}.svs" for name in names], "part": PARTS}
    pd.DataFrame(dealt).to_csv(split, index=False)
    result, _ = audit_files([split], tiles_root=root)
    assert "65 of 65 tiles lie in the split" in result["had"]
    leaks = [f for f in result["findings"] if f["severity"] == "leak"]
    assert [f["kind"] for f in leaks] == ["turned"]
    assert [set(pair["parts"]) for pair in leaks[0]["pairs"]] == [{"train", "test"}]
    split.write_text("slide_id,part\nx,train\ny,test\n")
    with pytest.raises(InputError, match="no tile is of a slide of the split"):
        audit_files([split], tiles_root=root)


def test_features_come_from_a_file_of_the_user(
    tmp_path: Path, phantom: tuple[pd.DataFrame, np.ndarray]
) -> None:
    root = tmp_path / "tiles"
    for row in range(2 * SETTINGS.tiles_per_slide):
        folder = root / ("train" if row % 3 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom[1][row]).save(folder / f"{row:02d}.png")
    names = np.array(list_folder(root).images)
    x = np.random.default_rng(0).normal(size=(len(names), 5))
    np.savez(tmp_path / "x.npz", tile_id=names[::-1], x=x[::-1])
    result, _ = audit_files([root], features=tmp_path / "x.npz")
    assert "features: x.npz" in result["had"]
    found = {one["name"]: one for one in result["battery"]}
    assert found["slide_probe"]["p"] > 0.01  # noise says nothing of slides
    split = tmp_path / "split.csv"
    split.write_text("slide_id,part\na,train\nb,test\n")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match="does not name its tiles"):
        audit_files([split], features=tmp_path / "x.npy")


@pytest.mark.parametrize("whole", [True, False])
def test_features_alone_tell_whether_slides_were_cut(tmp_path: Path, *, whole: bool) -> None:
    # 24 slides of 12 tiles; the features of a slide lie together. No images, no ids but names.
    random = np.random.default_rng(0)
    slide = np.repeat(np.arange(24), 12)
    names = [f"slide{s:02d}_x{16 * i}_y0.png" for s in range(24) for i in range(12)]
    x = random.normal(size=(24, 6))[slide] + 0.2 * random.normal(size=(len(slide), 6))
    np.savez(tmp_path / "x.npz", tile_id=np.array(names), x=x)
    test = slide % 4 == 0 if whole else random.random(len(slide)) < 0.25
    split = pd.DataFrame({"tile_id": names, "part": np.where(test, "test", "train")})
    split.to_csv(tmp_path / "split.csv", index=False)
    result, _ = audit_files([tmp_path / "split.csv"], features=tmp_path / "x.npz")
    battery = {one["name"]: one for one in result["battery"]}
    assert battery["slide_probe"]["value"] > 0.9
    assert (battery["nearest_across"]["severity"] == "warning") is not whole
    assert (result["verdict"] == "clean") is whole
    assert "features: x.npz" in result["had"]


def test_an_audit_of_a_run_asks_what_its_encoders_saw(tmp_path: Path) -> None:
    config = Config(
        data=Data(phantom=Phantom(slides=16, tiles_per_slide=4, tile_px=64)), split=Split(folds=2)
    )
    prepare.scan(tmp_path, config)
    split = prepare.split(tmp_path, config)
    assert auditing.audit(tmp_path, config)["verdict"] == "clean"
    result = audit_run(tmp_path, config)
    assert any("planted twins found" in line for line in result["had"])
    assert any("no word on the encoder" in line for line in result["had"])
    assert {one["name"]: one for one in result["battery"]}["slide_probe"]["value"] is not None
    made = (tmp_path / "audit.html").stat().st_mtime_ns
    assert audit_run(tmp_path, config) == result
    assert (tmp_path / "audit.html").stat().st_mtime_ns == made

    tests = split.table[(split.table["part"] == "test") & (split.table["fold"] == 1)]
    seen = {"0": {"slides_seen": []}, "1": {"slides_seen": [tests["slide_id"].iloc[0]]}}
    write_json(tmp_path / "features" / "meta.json", {"folds": seen}, {})
    found = audit_run(tmp_path, config)
    (leak,) = [f for f in found["findings"] if f["severity"] == "leak"]
    assert (leak["kind"], leak["fold"]) == ("encoder_saw_test", 1)
    assert "was trained on test slides" in Page(tmp_path / "audit.html").text
    # A pipeline is about to train its encoders anew.
    assert auditing.audit(tmp_path, config)["verdict"] == "clean"


def test_several_splits_of_one_file_are_told_apart(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "slide": [f"TCGA-3{k % 3}-000{k}-01Z-00-DX1" for k in range(9)],
            "submitter_id": [f"TCGA-3{k % 3}-000{k}" for k in range(9)],
            "CV3_er_preserved_site": [k % 3 + 1 for k in range(9)],
            "CV3_pr_preserved_site": [k // 3 + 1 for k in range(9)],
        }
    )
    table.to_csv(tmp_path / "splits.csv", index=False)
    result, _ = audit_files([tmp_path / "splits.csv"])
    leaks = {(f["split"], f["kind"]) for f in result["findings"] if f["severity"] == "leak"}
    assert leaks == {("CV3_pr_preserved_site", "shared_site")}
    assert result["verdict"] == "leak"
    assert {one["split"] for one in result["battery"]} == set(table.columns[2:])
    page = Page(build(tmp_path / "audit.html", result, name="two"))
    assert "CV3_pr_preserved_site" in page.text


def test_names_that_look_like_html_are_text(tmp_path: Path) -> None:
    pair = {"tiles": [HOSTILE, "b"], "parts": ["train", "test"]}
    finding = {
        "kind": "seam", "severity": "leak", "level": "tile", "fold": 0, "ids": [HOSTILE, "b"],
        "parts": ["train", "test"], "message": f"fold 0: {HOSTILE}", "pairs": [pair],
        "evidence": [f"{HOSTILE} (train) and b (test): {HOSTILE}"], "split": HOSTILE,
    }  # fmt: skip
    entry = {"name": "slide_probe", "value": 1.0, "chance": 0.1, "p": 0.001, "meaning": HOSTILE,
             "severity": "note"}  # fmt: skip
    tiles = pd.DataFrame({"tile_id": [HOSTILE, "b"], "slide_id": [HOSTILE] * 2,
                          "patient_id": HOSTILE, "slide_label": HOSTILE})  # fmt: skip
    result = {"verdict": "leak", "findings": [finding], "battery": [entry], "twins": {},
              "had": [HOSTILE]}  # fmt: skip
    page = Page(build(tmp_path / "a.html", result, name=HOSTILE, tiles=tiles,
                      read_tile=lambda _: np.full((9, 9, 3), 128, np.uint8)))  # fmt: skip
    assert not page.unbalanced
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.tags)
    assert page.text.count("alert(1)") > 8
    assert "7 * 7" in page.text


def test_a_clean_page_says_what_it_rests_on(tmp_path: Path) -> None:
    had = ["slide_id from the split", "no pixels: copies were not looked for"]
    result = {"verdict": "clean", "findings": [], "battery": [], "twins": {}, "had": had}
    page = Page(build(tmp_path / "a.html", result, name="x"))
    assert "Clean" in page.text
    assert "What could not be checked" in page.text


def test_every_finding_and_test_has_words() -> None:
    assert set(LINKS[1:]) <= set(KINDS)
    assert set(BATTERY) == set(NAMES)


@pytest.mark.parametrize("name", ["hnsc", "kirc"])
def test_published_site_preserved_folds(name: str) -> None:
    shared = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"
    paths = sorted((shared / "preserved_site_cv").rglob(f"{name}_splits.csv"))
    if not paths:
        pytest.skip("../shared/data is not here")
    result, _ = audit_files(paths)
    assert result["verdict"] == "clean"
    crossing = {f["split"] for f in result["findings"] if f["kind"] == "shared_site"}
    assert crossing
    assert not any("preserved" in split for split in crossing)
    assert not [f for f in result["findings"] if f["kind"] == "shared_patient"]


def test_tiles_of_a_course_that_were_thrown_at_random(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3] / "../shared/data/anonymous_course"
    if not root.is_dir():
        pytest.skip("../shared/data is not here")
    result, _ = audit_files([root])
    (seams,) = [f for f in result["findings"] if f["severity"] == "leak"]
    truth = pd.read_csv(root.with_name("anonymous_course_truth.csv"), dtype=str)
    slide = truth.set_index("path")["slide_id"]
    assert seams["kind"] == "seam"
    assert len(seams["pairs"]) > 250
    assert all(slide[a] == slide[b] for a, b in (pair["tiles"] for pair in seams["pairs"]))
