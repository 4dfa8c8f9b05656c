"""The slide explorer: a row a test slide, and for each what the page shows beside it.

The table stands in the page as it is, so it prints and can be read without scripts. What a row
shows when it is pointed at (its tiles, answers and map) is data that a script fills in as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.evaluate import flipped
from mil.predictions import ends
from mil.report import slide_map
from mil.report.inputs import Inputs, true_probability
from mil.report.names import heading
from mil.report.pictures import ReadTile
from mil.report.thumbnails import Thumbnails, sprite

__all__ = ["Explorer", "explore", "flags"]

N_TILES: Final = 4
"""Tiles at each end of a slide."""
_SPRITES: Final = 1_600_000
"""Characters that the tiles of all slides may take in the page, as base64."""
_MAPS: Final = 1_600_000
"""The same for their maps,"""
_MAP_TILES: Final = 3000
"""and the most tiles that are read for maps."""
_LEAST: Final = 9_000
_MOST: Final = 40_000


@dataclass(frozen=True)
class Explorer:
    """What the section needs.

    Attributes:
        method: Whose answers the table shows.
        rows: A row a slide, ready for the template.
        data: The same slides for the script: answers, tiles, map.
        classes: The classes that occur as labels, for the filter.
        has: Which marks occur: ``flip``, ``heterogeneous``, ``unsure``.
        note: What the pictures leave out, or None.
    """

    method: str
    rows: list[dict[str, Any]]
    data: list[dict[str, Any]]
    classes: list[str]
    has: dict[str, bool]
    note: str | None


def explore(inputs: Inputs, read_tile: ReadTile | None) -> Explorer | None:
    """Rows and data of all test slides; None where no method was scored."""
    if not inputs.methods:
        return None
    method = inputs.focus or ("vote" if "vote" in inputs.methods else inputs.methods[0])
    answers = inputs.slides_of(method)
    marks, about = flags(inputs, method), inputs.slides
    bags = _bags(inputs, method)
    everyone = {name: inputs.slides_of(name) for name in inputs.methods}
    sets = _sets(inputs, method)
    vote = everyone.get("vote")
    p_true = true_probability(answers, inputs.classes)
    rows: list[dict[str, Any]] = []
    data: list[dict[str, Any]] = []
    for place, (slide, answer) in enumerate(zip(answers.index, answers.itertuples(), strict=True)):
        name, known = str(slide), about.loc[str(slide)]
        right = answer.predicted == answer.label
        voted = None if vote is None or slide not in vote.index else vote.loc[slide]
        row: dict[str, Any] = {
            "slide_id": name,
            "label": str(answer.label),
            "predicted": str(answer.predicted),
            "right": bool(right),
            "p_true": None if np.isnan(p_true[place]) else float(p_true[place]),
            "vote": None if voted is None else str(voted["predicted"]),
            "vote_share": None if voted is None else _margin(voted, inputs.classes),
            "n_tiles": None if pd.isna(known["n_tiles"]) else int(known["n_tiles"]),
            "patient": _text(known["patient_id"]),
            "site": _text(known["site_id"]),
            "fold": str(answer.fold),
            "marks": marks.get(name, []),
        }
        rows.append(row)
        data.append(
            row
            | {
                "p": _probabilities(answers.loc[slide], inputs.classes),
                "votes": None if voted is None else _probabilities(voted, inputs.classes),
                "answers": _answers(everyone, slide, inputs.classes),
                "set": sets.get(name),
                **_tiles(bags.get(name)),
            }
        )
    note = _illustrate(inputs, data, bags, read_tile)
    found = {mark for row in rows for mark in row["marks"]}
    return Explorer(
        method=method,
        rows=rows,
        data=data,
        classes=sorted({row["label"] for row in rows}),
        has={mark: mark in found for mark in ("flip", "heterogeneous", "not sure")},
        note=note,
    )


def flags(inputs: Inputs, method: str) -> dict[str, list[str]]:
    """The marks of each slide that has one: ``flip``, ``heterogeneous``, ``not sure``."""
    marks: dict[str, list[str]] = {}
    if "vote" in inputs.methods and method != "vote":
        for slide in flipped(inputs.predictions, "vote", method)["slide_id"]:
            marks.setdefault(str(slide), []).append("flip")
    mixed = (inputs.beside or {}).get("heterogeneous") or {}
    for slide in mixed.get("slides") or []:
        marks.setdefault(str(slide["slide_id"]), []).append("heterogeneous")
    if inputs.answers is not None:
        own = inputs.answers[inputs.answers["method"] == method]
        # Where no threshold could be set every slide is, and the mark would tell none apart.
        sets = ((inputs.calibration or {}).get("conformal") or {}).get(method) or {}
        blind = {fold["fold"] for fold in sets.get("folds") or [] if fold["threshold"] is None}
        own = own[~own["fold"].isin(blind)]
        for slide in own.loc[own["answer"].astype(str) == "not sure", "slide_id"]:
            marks.setdefault(str(slide), []).append("not sure")
    return marks


def _margin(voted: pd.Series, classes: list[str]) -> float:
    """The share of the votes for the first class minus that for the second."""
    second, first = np.sort(voted[[f"p_{name}" for name in classes]].to_numpy(float))[-2:]
    return float(first - second)


def _probabilities(row: pd.Series, classes: list[str]) -> list[float]:
    return [round(float(row[f"p_{name}"]), 4) for name in classes]


def _answers(
    everyone: Mapping[str, pd.DataFrame], slide: object, classes: list[str]
) -> list[dict[str, Any]]:
    found = []
    for name, rows in everyone.items():
        if slide not in rows.index:
            continue
        row = rows.loc[slide]
        predicted, label = str(row["predicted"]), str(row["label"])
        given = float(row[f"p_{predicted}"]) if predicted in classes else None
        found.append(
            {
                "method": heading(name),
                "predicted": predicted,
                "right": predicted == label,
                "p": None if given is None else round(given, 3),
            }
        )
    return found


def _sets(inputs: Inputs, method: str) -> dict[str, list[str]]:
    """The classes that a method cannot rule out, by slide."""
    if inputs.answers is None:
        return {}
    rows = inputs.answers[inputs.answers["method"] == method]
    return {str(row.slide_id): [str(name) for name in row.set] for row in rows.itertuples()}


def _bags(inputs: Inputs, method: str) -> dict[str, pd.DataFrame]:
    """By slide: ``tile_id, score`` and ``measure``, the attention of the method where it has it.

    Elsewhere the probability that the tile alone gives to the answer for its slide.
    """
    bags: dict[str, pd.DataFrame] = {}
    if inputs.tile_predictions is not None:
        predicted = inputs.slides_of(method)["predicted"].astype(str)
        for slide, rows in inputs.tile_predictions.groupby("slide_id"):
            column = f"p_{predicted.get(slide)}"
            if column in rows.columns:
                named = rows[["tile_id", column]].rename(columns={column: "score"})
                bags[str(slide)] = named.assign(measure="probability")
    if inputs.attention is not None:
        own = inputs.attention[inputs.attention["method"] == method]
        for slide, rows in own.groupby("slide_id"):
            named = rows[["tile_id", "attention"]].rename(columns={"attention": "score"})
            bags[str(slide)] = named.assign(measure="attention")
    return bags


def _tiles(bag: pd.DataFrame | None) -> dict[str, Any]:
    """The tiles at both ends, the top first, each from its extreme inwards."""
    if bag is None:
        return {"measure": None, "tiles": []}
    chosen = ends(bag, "score", N_TILES)
    chosen = pd.concat([chosen[chosen["end"] == end] for end in ("top", "bottom")])
    measure = str(bag["measure"].iloc[0])
    tiles = [
        {"tile": str(row.tile_id), "end": str(row.end), "score": round(float(row.score), 4)}
        for row in chosen.itertuples()
    ]
    return {"measure": measure, "n_scored": len(bag), "tiles": tiles}


def _illustrate(
    inputs: Inputs,
    data: list[dict[str, Any]],
    bags: Mapping[str, pd.DataFrame],
    read_tile: ReadTile | None,
) -> str | None:
    """Add pictures and maps while there is room, to wrong and marked slides first."""
    places = {} if inputs.tiles is None else dict(iter(inputs.tiles.groupby("slide_id")))
    order = sorted(data, key=lambda slide: (slide["right"], not slide["marks"]))
    left = {"sprites": _SPRITES, "maps": _MAPS, "tiles": _MAP_TILES}
    share = {name: min(_MOST, max(_LEAST, left[name] // len(data))) for name in ("sprites", "maps")}
    n_without = 0
    for slide in order:
        name = slide["slide_id"]
        thumbnails = Thumbnails(read_tile)
        shown = [tile["tile"] for tile in slide["tiles"]]
        if read_tile is not None and shown:
            picture = sprite(thumbnails, shown, share["sprites"])
            size = len(picture["uri"]) if picture else 0
            if size <= left["sprites"]:
                slide["sprite"] = picture
                left["sprites"] -= size
            else:
                n_without += 1
        found = slide_map.draw(
            places.get(name),
            bags.get(name),
            thumbnails,
            n_chars=min(share["maps"], left["maps"]),
            n_tiles=left["tiles"],
        )
        slide["map"] = found
        if "uri" in found:
            left["maps"] -= len(found["uri"])
            left["tiles"] -= len(found["boxes"])
    if not n_without:
        return None
    return (
        f"{n_without} of {len(data)} slides are listed without pictures, to keep the page small; "
        "wrong answers, flips and doubtful slides have them first."
    )


def _text(value: object) -> str | None:
    return None if pd.isna(value) else str(value)
