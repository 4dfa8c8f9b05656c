from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from mil import prepare, tissue
from mil.config import Config, Data, Encoder, Identity, Split, Stain
from mil.phantom import Phantom, plan, render
from mil.pixels import pixels
from mil.report.tissue import examples, shares
from mil.stain import fit as stain_fit
from mil.stain.vectors import REFERENCE, REFERENCE_P99
from mil.tissue import BACKGROUND, FEATURES, fit_types, measure, quality, stain_bins

ORGANS = Path(__file__).resolve().parents[3] / "../shared/data/tcga_organs"
GLASS = stain_fit.StainFit(
    "macenko", "reference", "", 0, np.full(3, 245.0), REFERENCE, REFERENCE_P99
)


def measured(phantom: Phantom, mark: str = "") -> pd.DataFrame:
    """Features, slide and truth of every tile of a phantom, without files."""
    truth = plan(phantom)
    rows = []
    for index, (_, tiles) in enumerate(truth.groupby("slide_id", sort=False)):
        images = render(phantom, index)
        fit = stain_fit.fit_slide(images.reshape(-1, 3)[::3], "macenko")
        rows += [measure(image, fit) for image in images[: len(tiles)]]
    table = pd.DataFrame(rows, columns=list(FEATURES), index=mark + truth["path"])
    columns = truth[["slide_id", "tile_label"]].set_axis(table.index)
    return table.join(columns.assign(slide_id=mark + columns["slide_id"]))


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    return measured(Phantom(slides=12, n_blank=12))


def types(table: pd.DataFrame, n_types: int = 6, seed: int = 0) -> pd.Series:
    found = fit_types(table[list(FEATURES)], table["slide_id"], n_types, seed)
    return found.of(table)["tissue"].loc[table.index]


def test_types_are_the_tissues_of_the_phantom(cohort: pd.DataFrame) -> None:
    # Six tissues that differ in architecture, never in stain. A tile's border belongs to its
    # neighbour's tissue, so a few tiles are mixed; two tissues taken for one would cost 0.1.
    found = types(cohort)
    assert adjusted_mutual_info_score(cohort["tile_label"], found) > 0.9
    assert set(found) == {BACKGROUND, "T1", "T2", "T3", "T4", "T5", "T6"}


def test_types_say_no_more_of_the_slide_than_its_tissues_do(cohort: pd.DataFrame) -> None:
    found = types(cohort)
    truth = normalized_mutual_info_score(cohort["slide_id"], cohort["tile_label"])
    assert normalized_mutual_info_score(cohort["slide_id"], found) < truth + 0.03
    # Among tiles of one tissue, whatever tells slides apart is staining.
    for _, rows in cohort.groupby("tile_label"):
        assert abs(adjusted_mutual_info_score(rows["slide_id"], found[rows.index])) < 0.1


def test_blank_tiles_are_background_and_nothing_else_is(cohort: pd.DataFrame) -> None:
    found = types(cohort)
    assert ((found == BACKGROUND) == (cohort["tile_label"] == BACKGROUND)).all()


def test_a_slide_stained_otherwise_keeps_its_types() -> None:
    # The signature changes vectors, strength, white point and blur; the tissue is drawn alike.
    plain = measured(Phantom(slides=4, signature=0), "plain/")
    other = measured(Phantom(slides=4, signature=1), "other/")
    found = types(pd.concat([plain, other]))
    same = found[plain.index].to_numpy() == found[other.index].to_numpy()
    assert same.mean() > 0.95


def test_order_and_company_of_rows_do_not_matter(cohort: pd.DataFrame) -> None:
    found = types(cohort)
    shuffled = cohort.sample(frac=1, random_state=3)
    pd.testing.assert_series_equal(types(shuffled).loc[cohort.index], found)
    pd.testing.assert_series_equal(types(cohort), found)
    model = fit_types(cohort, cohort["slide_id"], 6, 0)
    alone = model.of(cohort.iloc[[5]])["tissue"]
    assert alone.item() == found.iloc[5]


def test_types_are_sorted_by_their_nuclei(cohort: pd.DataFrame) -> None:
    nuclei = cohort["nuclei"].groupby(types(cohort)).mean().drop(BACKGROUND)
    assert list(nuclei.index) == [f"T{i}" for i in range(1, 7)]
    assert nuclei.is_monotonic_increasing


def test_more_than_nine_types_sort_as_text(cohort: pd.DataFrame) -> None:
    found = sorted(set(types(cohort, n_types=11)) - {BACKGROUND})
    assert found == [f"T{i:02d}" for i in range(1, 12)]


def test_small_cohorts() -> None:
    glass = measure(np.full((128, 128, 3), 245, np.uint8), GLASS)
    stained = measure(render(Phantom(slides=4), 0)[0], GLASS)

    def of(rows: list[np.ndarray]) -> list[str]:
        index = [f"{i}.png" for i in range(len(rows))]
        table = pd.DataFrame(rows, columns=list(FEATURES), index=index).assign(slide_id="s")
        return types(table).tolist()

    assert of([stained]) == ["T1"]
    assert of([stained, glass, stained]) == ["T1", BACKGROUND, "T1"]
    assert of([glass, glass]) == [BACKGROUND, BACKGROUND]


def test_measures_know_the_picture() -> None:
    def named(amount: np.ndarray) -> dict[str, float]:
        density = amount * GLASS.p99 @ GLASS.vectors
        rgb = (246 * np.exp(-density) - 1).round().clip(0, 255).astype(np.uint8)
        return dict(zip(FEATURES, measure(rgb, GLASS), strict=True))

    y, x = np.indices((128, 128))
    fibres = named(np.stack([0 * x, 0.8 + 0.15 * np.sin((x + y) / 3)], axis=-1))
    assert fibres["eosin"] == pytest.approx(0.8, abs=0.03)
    assert fibres["hematoxylin"] == pytest.approx(0, abs=0.03)
    assert fibres["eosin_alone"] > 0.9
    assert fibres["alignment"] > 0.9
    nuclei = (np.hypot(x % 32 - 16, y % 32 - 16) < 7).astype(float)
    cells = named(np.stack([0.9 * nuclei, 0.3 + 0 * x], axis=-1))
    assert cells["nuclei"] == pytest.approx(nuclei.mean(), rel=0.1)
    assert cells["nuclei_9px"] > 0.8 * nuclei.mean()
    assert cells["tissue_share"] == 1
    hole = (np.hypot(x - 64, y - 64) < 20).astype(float)
    lumen = named(np.stack([0 * x, 0.6 * (1 - hole)], axis=-1))
    assert lumen["gaps_large"] == pytest.approx(hole.mean(), rel=0.15)
    assert lumen["gaps_small"] < 0.01


def stains(p99_h: list[float], **changed: list[str]) -> pd.DataFrame:
    fits = {
        f"{i:02d}": stain_fit.StainFit(
            "macenko", "estimated", "", 9000, np.full(3, 245.0), REFERENCE,
            np.array([value, 1.0]),
        )
        for i, value in enumerate(p99_h)
    }  # fmt: skip
    return stain_fit.to_table(fits).assign(**changed)


def test_stain_bins_are_thirds_of_the_slides() -> None:
    bins = stain_bins(stains([3, 1, 2, 6, 5, 4])).set_index("slide_id")
    assert list(bins) == ["stain:H low", "stain:H middle", "stain:H high"]
    assert list(bins.index[bins["stain:H low"] == 1]) == ["01", "02"]
    assert list(bins.index[bins["stain:H high"] == 1]) == ["03", "04"]
    assert (bins.sum(axis=1) == 1).all()


def test_equal_stains_share_a_bin_and_a_single_slide_has_none() -> None:
    bins = stain_bins(stains([1, 1, 1, 1, 1, 2]))
    assert list(bins["stain:H low"]) == [1, 1, 1, 1, 1, 0]
    assert list(bins.columns[1:]) == ["stain:H low", "stain:H high"]
    assert list(stain_bins(stains([1]))) == ["slide_id"]
    assert list(stain_bins(stains([2, 2, 2]))) == ["slide_id"]


def test_reference_values_and_exchanged_files_are_bins_of_their_own() -> None:
    table = stains(
        [1, 2, 3, 9],
        source=["estimated", "estimated", "estimated", "reference"],
        note=[f"{stain_fit.EXCHANGED} in the files; vectors in file order", "", "", "too flat"],
    )
    bins = stain_bins(table).set_index("slide_id")
    assert list(bins["stain:reference values"]) == [0, 0, 0, 1]
    assert list(bins["stain:red and blue exchanged"]) == [1, 0, 0, 0]
    # Its strength was not measured, so it is in no third.
    assert bins.loc["03"].sum() == 1
    assert bins.filter(like="stain:H").to_numpy().sum() == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    path = tmp_path_factory.mktemp("run")
    config = Config(
        data=Data(phantom=Phantom(slides=8, tiles_per_slide=4, n_blank=3)),
        identity=Identity(content=False),
        split=Split(balance=("label", "tissue", "stain"), tissue_types=3),
        encoder=Encoder(resize_px=64, image_px=64),
    )
    prepare.scan(path, config)
    return path, config


def changed(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"split": config.split.model_copy(update=settings)})


def test_amounts_of_a_run(run: tuple[Path, Config]) -> None:
    path, config = run
    found = tissue.amounts(path, config)
    tiles = prepare.read_tiles(path)
    n_tiles = tiles.groupby("slide_id").size()
    assert list(found["slide_id"]) == sorted(n_tiles.index)
    counts = found.set_index("slide_id").filter(like="tissue:")
    assert list(counts) == ["tissue:T1", "tissue:T2", "tissue:T3", "tissue:background"]
    assert (counts.sum(axis=1) == n_tiles).all()
    blank = tiles[tiles["tile_label"] == "background"].groupby("slide_id").size()
    assert counts["tissue:background"].sum() == blank.sum() == 3
    assert set(np.unique(found.filter(like="stain:"))) == {0, 1}
    kept = pd.read_parquet(path / "amounts.parquet")
    pd.testing.assert_frame_equal(kept, found, check_dtype=False)


def test_nothing_is_paid_for_twice(run: tuple[Path, Config]) -> None:
    path, config = run
    first = tissue.amounts(path, config)
    made = {name: (path / f"{name}.parquet").stat().st_mtime_ns
            for name in ("stain", "tissue", "amounts")}  # fmt: skip
    second = tissue.amounts(path, config)
    pd.testing.assert_frame_equal(second, first)
    pixels(path, config)
    for name, at in made.items():
        assert (path / f"{name}.parquet").stat().st_mtime_ns == at, name
    # Another number of types comes from the same measures; the pixels may be gone.
    tiles = path / "phantom" / "tiles"
    moved = tiles.rename(tiles.with_name("away"))
    try:
        more = tissue.tissue_types(path, changed(config, tissue_types=2))
    finally:
        moved.rename(tiles)
    assert set(more["tissue"]) == {"T1", "T2", BACKGROUND}


def test_what_is_not_asked_for_is_not_there(run: tuple[Path, Config]) -> None:
    path, config = run
    only = tissue.amounts(path, changed(config, balance=("stain",)))
    assert not any(name.startswith("tissue:") for name in only)
    none = tissue.amounts(path, changed(config, balance=("label",)))
    assert list(none) == ["slide_id"]
    assert not (path / "amounts.parquet").exists()


def test_an_rgb_run_has_types_but_no_stain_table(run: tuple[Path, Config]) -> None:
    path, config = run
    rgb = config.model_copy(
        update={"stain": Stain(method="none"), "encoder": Encoder(channels="rgb")}
    )
    found = tissue.amounts(path, rgb)
    assert any(name.startswith("stain:") for name in found)
    pixels(path, rgb)
    assert not (path / "stain.parquet").exists()


def test_shares_compare_the_parts_with_the_whole() -> None:
    amounts = pd.DataFrame(
        {"slide_id": ["a", "b", "c", "d"], "tissue:T1": [1, 3, 2, 2], "tissue:T2": [3, 1, 2, 2]}
    )
    folds = pd.DataFrame(
        [(s, f, "test" if s in own else "train")
         for f, own in enumerate(("ab", "cd")) for s in "abcd"],
        columns=["slide_id", "fold", "part"],
    )  # fmt: skip
    even = shares(amounts, folds, "tissue:")
    assert even is not None
    assert even["columns"] == ["fold 0", "fold 1"]
    assert even["largest"] == "0.0"
    held = pd.DataFrame(
        {"slide_id": list("abcd"), "fold": 0, "part": ["train", "test", "val", "train"]}
    )
    uneven = shares(amounts, held, "tissue:")
    assert uneven is not None
    assert uneven["columns"] == ["train", "val", "test"]
    assert [cell["off"] for cell in uneven["rows"][0]["cells"]] == ["-12.5", "+0.0", "+25.0"]
    assert shares(amounts, held, "stain:") is None


def test_examples_come_from_different_patients_first() -> None:
    tiles = pd.DataFrame(
        {
            "tile_id": list("abcdefgh"),
            "slide_id": ["1", "1", "1", "2", "2", "3", "4", "5"],
            "patient_id": ["p", "p", "p", "q", "q", "r", "s", "s"],
            "distance": [0.1, 0.2, 0.3, 1.0, 1.1, 2.0, 3.0, 4.0],
        }
    )
    assert list(examples(tiles, 4)["tile_id"]) == ["a", "d", "f", "g"]
    assert list(examples(tiles.sample(frac=1, random_state=0), 2)["tile_id"]) == ["a", "g"]
    assert list(examples(tiles, 6)["tile_id"]) == ["a", "d", "f", "g", "h", "b"]
    assert len(examples(tiles, 20)) == 8


def test_types_reach_many_real_slides(tmp_path: Path) -> None:
    if not ORGANS.is_dir():
        pytest.skip("../shared/data is not here")
    classes = ("breast", "kidney", "lung", "prostate")
    config = Config(
        data=Data(root=ORGANS, classes=classes),
        identity=Identity(content=False),
        split=Split(balance=("tissue",)),
        encoder=Encoder(resize_px=64, image_px=64),
    )
    prepare.scan(tmp_path, config)
    counts = tissue.amounts(tmp_path, config).filter(like="tissue:T")
    assert counts.shape == (49, 6)
    # 49 slides of four organs, each a field or a few: no type may be one slide's own.
    assert (counts > 0).sum().min() >= 8
    assert (counts.max() / counts.sum()).max() < 0.5


def test_blank_tiles_have_no_quality_and_all_others_the_same() -> None:
    features = pd.DataFrame({"tissue_share": [0.0, 0.049, 0.05, 0.5, 1.0]})
    assert quality(features).tolist() == [0, 0, 1, 1, 1]
