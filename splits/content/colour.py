"""A vector of about a hundred values that says how a tile was stained, scanned and stored.

It tells apart slides, not tissues, as far as pixels can: optical density, stain directions, chroma,
and power spectra, which carry the sharpness and noise of the scanner. None of them changes when the
tile is turned or mirrored.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

__all__ = ["N_VALUES", "vector"]

_QUANTILES: Final = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
_LEVELS: Final = np.arange(256)
_DENSITY: Final = (-np.log10((_LEVELS + 1.0) / 256.0)).astype(np.float32)
"""Optical density of each grey level against a white point of 255."""
_GRID: Final = 48
"""Rows and columns of the sample of pixels that moments and stains are estimated from."""
_TISSUE: Final = 0.15
"""Mean optical density below which a pixel is glass, the threshold of Macenko et al. 2009."""
_STAIN_TAIL: Final = 0.05
"""Share of the pixels beyond each of the two stain directions."""
_BANDS: Final = (16, 8)
"""Bands of the power spectrum of brightness and of the two chroma channels."""
_SIDES: Final = (192, 96)
"""Side in px of the central square whose power spectrum is taken: brightness, chroma."""
_LOWEST: Final = 1.0 / 128
"""Lower edge of the lowest band, in cycles a pixel; the highest band ends at 0.5."""
N_VALUES: Final = 3 * (len(_QUANTILES) + 4) + 9 + 12 + 11 + 9 + _BANDS[0] + 2 * _BANDS[1]
"""Length of a vector."""


def vector(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Describe colour, stain, sharpness and noise of a tile.

    The values have different units (optical density, grey levels, log power): standardise them over
    the tiles before comparing.

    Args:
        pixels: ``(height, width, 3)`` uint8 RGB, at least 16 px high and wide.

    Returns:
        ``(N_VALUES,)`` float32, finite, the same for all eight turns of the tile. In order:
        quantiles of the optical density a channel and the form of its histogram; moments of the
        optical density; directions and concentrations of the two stains (Macenko et al. 2009);
        quantiles and covariance of the chroma; power spectra of brightness and chroma.
    """
    rows, columns = _symmetric(pixels.shape[0]), _symmetric(pixels.shape[1])
    sample = pixels[rows[:, None], columns]
    opponent = cv2.cvtColor(_centre(pixels, _SIDES[0]), cv2.COLOR_RGB2YCrCb)
    chroma = _centre(opponent, _SIDES[1])
    values = [
        _histograms(np.ascontiguousarray(pixels)),
        _stains(_DENSITY[sample.reshape(-1, 3)]),
        _chroma(cv2.cvtColor(sample, cv2.COLOR_RGB2YCrCb)[..., 1:].reshape(-1, 2)),
        _spectrum(opponent[..., 0], _BANDS[0]),
        _spectrum(chroma[..., 1], _BANDS[1]),
        _spectrum(chroma[..., 2], _BANDS[1]),
    ]
    return np.concatenate(values).astype(np.float32)


def _centre(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """The central part of at most ``side`` px; one px more where only that keeps it central."""
    margins = [max(length - side, 0) // 2 for length in pixels.shape[:2]]
    inner = tuple(
        slice(margin, length - margin)
        for margin, length in zip(margins, pixels.shape[:2], strict=True)
    )
    return np.ascontiguousarray(pixels[inner])


def _symmetric(length: int) -> npt.NDArray[np.int64]:
    """Evenly spaced positions that map onto themselves when the axis is reversed."""
    half = np.linspace(0, (length - 1) / 2, min(_GRID, length) // 2, endpoint=False).astype(int)
    return np.concatenate([half, length - 1 - half[::-1]])


def _histograms(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    values = []
    n_pixels = pixels.shape[0] * pixels.shape[1]
    for channel in range(3):
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel() / n_pixels
        cumulated = np.cumsum(counts)
        quantiles = _DENSITY[np.minimum(np.searchsorted(cumulated, _QUANTILES), 255)]
        # A stretched contrast leaves a comb of empty levels, a clipped one piles up at the ends.
        used = np.flatnonzero(counts > 0)
        comb = np.abs(counts[1:-1] - (counts[:-2] + counts[2:]) / 2)[1:-1].sum()
        form = [used[0] / 255, used[-1] / 255, comb, np.log10(counts[-3:].sum() + 1e-4)]
        values.append(np.concatenate([quantiles, form]))
    return np.concatenate(values)


def _stains(density: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Moments and the two stains of tissue pixels; of all pixels where there is little tissue."""
    tissue = density[density.mean(axis=1) > _TISSUE].astype(np.float64)
    share = len(tissue) / len(density)
    if share < 0.02:
        tissue = density.astype(np.float64)
    mean = tissue.mean(axis=0)
    centred = tissue - mean
    covariance = centred.T @ centred / len(tissue) + 1e-6 * np.eye(3)
    spread = np.sqrt(np.diag(covariance))
    correlation = (covariance / np.outer(spread, spread))[np.triu_indices(3, 1)]
    plane = np.linalg.eigh(covariance)[1][:, 1:]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    projected = tissue @ plane
    angles = np.sort(np.arctan2(projected[:, 0], projected[:, 1]))
    tail = int(_STAIN_TAIL * len(angles))
    ends = angles[[tail, -1 - tail]]
    directions = plane @ np.stack([np.sin(ends), np.cos(ends)])
    # Hematoxylin absorbs more red than eosin does.
    directions = directions[:, np.argsort(-directions[0])]
    amounts = np.linalg.lstsq(directions, tissue.T, rcond=1e-3)[0]
    # Shares of red, green and blue are the colour without the depth of the stain.
    shares = tissue / (tissue.sum(axis=1, keepdims=True) + 1e-3)
    return np.concatenate(
        [
            mean,
            spread,
            correlation,
            directions.ravel(),
            _ranks(amounts, [0.1, 0.5, 0.99]),
            _ranks(shares.T, [0.25, 0.5, 0.75]),
            [share, ends[1] - ends[0]],
        ]
    )


def _ranks(values: npt.NDArray[np.float64], shares: list[float]) -> npt.NDArray[np.float64]:
    """Quantiles of each row, one row after the other; far cheaper than `numpy.quantile`."""
    ordered = np.sort(values, axis=1)
    return ordered[:, [int(share * (values.shape[1] - 1)) for share in shares]].ravel()


def _chroma(chroma: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    values = chroma.T.astype(np.float64) - 128
    centred = values - values.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T / values.shape[1]
    spread = np.sqrt(np.diag(covariance))
    return np.concatenate([_ranks(values, [0.1, 0.5, 0.9]), spread, covariance[0, 1:]])


def _spectrum(channel: npt.NDArray[np.uint8], n_bands: int) -> npt.NDArray[np.float64]:
    """Log power in rings of frequency; mirror images and turns leave the rings as they are."""
    waves = dctn(channel.astype(np.float32), type=2, norm="ortho")
    power = np.square(waves, out=waves)
    bands, sizes = _rings(channel.shape[0], channel.shape[1], n_bands)
    total = np.bincount(bands, weights=power.ravel(), minlength=n_bands + 1)[:n_bands]
    return np.log10(total / sizes + 1e-2)


@lru_cache(maxsize=16)
def _rings(
    height: int, width: int, n_bands: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Band of each DCT coefficient (``n_bands`` for those outside all) and sizes of the bands."""
    rows = np.arange(height)[:, None] / (2 * height)
    columns = np.arange(width)[None, :] / (2 * width)
    frequency = np.hypot(rows, columns).ravel()
    edges = np.geomspace(_LOWEST, 0.5, n_bands + 1)
    bands = np.searchsorted(edges, frequency, side="right") - 1
    bands[(bands < 0) | (frequency > 0.5)] = n_bands
    sizes = np.bincount(bands, minlength=n_bands + 1)[:n_bands]
    return bands, np.maximum(sizes, 1).astype(np.float64)
