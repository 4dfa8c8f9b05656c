"""Tissue types on the page: examples of each, and how the parts of the split compare."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from mil.report.inputs import Inputs
from mil.report.pictures import Picture, ReadTile, read_or_none, thumbnail
from mil.tissue import BACKGROUND

__all__ = ["examples", "section", "shares"]

N_EXAMPLES: Final = 8
_TINTED: Final = 10.0  # points of deviation that are drawn in full colour
_MOST: Final = {
    "gaps_large": "largest gaps",
    "gaps_small": "most small gaps",
    "eosin_alone": "most eosin without nuclei",
    "alignment": "most aligned",
    "nuclei": "most nuclei",
    "nuclei_9px": "largest nuclei or clumps",
}


def section(inputs: Inputs, read_tile: ReadTile | None) -> dict[str, Any] | None:
    """What the page shows of ``amounts.parquet`` and ``tissue.parquet``; None without the first.

    Returns:
        ``types`` (one record each, empty where only stain was balanced) and ``tables`` (of
        :func:`shares`, tissue and stain).
    """
    if inputs.amounts is None or inputs.tiles is None:
        return None
    kinds = (("tissue", "tiles of each tissue type"), ("stain", "slides of each stain bin"))
    tables = [
        {"caption": f"Share of the {what}, in points more or less than in the whole", **table}
        for kind, what in kinds
        if (table := shares(inputs.amounts, inputs.assignment, f"{kind}:")) is not None
    ]
    has_types = inputs.tissue is not None and any(
        name.startswith("tissue:") for name in inputs.amounts
    )
    return {"types": _types(inputs, read_tile) if has_types else [], "tables": tables}


def shares(
    amounts: pd.DataFrame, assignment: pd.DataFrame | None, prefix: str
) -> dict[str, Any] | None:
    """Share of each amount in the whole and in parts of the split.

    Args:
        amounts: ``slide_id`` and the columns of :func:`mil.tissue.amounts`.
        assignment: ``slide_id, fold, part``; where there is one fold all its parts are compared,
            otherwise the test part of each.
        prefix: Which columns, such as ``"tissue:"``; a share is one of the sum of ``n`` (tiles, or
            slides for ``"stain:"``).

    Returns:
        ``columns``, ``rows`` (``name, n, share, cells``) and ``largest`` deviation in points; None
        where there are no such columns.
    """
    table = amounts.set_index("slide_id")
    table = table[[name for name in table if name.startswith(prefix)]]
    if table.empty or not table.shape[1]:
        return None
    parts = {} if assignment is None else _parts(assignment)
    size = pd.Series(1, index=table.index) if prefix == "stain:" else table.sum(axis=1)
    whole = 100 * table.sum() / size.sum()
    deviations = {}
    for name, slides in parts.items():
        inside = table.index.isin(slides)
        deviations[name] = 100 * table[inside].sum() / max(size[inside].sum(), 1) - whole
    rows = []
    for column in table:
        cells = [
            {
                "share": f"{whole[column] + found[column]:.1f}",
                "off": f"{round(found[column], 1) + 0.0:+.1f}",
                "tint": round(min(abs(found[column]) / _TINTED, 1.0), 3),
                "more": bool(found[column] > 0),
            }
            for found in deviations.values()
        ]
        name, n = column.removeprefix(prefix), int(table[column].sum())
        rows.append({"name": name, "n": n, "share": f"{whole[column]:.1f}", "cells": cells})
    largest = max((float(found.abs().max()) for found in deviations.values()), default=0.0)
    return {"columns": list(parts), "rows": rows, "largest": f"{largest:.1f}"}


def examples(tiles: pd.DataFrame, n: int = N_EXAMPLES) -> pd.DataFrame:
    """``n`` tiles of one type, from as many patients and slides as there are.

    Of each patient the tile nearest to the centre of the type; of these, tiles spread from the most
    to the least typical patient, so that a loose type is seen to be one.

    Args:
        tiles: ``tile_id, slide_id, patient_id, distance`` of the tiles of the type.
        n: How many; fewer where there are fewer tiles.
    """
    ordered = tiles.sort_values(["distance", "tile_id"])
    again = [ordered.groupby(unit, dropna=False).cumcount() for unit in ("slide_id", "patient_id")]
    rank = ordered.assign(_slide=again[0], _patient=again[1])
    first = ordered[rank["_patient"] == 0]
    if len(first) >= n:
        return first.iloc[np.round(np.linspace(0, len(first) - 1, n)).astype(int)]
    return ordered.loc[rank.sort_values(["_slide", "_patient"], kind="stable").index[:n]]


def _parts(assignment: pd.DataFrame) -> dict[str, set[str]]:
    if assignment["fold"].nunique() > 1:
        tested = assignment[assignment["part"] == "test"]
        return {f"fold {fold}": set(rows["slide_id"]) for fold, rows in tested.groupby("fold")}
    by_part = assignment.groupby("part")["slide_id"]
    return {part: set(by_part.get_group(part)) for part in ("train", "val", "test")}


def _types(inputs: Inputs, read_tile: ReadTile | None) -> list[dict[str, Any]]:
    found, tiles = inputs.tissue, inputs.tiles
    if found is None or tiles is None:
        return []
    columns = ["tile_id", "slide_id", "patient_id", "slide_label"]
    table = found.merge(tiles[columns], on="tile_id")
    means = table[table["tissue"] != BACKGROUND].groupby("tissue")[list(_MOST)].mean()
    most = means.idxmax() if len(means) > 1 else pd.Series(dtype="object")
    records = []
    for name, rows in table.groupby("tissue", sort=True):
        words = [_MOST[feature] for feature, of in most.items() if of == name]
        per_slide = rows["slide_id"].value_counts()
        n_slides = len(per_slide)
        records.append(
            {
                "name": name,
                "words": ", ".join(words),
                "n_tiles": len(rows),
                "n_slides": n_slides,
                "n_patients": rows["patient_id"].nunique(),
                "in_one_slide": f"{100 * per_slide.max() / len(rows):.0f}",
                "nuclei": f"{100 * rows['nuclei'].mean():.0f}",
                "gaps": f"{100 * (rows['gaps_large'] + rows['gaps_small']).mean():.0f}",
                "pictures": [_picture(row, read_tile) for row in examples(rows).itertuples()],
            }
        )
    return records


def _picture(row: Any, read_tile: ReadTile | None) -> Picture:
    rgb = read_or_none(str(row.tile_id), read_tile)
    uri = None if rgb is None else thumbnail(rgb)
    return Picture(uri, f"tile {row.tile_id} of slide {row.slide_id}", (str(row.slide_label),))
