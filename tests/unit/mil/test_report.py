from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.report import build, preview
from mil.report.figures import label
from mil.report.inputs import read, true_probability
from mil.report.pictures import attended, tint
from mil.report.tables import confusion, grid, scores
from mil.report.verdict import verdict
from mil.tissue import FEATURES
from splits import tiles as tile_table
from splits.artifacts import write_csv, write_json, write_table
from splits.errors import InputError
from splits.images import read_tile

CLASSES = ["breast", "kidney", "lung"]
METHODS = ["vote", "mean_probability", "mean", "abmil"]
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;"
HEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text outside scripts, scripts by id."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.style = ""
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.unbalanced: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append((tag, found))
        if tag == "script":
            self.scripts.append((found, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, body = self.scripts[-1]
            self.scripts[-1] = (attributes, body + data)
        elif self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def charts(self) -> dict[str, dict[str, object]]:
        bodies = [body for attributes, body in self.scripts if attributes.get("id") == "charts"]
        return json.loads(bodies[0]) if bodies else {}

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def _score(value: float | None, spread: float = 0.1) -> dict[str, float | None]:
    if value is None:
        return dict.fromkeys(("value", "ci_low", "ci_high"))
    return {"value": value, "ci_low": value - spread, "ci_high": value + spread}


def _metrics(rows: pd.DataFrame, n_tiles: int, classes: list[str]) -> dict[str, object]:
    slide = {}
    for place, method in enumerate(METHODS):
        mine = rows[rows["method"] == method]
        accuracy = float((mine["label"] == mine["predicted"]).mean())
        slide[method] = {
            "accuracy": _score(accuracy),
            "balanced_accuracy": _score(accuracy - 0.0123),
            "auroc": _score(0.8127 + place / 1000),
            "f1_macro": _score(0.5731),
            "log_loss": _score(0.9145),
            "ece": _score(0.1119, 0.05),
        }
    gap = slide["abmil"]["accuracy"]["value"] - slide["vote"]["accuracy"]["value"]
    pair = {"a": "abmil", "b": "vote", "metric": "accuracy"}
    pair |= {"difference": gap, "ci_low": gap - 0.1, "ci_high": gap + 0.1, "p": 0.45}
    flips = rows.pivot_table(
        index="slide_id", columns="method", values="predicted", aggfunc="first"
    )
    return {
        "n": {"tiles": n_tiles, "slides": rows["slide_id"].nunique(), "patients": 44, "sites": 14},
        "classes": classes,
        "tile": {**slide["vote"], "accuracy": _score(0.5142, 0.04), "auroc": _score(None)},
        "slide": slide,
        "paired": [pair],
        "flips": int((flips["vote"] != flips["abmil"]).sum()),
        "looks": 3,
    }


def make_run(run: Path, *, n_slides: int = 48, n_tiles: int = 16, hostile: str = "") -> Path:
    """A whole run folder with a site every few slides, from one seed."""
    rng = np.random.default_rng(7)
    slides = [f"TCGA-{place % 14:02d}-{place:04d}{hostile}" for place in range(n_slides)]
    classes = [f"{name}{hostile}" for name in CLASSES]
    labels = [classes[place % 3] for place in range(n_slides)]
    rows, slide_rows, tile_rows, attention_rows = [], [], [], []
    for place, (slide, true) in enumerate(zip(slides, labels, strict=True)):
        names = [f"{true}/{slide}_{tile:03d}.png" for tile in range(n_tiles)]
        signal = np.eye(3)[classes.index(true)] * rng.uniform(-0.3, 2.2)
        logits = rng.normal(0, 1, (n_tiles, 3)) + signal
        p_tile = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        answers = p_tile.argmax(1)
        weights = rng.dirichlet(np.full(n_tiles, 0.7))
        share = np.bincount(answers, minlength=3) / n_tiles
        p_slide = {"vote": share, "mean_probability": p_tile.mean(0)}
        p_slide |= {"mean": p_tile.mean(0) ** 2, "abmil": weights @ p_tile}
        common = {"slide_id": slide, "fold": place % 5, "part": "test", "label": true}
        for method, p in p_slide.items():
            p = p / p.sum()
            named = {f"p_{name}": p[k] for k, name in enumerate(classes)}
            slide_rows.append(
                {**common, "method": method, "predicted": classes[p.argmax()], **named}
            )
        for tile, name in enumerate(names):
            rows.append(
                {
                    "tile_id": name, "slide_label": true, "width_px": 64, "height_px": 64,
                    "sha256": name, "slide_id": slide, "patient_id": f"P{place % 44}",
                    "site_id": f"{place % 14:02d}", "group_id": f"P{place % 44}",
                    "id_source": "name", "id_confidence": 0.9,
                }
            )  # fmt: skip
            named = {f"p_{c}": p_tile[tile, k] for k, c in enumerate(classes)}
            answer = classes[answers[tile]]
            tile_rows.append({"tile_id": name, **common, "predicted": answer, **named})
            spent = {"method": "abmil", "attention": weights[tile]}
            attention_rows.append({"tile_id": name, **common, **spent})
    predictions = pd.DataFrame(slide_rows)
    digests = {"predictions": "0123456789abcdef"}
    write_table(run / "tiles.parquet", tile_table.check(pd.DataFrame(rows)), digests)
    write_table(run / "predictions.parquet", predictions, digests)
    write_table(run / "tile_predictions.parquet", pd.DataFrame(tile_rows), digests)
    write_table(run / "attention.parquet", pd.DataFrame(attention_rows), digests)
    write_json(run / "metrics.json", _metrics(predictions, len(rows), classes), digests)
    _write_rest(run, slides, rng)
    return run


def _write_rest(run: Path, slides: list[str], rng: np.random.Generator) -> None:
    stain = pd.DataFrame({"slide_id": slides, "method": "macenko", "source": "estimated"})
    stain["note"] = ""
    stain["n_tissue_px"] = 9000
    for key, values in (("white", (245, 243, 246)), ("h", HEMATOXYLIN), ("e", EOSIN)):
        for channel, value in zip("rgb", values, strict=True):
            stain[f"{key}_{channel}"] = value
    stain["h_p99"], stain["e_p99"] = 1.2, 0.9
    write_table(run / "stain.parquet", stain, {})
    folders = {"encoder": 8, "aggregators/mean": 20, "aggregators/abmil": 20}
    for folder, epochs in folders.items():
        for fold in range(5):
            epoch = np.arange(1, epochs + 1)
            loss = 1.1 * np.exp(-epoch / 8) + rng.normal(0, 0.02, epochs)
            val = 0.5 + loss / 2 + rng.normal(0, 0.02, epochs)
            log = {"epoch": epoch, "learning_rate": 5e-4, "train_loss": loss, "val_loss": val}
            log |= {"val_accuracy": 1 - val / 2, "seconds": 1.5, "best": val == val.min()}
            write_csv(run / folder / f"fold{fold}" / "log.csv", pd.DataFrame(log))
    balance = [
        {"fold": fold, "part": part, "n_slides": n, "n_groups": n, "n_tiles": 16 * n,
         "classes": {"breast": n // 3, "kidney": n // 3, "lung": n // 3}}
        for fold in range(5)
        for part, n in (("train", 30), ("val", 9), ("test", 9))
    ]  # fmt: skip
    floor = {name: {"share": 0.021, "n_groups": 16} for name in CLASSES}
    split = {"version": 1, "method": "kfold", "unit": "patient", "seed": 0}
    write_json(run / "split.json", {**split, "balance": balance, "floor": floor}, {})
    finding = {"kind": "site", "severity": "note", "level": "slide", "ids": slides[:20]}
    finding |= {"parts": ["train", "test"], "evidence": {"n_sites": 14}}
    write_json(run / "audit.json", {"verdict": "clean", "findings": [finding]}, {})
    identity = {"grade": "B", "rule": "tcga", "reason": "names carry a slide", "coverage": 1.0}
    identity |= {"counts": {"name": 768, "content": 0}, "merges": [], "conflicts": []}
    write_json(run / "identity.json", identity, {})
    found = {"abmil": {"auroc_mean": 0.7312, "auroc_pooled": 0.7144, "n_slides": 31}}
    write_json(run / "localisation.json", {"n_test_slides": 48, "methods": found}, {})
    ledger = [("tile", f"lung/blank_{k}.png", "scan", "not an image") for k in range(70)]
    columns = ["level", "id", "stage", "cause"]
    write_csv(run / "skipped.csv", pd.DataFrame(ledger, columns=columns))
    text = "# smoke\ndata:\n  root: tiles\nencoder:\n  name: resnet18\n"
    (run / "config.yaml").write_text(text, encoding="utf-8")


def paint(tile_id: str) -> np.ndarray:
    """A tile of eosin ground and hematoxylin nuclei, different for every id."""
    rng = np.random.default_rng(list(tile_id.encode()))
    y, x = np.mgrid[:64, :64]
    nuclei = np.zeros((64, 64))
    for cy, cx in rng.uniform(0, 64, (14, 2)):
        nuclei = np.maximum(nuclei, np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 14))
    ground = 0.35 + 0.12 * np.sin(x / 7 + rng.uniform(0, 6)) * np.cos(y / 9)
    density = nuclei[..., None] * HEMATOXYLIN + ground[..., None] * EOSIN
    return np.round(244 * np.exp(-density)).astype(np.uint8)


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
    assert sum("Plotly" in body and len(body) > 1_000_000 for _, body in page.scripts) == 1


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
    column = found["columns"].index("AUROC")
    cells = {row["name"]: row["cells"][column] for row in found["rows"]}
    assert cells["Single tiles"] == {"value": "\u2013", "interval": None}
    assert cells["abmil"]["value"] == "0.816"
    assert cells["abmil"]["interval"] == "0.716 to 0.916"


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
        "No tile table", "No split.json", "No audit.json", "No identity.json",
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
    words = "+4 points of accuracy (95\u00a0% CI \u22126 to +14, p = 0.45): no difference"
    assert words in text
    text = _verdict_of(run, difference=0.12, ci_low=0.05, ci_high=0.19, p=0.0002)
    assert "abmil is better" in text
    assert "p < 0.001" in text
    text = _verdict_of(run, difference=-0.12, ci_low=-0.19, ci_high=-0.05, p=0.01)
    assert "abmil is worse" in text
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


def test_tint_follows_beer_lambert() -> None:
    amounts = np.array([[0.0, 0.5, 1.0, 9.0]])
    colours = tint(amounts, 3 * EOSIN).astype(float)
    assert (colours[0, 0] == 255).all()
    assert (colours[0, 3] == colours[0, 2]).all()
    density = -np.log(colours[0, 1:3] / 255)
    np.testing.assert_allclose(density[1], 2 * density[0], atol=0.02)
    np.testing.assert_allclose(density[1] / density[1, 1], EOSIN / EOSIN[1], atol=0.02)


def _panel(names: list[str], value: int) -> dict[str, object]:
    channels = np.zeros((len(names), 32, 32), np.uint8)
    channels[0] = value
    rgb = np.full((64, 64, 3), 200, np.uint8)
    views = [channels, channels]
    panel = {"title": "slide 1, lung", "rgb": rgb, "channels": channels}
    return {**panel, "channel_names": names, "augmented": views}


@pytest.mark.parametrize(("names", "n_columns"), [(["H", "E"], 5), (["R", "G", "B"], 4)])
def test_preview_draws_every_column(tmp_path: Path, names: list[str], n_columns: int) -> None:
    path = preview([_panel(names, 255), _panel(names, 0)], tmp_path / "preview.png")
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert image.shape[1] == 10 + n_columns * 154
    second = image[image.shape[0] - 60, 10 + 154 + 70]
    first = image[image.shape[0] // 2 - 60, 10 + 154 + 70]
    if names[0] == "H":
        assert (second == 255).all()  # no hematoxylin is white glass
        assert first[2] > first[0] > first[1]  # and much of it is purple
    else:
        assert (first == [255, 0, 0]).all()


def test_preview_draws_the_surroundings_beside_the_tile(tmp_path: Path) -> None:
    for names, n_columns in ((["H", "E"], 7), (["R", "G", "B"], 5)):
        panel = _panel(names, 0)
        around = np.full((len(names), 32, 32), 255, np.uint8)
        both = np.concatenate([panel["channels"], around])
        panel |= {"channels": both, "augmented": [both, both], "scales": (1, 4)}
        image = np.asarray(Image.open(preview([panel], tmp_path / "p.png")).convert("RGB"))
        assert image.shape[1] == 10 + n_columns * 154
        stained = image[100, 80::154].min(axis=1) < 250
        if names[0] == "H":  # RGB, H, E, H around, E around, two views of the tile alone
            assert stained.tolist() == [True, False, False, True, True, False, False]
        else:
            assert image[100, 80 + 2 * 154].tolist() == [255, 255, 255]


def test_preview_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none was given"):
        preview([], tmp_path / "a.png")
    with pytest.raises(InputError, match="2 channel names"):
        preview([{**_panel(["H"], 1), "channel_names": ["H", "E"]}], tmp_path / "a.png")


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for found in map(shutil.which, names) if found), None)
    if browser is None:
        pytest.skip("no chromium or chrome is installed")

    def call(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        fixed = (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            "--virtual-time-budget=20000", *flags, page.resolve().as_uri(),
        )  # fmt: skip
        return subprocess.run(
            [browser, *fixed], capture_output=True, text=True, timeout=120, check=False
        )

    return call


def test_browser_draws_every_chart_without_an_error(
    tmp_path: Path, browse: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = make_run(tmp_path / "run", n_slides=15, hostile=HOSTILE)
    path = build(run, read_tile=paint)
    n_charts = len(Page(path).charts())
    result = browse(path, "--dump-dom", "--window-size=390,900")
    errors = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors[:3]
    (tmp_path / "dom.html").write_text(result.stdout, encoding="utf-8")
    dom = Page(tmp_path / "dom.html")
    roots = [a for tag, a in dom.tags if tag == "svg" and a.get("class") == "main-svg"]
    assert len(roots) >= n_charts > 8
    assert not any("onerror" in attributes for _, attributes in dom.tags)
