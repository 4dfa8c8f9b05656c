"""The page and the terminal table of ``slidewise channels``, from ``channels.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import pandas as pd
from PIL import Image

from mil import settings
from mil.config import Config
from mil.experiments.channels_compare import METRICS
from mil.experiments.probe import KINDS
from mil.pixels import new_pixels
from mil.predictions import UNTRAINED
from mil.prepare import data_root, read_tiles
from mil.report.names import heading, title
from mil.report.pictures import jpeg_uri
from mil.report.preview import composed
from mil.report.templates import inline, write_page
from mil.report.verdict import percent
from mil.seeds import generator
from mil.stain.channels import CHANNELS
from splits.artifacts import read_table

__all__ = ["focus_of", "table_of", "write_channels"]

_PRIMARY: Final = ("vote", "accuracy")
"""The column that the verdict rests on, chosen before any result was seen."""
_ALPHA: Final = 0.05
_N_SLIDES: Final = 4
_SIDE_PX: Final = 112
_DASH: Final = "\u2013"
Result = Mapping[str, Any]


def focus_of(levels: Sequence[str]) -> str | None:
    """The trained method that is shown beside tiles and vote: ``abmil``, else the first."""
    trained = [level for level in levels if level != "tile" and level not in UNTRAINED]
    return "abmil" if "abmil" in trained else next(iter(trained), None)


def table_of(result: Result) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows for the terminal."""
    shown = _shown(result)
    kinds = [kind for kind in KINDS if any("value" in row["probe"][kind] for row in result["rows"])]
    columns = ["encoder sees", *(f"{title(level)}: accuracy" for level in shown)]
    columns += ["vote: AUROC", "vote minus reference (p, Holm)"]
    columns += [f"{kind} read off" for kind in kinds]
    against = _against(result, *_PRIMARY)
    rows = []
    for row in result["rows"]:
        cells = [_score(row["scores"][level]["accuracy"]) for level in shown]
        cells.append(_score(row["scores"]["vote"]["auroc"]))
        is_reference = row["row"] == result["reference"]
        cells.append("reference" if is_reference else _difference(against.get(row["row"])))
        cells += [_number(row["probe"][kind].get("value")) for kind in kinds]
        rows.append([row["words"], *cells])
    alone = ", ".join(
        f"{kind} {result['rows'][0]['probe'][kind]['class_alone']:.3f}" for kind in kinds
    )
    n = result["n"]
    words = (
        f"Channels on one split: {n['slides']} slides, {n['patients']} patients, one seed (95 %)."
        + (f" The class alone gives: {alone}." if alone else "")
    )
    return words, columns, rows


def write_channels(out: Path, result: Result, config: Config) -> Path:
    """Write ``channels.html``: one file, no network.

    Args:
        out: Folder of the experiment, for the tiles and stains of its rows.
        result: Content of ``channels.json``.
        config: Of the experiment.
    """
    shown = _shown(result)
    names = {row["row"]: row["words"] for row in result["rows"]}
    context = {
        "name": out.resolve().name,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "style": inline("style.css", "channels.css"),
        "headline": _headline(result),
        "points": _points(result),
        "cautions": _cautions(result),
        "facts": {
            **{unit: result["n"][unit] for unit in ("tiles", "slides", "patients", "sites")},
            "encoder": f"{config.encoder.name}, {result['probe']['encoder']}",
            "seed": result["seed"],
        },
        "names": names,
        "reference": names.get(result["reference"]),
        "tables": {metric: _table(result, metric) for metric in METRICS},
        "paired": _paired(result, shown),
        "probes": _probes(result),
        "probe": result["probe"],
        "separation": _separated(result),
        "pictures": _pictures(out, result, config),
        "not_run": result["not_run"],
        "looks": max(row["looks"] for row in result["rows"]),
        "cohort": result["cohort"],
    }
    return write_page(out / "channels.html", "channels.html.j2", context)


def _shown(result: Result) -> list[str]:
    focus = focus_of(result["levels"])
    return ["tile", "vote", *([focus] if focus else [])]


def _against(result: Result, level: str, metric: str) -> dict[str, Result]:
    return {
        pair["a"]: pair
        for pair in result["paired"]
        if (pair["b"], pair["level"], pair["metric"]) == (result["reference"], level, metric)
    }


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return _DASH if value is None else f"{value:+.3f}".replace("-", "\u2212")


def _bounds(score: Result, write: Any = _number) -> str:
    low, high = score.get("ci_low"), score.get("ci_high")
    return "" if low is None or high is None else f"{write(low)} to {write(high)}"


def _score(score: Result) -> str:
    bounds = _bounds(score)
    return _number(score["value"]) + (f" ({bounds})" if bounds else "")


def _difference(pair: Result | None) -> str:
    if pair is None or pair["difference"] is None:
        return _DASH
    return f"{_signed(pair['difference'])} ({pair['p_holm']:.2g})"


def _headline(result: Result) -> str:
    against = _against(result, *_PRIMARY)
    tested = {name: pair for name, pair in against.items() if pair["p_holm"] is not None}
    words = {row["row"]: row["words"] for row in result["rows"]}
    if not tested:
        return "Nothing was compared with H+E: it could not be run, or has no such score."
    told = [name for name, pair in tested.items() if pair["p_holm"] < _ALPHA]
    n_slides = result["n"]["slides"]
    if not told:
        far = max(tested, key=lambda name: abs(tested[name]["difference"]))
        gap = tested[far]
        return (
            f"On these {n_slides} slides none of {len(tested)} other inputs can be told from H+E "
            "with vectors a slide by the accuracy of the vote. The furthest, "
            f"{words[far]}, differs by {100 * gap['difference']:+.0f} points{_points_of(gap)}."
        ).replace(" -", " \u2212")
    listed = "; ".join(
        f"{words[name]}: {100 * tested[name]['difference']:+.0f} points" for name in told
    )
    return (
        f"By the accuracy of the vote, {len(told)} of {len(tested)} other inputs differ from H+E "
        f"with vectors a slide beyond chance. {listed}."
    ).replace(" -", " \u2212")


def _points(result: Result) -> list[str]:
    """What separation changes, one sentence a kind of name."""
    points = []
    separation = result["separation"]
    probes = {row["row"]: row["probe"] for row in result["rows"]}
    for kind in KINDS if separation else ():
        before, after = (probes[separation[when]][kind] for when in ("before", "after"))
        gap = separation["difference"][kind]
        if gap is None:
            continue
        bounds = "" if gap["ci_low"] is None else _points_of(gap)
        clear = bounds and (gap["ci_low"] > 0 or gap["ci_high"] < 0)
        points.append(
            f"The {kind} of a {'tile' if kind == 'slide' else 'new patient'} can be read off RGB "
            f"for {percent(before['value'])} and off H+E for {percent(after['value'])} "
            f"({'the' if clear else 'no clear'} difference: {100 * gap['value']:+.0f} points"
            f"{bounds}; the class alone gives {percent(after['class_alone'])})."
        )
    return [point.replace(" -", " \u2212") for point in points]


def _points_of(gap: Result) -> str:
    low, high = gap["ci_low"], gap["ci_high"]
    return f", 95\u00a0% CI {100 * low:+.0f} to {100 * high:+.0f}"


def _cautions(result: Result) -> list[str]:
    found = [
        "One seed: what another training of the same row would give is not in these intervals.",
        *(f"{note[:1].upper()}{note[1:]}." for note in result["probe"]["notes"]),
    ]
    if result["n"]["patients"] < 100:
        found.append(
            f"{result['n']['patients']} patients: only large differences can show, and where none "
            "shows there may still be one."
        )
    return found


def _table(result: Result, metric: str) -> dict[str, Any]:
    """One row an input, one cell a level: value, interval, and places on a line from 0 to 1."""
    chosen = next((r for r in result["rows"] if r["row"] == result["reference"]), None)
    against = {level: _against(result, level, metric) for level in result["levels"]}
    rows = []
    for row in result["rows"]:
        cells = []
        for level in result["levels"]:
            score = row["scores"][level][metric]
            value, low, high = (score[name] for name in ("value", "ci_low", "ci_high"))
            pair = against[level].get(row["row"])
            drawn = value is not None
            cells.append(
                {
                    "value": _number(value),
                    "interval": _bounds(score),
                    "at": _place(value) if drawn else None,
                    "low": _place(value if low is None else low) if drawn else None,
                    "high": _place(value if high is None else high) if drawn else None,
                    "guide": None
                    if chosen is None
                    else _place(chosen["scores"][level][metric]["value"]),
                    "differs": pair is not None
                    and pair["p_holm"] is not None
                    and pair["p_holm"] < _ALPHA,
                }
            )
        reference = row["row"] == result["reference"]
        rows.append({"name": row["words"], "reference": reference, "cells": cells})
    return {"columns": [heading(level) for level in result["levels"]], "rows": rows}


def _place(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _paired(result: Result, shown: Sequence[str]) -> list[dict[str, Any]]:
    words = {row["row"]: row["words"] for row in result["rows"]}
    found = []
    for level in shown:
        rows = [
            {
                "pair": f"{words[pair['a']]} minus {words[pair['b']]}",
                "difference": _signed(pair["difference"]),
                "interval": _bounds(pair, _signed),
                "p": _DASH if pair["p"] is None else f"{pair['p']:.2g}",
                "p_holm": _DASH if pair["p_holm"] is None else f"{pair['p_holm']:.2g}",
            }
            for pair in result["paired"]
            if (pair["level"], pair["metric"]) == (level, "accuracy")
        ]
        found.append({"level": heading(level), "rows": rows})
    return found


def _probes(result: Result) -> list[dict[str, Any]]:
    """One table a kind: a bar from nothing to all, with what the class alone gives."""
    found = []
    for kind in KINDS:
        rows = [(row["words"], row["probe"][kind]) for row in result["rows"]]
        measured = [(words, values) for words, values in rows if "value" in values]
        out = result["probe"]["left_out"][kind]
        found.append(
            {
                "kind": kind,
                "note": rows[0][1].get("note"),
                "left_out": out,
                "n": measured[0][1] if measured else None,
                "rows": [
                    {
                        "words": words,
                        "value": values["value"],
                        "alone": values["class_alone"],
                        "shown": _score(values),
                        "chance": _number(values["chance"]),
                        "class_alone": _number(values["class_alone"]),
                        "p": f"{values['p']:.2g}",
                    }
                    for words, values in measured
                ],
            }
        )
    return found


def _separated(result: Result) -> list[dict[str, str]]:
    if result["separation"] is None:
        return []
    return [
        {"kind": kind, "difference": _signed(gap["value"]), "interval": _bounds(gap, _signed)}
        for kind, gap in result["separation"]["difference"].items()
        if gap is not None
    ]


def _pictures(out: Path, result: Result, config: Config) -> list[dict[str, Any]]:
    """What each row shows its encoder: a tile of some slides, of as many classes as there are."""
    table = read_tiles(out / "cohort")
    chosen = _chosen(table, config.seed)
    slides = table[table["slide_id"].isin(chosen["slide_id"])].reset_index(drop=True)
    rows = pd.Index(slides["tile_id"]).get_indexer(chosen["tile_id"])
    found = []
    for row in result["rows"]:
        run = out / row["row"]
        own = settings.changed(
            config, encoder={"channels": row["channels"]}, stain={"method": row["stain"]}
        )
        stains = None if row["stain"] == "none" else read_table(run / "stain.parquet")
        root = data_root(out / "cohort", config)
        seen = new_pixels(root, slides, stains, own)[rows]
        names = list(CHANNELS[row["channels"]])
        images = [
            Image.fromarray(composed(tile[: len(names)], names)).resize(
                (_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS
            )
            for tile in seen
        ]
        found.append({"words": row["words"], "uris": [jpeg_uri(image) for image in images]})
    titles = [f"{row.slide_id} ({row.slide_label})" for row in chosen.itertuples(index=False)]
    return [{"titles": titles, "rows": found}]


def _chosen(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    random = generator(seed, "channels", "pictures")
    slides = table.drop_duplicates("slide_id").sort_values("slide_id")
    slides = slides.iloc[random.permutation(len(slides))]
    # The first of each class before the second of any.
    turn = slides.groupby("slide_label").cumcount()
    names = slides.assign(turn=turn).sort_values("turn", kind="stable")["slide_id"][:_N_SLIDES]
    rows = [
        random.choice(table.index[(table["slide_id"] == name).to_numpy(dtype=bool)])
        for name in sorted(names)
    ]
    return table.loc[rows].reset_index(drop=True)
