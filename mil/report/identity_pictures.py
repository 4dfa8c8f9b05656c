"""What the identity page draws: suspected pairs of ids, and components as mosaics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.report.mosaics import Arrangement, Cell, Drawing, arrange, draw
from mil.report.pictures import ReadTile
from splits.content.links import KINDS, Links

__all__ = ["KIND_WORDS", "MAX_SUSPECTS", "MAX_TILES", "Suspect", "mosaics", "suspects"]

MAX_TILES: Final = 1500
"""The most tiles that are read for one page, whatever the size of the run."""
MAX_SUSPECTS: Final = 12
MAX_MOSAICS: Final = 24
KIND_WORDS: Final = {
    "identical": ("identical pair", "identical pairs"),
    "turned": ("turned copy", "turned copies"),
    "duplicate": ("altered copy", "altered copies"),
    "overlap": ("overlap", "overlaps"),
    "seam": ("seam", "seams"),
}
_ENOUGH: Final = 100
"""Tiles that a mosaic should be given before more mosaics are drawn."""
_PAIR_PX: Final = 220
_PAIR_GAP: Final = 1.06
_BADGE_PX: Final = 15
_TICK_PX: Final = 14
_LOOK: Final = {
    "seam": "Does the tissue run on across the marked line?",
    "overlap": "Tile 2 lies over tile 1, between the marks: does the tissue run on around it?",
    "copy": "Tile 2 is turned as the pixels say: do both show one tissue?",
    "plain": "Side by side, as they are stored: do both show one tissue?",
}


@dataclass(frozen=True)
class Suspect:
    """Two tiles of different ids that show one tissue.

    Attributes:
        tiles: Their ids.
        look: What to look for.
        drawing: Both tiles as their link places them; None where nothing reads tiles.
        badges: Centre of the number of each tile, in px of the drawing.
        ticks: SVG path of the marks at both ends of a seam, or around the second of two tiles that
            overlap; empty where they lie apart.
    """

    tiles: tuple[str, str]
    look: str
    drawing: Drawing | None
    badges: tuple[tuple[float, float], ...] = ()
    ticks: str = ""


@dataclass(frozen=True)
class _Place:
    """How a second tile lies in the frame of the first; without a link, nothing is known."""

    kind: str = ""
    turn: int = 0
    x: float = float("nan")
    y: float = float("nan")

    @property
    def look(self) -> str:
        if 0.2 < np.hypot(self.x, self.y) < 1.5:
            return "seam" if self.kind == "seam" else "overlap"
        return "copy" if self.turn else "plain"


def suspects(
    pairs: Sequence[Sequence[tuple[str, str]]],
    links: pd.DataFrame | None,
    read_tile: ReadTile | None,
) -> list[Suspect]:
    """Draw one pair of tiles of each entry: one whose place to each other is known, if any is.

    Args:
        pairs: Candidates of each picture, at least one.
        links: ``links.parquet``.
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id.
    """
    places = _places([pair for candidates in pairs for pair in candidates], links)
    drawn = []
    for candidates in pairs:
        pair = next((pair for pair in candidates if pair in places), candidates[0])
        drawn.append(_suspect(pair, places.get(pair, _Place()), read_tile))
    return drawn


def _places(
    pairs: Sequence[tuple[str, str]], links: pd.DataFrame | None
) -> dict[tuple[str, str], _Place]:
    """The place that the surest link of each pair gives, where one does."""
    if links is None:
        return {}
    names = {name for pair in pairs for name in pair}
    rows = links[links["tile_a"].isin(names) & links["tile_b"].isin(names) & (links["turn"] >= 0)]
    wanted = set(pairs)
    found: dict[tuple[str, str], _Place] = {}
    for row in sorted(rows.to_dict("records"), key=lambda row: KINDS.index(str(row["kind"]))):
        # `Links.make` turns the place of a pair that comes with its larger row number first.
        for pair, order in (((row["tile_a"], row["tile_b"]), (0, 1)),
                            ((row["tile_b"], row["tile_a"]), (1, 0))):  # fmt: skip
            if pair in wanted and pair not in found:
                offset = [[row["dx"], row["dy"]]]
                link = Links.make(str(row["kind"]), [order], [1.0], [row["turn"]], offset)
                x, y = (float(value) for value in link.offset[0])
                found[pair] = _Place(str(row["kind"]), int(link.turn[0]), x, y)
    return found


def _suspect(pair: tuple[str, str], place: _Place, read_tile: ReadTile | None) -> Suspect:
    look = place.look
    if read_tile is None:
        return Suspect(pair, "", None)
    x, y = (place.x, place.y) if look in {"seam", "overlap"} else (_PAIR_GAP, 0.0)
    cells = [Cell(pair[0], 0.0, 0.0), Cell(pair[1], x, y, place.turn)]
    drawing = draw(cells, read_tile, tile_px=_PAIR_PX, mosaic_px=round(2.1 * _PAIR_PX))
    first, second = drawing.boxes
    right, down = second[0] - first[0], second[1] - first[1]
    badges = (_badge(first, -right, -down), _badge(second, right, down))
    marks = {"seam": _seam_marks(first, second), "overlap": _corner_marks(second)}
    return Suspect(pair, _LOOK[look], drawing, badges, marks.get(look, ""))


_Box = tuple[int, int, int, int]


def _badge(box: _Box, right: int, down: int) -> tuple[float, float]:
    """The corner of a box towards one side; the upper left one where the sides are even."""
    left, top, width, height = box
    x = left + width - _BADGE_PX if right > 0 else left + _BADGE_PX
    return x, top + height - _BADGE_PX if down > 0 else top + _BADGE_PX


def _seam_marks(first: _Box, second: _Box) -> str:
    """Marks at both ends of the line where two boxes meet."""
    (left, top, width, height), (left_2, top_2, _, _) = first, second
    low_x, high_x = max(left, left_2), min(left, left_2) + width
    low_y, high_y = max(top, top_2), min(top, top_2) + height
    if abs(left_2 - left) >= abs(top_2 - top):
        return f"M{low_x} {low_y}v{_TICK_PX}M{low_x} {high_y}v{-_TICK_PX}"
    return f"M{low_x} {low_y}h{_TICK_PX}M{high_x} {low_y}h{-_TICK_PX}"


def _corner_marks(box: _Box) -> str:
    left, top, width, height = box
    sides = [(left, _TICK_PX), (left + width, -_TICK_PX)]
    ends = [(top, _TICK_PX), (top + height, -_TICK_PX)]
    return "".join(f"M{x} {y + down}V{y}H{x + right}" for x, right in sides for y, down in ends)


def mosaics(
    tiles: pd.DataFrame,
    layout: pd.DataFrame | None,
    links: pd.DataFrame | None,
    read_tile: ReadTile | None,
) -> dict[str, Any]:
    """The largest components and a spread of the others, each as one picture.

    Without a layout, slides whose names give positions are drawn from these.

    Returns:
        ``rows``, one a mosaic; ``by_name``, whether names gave the positions; ``n_several``, how
        many components hold several tiles.
    """
    places = _from_names(tiles) if layout is None else layout
    sizes = places["component"].value_counts()
    sizes = sizes[sizes > 1].sort_index().sort_values(ascending=False, kind="stable")
    rows: list[dict[str, Any]] = []
    if read_tile is not None and len(sizes):
        chosen, limit = _chosen(sizes)
        places = places[places["component"].isin(chosen)]
        details = tiles[["tile_id", "slide_id", "slide_label", "width_px", "height_px"]]
        details = details[details["tile_id"].isin(places["tile_id"])]
        parts = dict(iter(places.merge(details, on="tile_id").groupby("component")))
        words = _evidence(places, links)
        rows = [
            _mosaic(parts[component], limit, read_tile) | {"evidence": words.get(component, "")}
            for component in chosen
            if component in parts
        ]
    return {"rows": rows, "by_name": layout is None, "n_several": len(sizes)}


def _chosen(sizes: pd.Series) -> tuple[list[int], int]:
    """Components by falling size, and the most tiles to draw of each within the budget."""
    for most in (MAX_MOSAICS, MAX_MOSAICS // 2):
        n_top = min(most // 3, len(sizes))
        spread = np.linspace(n_top, len(sizes) - 1, most - n_top).round().astype(int)
        ranks = np.union1d(np.arange(n_top), spread) if len(sizes) > most else np.arange(len(sizes))
        chosen = sizes.iloc[ranks]
        limit = left = MAX_TILES - 2 * MAX_SUSPECTS
        # Small components leave what they do not need to the larger ones.
        for place, size in enumerate(chosen.iloc[::-1]):
            limit = left // (len(chosen) - place)
            if size > limit:
                break
            left -= int(size)
        if limit >= min(int(sizes.iloc[0]), _ENOUGH):
            break
    return [int(component) for component in chosen.index], limit


def _mosaic(rows: pd.DataFrame, limit: int, read_tile: ReadTile) -> dict[str, Any]:
    arrangement = arrange(rows, limit)
    size = rows[["width_px", "height_px"]].median().clip(lower=1)
    aspect = float(np.clip(size["width_px"] / size["height_px"], 0.25, 4))
    return {
        "drawing": draw(arrangement.cells, read_tile, aspect=aspect),
        "component": int(rows["component"].iloc[0]),
        "slides": sorted(rows["slide_id"].dropna().astype(str).unique()),
        "labels": sorted(rows["slide_label"].dropna().astype(str).unique()),
        "n_tiles": len(rows),
        "extent": f"{arrangement.columns} \u00d7 {arrangement.rows}",
        "remarks": _remarks(arrangement),
    }


def _remarks(found: Arrangement) -> list[str]:
    remarks = []
    if found.n_pieces > 1:
        remarks.append(f"{found.n_pieces} pieces, their place to each other unknown")
    if found.n_loose:
        which = "copy or tile" if found.n_loose == 1 else "copies or tiles"
        remarks.append(f"{found.n_loose} {which} without a place of its own, set apart")
    if found.step > 1:
        remarks.append(f"one tile of every {found.step} \u00d7 {found.step} places is drawn")
    return remarks


def _evidence(places: pd.DataFrame, links: pd.DataFrame | None) -> dict[int, str]:
    """Used links within each component in words: "24 seams, 3 overlaps"."""
    if links is None:
        return {}
    component = places.set_index("tile_id")["component"]
    used = links[(links["state"].astype(str) == "used") & links["tile_a"].isin(component.index)]
    kinds = used["kind"].astype(str)
    counts = kinds.groupby([used["tile_a"].map(component), kinds]).size()
    words: dict[int, str] = {}
    for found in counts.index.get_level_values(0).unique():
        of_kind = counts[found]
        listed = [(int(of_kind[kind]), KIND_WORDS[kind]) for kind in KINDS if kind in of_kind.index]
        words[int(found)] = ", ".join(f"{n:,} {kind[n != 1]}" for n, kind in listed)
    return words


def _from_names(tiles: pd.DataFrame) -> pd.DataFrame:
    """A layout from the positions that names give: a component a slide, a frame a region."""
    known = tiles[["slide_id", "x_px", "y_px"]].notna().all(axis=1)
    known &= (tiles["width_px"] > 0) & (tiles["height_px"] > 0)
    rows = tiles[known]
    region = rows["region"].fillna("")
    layout = pd.DataFrame(
        {
            "tile_id": rows["tile_id"],
            "component": pd.factorize(rows["slide_id"])[0],
            "frame": pd.factorize(region)[0],
            "turn": 0,
        }
    )
    keys = [layout["component"], layout["frame"]]
    for axis, position, size in (("col", "x_px", "width_px"), ("row", "y_px", "height_px")):
        place = rows[position].astype(float)
        # Positions may be px of a larger level than the tile: their usual step is a tile then.
        steps = place.sort_values().groupby(keys).diff()
        usual = steps[steps > 0].mode()
        step = rows[size].median() if usual.empty else max(usual.iloc[0], rows[size].median())
        layout[axis] = place / step
    return layout
