from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.aggregators import AGGREGATORS
from mil.aggregators.voting import VOTES
from mil.report import build
from mil.report.explorer import flags
from mil.report.figures import label
from mil.report.inputs import read, true_probability
from mil.report.names import METHODS, heading, title
from mil.report.pictures import attended
from mil.report.tables import confusion, grid, scores
from mil.report.verdict import verdict
from mil.tissue import FEATURES
from splits.artifacts import write_csv, write_json, write_table
from splits.errors import InputError
from splits.images import read_tile
from tests.report_run import HOSTILE, Page, add_results, make_run, paint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("organs"))


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(build(run, read_tile=paint))


def test_page_is_one_file_that_asks_no_network(page: Page) -> None:
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(key, "")
            assert not value or value.startswith(("data:", "#")), (tag, key, value[:60])
    assert len(page.style) > 1000
    assert not re.search(r"url\(|@import", page.style)


def test_only_scripts_of_the_page_may_run(page: Page) -> None:
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "unsafe-inline" not in policies[0].split("script-src")[1].split(";")[0]
    packed = next(body for a, body in page.scripts if a.get("id") == "plotly")
    library = gzip.decompress(base64.b64decode(packed)).decode()
    assert "Plotly" in library
    own = [body for a, body in page.scripts if not a]
    assert len(own) == 1
    for code in (library, own[0]):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policies[0]


def test_tags_are_balanced_and_links_lead_somewhere(page: Page) -> None:
    assert not page.unbalanced
    assert not page.open
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links <= set(ids)
    assert len(links) > 15


def test_every_number_of_the_metrics_is_in_the_page(run: Path, page: Page) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    entries = [e for s in [metrics["tile"], *metrics["slide"].values()] for e in s.values()]
    assert len(entries) == 6 * 5
    for entry in entries:
        for value in entry.values():
            assert value is None or f"{value:.3f}" in page.text
    assert f"{metrics['paired'][0]['difference']:.3f}" in page.text


def test_scores_stand_in_the_right_row_and_column(run: Path) -> None:
    found = scores(read(run))
    column = [head["text"] for head in found["columns"]].index("AUROC")
    cells = {row["name"]: row["cells"][column] for row in found["rows"]}
    assert cells["Single tiles"] == {"value": "\u2013", "interval": None}
    assert cells["Attention (ABMIL)"]["value"] == "0.816"
    assert cells["Attention (ABMIL)"]["interval"] == "0.716 to 0.916"


def test_every_section_and_picture_is_there(page: Page) -> None:
    charts = page.charts()
    assert {"forest-accuracy", "forest-balanced_accuracy", "agreement"} <= set(charts)
    assert {"curve-encoder-loss", "curve-abmil-accuracy"} <= set(charts)
    places = {a["id"] for tag, a in page.tags if a.get("class") == "chart"}
    assert places == set(charts)
    images = [a for tag, a in page.tags if tag == "img"]
    # Six tiles of up to six slides, and RGB, H and E of 12 of the 14 sites.
    assert len(images) >= 12 * 3 + 6 * 4
    assert all(a.get("alt") for a in images)
    decoded = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert decoded.format == "JPEG"
    assert max(decoded.size) <= 128
    assert "2 more sites not shown" in page.text
    assert "The first 50 of 70 entries" in page.text
    assert "0.731" in page.text


def test_strips_show_both_ends_of_the_attention(run: Path) -> None:
    inputs = read(run)
    assert inputs.attention is not None
    strips = attended(inputs, "abmil", None)
    assert strips
    for strip in strips:
        bag = inputs.attention[inputs.attention["slide_id"] == strip["slide_id"]]
        ranked = bag.sort_values("attention")["attention"].tolist()
        n_bottom = min(6, len(ranked) - 6)
        shown = {end: [float(p.lines[0]) for p in strip[end]] for end in ("top", "bottom")}
        assert shown["top"] == pytest.approx(ranked[:-7:-1], abs=6e-4)
        assert shown["bottom"] == pytest.approx(ranked[:n_bottom], abs=6e-4)


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    plain = Page(build(make_run(tmp_path / "a", n_slides=15), read_tile=None))
    run = make_run(tmp_path / "b", n_slides=15, hostile=HOSTILE)
    (run / "config.yaml").write_text(f"name: {HOSTILE}\n", encoding="utf-8")
    hostile = Page(build(run, read_tile=None))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert not hostile.unbalanced
    assert not any("onerror" in attributes for _, attributes in hostile.tags)
    assert HOSTILE in hostile.text
    hover = json.dumps(hostile.charts()["agreement"])
    assert "<img" not in hover
    assert "&lt;img" in hover


def test_plotly_label_keeps_ampersands_apart_from_entities() -> None:
    assert label("<b>a & b</b> &amp;") == "&lt;b&gt;a &amp; b&lt;/b&gt; &amp;amp;"


def test_minimal_run_builds_and_says_what_is_missing(tmp_path: Path) -> None:
    full = make_run(tmp_path / "full", n_slides=9)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("metrics.json", "predictions.parquet"):
        shutil.copy(full / name, bare / name)
    page = Page(build(bare, read_tile=None))
    assert not page.unbalanced
    for words in (
        "No tile predictions", "No training log of an encoder", "No attention table",
        "No tile table", "No split.json", "no scores by class", "No beside.json",
        "tiles_seen.parquet", "No calibration.json", "No evidence.json", "No seal.json",
        "Nothing was chosen by score", "No audit.json", "No identity.json",
        "Nothing was skipped", "No tile labels", "No config.yaml", "was not audited",
    ):  # fmt: skip
        assert words in page.text, words


@pytest.mark.parametrize("missing", ["metrics.json", "predictions.parquet"])
def test_missing_required_table_names_the_verb(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path, n_slides=6)
    (run / missing).unlink()
    with pytest.raises(InputError, match=f"{missing}.*slidewise evaluate"):
        build(run, read_tile=None)


def test_frozen_encoder_and_rgb_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_slides=6)
    shutil.rmtree(run / "encoder")
    write_json(run / "encoder/fold0/card.json", {"name": "resnet18"}, {})
    stain = pd.read_parquet(run / "stain.parquet").assign(method="none")
    write_table(run / "stain.parquet", stain, {})
    page = Page(build(run, read_tile=paint))
    assert "it was used as it is, frozen" in page.text
    assert "method none" in page.text
    assert "Eosin" not in page.text.split("Stain of each site")[1].split("Balance of the split")[0]


def test_tissue_types_show_where_a_split_balances_them(tmp_path: Path, page: Page) -> None:
    assert "Tissue types" not in page.text
    run = make_run(tmp_path, n_slides=6, n_tiles=8)
    tiles = pd.read_parquet(run / "tiles.parquet")
    names = ["T1", "T2", "T2", "background"] * (len(tiles) // 4)
    types = pd.DataFrame({"tile_id": tiles["tile_id"], "tissue": names, "distance": 1.0})
    types = types.assign(**dict.fromkeys(FEATURES, 0.25))
    write_table(run / "tissue.parquet", types, {})
    counts = pd.crosstab(tiles["slide_id"], types["tissue"]).add_prefix("tissue:").reset_index()
    counts["stain:H low"] = [1, 0, 0, 0, 0, 0]
    write_table(run / "amounts.parquet", counts, {})
    slides = counts["slide_id"]
    folds = [
        pd.DataFrame({"slide_id": slides, "group_id": slides, "fold": fold, "part": "train"})
        for fold in range(2)
    ]
    folds[0].loc[:2, "part"] = folds[1].loc[3:, "part"] = "test"
    write_csv(run / "split.csv", pd.concat(folds))
    found = Page(build(run, read_tile=paint))
    assert not found.unbalanced
    section = found.text.split("Tissue types")[1].split("Audit of the split")[0]
    assert "24 tiles of 6 slides and 6 patients" in section
    assert "the largest is 0.0" in section
    assert "33.3+16.7" in section
    examples = [a for tag, a in found.tags if tag == "img" and "of slide" in a.get("alt", "")]
    assert len({a["alt"] for a in examples}) == len(examples) >= 3 * 6


def test_tiles_come_from_the_data_root_and_lost_ones_leave_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_slides=3, n_tiles=4)
    tile_ids = pd.read_parquet(run / "tiles.parquet")["tile_id"]
    for tile_id in tile_ids[1:]:
        path = tmp_path / "data" / tile_id
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(tile_id)).save(path)
    page = Page(build(run, read_tile=partial(read_tile, tmp_path / "data")))
    assert page.count("img") > 10
    assert page.text.count("not read") == 1


def _verdict_of(run: Path, **paired: float | None) -> str:
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["paired"][0].update(paired)
    path.write_text(json.dumps(metrics))
    found = verdict(read(run))
    return " ".join([found["headline"], *found["points"], *found["cautions"]])


def test_verdict_claims_no_more_than_the_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_slides=9)
    text = _verdict_of(run, difference=0.04, ci_low=-0.06, ci_high=0.14, p=0.45)
    words = "+4 points of accuracy (95\u00a0% CI \u22126 to +14; bootstrap p = 0.45): no difference"
    assert words in text
    text = _verdict_of(run, difference=0.12, ci_low=0.05, ci_high=0.19, p=0.0002)
    assert "attention (ABMIL) is better" in text
    assert "p < 0.001" in text
    text = _verdict_of(run, difference=-0.12, ci_low=-0.19, ci_high=-0.05, p=0.01)
    assert "attention (ABMIL) is worse" in text
    # The same comparison, stored the other way round.
    text = _verdict_of(run, a="vote", b="abmil", difference=0.12, ci_low=0.05, ci_high=0.19)
    assert "\u221212 points of accuracy (95\u00a0% CI \u221219 to \u22125" in text
    text = _verdict_of(run, difference=0.12, ci_low=None, ci_high=None)
    assert "too few slides for an interval" in text
    assert "looked at 3 times" in text


def test_verdict_says_when_the_split_leaks(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_slides=9)
    assert "not those of held-out slides" not in _verdict_of(run)
    write_json(run / "audit.json", {"verdict": "leak", "findings": []}, {})
    assert "not those of held-out slides" in _verdict_of(run)


def test_only_test_rows_count_and_row_order_does_not(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_slides=12)
    table = pd.read_parquet(run / "predictions.parquet")
    before = verdict(read(run))
    val = table.assign(part="val", predicted="lung", slide_id="other-" + table["slide_id"])
    shuffled = pd.concat([table, val]).sample(frac=1, random_state=0)
    write_table(run / "predictions.parquet", shuffled, {})
    assert verdict(read(run)) == before


def test_confusion_counts_every_row_once() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({key: rng.choice(["a", "b", "new"], 60) for key in ("label", "predicted")})
    found = confusion(rows, ["b", "a"], "x", "slides")
    assert found["classes"] == ["b", "a", "new"]
    for line in found["rows"]:
        for other, cell in zip(found["classes"], line["cells"], strict=True):
            expected = (rows["label"] == line["label"]) & (rows["predicted"] == other)
            assert cell["n"] == int(expected.sum())
            assert cell["hit"] == (line["label"] == other)


def test_true_probability_picks_the_column_of_the_label() -> None:
    rows = pd.DataFrame({"label": ["b", "a", "z"], "p_a": [0.1, 0.7, 0.5], "p_b": [0.9, 0.3, 0.5]})
    np.testing.assert_array_equal(true_probability(rows, ["a", "b"]), [0.9, 0.7, np.nan])


def test_grid_takes_any_json() -> None:
    nested = grid({"0": {"train": {"n": 3}}, "1": {"train": {"n": 4}, "floor": 0.125}})
    assert nested is not None
    assert [head["text"] for head in nested["columns"]] == ["", "train n", "floor"]
    assert [cell["text"] for cell in nested["rows"][1]] == ["1", "4", "0.125"]
    assert [cell["text"] for cell in nested["rows"][0]] == ["0", "3", "\u2013"]
    long = grid([{"ids": list(range(30))}])
    assert long is not None
    assert long["rows"][0][0]["text"].endswith("11 and 18 more")
    assert grid([]) is None
    assert grid(None) is None


def test_every_method_of_the_registries_has_words_of_its_own() -> None:
    names = [*AGGREGATORS, *VOTES]
    assert len(names) > 15
    assert set(names) <= set(METHODS)
    headings = [heading(name) for name in METHODS]
    assert len(set(headings)) == len(headings)
    assert heading("another_tool") == title("another_tool") == "another_tool"


def test_every_result_is_shown(tmp_path: Path) -> None:
    run = add_results(make_run(tmp_path, n_slides=12))
    page = Page(build(run, read_tile=paint))
    assert not page.unbalanced
    for words in (
        "0.618", "Average precision", "bootstrap p = 0.45, Holm 1", "McNemar", "DeLong",
        "no interval", "Only 12 patients", "0.891 (0.841 to 0.941)", "1.3, 1.4", "not sure on 2",
        "89\u00a0% of slides", "0.103 (0.053 to 0.153)", "not measured: set mil.seeds=2",
        "abmil lr 1e-3", "0.079 better", "3 looks at 2 sets", "heterogeneous where the margin",
        "3.2", "Five draws a size",
    ):  # fmt: skip
        assert words in page.text, words
    charts = {"reliability-abmil", "risk", "tiles-seen", "deletion-abmil-attention"}
    assert charts <= set(page.charts())
    marks = [slide["marks"] for slide in page.slides()["slides"]]
    assert sum("heterogeneous" in mark for mark in marks) == 2
    assert sum("not sure" in mark for mark in marks) == 2


def test_every_section_leads_to_how_it_was_made(tmp_path: Path) -> None:
    page = Page(build(add_results(make_run(tmp_path, n_slides=9)), read_tile=None))
    pages = set(re.findall(r"More in (docs/\w+\.md)", page.text))
    assert len(pages) > 7
    assert all((Path(__file__).parents[3] / name).exists() for name in pages)
    told = {a["id"] for tag, a in page.tags if tag == "dt" and "id" in a}
    asked = {a["href"][1:] for tag, a in page.tags if tag == "a" and "#how-" in a["href"]}
    assert len(told) > 25
    # Metrics that this run does not have are explained all the same.
    assert asked <= told <= asked | {"how-metric-kappa_quadratic", "how-thresholds"}


def test_a_difference_that_holm_takes_back_is_not_claimed(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_slides=9)
    text = _verdict_of(run, difference=0.12, ci_low=0.05, ci_high=0.19, p=0.01, p_holm=0.2)
    assert "p = 0.2 after Holm" in text
    assert "no difference is shown" in text
    assert "is better" not in text


def test_predictions_of_slides_alone_make_a_page(tmp_path: Path) -> None:
    full = make_run(tmp_path / "full", n_slides=9)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(full / "predictions.parquet", bare)
    metrics = json.loads((full / "metrics.json").read_text()) | {"tile": None}
    metrics["n"] |= {"tiles": None, "sites": 0}
    write_json(bare / "metrics.json", metrics, {})
    cohort = pd.read_parquet(full / "tiles.parquet").drop_duplicates("slide_id")
    write_table(bare / "slides.parquet", cohort[["slide_id", "patient_id", "site_id"]], {})
    page = Page(build(bare, read_tile=None))
    assert "Single tiles were not predicted" in page.text
    assert {slide["patient"] for slide in page.slides()["slides"]} >= {"P1", "P2"}


def test_a_fold_without_threshold_marks_no_slide_as_doubtful(tmp_path: Path) -> None:
    run = add_results(make_run(tmp_path, n_slides=9))
    found = json.loads((run / "calibration.json").read_text())
    for fold in found["conformal"]["abmil"]["folds"]:
        fold["threshold"] = None
    write_json(run / "calibration.json", found, {})
    inputs = read(run)
    assert not any("not sure" in marks for marks in flags(inputs, "abmil").values())
    assert any("no slide gets a sure answer" in point for point in verdict(inputs)["points"])
