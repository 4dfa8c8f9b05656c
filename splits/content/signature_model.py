"""A signature of the slide, learned on the tiles at hand: what stays within a slide and what does not.

Tiles that hard links hold together show how much a slide varies within itself; the spread of the
components shows how much slides differ. The rest is the two-covariance model of speaker recognition
(probabilistic linear discriminant analysis; Ioffe 2006, Brümmer and de Villiers 2010): in axes where
both covariances are diagonal, a set of regions has a likelihood as one slide in closed form, and so
has the question whether two sets are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Regions", "Signature", "learn"]

_PRINCIPAL: Final = 40
"""Principal axes that the two covariances are estimated in."""
_SIGNATURE: Final = 20
"""Axes kept, those that tell slides apart best."""
_SHRINKAGE: Final = 0.05
_FARTHEST: Final = 4.0
"""Standard deviations beyond which a value says no more: artefacts must not set the axes."""
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regions:
    """Sufficient statistics of sets of regions, one set a row.

    Attributes:
        weight: ``(n_sets, d)``: summed precision of the regions of a set.
        moment: ``(n_sets, d)``: summed product of precision and mean.
    """

    weight: _Floats
    moment: _Floats


@dataclass(frozen=True)
class Signature:
    """Components in the learned axes, in which a tile scatters with variance 1 within a region.

    Attributes:
        mean: ``(n_components, d)``.
        n_tiles: ``(n_components,)``.
        between: ``(d,)`` variance of slides, the largest first.
    """

    mean: _Floats
    n_tiles: _Floats
    between: _Floats

    def regions(self, spread: float) -> Regions:
        """Each component as a set of one region.

        Args:
            spread: Variance of the regions of one slide, in units of a tile's variance within one.
        """
        precision = 1 / (spread + 1 / self.n_tiles[:, None])
        weight = np.broadcast_to(precision, self.mean.shape)
        return Regions(weight, precision * self.mean)

    def evidence(self, first: Regions, second: Regions) -> _Floats:
        """Log likelihood ratio, row by row, that two sets are one slide rather than two."""
        both = Regions(first.weight + second.weight, first.moment + second.moment)
        return self._likelihood(both) - self._likelihood(first) - self._likelihood(second)

    def _likelihood(self, sets: Regions) -> _Floats:
        # The slide's own mean, normal with variance `between`, is integrated out.
        scale = 1 + self.between * sets.weight
        terms = self.between * sets.moment**2 / scale - np.log(scale)
        return np.asarray(terms.sum(axis=-1) / 2)


def learn(vectors: npt.NDArray[np.floating], component: npt.NDArray[np.int64]) -> Signature:
    """Learn the axes from tiles and their hard components.

    Args:
        vectors: ``(n_tiles, d)``, in any units.
        component: ``(n_tiles,)``, numbered from 0 without gaps.

    Returns:
        The components in the learned axes. Meaningless unless some components hold several tiles.
    """
    n_tiles = np.bincount(component).astype(np.float64)
    deviation = vectors.std(axis=0, dtype=np.float64)
    varied = deviation > 1e-6 * (1e-6 + np.abs(vectors).max(axis=0))
    x = (vectors[:, varied] - vectors[:, varied].mean(axis=0)) / deviation[varied]
    x = np.clip(x.astype(np.float64), -_FARTHEST, _FARTHEST)
    x = x @ _axes(x.T @ x / len(x))[1][:, :_PRINCIPAL]

    residual = x - _means(x, component)[component]
    within = residual.T @ residual / max(len(x) - len(n_tiles), 1)
    ridge = np.trace(within) / len(within)
    values, axes = _axes(
        (1 - _SHRINKAGE) * within + (_SHRINKAGE * ridge + 1e-9) * np.eye(len(within))
    )
    means = _means(x @ (axes / np.sqrt(values)), component)

    means -= np.average(means, axis=0, weights=n_tiles / (n_tiles + 1))
    weights = n_tiles / (n_tiles + 1) / (n_tiles / (n_tiles + 1)).sum()
    # A mean of n tiles scatters by 1 / n around its region; that part is no difference of slides.
    spread = (means * weights[:, None]).T @ means - np.eye(len(within)) * (weights / n_tiles).sum()
    values, axes = _axes(spread)
    return Signature(
        mean=means @ axes[:, :_SIGNATURE],
        n_tiles=n_tiles,
        between=np.maximum(values[:_SIGNATURE], 1e-2),
    )


def _axes(symmetric: _Floats) -> tuple[_Floats, _Floats]:
    """Eigenvalues and eigenvectors, the largest first."""
    values, vectors = np.linalg.eigh(symmetric)
    return values[::-1], vectors[:, ::-1]


def _means(x: _Floats, component: npt.NDArray[np.int64]) -> _Floats:
    counts = np.bincount(component)
    sums = np.stack([np.bincount(component, weights=column) for column in x.T], axis=1)
    return sums / counts[:, None]
