"""Random views of tiles: every sample has a seed of its own, so its view never depends on others.

A view is one affine resampling, an optional blur and one table look-up a channel. OpenCV works on
the stored uint8, tile by tile: a tile alone gives the same view as in any batch, bit for bit.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil.seeds import uniform

__all__ = ["centre_view", "random_view"]

_N_DRAWS = 7  # of the geometry; the jitter's follow, so no draw moves when another is switched off

Array = npt.NDArray[np.float64]


def centre_view(tiles: Tensor, image_px: int) -> Tensor:
    """The centre ``image_px`` square of tiles ``(n, c, size, size)``, as float32."""
    start = (tiles.shape[-1] - image_px) // 2
    return tiles[..., start : start + image_px, start : start + image_px].float()


def random_view(
    tiles: Tensor,
    image_px: int,
    seeds: npt.NDArray[np.uint64],
    *,
    scales: tuple[int, ...] = (1,),
    optical: bool = True,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    crop_ratio: tuple[float, float] = (1.0, 1.0),
    horizontal_flip: bool = False,
    quarter_turns: bool = False,
    blur: float = 0.0,
    stain_jitter: float = 0.0,
) -> Tensor:
    """Random resized crop (Szegedy et al. 2015), flip, quarter turn, blur and stain jitter.

    Args:
        tiles: ``(n, c, size, size)`` uint8 on the CPU; ``c`` is scale-major: all channels of the
            first scale, then all of the next.
        image_px: Side of the view.
        seeds: ``(n,)``, see :func:`mil.seeds.of_rows`; the view of a tile follows from its seed.
        scales: How many tile pixels a pixel of each group of channels spans: ``(1, 4)`` is the
            tile and its surroundings at a quarter, centred on the tile. All show the same crop
            centre, each at its own scale.
        optical: The channels are concentrations; False means RGB, jittered as optical density.
        crop_scale: Smallest and largest share of the area. ``(1, 1)`` keeps the tile's own scale:
            a window of ``image_px`` at a random whole pixel, nothing is interpolated.
        crop_ratio: Smallest and largest width to height, log-uniform; unused at ``(1, 1)`` above.
        horizontal_flip: Mirror with probability 0.5.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        blur: Largest standard deviation of a Gaussian, in pixels of the view; uniform from 0.
        stain_jitter: Each stain's concentration is multiplied by ``1 + u``, ``u`` uniform in
            ``+-stain_jitter``, and shifted by a tenth of that range; the same at all scales.

    Returns:
        ``(n, c, image_px, image_px)`` float32, in grey levels.
    """
    n, n_channels, size = tiles.shape[:3]
    each = n_channels // len(scales)
    draws = uniform(seeds, _N_DRAWS + 2 * each)
    linear, centre = _crop(draws, size, image_px, crop_scale, crop_ratio)
    linear = linear @ _orientation(draws, mirror=horizontal_flip, turn=quarter_turns)
    # OpenCV maps indices of pixels, which lie half a pixel before their centres.
    first = (size - 1) / 2 - linear.sum(2) * (image_px - 1) / 2  # (n, 2)
    sigma = blur * draws[:, 6]
    tables = _jitter(draws[:, _N_DRAWS:].reshape(n, 2, each), stain_jitter, optical=optical)
    pixels, views = tiles.numpy(), np.empty((n, n_channels, image_px, image_px), np.float32)
    for sample in range(n):
        for channel in range(n_channels):
            scale, stain = divmod(channel, each)
            start = first[sample] + centre[sample] / scales[scale]
            view = cv2.warpAffine(
                pixels[sample, channel],
                np.column_stack([linear[sample], start]),
                (image_px, image_px),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT,
            )
            if sigma[sample] > 0:
                view = cv2.GaussianBlur(view, (0, 0), sigma[sample])
            views[sample, channel] = cv2.LUT(view, tables[sample, stain])
    return torch.from_numpy(views)


def _crop(
    draws: Array,
    size: int,
    image_px: int,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
) -> tuple[Array, Array]:
    """Tile pixels a view pixel ``(n, 2, 2)``, and the crop's centre from the tile's ``(n, 2)``."""
    if crop_scale == (1, 1):
        place = np.floor(draws[:, 2:4] * (size - image_px + 1))
        return np.broadcast_to(np.eye(2), (len(draws), 2, 2)), place - (size - image_px) / 2
    area = _between(draws[:, 0], *crop_scale)
    ratio = np.exp(_between(draws[:, 1], *np.log(crop_ratio)))
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1) * size
    centre = (draws[:, 2:4] - 0.5) * (size - sides)
    return np.eye(2) * (sides / image_px)[:, None], centre


def _orientation(draws: Array, *, mirror: bool, turn: bool) -> Array:
    """The mirror and turn of each sample, ``(n, 2, 2)``: whole numbers, so they are exact."""
    side = np.where(mirror & (draws[:, 4] < 0.5), -1.0, 1.0)
    turns = np.floor(4 * draws[:, 5]).astype(np.int64) * turn
    cos, sin = np.array([1.0, 0.0, -1.0, 0.0])[turns], np.array([0.0, 1.0, 0.0, -1.0])[turns]
    return np.stack([np.stack([side * cos, -side * sin], 1), np.stack([sin, cos], 1)], 1)


def _jitter(draws: Array, size: float, *, optical: bool) -> npt.NDArray[np.float32]:
    """What becomes of each grey level, ``(n, n_stains, 256)``, from draws ``(n, 2, n_stains)``."""
    gain, shift = np.moveaxis(_between(draws, -size, size), 1, 0)[..., None]
    levels = np.arange(256.0)
    if optical:
        changed = levels * (1 + gain) + 25.5 * shift
    else:
        density = -np.log((levels + 1) / 256)
        changed = 256 * np.exp(-(density * (1 + gain) + 0.1 * shift)) - 1
    table: npt.NDArray[np.float32] = np.clip(changed, 0, 255).astype(np.float32)
    return table


def _between(draws: Array, low: float, high: float) -> Array:
    return low + draws * (high - low)
