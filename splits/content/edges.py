"""What is kept of the edges of a tile, and how two edges are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dct

__all__ = ["EDGES", "N_SAMPLES", "REVERSED", "Edges", "edge_lines", "show_tissue"]

EDGES: Final = ("top", "right", "bottom", "left")
"""Order of the edges of a tile; two decoys follow, one looking down and one looking right."""
N_SAMPLES: Final = 36
"""Samples a line: 24 lose 0.3 points of recall at 125 px, 48 gain nothing."""

_MIN_SIDE_PX: Final = 8
_LARGE_PX: Final = 256
_EVEN: Final = 0.28
"""Difference of pixels 1 apart, in differences of pixels 4 apart, below which a tile was enlarged:
0.25 to 0.28 after an enlargement by 4, 0.28 to 0.8 as scanned."""
_DECOY_AT: Final = 0.37
"""Place of the decoys in the tile; tiles that overlap by a half or a quarter do not end there."""
_MIN_CONTRAST: Final = 6.0
"""Standard deviation in grey levels below which an edge is blank."""
_N_DECOYS: Final = 40_000
_BLOCK: Final = 4096
_GREY: Final = np.array([0.299, 0.587, 0.114], np.float32)
_ZERO: Final = 128
"""Stored value of a step of zero."""
_N_WAVES: Final = (20, 6, 6)
"""Cosine waves of brightness and of two colour differences in a vector of the search."""
_COLOURS: Final = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32)
REVERSED: Final = np.concatenate([(-1.0) ** np.arange(1, n + 1) for n in _N_WAVES]).astype("f4")
"""What reading a line backwards does to its vector."""

_Lines = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]


def edge_lines(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What is kept of a tile to find its neighbours, 864 bytes.

    Args:
        pixels: ``(height, width, 3)`` uint8 RGB.

    Returns:
        ``(6, N_SAMPLES, 4)`` uint8: the edges in the order of `EDGES`, then two decoys, from left
        to right or from top to bottom. The channels are red, green and blue of the outermost line
        of pixels, and the step in brightness to it from the line before, plus 128. All zero, which
        is blank, for a tile of less than 8 px.
    """
    pixels = _as_scanned(pixels)
    height, width = pixels.shape[:2]
    kept = np.zeros((6, N_SAMPLES, 4), np.uint8)
    if min(height, width) < _MIN_SIDE_PX:
        return kept
    columns = pixels.swapaxes(0, 1)
    y, x = int(_DECOY_AT * height), int(_DECOY_AT * width)
    pairs = (
        pixels[:2],
        columns[:-3:-1],
        pixels[:-3:-1],
        columns[:2],
        pixels[y : y - 2 : -1],
        columns[x : x - 2 : -1],
    )
    for row, pair in enumerate(pairs):
        outer, inner = cv2.resize(
            np.ascontiguousarray(pair, np.float32), (N_SAMPLES, 2), interpolation=cv2.INTER_AREA
        )
        kept[row, :, :3] = np.rint(outer)
        kept[row, :, 3] = np.clip(np.rint((outer - inner) @ _GREY) + _ZERO, 0, 255)
    return kept


def _as_scanned(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Halve a tile that was enlarged by far: its outermost lines of pixels say the same."""
    height, width = pixels.shape[:2]
    if min(height, width) < _LARGE_PX or not _is_enlarged(pixels):
        return pixels
    half = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(half, np.uint8)


def _is_enlarged(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether brightness still changes evenly from pixel to pixel, as between interpolated ones."""
    y, x = (length // 2 - _LARGE_PX // 4 for length in pixels.shape[:2])
    centre = np.ascontiguousarray(pixels[y : y + _LARGE_PX // 2, x : x + _LARGE_PX // 2])
    grey = cv2.cvtColor(centre, cv2.COLOR_RGB2GRAY)
    near, far = (
        cv2.mean(cv2.absdiff(grey[:, step:], grey[:, :-step]))[0]
        + cv2.mean(cv2.absdiff(grey[step:], grey[:-step]))[0]
        for step in (1, 4)
    )
    return bool(near < _EVEN * far)


def show_tissue(lines: _Lines) -> npt.NDArray[np.bool_]:
    """Whether lines ``(..., N_SAMPLES, 4)`` have contrast; blank ones link nothing: ``(...)``."""
    contrast = np.empty(lines.shape[:-2], np.bool_)
    for at in range(0, len(lines), _BLOCK):
        part = slice(at, at + _BLOCK)
        contrast[part] = (lines[part, ..., :3] @ _GREY).std(axis=-1) >= _MIN_CONTRAST
    return contrast


@dataclass(frozen=True)
class Edges:
    """Edges with contrast, then decoys, as rows.

    Attributes:
        lines: ``(m, N_SAMPLES, 4)`` uint8, as `edge_lines` has them.
        tile: ``(m,)`` the tile that a line is of.
        side: ``(m,)`` where it looks, an index into `EDGES`.
        n: Rows that are edges.
        reach_px: How far the lines are continued beyond the edge, by their last step.
    """

    lines: _Lines
    tile: _Ints
    side: _Ints
    n: int
    reach_px: float

    @classmethod
    def of(cls, lines: _Lines, tiles: _Ints, reach_px: float) -> Edges:
        """All edges of some tiles, and the decoys of at most 20,000 of them."""
        sampled = tiles[:: -(-2 * len(tiles) // _N_DECOYS) or 1]
        tile = np.concatenate([np.repeat(tiles, 4), np.repeat(sampled, 2)])
        place = np.concatenate([np.tile(np.arange(4), len(tiles)), np.tile([4, 5], len(sampled))])
        keep = show_tissue(lines)[tile, place]
        n = int(keep[: 4 * len(tiles)].sum())
        tile, place = tile[keep], place[keep]
        side = np.array([0, 1, 2, 3, 2, 1])[place]
        return cls(lines[tile, place], tile, side, n, reach_px)

    def levelled(self, rows: npt.NDArray[np.int64] | slice) -> _Floats:
        """Lines ``(..., N_SAMPLES, 3)`` without their mean level, in units of its root.

        The gain of a channel then changes little, noise is alike in bright and in dark lines, and
        contrast is kept: lines of one shape and unlike contrast do not continue each other.
        """
        kept = self.lines[rows].astype(np.float32)
        values = np.clip(kept[..., :3] + self.reach_px * (kept[..., 3:] - _ZERO), 0, 255)
        level = values.mean(axis=-2, keepdims=True)
        return np.asarray((values - level) / np.sqrt(np.maximum(level, 1)), np.float32)

    def vectors(self) -> _Floats:
        """The slowest cosine waves ``(m, 32)``; their distances are nearly those of the lines."""
        colours = (_COLOURS / np.linalg.norm(_COLOURS, axis=1, keepdims=True)).T
        vectors = np.empty((len(self.lines), sum(_N_WAVES)), np.float32)
        for at in range(0, len(vectors), _BLOCK):
            part = slice(at, at + _BLOCK)
            waves = dct(self.levelled(part) @ colours, axis=1, norm="ortho")
            kept = [waves[:, 1 : n + 1, colour] for colour, n in enumerate(_N_WAVES)]
            vectors[part] = np.concatenate(kept, axis=1)
        return vectors

    def roughness(self, rows: _Ints) -> _Floats:
        """Standard deviation of the last step ``(len(rows),)``, in the units of `levelled`."""
        kept = self.lines[rows].astype(np.float32)
        level = np.maximum((kept[..., :3] @ _GREY).mean(axis=1), 1)
        # A line that was stored flat may still differ from its neighbour by a rounded half level.
        return np.asarray(np.maximum(kept[..., 3].std(axis=1), 0.5) / np.sqrt(level), np.float32)

    def power(self, rows: _Ints) -> _Floats:
        """Mean square of the levelled lines, ``(len(rows),)``."""
        return np.asarray((self.levelled(rows) ** 2).mean(axis=(1, 2)), np.float32)
