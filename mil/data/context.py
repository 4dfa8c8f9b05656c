"""The surroundings of a tile, assembled from the tiles around it.

At scale ``s`` a tile's context is the square of ``s`` times its side around its centre, averaged
over ``s`` x ``s`` pixels to the tile's own size. Where no tile lies there is glass: no stain, or
white in RGB. Only tiles of the same slide, region and resolution (for cut tiles: of the same image)
are neighbours, so context crosses no part of a split.

Coordinates are those of the tile table, in the unit of whoever cut the tiles: pixels of the tile's
own resolution, or of level 0. How much of it a tile spans follows from the lattice, slide by slide:
where tiles mostly follow each other in larger steps than their side, they are taken to touch (a
tile of 256 px every 1,024 spans 1,024); where the steps are the side or less, a pixel is a unit and
tiles overlap. A name that states its downsample (QuPath's ``d=4``) is believed before that. A place
on a grid (Deep Zoom's column and row) counts in tiles; the pixel or two by which Deep Zoom tiles
overlap is neglected.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from mil.data.sources import Pixels, Rows, Tiles
from splits import artifacts
from splits.errors import InputError
from splits.identity.name import clean
from splits.identity.position import locate
from splits.images import image_of, window_of

__all__ = ["Neighbourhood", "Places", "Surroundings", "fields", "name_positions", "places"]

_FORM: Final = 1  # part of the digest: changed contexts must not pass for the old ones
_RASTER = 16  # samples a side of a tile, of what its context covers

_SAME_PX: Final = 2  # difference in side of tiles that are one size
_TIE: Final = 1e-6  # halves of a pixel are rounded the same way for all neighbours

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Places:
    """Where tiles lie.

    Attributes:
        field: int64 ``(n_tiles,)``; only tiles of one field are neighbours.
        centre: ``(n_tiles, 2)`` x and y, in coordinates.
        side: ``(n_tiles,)`` what the shorter side of a tile spans, in coordinates.
        rank: int64 ``(n_tiles,)`` place by ``tile_id``, for ties that no table order may decide.
    """

    field: npt.NDArray[np.int64]
    centre: Floats
    side: Floats
    rank: npt.NDArray[np.int64]

    def digest(self) -> str:
        """Of all places, whatever the order of rows."""
        order = np.argsort(self.rank)
        # Fields are numbered by the slides' names: renamed slides have the same neighbours.
        field = pd.factorize(self.field[order])[0]
        parts = (field.astype(np.int64), self.centre[order], self.side[order])
        state = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
        return state.hexdigest()[:16]


def places(table: pd.DataFrame) -> Places:
    """Where every tile lies, from ``x_px``, ``y_px`` and the sizes, or else the grid of its name.

    Args:
        table: An identified tile table, in any order.

    Raises:
        InputError: Tiles have no coordinates.
    """
    names = table["tile_id"].tolist()
    corner = table[["x_px", "y_px"]].to_numpy(dtype=np.float64, na_value=np.nan)
    size = table[["width_px", "height_px"]].to_numpy(dtype=np.float64)
    field = fields(table)
    # Tiles that lack the overlap at the border of a Deep Zoom grid would leave lines of glass.
    typical = pd.DataFrame(size).groupby(field).transform("median").to_numpy()
    size = np.where(np.abs(size - typical) <= _SAME_PX, typical, size)
    slide = pd.factorize(table["slide_id"])[0]
    found = [None if window_of(name) else locate(clean(name)) for name in names]
    on_grid = np.array(
        [at is not None and at.col is not None for at in found], dtype=bool
    ) & np.isnan(corner).any(axis=1)
    per_px = np.where(on_grid, 1.0, _units_a_px(field, slide, corner, size))
    for row, at in enumerate(found):
        if at is not None and on_grid[row]:
            corner[row] = at.col or 0, at.row or 0
        elif at is not None and at.downsample != 1 and (at.x, at.y) == (*corner[row],):
            per_px[row] = at.downsample
    corner[on_grid] *= typical[on_grid]
    lost = np.isnan(corner).any(axis=1)
    if lost.any():
        first = min(itertools.compress(names, lost))
        message = (
            f"encoder.context needs to know where tiles lie, and {int(lost.sum())} of {len(lost)} "
            f"have no coordinates, the first is {first!r}: give x_px and y_px in a manifest, names "
            "that say them, images cut by data.tile_px, or encoder.context=[1]"
        )
        raise InputError(message)
    centre = corner + per_px[:, None] * size / 2
    rank = np.argsort(np.argsort(np.array(names)))
    return Places(field, centre, per_px * size.min(axis=1), rank.astype(np.int64))


def name_positions(table: pd.DataFrame) -> pd.DataFrame:
    """Fill ``region``, ``x_px`` and ``y_px`` from the names, for new slides without an identity."""
    found = [None if window_of(name) else locate(clean(name)) for name in table["tile_id"]]
    told = pd.DataFrame(
        [(None,) * 3 if at is None else (at.level, at.x, at.y) for at in found],
        columns=["region", "x_px", "y_px"],
        index=table.index,
        dtype=object,
    )
    return table.assign(
        **{name: table[name].fillna(told[name].astype(table[name].dtype)) for name in told}
    )


class Neighbourhood:
    """Which tiles a context shows, and where; nothing of their pixels.

    Where tiles overlap, the one whose centre is nearer is seen; of equally near ones the first by
    name. The middle of a context is always the tile itself.

    Args:
        where: Places of the tiles.
        scale: How many times the tile's side the context spans, at least 2.

    Attributes:
        covered: ``(n_tiles,)`` share of each context that tiles cover; its least is 1 / scale^2.
        digest: Of the scale and the places.
    """

    def __init__(self, where: Places, scale: int) -> None:
        self.scale, self._where = scale, where
        self.digest = artifacts.digest([_FORM, scale, where.digest()])
        self._starts, self._rows = _neighbours(where, scale)
        self.covered = np.array([self._cover(row) for row in range(len(where.field))])

    def around(self, row: int) -> npt.NDArray[np.int64]:
        """Tiles whose pixels a context may show, the nearest last."""
        return self._rows[self._starts[row] : self._starts[row + 1]]

    def boxes(self, row: int, side_px: int) -> npt.NDArray[np.int64]:
        """Left, top and side ``(n, 3)`` of the tiles around, in px of ``side_px`` a tile."""
        around, where = self.around(row), self._where
        px = side_px / where.side[row]
        left = where.centre[around] - where.side[around, None] / 2
        left -= where.centre[row] - self.scale * where.side[row] / 2
        side = np.maximum(np.rint(where.side[around] * px), 1)
        return np.column_stack([np.floor(left * px + 0.5 + _TIE), side]).astype(np.int64)

    def _cover(self, row: int) -> float:
        n = self.scale * _RASTER
        raster = np.zeros((n, n), dtype=bool)
        for left, top, side in self.boxes(row, _RASTER).tolist():
            raster[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
        return float(raster.mean())


class Surroundings:
    """The context of tiles at one scale, made of their neighbours' channels.

    Args:
        tiles: The tiles at scale 1.
        hood: Their neighbours, row by row.
        glass: The value of a channel where nothing is: 0 for stains, 255 for RGB.
    """

    def __init__(self, tiles: Tiles, hood: Neighbourhood, *, glass: int) -> None:
        self._tiles, self._hood, self._glass = tiles, hood, glass
        self.shape = tiles.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> Pixels:
        wanted = np.arange(len(self))[rows]
        around = [self._hood.around(row) for row in wanted]
        needed, place = np.unique(np.concatenate([wanted, *around]), return_inverse=True)
        pixels, result = self._tiles[needed], np.empty((len(wanted), *self.shape[1:]), np.uint8)
        at = len(wanted)
        for i, row in enumerate(wanted):
            result[i] = self._compose(row, pixels, place[at : at + len(around[i])])
            at += len(around[i])
        return result

    def _compose(self, row: int, pixels: Pixels, place: npt.NDArray[np.int64]) -> Pixels:
        n_channels, size = self.shape[1:3]
        n = self._hood.scale * size
        canvas = np.full((n_channels, n, n), self._glass, dtype=np.uint8)
        boxes = self._hood.boxes(row, size).tolist()
        for (left, top, side), tile in zip(boxes, place, strict=True):
            x, right = max(left, 0), min(left + side, n)
            y, bottom = max(top, 0), min(top + side, n)
            if right <= x or bottom <= y:
                continue
            shown = pixels[tile]
            if side != size:
                shown = np.stack([_resized(channel, side) for channel in shown])
            cut = shown[:, y - top : bottom - top, x - left : right - left]
            canvas[:, y:bottom, x:right] = cut
        return np.stack([_resized(channel, size) for channel in canvas])


def _resized(channel: Pixels, size: int) -> Pixels:
    return np.asarray(cv2.resize(channel, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def fields(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    """A number for each slide, region and resolution; cut tiles count within their image."""
    keys = table[["slide_id", "region", "mpp"]].astype("string").fillna("")
    image = [image_of(name) if window_of(name) else "" for name in table["tile_id"]]
    return np.asarray(keys.assign(image=image).groupby([*keys, "image"]).ngroup(), dtype=np.int64)


def _units_a_px(
    field: npt.NDArray[np.int64], slide: npt.NDArray[np.int64], corner: Floats, size: Floats
) -> Floats:
    """Coordinates that a pixel of each tile spans, from the most frequent step of its slide."""
    steps = []
    for along, across in ((0, 1), (1, 0)):
        lines = pd.DataFrame(
            {"field": field, "line": corner[:, across], "at": corner[:, along], "slide": slide}
        )
        lines["step"] = size[:, along]
        lines = lines.dropna().sort_values(["field", "line", "at"], kind="stable")
        gap = lines.groupby(["field", "line"])["at"].diff()
        steps.append(pd.DataFrame({"slide": lines["slide"], "ratio": gap / lines["step"]})[gap > 0])
    ratios = pd.concat(steps)
    if ratios.empty:
        return np.ones(len(field))
    counts = ratios.groupby(["slide", "ratio"]).size().rename("n").reset_index()
    # The most frequent; of equally frequent ones the smallest.
    counts = counts.sort_values(["n", "ratio"], ascending=[False, True], kind="stable")
    by_slide = counts.groupby("slide")["ratio"].first()
    ratio = by_slide.reindex(slide).fillna(by_slide.median()).to_numpy(np.float64)
    return np.asarray(np.maximum(ratio, 1.0))


def _neighbours(where: Places, scale: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tiles that may reach into each context, the nearest last: starts ``(n + 1,)`` and rows."""
    n_tiles = len(where.field)
    found: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * n_tiles
    for rows in pd.Series(range(n_tiles)).groupby(where.field).indices.values():
        side, centre = where.side[rows], where.centre[rows]
        tree = cKDTree(centre)
        reach = (scale * side + side.max()) / 2
        for row, near in zip(rows, tree.query_ball_point(centre, reach, p=np.inf), strict=True):
            around = rows[near]
            away = ((where.centre[around] - where.centre[row]) ** 2).sum(axis=1)
            # A copy at the same place must not hide the tile itself.
            order = np.lexsort((-where.rank[around], -away, around == row))
            found[row] = around[order]
    starts = np.concatenate([[0], np.cumsum([len(around) for around in found])])
    return starts.astype(np.int64), np.concatenate(found) if found else np.empty(0, np.int64)
