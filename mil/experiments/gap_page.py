"""What is made of ``gap.json``: a table of everything, a page to read, sentences and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mil.experiments.gap_picture import NAMES, picture, points
from mil.report.names import title
from mil.report.templates import inline, write_page
from splits.artifacts import atomic, read_json, write_csv

__all__ = ["gap_rows", "null_rows", "score_rows", "sentences", "tidy", "write"]

_METRICS: Final = ("accuracy", "balanced_accuracy", "auroc")
_CHANCE: Final = 0.5
_WHY: Final = {
    ("tile", "slide"): "tiles of one slide on both sides",
    ("slide", "patient"): "slides of one patient on both sides",
    ("tile", "patient"): "tiles of one patient on both sides",
    ("patient", "site"): "patients of one site on both sides",
}

Result = Mapping[str, Any]


def write(out: Path) -> Path:
    """Write ``gap.csv``, ``gap.svg`` and ``gap.html`` from ``gap.json``; the path of the page."""
    result = read_json(out / "gap.json")
    write_csv(out / "gap.csv", tidy(result))
    drawn = picture(result)
    with atomic(out / "gap.svg") as temporary:
        temporary.write_text(drawn + "\n", encoding="utf-8")
    headline, *more = sentences(result)
    context = {
        "name": out.resolve().name,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "style": inline("style.css"),
        "picture": drawn,
        "headline": headline,
        "sentences": more,
        "result": result,
        "names": NAMES,
        "scores": score_rows(result),
        "gaps": gap_rows(result),
        "null": null_rows(result),
        "seeds": _seed_rows(result),
    }
    return write_page(out / "gap.html", "gap.html.j2", context)


def sentences(result: Result) -> list[str]:
    """The verdict first, then what it is made of, and whether shuffled labels are at chance."""
    run = [scheme["scheme"] for scheme in result["schemes"] if scheme["run"]]
    by_name = {scheme["scheme"]: scheme for scheme in result["schemes"]}
    tile, vote = (_gap(result, "tile", "patient", method) for method in (None, "vote"))
    values = [100 * by_name[s]["tile"]["accuracy"]["value"] for s in ("tile", "patient")]
    shares = f"{values[0]:.1f} % of single tiles are right, and {values[1]:.1f} % when patients"
    said = [
        f"Dealt at random, {shares} are kept apart: a leakage gap of {_points(tile)}."
        if tile["ci_low"] > 0
        else f"No leakage gap can be shown. Dealt at random, {shares} are kept apart: "
        f"{_points(tile)}."
    ]
    said.append(f"Of slides by vote the gap is {_points(vote)}.")
    if len(run) > 2 and tile["ci_low"] > 0:
        steps = [(a, b, _gap(result, a, b, None)) for a, b in pairwise(run)]
        parts = [f"{_points_cell(gap)} from {_WHY[a, b]}" for a, b, gap in steps]
        said.append(f"In single tiles, step by step, in points: {'; '.join(parts)}.")
    said += [_null_sentence(scheme, of) for scheme, of in result["null"]["schemes"].items()]
    return said


def _null_sentence(scheme: str, scores: Result) -> str:
    entry = scores["tile"].get("auroc")
    if entry is None:
        return f"With shuffled labels and {NAMES[scheme]} there is no AUROC: a class is absent."
    value, low, high = (entry[name] for name in ("value", "ci_low", "ci_high"))
    # All draws alike, as where every tile is right: the value is its own interval.
    low, high = (value, value) if low is None else (low, high)
    chance = low <= _CHANCE <= high
    value = f"{value:.3f} ({low:.3f} to {high:.3f})"
    if scheme == "tile":
        return (
            "With labels shuffled over patients, so that there is nothing to learn, single tiles "
            f"of a random split have an AUROC of {value}, "
            + ("which shows no leak." if chance else "which is leakage and nothing else.")
        )
    if chance:
        return f"With patients kept apart it is {value}, which contains 0.5 as it has to."
    return (
        f"With patients kept apart it is {value}, which does not contain 0.5: something is wrong "
        "with the cohort or the run, or this is the one time in twenty."
    )


def _gap(result: Result, a: str, b: str, method: str | None, metric: str = "accuracy") -> Any:
    return next(
        gap
        for gap in result["gaps"]
        if (gap["from"], gap["to"], gap["method"], gap["metric"]) == (a, b, method, metric)
    )


def _points(gap: Result) -> str:
    low, high = points(gap["ci_low"]), points(gap["ci_high"])
    return f"{points(gap['difference'])} points (95 % {low} to {high})"


def score_rows(result: Result) -> list[list[str]]:
    """Head and rows: every scheme with its audit and the accuracy of tiles and methods."""
    methods = list(next(s for s in result["schemes"] if s["run"])["slide"])
    rows = [["split", "audit", "single tiles", *map(title, methods)]]
    for scheme in result["schemes"]:
        name = NAMES[scheme["scheme"]]
        if not scheme["run"]:
            same = scheme["same_as"]
            why = f"the same as {NAMES[same]}" if same else "not run"
            rows.append([name, why, *[""] * (len(methods) + 1)])
            continue
        entries = [scheme["tile"], *(scheme["slide"][method] for method in methods)]
        rows.append([name, scheme["audit"]["verdict"], *(_cell(e["accuracy"]) for e in entries)])
    return rows


def gap_rows(result: Result) -> list[list[str]]:
    """Head and rows: every step in points, for tiles and methods, and the share of the whole."""
    methods = [None, *next(s for s in result["schemes"] if s["run"])["slide"]]
    rows = [
        [
            "gap in accuracy, points",
            "single tiles",
            "share of it",
            *map(title, filter(None, methods)),
        ]
    ]
    pairs = list(dict.fromkeys((gap["from"], gap["to"]) for gap in result["gaps"]))
    for a, b in pairs:
        found = [_gap(result, a, b, method) for method in methods]
        share = found[0]["share"]
        said = "" if share is None else f"{100 * share:.0f} %"
        cells = [_points_cell(gap) for gap in found]
        rows.append([f"{NAMES[a]} over {NAMES[b]}", cells[0], said, *cells[1:]])
    return rows


def null_rows(result: Result) -> list[list[str]]:
    """Head and rows: the area under the curve where labels say nothing."""
    schemes = result["null"]["schemes"]
    if not schemes:
        return []
    methods = list(next(iter(schemes.values()))["slide"])
    rows = [["AUROC with shuffled labels", "single tiles", *map(title, methods)]]
    for name, of in schemes.items():
        entries = [of["tile"], *(of["slide"][method] for method in methods)]
        rows.append([NAMES[name], *(_cell(e.get("auroc")) for e in entries)])
    return rows


def _seed_rows(result: Result) -> list[list[str]]:
    rows = [["split", "answer", *(f"seed {seed}" for seed in result["seeds"])]]
    for scheme in (s for s in result["schemes"] if s["run"]):
        for name, entry in [("single tiles", scheme["tile"]), *scheme["slide"].items()]:
            values = [f"{value:.3f}" for value in entry["accuracy"]["by_seed"]]
            rows.append([NAMES[scheme["scheme"]], name, *values])
    return rows


def _cell(entry: Result | None) -> str:
    if entry is None:
        return "not defined"
    if entry["ci_low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['ci_low']:.2f} to {entry['ci_high']:.2f})"


def _points_cell(gap: Result) -> str:
    low, high = points(gap["ci_low"]), points(gap["ci_high"])
    return f"{points(gap['difference'])} ({low} to {high})"


def tidy(result: Result) -> pd.DataFrame:
    """Every number in rows: ``labels, what, from, to, level, method, metric, value, …``.

    ``what`` is ``score`` (of the scheme ``from``) or ``gap``; ``by_seed`` joins the values of the
    seeds by blanks.
    """
    rows: list[dict[str, Any]] = []

    def add(labels: str, scheme: str, scores: Result) -> None:
        for level, method, entry in _entries(scores):
            where = {"labels": labels, "what": "score", "from": scheme, "to": ""}
            rows.extend(
                {**where, "level": level, "method": method, "metric": metric, **entry[metric]}
                for metric in _METRICS
                if metric in entry
            )

    for scheme in result["schemes"]:
        if scheme["run"]:
            add("true", scheme["scheme"], scheme)
    for name, scores in result["null"]["schemes"].items():
        add("shuffled", name, scores)
    for gap in result["gaps"]:
        own = {k: v for k, v in gap.items() if k not in ("difference", "share")}
        about = {"labels": "true", "what": "gap", "value": gap["difference"]}
        rows.append({**about, **own, "method": gap["method"] or ""})
    table = pd.DataFrame(rows)
    seeds = [" ".join(f"{value:.6g}" for value in values) for values in table["by_seed"]]
    columns = ["labels", "what", "from", "to", "level", "method", "metric", "value"]
    return table.assign(by_seed=seeds)[[*columns, "ci_low", "ci_high", "p", "by_seed"]]


def _entries(scores: Result) -> Sequence[tuple[str, str, Result]]:
    return [("tile", "", scores["tile"])] + [
        ("slide", method, entry) for method, entry in scores["slide"].items()
    ]
