"""A run folder as the report reads it, from one seed and without models."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from splits import tiles as tile_table
from splits.artifacts import read_json, read_table, write_csv, write_json, write_table

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

    def slides(self) -> dict[str, object]:
        bodies = [body for attributes, body in self.scripts if attributes.get("id") == "slide-data"]
        return json.loads(bodies[0])

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


def add_results(run: Path, *, placed: float = 0.5) -> Path:
    """What further evaluation leaves in a run: every optional file, in the shape of its writer.

    Args:
        run: A run of :func:`make_run`.
        placed: Share of the slides whose tiles get coordinates.
    """
    rng = np.random.default_rng(3)
    predictions = read_table(run / "predictions.parquet")
    metrics = read_json(run / "metrics.json")
    own = predictions[predictions["method"] == "abmil"].sort_values("slide_id")
    slides, labels = own["slide_id"].tolist(), own["label"].tolist()
    _add_metrics(run, metrics)
    _add_calibration(run, own, metrics["classes"])
    tiles = read_table(run / "tiles.parquet")
    order = tiles.groupby("slide_id").cumcount().to_numpy()
    known = tiles["slide_id"].isin(slides[: round(placed * len(slides))]).to_numpy()
    tiles["x_px"] = pd.array(np.where(known, 64 * (order % 4), 0), dtype="Int64")
    tiles["y_px"] = pd.array(np.where(known, 64 * (order // 4), 0), dtype="Int64")
    tiles.loc[~known, ["x_px", "y_px"]] = pd.NA
    write_table(run / "tiles.parquet", tiles, {})
    flips = [
        {
            "slide_id": slide, "patient_id": "P1", "fold": 0, "label": label, "n_tiles": 16,
            "vote": label, "vote_p": 0.4, "vote_margin": 0.125, "predicted": metrics["classes"][0],
            "p": 0.6, "right": "vote", "effective_tiles": 3.25, "top_tenth_share": 0.5,
            "measure": "attention",
            "top": [{"tile_id": name, "score": 0.4} for name in _names(tiles, slide)[:2]],
            "bottom": [{"tile_id": name, "score": 0.0} for name in _names(tiles, slide)[-2:]],
        }
        for slide, label in list(zip(slides, labels, strict=True))[:3]
    ]  # fmt: skip
    mixed = {
        "rule": "A slide is heterogeneous where the margin of its vote is below 0.2.",
        "margin_below": 0.2, "n_heterogeneous": 2, "n_homogeneous": len(slides) - 2,
        "slides": [
            {"slide_id": slide, "patient_id": "P1", "label": label, "n_tiles": 16,
             "vote_margin": 0.05, "second": metrics["classes"][1]}
            for slide, label in list(zip(slides, labels, strict=True))[:2]
        ],
        "accuracy": {"abmil": {"heterogeneous": _score(0.5), "homogeneous": _score(0.8),
                               "difference": _score(None)}},
    }  # fmt: skip
    seen = {
        method: [
            {"m": m, "accuracy": _score(0.4 + place / 10), "to_all": _score(0.0), "n_whole": 0}
            for place, m in enumerate((1, 2, 4, None))
        ]
        for method in ("vote", "abmil")
    }
    beside = {
        "a": "vote", "b": "abmil",
        "flips": {"n": 3, "n_vote_right": 3, "n_method_right": 0, "n_neither": 0, "slides": flips},
        "heterogeneous": mixed,
        "tiles_seen": {"rule": "Five draws a size.", "n_slides": 9, "n_slides_of": 9, "repeats": 5,
                       "methods": seen},
    }  # fmt: skip
    write_json(run / "beside.json", beside, {})
    scalars = pd.DataFrame(flips).drop(columns=["top", "bottom"])
    write_csv(run / "flips.csv", scalars)
    write_json(run / "evidence.json", _evidence(rng), {})
    fold = {"fold": 0, "chosen": "abmil lr 1e-3", "inner": 0.7312, "inner_best": 0.7401,
            "outer": 0.6523, "n_test": 9,
            "candidates": [{"name": "abmil lr 1e-3", "scores": [0.7, 0.76], "mean": 0.7312,
                            "within_one_se": True}]}  # fmt: skip
    selection = {
        "criterion": "balanced_accuracy", "higher_is_better": True,
        "rule": "The simplest candidate within one standard error of the best.", "inner_folds": 2,
        "candidates": [{"name": "abmil lr 1e-3", "n_chosen": 1, "candidate": {"lr": 0.001}}],
        "folds": [fold], "inner": 0.7312, "outer": 0.6523, "optimism": 0.0789,
    }  # fmt: skip
    write_json(run / "selection.json", selection, {})
    look = {"when": "2026-11-30T03:14:22+00:00", "stage": "evaluate", "digest": "0567587f1310aab7"}
    write_json(run / "seal.json", {"looks": 3, "log": [look, look, {**look, "digest": "ab"}]}, {})
    return run


def _names(tiles: pd.DataFrame, slide: str) -> list[str]:
    return tiles.loc[tiles["slide_id"] == slide, "tile_id"].tolist()


def _add_metrics(run: Path, metrics: dict[str, Any]) -> None:
    per_class = {
        name: {"n": 16, "sensitivity": _score(0.6177), "specificity": _score(0.9),
               "ppv": _score(0.7), "average_precision": _score(0.75), "auroc": _score(0.8)}
        for name in metrics["classes"]
    }  # fmt: skip
    metrics["per_class"] = {"tile": per_class, "slide": dict.fromkeys(METHODS, per_class)}
    for score in [metrics["tile"], *metrics["slide"].values()]:
        score |= {"average_precision": _score(0.6), "brier": {**_score(0.4), "ci_low": None}}
    pairs = [(a, b) for place, b in enumerate(METHODS) for a in METHODS[place + 1 :]]
    metrics["paired"] = [
        {"a": a, "b": b, "metric": metric, "test": test, "difference": 0.0417, "ci_low": -0.06,
         "ci_high": 0.14, "p": 0.45, "p_holm": 1.0}
        for a, b in pairs
        for metric, test in (("accuracy", "bootstrap"), ("accuracy", "mcnemar"),
                             ("auroc", "bootstrap"), ("auroc", "delong"))
    ]  # fmt: skip
    metrics["interval"] = {"method": "percentile", "level": 0.95, "cluster": "patient"}
    metrics["cautions"] = ["only 12 patients: bootstrap intervals are too narrow under 20"]
    write_json(run / "metrics.json", metrics, {})


def _add_calibration(run: Path, own: pd.DataFrame, classes: list[str]) -> None:
    bins = [
        {"low": k / 5, "high": (k + 1) / 5, "n": 9, "confidence": k / 5 + 0.1, "accuracy": k / 6}
        for k in range(1, 5)
    ]
    entry = {
        "temperature": [{"fold": k, "value": 1.3 + k / 10, "n_val": 9} for k in range(5)],
        "before": {"log_loss": _score(0.9), "brier": _score(0.5), "ece": {"value": 0.2}},
        "after": {"log_loss": _score(0.7), "brier": _score(0.4), "ece": {"value": 0.1}},
        "reliability": bins, "reliability_after": bins,
    }  # fmt: skip
    curve = [{"coverage": k / 10, "risk": k / 40, "threshold": 1 - k / 20} for k in range(1, 11)]
    folds = [{"fold": k, "n_calibration_patients": 9, "threshold": 0.8, "note": None}
             for k in range(5)]  # fmt: skip
    sets = {"level": 0.9, "coverage": _score(0.8912, 0.05), "mean_set_size": 1.4,
            "n_not_sure": 2, "accuracy_when_sure": _score(0.9), "folds": folds}  # fmt: skip
    calibration = {
        "validation": True, "methods": {"vote": entry, "abmil": entry},
        "conformal": {"abmil": sets}, "risk_coverage": {"vote": curve, "abmil": curve},
        "aurc": {"abmil": {"value": 0.12, "best": 0.05}},
        "thresholds": {"note": "Only for two classes.", "methods": {}},
    }  # fmt: skip
    write_json(run / "calibration.json", calibration, {})
    answers = own[["slide_id", "fold", "method", "label", "predicted"]].copy()
    answers["answer"] = ["not sure"] * 2 + answers["predicted"].tolist()[2:]
    answers["set"] = [classes[:2]] * 2 + [[name] for name in answers["predicted"]][2:]
    write_table(run / "answers.parquet", answers, {})


def _evidence(rng: np.random.Generator) -> dict[str, Any]:
    shares = [0, 0.1, 0.3, 0.5, 0.9]
    curve = [{"share": s, "p": float(0.8 - s / 2 + rng.uniform(0, 0.02)), "ci_low": 0.1,
              "ci_high": 0.9} for s in shares]  # fmt: skip
    result = {"curve": curve, "random": curve, "area": 0.4, "area_random": 0.5,
              "difference": _score(0.1034, 0.05), "verdict": "yes"}  # fmt: skip
    measures = {
        "attention": {
            "deletion": result, "insertion": result,
            "agreement": {"note": "not measured: set mil.seeds=2"},
            "shuffled": {"agreement": _score(0.02), "deletion": result, "insertion": result,
                         "localisation": None},
        }
    }  # fmt: skip
    return {"rule": "Tiles are removed in the order of their score.", "shares": shares,
            "n_slides": 9, "n_slides_of": 9, "repeats": 5,
            "methods": {"abmil": {"measures": measures}}}  # fmt: skip
