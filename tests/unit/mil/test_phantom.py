from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score

from mil.phantom import CLASSES, Phantom, contact_sheet, generate, plan, render
from splits.artifacts import read_csv, read_json
from splits.errors import InputError

SMALL = Phantom(
    slides=6, tiles_per_slide=6, tile_px=48, n_blank=2, n_blurred=1, n_truncated=1, seed=3
)
TUMOURS = set(CLASSES) - {"healthy"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    generate(SMALL, out)
    return out


def hashes(folder: Path) -> dict[str, str]:
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.png")
    }
    assert found
    return found


def test_same_seed_same_bytes_and_another_seed_other_pixels(cohort: Path, tmp_path: Path) -> None:
    again = generate(SMALL, tmp_path)
    assert hashes(again) == hashes(cohort / "tiles")
    assert (tmp_path / "truth.csv").read_bytes() == (cohort / "truth.csv").read_bytes()
    other = SMALL.model_copy(update={"seed": 4})
    assert not np.array_equal(render(other, 0), render(SMALL, 0))


def test_a_larger_cohort_begins_with_the_smaller_one() -> None:
    larger = SMALL.model_copy(update={"slides": 20})
    first = plan(SMALL)
    pd.testing.assert_frame_equal(plan(larger).head(len(first)), first)
    for index in (0, 5):
        np.testing.assert_array_equal(render(larger, index), render(SMALL, index))


def test_names_and_truth_agree() -> None:
    pattern = re.compile(
        r"(?P<label>\w+)/(?P<slide>(?P<patient>TCGA-(?P<site>P\d)-\d{4})-01Z-00-DX[12])"
        r"_r0_x(?P<x>\d+)_y(?P<y>\d+)\.png"
    )
    truth = plan(Phantom())
    read = truth["path"].str.extract(f"^{pattern.pattern}$")
    assert read.notna().all(axis=None)
    for name, column in (
        ("label", "label"),
        ("slide", "slide_id"),
        ("patient", "patient_id"),
        ("site", "site_id"),
        ("x", "x_px"),
        ("y", "y_px"),
    ):
        assert (read[name] == truth[column].astype(str)).all(), name
    assert (truth[["x_px", "y_px"]] % 128 == 0).all(axis=None)
    assert not truth.duplicated(["slide_id", "x_px", "y_px"]).any()


def test_truth_is_consistent_and_balanced() -> None:
    truth = plan(Phantom())
    slides = truth.drop_duplicates("slide_id")
    assert len(slides) == 48
    assert (truth.groupby("slide_id").size() == 16).all()
    assert (truth.groupby("patient_id")[["label", "site_id"]].nunique() == 1).all(axis=None)
    assert slides["patient_id"].duplicated().any()
    assert (slides["label"].value_counts() == 12).all()
    counts = pd.crosstab(slides["site_id"], slides["label"])
    assert (counts.max(axis=1) == counts.min(axis=1)).all()

    assert ((truth["bearing"] == 1) == truth["tile_label"].isin(TUMOURS)).all()
    shows = truth[truth["bearing"] == 1]
    assert (shows["tile_label"] == shows["label"]).all()
    per_slide = truth[truth["label"] != "healthy"].groupby("slide_id")["bearing"].mean()
    assert per_slide.between(0.35, 0.45).all()
    assert set(truth.loc[truth["bearing"] == 0, "tile_label"]) == {"stroma", "fat", "healthy"}
    vectors = truth[["h_r", "h_g", "h_b", "e_r", "e_g", "e_b"]].to_numpy().reshape(-1, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1)


def test_without_a_signature_all_slides_look_the_same() -> None:
    columns = ["h_r", "e_g", "strength", "white_r", "blur_px"]
    assert (plan(Phantom(signature=0))[columns].nunique() == 1).all()
    assert (plan(Phantom())[columns].nunique() == 48).all()


def test_signature_carries_no_class_information() -> None:
    columns = ["h_r", "h_g", "h_b", "e_r", "e_g", "e_b", "strength", "white_r", "blur_px"]
    many = plan(Phantom(slides=1200, tiles_per_slide=2)).drop_duplicates("slide_id")
    looks = many[columns]
    shift = (looks.groupby(many["label"]).mean() - looks.mean()) / looks.std()
    # 300 slides a class: the standard error of a mean is 0.06 standard deviations.
    assert (shift.abs() < 0.2).all(axis=None)


def test_optical_density_lies_in_the_plane_of_the_two_vectors() -> None:
    settings = Phantom(slides=8, tiles_per_slide=9, tile_px=64)
    truth = plan(settings)
    for index, (_, rows) in enumerate(truth.groupby("slide_id", sort=False)):
        known = rows.iloc[0]
        white = known[["white_r", "white_g", "white_b"]].to_numpy(float)
        plane = known[["h_r", "h_g", "h_b", "e_r", "e_g", "e_b"]].to_numpy(float).reshape(2, 3)
        pixels = render(settings, index).reshape(-1, 3).astype(float)
        density = -np.log(np.maximum(pixels, 1) / white)
        density = density[density.sum(axis=1) > 0.5]
        normal = np.cross(*plane)
        residual = density @ (normal / np.linalg.norm(normal))
        assert np.sqrt(np.mean(residual**2)) < 0.08 * np.sqrt(np.mean(density**2))
        # Independent of the truth: the two main directions of the pixels span that plane.
        _, _, axes = np.linalg.svd(density, full_matrices=False)
        assert np.linalg.svd(axes[:2] @ np.linalg.qr(plane.T)[0])[1].min() > 0.98


def colour(settings: Phantom) -> np.ndarray:
    tiles = np.concatenate([render(settings, index) for index in range(settings.slides)])
    pixels = tiles.reshape(len(tiles), -1, 3).astype(float)
    return np.concatenate([pixels.mean(1), pixels.std(1), *np.percentile(pixels, [10, 90], 1)], 1)


@pytest.mark.parametrize(("signature", "low", "high"), [(1.0, 0.15, 1.0), (0.0, -0.1, 0.09)])
def test_colour_leaks_through_a_random_tile_split(
    signature: float, low: float, high: float
) -> None:
    settings = Phantom(slides=32, tile_px=64, signature=signature)
    truth, x = plan(settings), colour(settings)
    forest = RandomForestClassifier(100, random_state=0, n_jobs=1)
    random = cross_val_score(
        forest, x, truth["label"], cv=StratifiedKFold(4, shuffle=True, random_state=0)
    )
    grouped = cross_val_score(
        forest, x, truth["label"], groups=truth["slide_id"], cv=StratifiedGroupKFold(4)
    )
    assert low <= random.mean() - grouped.mean() <= high


def test_neighbouring_tiles_continue_each_other() -> None:
    settings = Phantom(slides=4, tiles_per_slide=4, tile_px=96)
    tiles = np.concatenate([render(settings, index) for index in range(4)]).astype(float)
    left, right = tiles[0::2, :, -1].ravel(), tiles[1::2, :, 0].ravel()
    assert np.corrcoef(left, right)[0, 1] > 0.9
    assert np.corrcoef(left, np.roll(right, right.size // 2))[0, 1] < 0.7


def test_defects(cohort: Path) -> None:
    truth = read_csv(cohort / "truth.csv")
    assert truth["defect"].value_counts().to_dict() == {
        "": 32,
        "blank": 2,
        "blurred": 1,
        "truncated": 1,
    }
    for path, defect, tissue in truth[["path", "defect", "tile_label"]].itertuples(index=False):
        with Image.open(cohort / "tiles" / path) as image:
            if defect == "truncated":
                with pytest.raises(OSError, match="truncated"):
                    image.load()
                continue
            pixels = np.asarray(image).astype(float)
        assert pixels.shape == (48, 48, 3)
        assert (tissue == "background") == (defect == "blank")
        if defect == "blank":
            assert pixels.min() > 200
            assert pixels.std(axis=(0, 1)).max() < 4


def test_an_unfocused_tile_has_lost_its_detail() -> None:
    sharp = Phantom(slides=4, tiles_per_slide=4)
    blurred = sharp.model_copy(update={"n_blurred": 4})
    for index in range(4):
        (tile,) = np.flatnonzero(plan(blurred)["defect"][4 * index : 4 * index + 4])
        before, after = render(sharp, index), render(blurred, index)
        detail = [
            np.abs(np.diff(image[tile].astype(float), axis=1)).mean() for image in (before, after)
        ]
        assert detail[1] < 0.6 * detail[0]
        np.testing.assert_array_equal(np.delete(before, tile, 0), np.delete(after, tile, 0))


def test_anonymous_names_hide_the_same_pixels(cohort: Path, tmp_path: Path) -> None:
    folder = generate(SMALL.model_copy(update={"names": "anonymous"}), tmp_path)
    truth, known = read_csv(tmp_path / "truth.csv"), read_csv(cohort / "truth.csv")
    assert truth["path"].str.fullmatch(r"\w+/[0-9a-f]{10}\.png").all()
    pd.testing.assert_frame_equal(truth.drop(columns="path"), known.drop(columns="path"))
    assert not truth.sort_values("path")["slide_id"].equals(truth["slide_id"])
    there, here = hashes(cohort / "tiles"), hashes(folder)
    assert [here[path] for path in truth["path"]] == [there[path] for path in known["path"]]


def test_manifest_is_what_a_user_would_have(cohort: Path) -> None:
    manifest, truth = read_csv(cohort / "manifest.csv"), read_csv(cohort / "truth.csv")
    pd.testing.assert_frame_equal(manifest, truth[["path", "tile_label"]])
    assert set(manifest["path"]) == set(hashes(cohort / "tiles"))


def test_a_finished_folder_is_left_alone_and_a_damaged_one_is_mended(
    cohort: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(cohort, out)
    tiles = sorted((out / "tiles").rglob("*.png"))
    tiles[0].write_bytes(b"kept")
    generate(SMALL, out)
    assert tiles[0].read_bytes() == b"kept"
    tiles[1].unlink()
    generate(SMALL, out)
    assert hashes(out / "tiles") == hashes(cohort / "tiles")


def test_another_phantom_replaces_the_tiles_but_never_foreign_files(
    cohort: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(cohort, out)
    other = SMALL.model_copy(update={"names": "anonymous"})
    generate(other, out)
    assert set(hashes(out / "tiles")) == set(plan(other)["path"])
    assert read_json(out / "phantom.json")["digests"] == {"phantom": other.digest()}
    (out / "tiles" / "mine.png").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"no phantom wrote, such as mine\.png"):
        generate(SMALL, out)
    assert (out / "tiles" / "mine.png").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "given",
    [
        {"slides": 3},
        {"bearing": 0},
        {"sites": 10},
        {"tile_px": 16},
        {"signature": -1},
        {"names": "random"},
        {"slidez": 12},
        {"slides": 4, "tiles_per_slide": 4, "n_blank": 9},
    ],
)
def test_impossible_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(reversed(given))):
        Phantom.model_validate(given)


def test_there_is_no_slide_beyond_the_last() -> None:
    with pytest.raises(InputError, match="slides 0 to 5"):
        render(SMALL, 6)


def test_the_smallest_phantom_can_be_drawn() -> None:
    least = Phantom(slides=4, tiles_per_slide=2, tile_px=32, bearing=1)
    assert [render(least, index).shape for index in range(4)] == [(2, 32, 32, 3)] * 4
    assert (plan(least)["tile_label"] == plan(least)["label"]).all()


def test_contact_sheet_is_a_picture(tmp_path: Path) -> None:
    contact_sheet(SMALL, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 1000 < sheet.width < 1300
