from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import chi2_contingency
from sklearn.metrics import roc_auc_score

from splits.audit import audit, summarise
from splits.auditing import battery as tests
from splits.auditing.battery import Features, corrected, cramers_v, entry, not_run
from splits.auditing.confounds import preparation
from splits.auditing.design import MAX_TILES, Design, design
from splits.auditing.findings import tile_places
from splits.auditing.headers import read_headers
from splits.placement import place, split_rows

N_TILES = 6


def cohort(
    n_patients: int = 30, seed: int = 0, noise: float = 0.3
) -> tuple[pd.DataFrame, np.ndarray]:
    """Tiles of one slide a patient, and features: a look of the slide, and noise."""
    random = np.random.default_rng(seed)
    tiles = pd.DataFrame(
        [(f"s{p:02d}/{t}.png", f"s{p:02d}") for p in range(n_patients) for t in range(N_TILES)],
        columns=["tile_id", "slide_id"],
    )
    look = np.repeat(random.normal(size=(n_patients, 8)), N_TILES, axis=0)
    return tiles, look + noise * random.normal(size=look.shape)


def slides_of(tiles: pd.DataFrame, n_sites: int = 3) -> pd.DataFrame:
    names = sorted(tiles["slide_id"].unique())
    rows = [(s, s, f"site{k % n_sites}", "ab"[k // n_sites % 2]) for k, s in enumerate(names)]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "site_id", "label"])


def of_slides(slides: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    part = np.random.default_rng(seed).choice(["train", "train", "val", "test"], len(slides))
    return slides[["slide_id"]].assign(part=part)


def run(
    split: pd.DataFrame,
    tiles: pd.DataFrame,
    x: np.ndarray,
    **options: object,
) -> dict[str, dict[str, object]]:
    features = Features(tiles["tile_id"].tolist(), x, "drawn")
    result = audit(split, slides_of(tiles), tiles, features=features, **options)
    return {one["name"]: one for one in result["battery"]}


def designed(split: pd.DataFrame, tiles: pd.DataFrame, unit: str = "patient") -> Design:
    rows, _ = place(split_rows(split), slides_of(tiles), tiles)
    made = design(tile_places(rows, tiles), None, unit, 0)
    assert made is not None
    return made


def test_cramers_v_and_the_auc_agree_with_references() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 3, 200), random.integers(0, 4, 200)
    table = pd.crosstab(one, other)
    chi2 = chi2_contingency(table, correction=False).statistic
    assert cramers_v(one, other) == pytest.approx(np.sqrt(chi2 / 200 / 2))
    assert cramers_v(one, one) == pytest.approx(1)
    assert cramers_v(one, np.zeros(200, int)) == 0
    score, positive = random.normal(size=(50, 4)).round(1), random.random((50, 4)) < 0.4
    expected = [roc_auc_score(positive[:, k], score[:, k]) for k in range(4)]
    assert tests._auc(score, positive) == pytest.approx(expected)


def test_holm_s_correction() -> None:
    null = np.zeros(999)
    entries = [entry("nearest_across", 1.0, null, ""), entry("slide_probe", 1.0, null, ""),
               not_run("site_probe", "no sites")]  # fmt: skip
    many = [entry("header_part", 1.0, np.append(np.zeros(990), np.full(9, 2.0)), "")] * 3
    graded = corrected(entries + many)
    # Five tests: 5 and 4 thousandths; then 3 times 0.01.
    assert [one["severity"] for one in graded] == ["warning", "note", None, None, None, None]
    assert entries[0]["severity"] is None  # what came in is left alone


def test_a_clean_split_passes_and_slides_can_be_told_apart() -> None:
    tiles, x = cohort()
    found = run(of_slides(slides_of(tiles)), tiles, x)
    assert list(found) == list(tests.NAMES)
    assert found["slide_probe"]["severity"] == "note"
    assert found["slide_probe"]["value"] > 0.9
    assert found["slide_probe"]["chance"] == pytest.approx(
        (N_TILES - 1) / (len(tiles) - 1), abs=0.01
    )
    assert not [one for one in found.values() if one["severity"] == "warning"]
    assert "no image files" in found["header_part"]["meaning"]


def test_p_values_of_clean_splits_are_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests, "N_PERMUTATIONS", 99)
    p: dict[str, list[float]] = {"train_against_test": [], "nearest_across": []}
    n_splits = 40
    for seed in range(n_splits):
        tiles, x = cohort(20, seed, noise=1.5)  # else every look-alike is of the own slide
        found = run(of_slides(slides_of(tiles), seed), tiles, x, seed=seed)
        for name, values in p.items():
            values.append(float(found[name]["p"]))
    for name, values in p.items():
        # Uniform p: 4 of 40 lie below 0.1, and 11 or more with a chance of 0.001 (binomial).
        assert sum(value <= 0.1 for value in values) < 11, name
        # The mean has a standard error of 0.29 / sqrt(40) = 0.046.
        assert abs(np.mean(values) - 0.5) < 4 * 0.046, name


def test_slides_that_are_cut_have_look_alikes_on_the_other_side() -> None:
    tiles, x = cohort()
    part = np.random.default_rng(0).choice(["train", "train", "val", "test"], len(tiles))
    found = run(tiles[["tile_id"]].assign(part=part), tiles, x)
    assert found["nearest_across"]["severity"] == "warning"
    assert found["nearest_across"]["value"] > 0.5 > 3 * found["nearest_across"]["chance"]
    # Deals for comparison keep every patient whole.
    made = designed(tiles[["tile_id"]].assign(part=part), tiles)
    other = made.dealt(np.random.default_rng(0))
    assert pd.Series(other[:, 0]).groupby(made.group).nunique().max() == 1
    share = (other == 2).mean() / (made.part == 2).mean()
    assert 0.5 < share < 1.6


def test_a_test_set_that_is_another_population() -> None:
    tiles, x = cohort(40)
    split = of_slides(slides_of(tiles))
    test = tiles["slide_id"].map(split.set_index("slide_id")["part"]) == "test"
    shifted = x + 1.5 * test.to_numpy()[:, None]
    found = run(split, tiles, shifted)
    assert found["train_against_test"]["severity"] == "warning"
    assert found["train_against_test"]["value"] > 0.9
    line = summarise({"verdict": "clean", "findings": [], "battery": list(found.values())})
    assert line.startswith("clean: ")
    assert "1 warning(s)" in line


def test_a_site_that_can_be_read_off_tiles_of_other_patients() -> None:
    tiles, x = cohort()
    site = slides_of(tiles).set_index("slide_id")["site_id"].reindex(tiles["slide_id"])
    split = of_slides(slides_of(tiles))
    assert run(split, tiles, x)["site_probe"]["severity"] is None
    marked = x + 4 * (site.to_numpy()[:, None] == ["site0", "site1", "site2"] + ["none"] * 5)
    assert run(split, tiles, marked)["site_probe"]["severity"] == "note"


def test_deals_keep_groups_and_classes() -> None:
    tiles, _ = cohort()
    split = of_slides(slides_of(tiles))
    made = designed(split, tiles)
    random = np.random.default_rng(0)
    counts = [
        pd.crosstab(made.names["label"], made.dealt(random)[:, 0]).to_numpy() for _ in range(5)
    ]
    assert all((count == counts[0]).all() for count in counts)
    many = pd.DataFrame({"tile_id": [f"{k:05d}" for k in range(MAX_TILES + 500)]})
    many["slide_id"] = np.where(many.index < 40, "small", "large")
    found = design(
        tile_places(place(split_rows(many.assign(part="train")), None, many)[0], many),
        None, "slide", 0,
    )  # fmt: skip
    assert found is not None
    assert len(found.tile_ids) == MAX_TILES
    assert (found.names["slide"] == "small").sum() == 40


def test_the_battery_does_not_depend_on_the_order_of_rows() -> None:
    tiles, x = cohort()
    split = of_slides(slides_of(tiles))
    order = np.random.default_rng(1).permutation(len(tiles))
    mixed = run(split.sample(frac=1, random_state=1), tiles.iloc[order], x[order])
    assert mixed == run(split, tiles, x)


@pytest.mark.parametrize("what", ["part", "class", "nothing"])
def test_headers_that_go_along_with_part_or_class(tmp_path: object, what: str) -> None:
    tiles, _ = cohort()
    slides = slides_of(tiles)
    split = of_slides(slides)
    part = split.set_index("slide_id")["part"].reindex(tiles["slide_id"]).to_numpy()
    label = slides.set_index("slide_id")["label"].reindex(tiles["slide_id"]).to_numpy()
    said = {
        "part": part == "test",
        "class": label == "a",
        "nothing": np.random.default_rng(3).random(len(tiles)) < 0.5,
    }[what]
    headers = {name: f"q{code}" for name, code in zip(tiles["tile_id"], said, strict=True)}
    found = run(split, tiles, np.zeros((len(tiles), 1)),
                headers=lambda names: {name: headers[name] for name in names})  # fmt: skip
    graded = {name for name, one in found.items() if one["severity"] == "warning"}
    assert graded == ({f"header_{what}"} if what != "nothing" else set())


def test_a_header_says_how_a_file_was_written(tmp_path: object) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    image.save(tmp_path / "a.jpg", quality=90)
    image.save(tmp_path / "b.jpg", quality=90)
    image.save(tmp_path / "c.jpg", quality=60)
    image.save(tmp_path / "d.jpg", quality=90, dpi=(300, 300))
    exif = Image.Exif()
    exif[305] = "ImageJ"
    image.save(tmp_path / "e.jpg", quality=90, exif=exif)
    image.save(tmp_path / "f.png")
    (tmp_path / "g.png").write_bytes(b"none")
    names = [f"{letter}.{end}" for letter, end in zip("abcdefg", ["jpg"] * 5 + ["png"] * 2,
                                                      strict=True)]  # fmt: skip
    said = read_headers(tmp_path, [*names, "a.jpg#xywh=0,0,8,8"])
    assert said["a.jpg"] == said["b.jpg"] == said["a.jpg#xywh=0,0,8,8"]
    assert len(set(said.values())) == 6
    assert "software ImageJ" in said["e.jpg"]
    assert "dpi 300x300" in said["d.jpg"]
    assert said["g.png"] == "unreadable"


def test_what_is_missing_is_said() -> None:
    tiles, x = cohort()
    slides = slides_of(tiles)
    result = audit(of_slides(slides), slides)
    assert all(one["p"] is None for one in result["battery"][:6])
    assert any("no features" in line for line in result["had"])
    alone = tiles[["tile_id"]].assign(
        tile_id=[f"t{k}" for k in range(len(tiles))], part=["train", "test"] * (len(tiles) // 2)
    )
    nothing = audit(alone, features=Features(alone["tile_id"].tolist(), x, "drawn"))
    assert "nothing says which tiles belong together" in nothing["battery"][0]["meaning"]
    few = audit(of_slides(slides), slides, tiles, features=Features(["s00/0.png"], x[:1], "one"))
    assert "179 of 180 tiles have no features" in few["battery"][0]["meaning"]


def test_tiles_of_unknown_slides_are_grouped_by_what_pixels_tie_together() -> None:
    tiles, x = cohort()
    known = tiles["slide_id"] < "s20"
    slides = tiles["slide_id"].where(known).astype("string")
    rows, _ = place(
        split_rows(tiles.assign(slide_id=slides, part=["train", "test"] * (len(tiles) // 2))),
        None, None,
    )  # fmt: skip
    component = pd.Series(pd.factorize(tiles["slide_id"])[0], index=tiles["tile_id"])
    made = design(tile_places(rows, None), component, "patient", 0)
    assert made is not None
    truth = component.reindex(made.tile_ids).to_numpy()
    assert (pd.Series(made.group).groupby(truth).nunique() == 1).all()
    assert made.n_groups == 30
    assert made.names["slide"].notna().all()
    split = rows[["tile_id", "slide_id", "part"]]
    result = audit(split, None, None, features=Features(tiles["tile_id"].tolist(), x, "drawn"))
    # Without pixels, tiles of no known slide are left out of the tests.
    assert result["battery"][0]["value"] > 0.9


def test_preparation_from_a_barcode() -> None:
    names = ("TCGA-2Z-A9JG-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1", "TCGA-2Z-A9J9-01A-01-BS2.svs",
             "slide_DX1")  # fmt: skip
    assert [preparation(name) for name in names] == ["FFPE", "frozen", "frozen", None]
    slides = pd.DataFrame(
        {
            "slide_id": [f"TCGA-2Z-A{k:03d}-01{'ZA'[k % 2]}-0{k % 2}-{'DT'[k % 2]}"
                         f"{'XS'[k % 2]}1" for k in range(24)],
            "part": ["train", "train", "test"] * 8,
            "label": ["a", "b"] * 12,
        }
    )  # fmt: skip
    found = {one["name"]: one for one in audit(slides)["battery"]}["preparation_class"]
    assert (found["value"], found["severity"]) == (1.0, "note")
