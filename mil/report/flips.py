"""Tile beside slide: slides that change their answer, mixed slides, and how many tiles it takes.

From ``beside.json``; the flips themselves follow from ``predictions.parquet`` where it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mil.report import curves, tables
from mil.report.explorer import Explorer
from mil.report.inputs import Inputs
from mil.report.names import heading, title
from mil.report.pictures import Picture, ReadTile, read_or_none, thumbnail

__all__ = ["section"]

MAX_STRIPS: Final = 6
_PICTURES: Final = 4
_RIGHT: Final = {"vote": "the vote", "neither": "neither"}
_MIXED: Final = (
    ("heterogeneous", "on heterogeneous slides"),
    ("homogeneous", "on the others"),
    ("difference", "difference"),
)


def section(
    inputs: Inputs, explorer: Explorer | None, read_tile: ReadTile | None
) -> dict[str, Any]:
    """Tables, strips of tiles and the chart of the section.

    Args:
        inputs: The tables of the run.
        explorer: The rows of all slides, for what ``beside.json`` does not say.
        read_tile: Gives the pixels of a tile id; None where there are none.
    """
    found = inputs.beside or {}
    flips = (found.get("flips") or {}).get("slides") or []
    method = found.get("b") or inputs.focus
    seen = found.get("tiles_seen")
    return {
        "known": inputs.beside is not None,
        "method": None if method is None else title(str(method)),
        "table": _flips(flips, str(method)) if flips else _plain(explorer),
        "slides": [str(flip["slide_id"]) for flip in flips],
        "strips": [_strip(flip, read_tile) for flip in flips[:MAX_STRIPS]],
        "n_flips": len(flips),
        "mixed": _mixed(found.get("heterogeneous")),
        "seen": None if not seen else curves.tiles_seen(_shown(inputs, seen["methods"])),
        "seen_table": None if not seen else _seen(seen["methods"]),
        "seen_rule": None if not seen else seen.get("rule"),
    }


def _flips(flips: Sequence[Mapping[str, Any]], method: str) -> tables.Table | None:
    return tables.grid(
        [
            {
                "Slide": str(flip["slide_id"]),
                "True class": flip["label"],
                "Vote": flip["vote"],
                "Vote margin": _number(flip.get("vote_margin")),
                heading(method): flip["predicted"],
                "Probability": _number(flip.get("p")),
                "Right": _RIGHT.get(str(flip.get("right")), title(method)),
                "Tiles": flip.get("n_tiles"),
                "Effective tiles": _number(flip.get("effective_tiles"), 1),
                "Weight of the top tenth": _number(flip.get("top_tenth_share")),
            }
            for flip in flips
        ]
    )


def _plain(explorer: Explorer | None) -> tables.Table | None:
    if explorer is None:
        return None
    return tables.grid(
        [
            {
                "Slide": row["slide_id"],
                "True class": row["label"],
                "Vote": row["vote"],
                "Vote margin": _number(row["vote_share"]),
                heading(explorer.method): row["predicted"],
            }
            for row in explorer.rows
            if "flip" in row["marks"]
        ]
    )


def _strip(flip: Mapping[str, Any], read_tile: ReadTile | None) -> dict[str, Any]:
    ends = {
        end: [_picture(tile, read_tile) for tile in (flip.get(end) or [])[:_PICTURES]]
        for end in ("top", "bottom")
    }
    return {**flip, **ends, "margin": _number(flip.get("vote_margin"))}


def _picture(tile: Mapping[str, Any], read_tile: ReadTile | None) -> Picture:
    rgb = read_or_none(str(tile["tile_id"]), read_tile)
    uri = None if rgb is None else thumbnail(rgb)
    return Picture(uri, f"tile {tile['tile_id']}", (_number(tile.get("score")),))


def _mixed(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not found:
        return None
    accuracy = [
        {"Method": heading(name)}
        | {f"Accuracy {words}": tables.scored(score.get(key) or {}) for key, words in _MIXED}
        for name, score in (found.get("accuracy") or {}).items()
    ]
    slides = [
        {
            "Slide": str(slide["slide_id"]),
            "True class": slide.get("label"),
            "Vote margin": _number(slide.get("vote_margin")),
            "Second class": slide.get("second"),
            "Tiles": slide.get("n_tiles"),
        }
        for slide in found.get("slides") or []
    ]
    return {
        "rule": found.get("rule") or "",
        "n": found.get("n_heterogeneous"),
        "n_others": found.get("n_homogeneous"),
        "accuracy": tables.grid(accuracy),
        "slides": tables.grid(slides),
    }


def _shown(inputs: Inputs, methods: Mapping[str, Any]) -> dict[str, Any]:
    """The vote and the focus: more lines with bars cannot be told apart."""
    chosen = [name for name in methods if name in {"vote", inputs.focus}] or list(methods)[:2]
    return {name: methods[name] for name in chosen}


def _seen(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> tables.Table | None:
    return tables.grid(
        [
            {
                "Method": heading(name),
                "Tiles seen": "all" if point["m"] is None else str(point["m"]),
                "Accuracy": tables.scored(point.get("accuracy") or {}),
                "Minus that with all": tables.scored(point.get("to_all") or {}),
                "Slides seen whole": point.get("n_whole"),
            }
            for name, points in methods.items()
            for point in points
        ]
    )


def _number(value: float | None, digits: int = 2) -> str:
    # Adding 0 takes the sign of what rounds to zero.
    return tables.text(None) if value is None else f"{round(value, digits) + 0:.{digits}f}"
