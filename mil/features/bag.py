"""One slide of a feature file: tile features, where the tiles lie, and in which frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from splits.errors import InputError

__all__ = ["FRAMES", "Array", "Bag", "Frame", "as_features", "require_usable"]

Array = npt.NDArray[Any]
Frame = Literal["level0_px", "um", "grid"]
FRAMES: Final = ("level0_px", "um", "grid")
"""Pixels of the finest level, micrometres, columns and rows of a grid of tiles."""


@dataclass(frozen=True, eq=False)
class Bag:
    """The tiles of one slide, as a file has them.

    Attributes:
        slide_id: Text, always.
        form: The format of the file, such as ``trident``.
        x: Features ``(n_tiles, dim)``, float16 or float32.
        coords: Place of each tile ``(n_tiles, 2)``, x before y; None where the file has none.
        frame: What the unit of ``coords`` is; None where neither file nor format says it.
        tile: Side of a tile in the unit of ``frame``; None where unknown.
        mpp: Micrometres a pixel of ``level0_px``, or of the tile where the frame is ``um``.
        tile_px: Side of a tile in pixels as the encoder got it; None where unknown.
        centred: ``coords`` are the middle of a tile, not its upper left corner.
        encoder: What the file says of the network that made the features.
        notes: What a reader changed or missed, in words.
        warnings: What its maker should look at, in words.
    """

    slide_id: str
    form: str
    x: Array
    coords: Array | None = None
    frame: Frame | None = None
    tile: float | None = None
    mpp: float | None = None
    tile_px: int | None = None
    centred: bool = False
    encoder: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def place_px(self) -> Array | None:
        """Coordinates in pixels, ``(n_tiles, 2)`` float64; None where no known size allows it.

        Level-0 pixels stay; micrometres are divided by ``mpp``, grid places multiplied by ``tile``.
        """
        if self.coords is None:
            return None
        coords = np.asarray(self.coords, dtype=np.float64)
        if self.frame == "level0_px":
            return coords
        if self.frame == "um" and self.mpp:
            return coords / self.mpp
        if self.frame == "grid" and self.tile:
            return coords * self.tile
        return None

    def side_px(self) -> float | None:
        """Side of a tile in the pixels of :meth:`place_px`; None where unknown."""
        if self.frame == "um":
            return self.tile / self.mpp if self.tile and self.mpp else None
        return self.tile if self.frame is not None else None

    def place_um(self) -> Array | None:
        """Coordinates in micrometres, ``(n_tiles, 2)`` float64; None where ``mpp`` is unknown."""
        if self.frame == "um" and self.coords is not None:
            return np.asarray(self.coords, dtype=np.float64)
        place = self.place_px()
        return None if place is None or not self.mpp else place * self.mpp


def as_features(values: Array, where: str) -> tuple[Array, list[str]]:
    """A matrix of float16 or float32 from what a file holds, and notes on what was changed.

    Args:
        values: ``(n_tiles, dim)``; a leading axis of 1 is taken away.
        where: File (and key), for messages.

    Raises:
        InputError: No numbers, another shape, or whole numbers that float32 cannot hold.
    """
    notes = []
    if values.dtype.kind not in "fiu":
        message = f"{where} holds {values.dtype} values, allowed are real numbers"
        raise InputError(message)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
        notes.append("a leading axis of 1 was taken away")
    if values.ndim == 1:
        message = (
            f"{where} is one vector of {values.size} numbers: features of a whole slide; needed "
            "are features of its tiles, (n_tiles, dim)"
        )
        raise InputError(message)
    if values.ndim != 2:
        message = f"{where} has the shape {values.shape}, allowed is (n_tiles, dim)"
        raise InputError(message)
    if values.dtype in (np.float16, np.float32):
        return values, notes
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if values.dtype.kind != "f" and not np.array_equal(single.astype(np.float64), values):
        message = f"{where} holds {values.dtype} values beyond what float32 holds exactly"
        raise InputError(message)
    return single, [*notes, f"{values.dtype} values were read as float32"]


def require_usable(bag: Bag, where: str) -> None:
    """Refuse a bag that a model cannot learn from.

    Raises:
        InputError: No tile, no dimension, a value that is not finite, or another number of
            coordinates than of tiles.
    """
    if 0 in bag.x.shape:
        message = f"{where} has no tiles (shape {bag.x.shape}): a bag needs at least one"
        raise InputError(message)
    if bag.coords is not None and bag.coords.shape != (len(bag), 2):
        message = (
            f"{where} has features of {len(bag)} tiles and coordinates of shape "
            f"{bag.coords.shape}: allowed is ({len(bag)}, 2)"
        )
        raise InputError(message)
    finite = np.isfinite(bag.x)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        message = (
            f"{where}: tile {row}, column {column} is {bag.x[row, column]}, allowed are finite "
            "values (`slidewise verify` counts them all)"
        )
        raise InputError(message)
