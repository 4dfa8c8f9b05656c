"""A signature of the slide, learned on the tiles at hand.

Tiles that hard links hold together show how much a slide varies within itself; the spread of the
components shows how much slides differ. The rest is the two-covariance model of speaker
recognition (probabilistic linear discriminant analysis; Ioffe 2006, Brümmer and de Villiers 2010):
in axes where both covariances are diagonal, a set of regions has a likelihood as one slide in
closed form, and so has the question whether two sets are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from splits.content.nearest import nearest

__all__ = [
    "CAUTIOUS",
    "NEIGHBOURS",
    "SPREADS",
    "Pairs",
    "Regions",
    "Signature",
    "learn",
    "likely_pairs",
    "missed",
]

_PRINCIPAL: Final = 40
"""Principal axes that the two covariances are estimated in."""
_SIGNATURE: Final = 20
"""Axes kept, those that tell slides apart best."""
_SHRINKAGE: Final = 0.05
_FARTHEST: Final = 4.0
"""Standard deviations beyond which a value says no more: artefacts must not set the axes."""
SPREADS: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Trial variances of the regions of a slide, in units of a tile's variance within a region."""
CAUTIOUS: Final = SPREADS[3:]
"""Trial variances for predictions: fragments of one region must not pass for regions.

The fit cannot tell how far regions lie apart from fragments of one region alone; it sways between
0.3 and 1 on draws of real slides, and the leakage predicted from it was mostly too low.
"""
_SAMPLE: Final = 200_000
"""Pairs that the mixture is fitted to, at the most."""
_ROUNDS: Final = 50
"""Rounds of expectation and maximisation for the prior."""
NEIGHBOURS: Final = 60
"""Components or groups that one may be merged with, the nearest ones."""
_Codes = npt.NDArray[np.int64]
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


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs of components and the probability that each is one slide.

    Attributes:
        pairs: ``(n_pairs, 2)``, the smaller number first.
        probability: ``(n_pairs,)``.
        spread: Fitted variance of the regions of a slide.
        prior: Fitted probability that two random components are one slide.
    """

    pairs: _Codes
    probability: _Floats
    spread: float
    prior: float


def learn(vectors: npt.NDArray[np.floating], component: _Codes) -> Signature:
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


def likely_pairs(signature: Signature, spreads: Sequence[float] = SPREADS) -> Pairs:
    """Fit how many pairs of components are one slide, and how much its regions differ.

    The likelihood of all pairs under ``1 - prior + prior * ratio`` is highest where both are right,
    if the model of the ratio is; pairs that are no near neighbours count as ratio 0.

    Args:
        signature: Components in the learned axes.
        spreads: Trial variances of the regions of a slide, in units of a tile's within a region.
    """
    n = len(signature.n_tiles)
    means = signature.mean.astype(np.float32)
    near, _ = nearest(means, means, NEIGHBOURS + 1)
    rows = np.repeat(np.arange(n), near.shape[1])
    pairs = np.sort(np.stack([rows, near.ravel()], axis=1), axis=1)
    pairs = np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs[:, 0] >= 0)], axis=0)
    sample = pairs[:: 1 + len(pairs) // _SAMPLE]
    n_far = (n * (n - 1) / 2 - len(pairs)) * len(sample) / len(pairs)
    best = (-np.inf, spreads[0], 0.0)
    for spread in spreads:
        ratio = np.exp(np.minimum(_ratios(signature, sample, spread), 50.0))
        prior = 0.01
        for _ in range(_ROUNDS):
            expected = float(np.sum(prior * ratio / (1 - prior + prior * ratio)))
            prior = float(np.clip(expected / (len(sample) + n_far), 1e-9, 0.5))
        fit = float(np.sum(np.log1p(prior * (ratio - 1)))) + n_far * np.log1p(-prior)
        best = max(best, (fit, spread, prior))
    _, spread, prior = best
    odds = _ratios(signature, pairs, spread) + np.log(prior / (1 - prior))
    return Pairs(pairs, expit(odds), spread, prior)


def missed(vectors: npt.NDArray[np.floating], component: _Codes) -> float:
    """Share of tiles whose component, cut in two, would not be known again as one slide.

    Near 1 the signature says nothing, however sure of itself the fit is. Near 0 it says little
    about regions that lie apart: halves of one region are more alike.

    Args:
        vectors: ``(n_tiles, d)``.
        component: ``(n_tiles,)``, numbered from 0 without gaps, some of several tiles.
    """
    n_tiles = np.bincount(component)
    order = np.argsort(component, kind="stable")
    rank = np.empty(len(component), np.int64)
    rank[order] = np.arange(len(component)) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
    cut, half = np.unique(2 * component + rank % 2, return_inverse=True)
    graph = likely_pairs(learn(vectors, half))
    first, second = cut[graph.pairs].T // 2
    known = np.zeros(len(n_tiles))
    known[first[first == second]] = graph.probability[first == second]
    several = n_tiles > 1
    return float(1 - np.average(known[several], weights=n_tiles[several]))


def _ratios(signature: Signature, pairs: _Codes, spread: float) -> _Floats:
    regions = signature.regions(spread)
    first, second = (Regions(regions.weight[side], regions.moment[side]) for side in pairs.T)
    return signature.evidence(first, second)


def _axes(symmetric: _Floats) -> tuple[_Floats, _Floats]:
    """Eigenvalues and eigenvectors, the largest first."""
    values, vectors = np.linalg.eigh(symmetric)
    return values[::-1], vectors[:, ::-1]


def _means(x: _Floats, component: _Codes) -> _Floats:
    counts = np.bincount(component)
    sums = np.stack([np.bincount(component, weights=column) for column in x.T], axis=1)
    return sums / counts[:, None]
