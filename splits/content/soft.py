"""Soft evidence: coarsen hard components until few slides are likely to be split.

Merging only ever coarsens. Which components look like one slide is judged by the learned signature
(`splits.content.signature_model`), and merged first is what saves most leakage for what it costs in
the effective number of groups.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from scipy.special import expit, log_expit

from splits.content.links import components
from splits.content.nearest import nearest
from splits.content.signature_model import Regions, Signature, learn

__all__ = ["Coarse", "Step", "coarsen"]

_NEIGHBOURS: Final = 60
"""Components or groups that a component or group may be merged with, the nearest ones."""
_TEMPER: Final = 0.5
"""Weight of the log likelihood ratio: the axes are not as independent and normal as the model."""
_SPREADS: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Trial variances of the regions of a slide, in units of a tile's variance within a region."""
_SAMPLE: Final = 200_000
"""Pairs that the mixture is fitted to, at the most."""
_ROUNDS: Final = 50
"""Rounds of expectation and maximisation for the prior."""
_STEPS: Final = 24
"""Groupings between none and the coarsest allowed whose leakage is predicted."""
_ENOUGH: Final = 30
"""Tiles beyond the first of each component below which no signature can be learned."""
_Floats = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """A grouping on the way: number of groups, n_eff, largest share, predicted leakage."""

    n_groups: int
    n_eff: float
    largest_share: float
    predicted_leakage: float


@dataclass(frozen=True)
class Coarse:
    """Groups of tiles, each a union of hard components.

    Attributes:
        group: ``(n_tiles,)`` int64, numbered from 0 without gaps.
        predicted_leakage: Predicted share of test tiles whose slide has a tile in train when the
            groups are split at random into folds; NaN where nothing could be learned.
        n_eff: Effective number of groups, 1 / sum of squared shares.
        largest_share: Share of the largest group.
        satisfied: Whether the prediction reaches the target within the bounds.
        reason: Why it ended here, in a sentence.
        curve: Groupings on the way, the finest first.
    """

    group: _Codes
    predicted_leakage: float
    n_eff: float
    largest_share: float
    satisfied: bool
    reason: str
    curve: tuple[Step, ...]


@dataclass(frozen=True)
class _Graph:
    """Likely pairs of components, the smaller first, and the probability that they share a slide."""

    pairs: _Codes
    probability: _Floats
    spread: float
    prior: float


def coarsen(
    component: _Codes,
    vectors: npt.NDArray[np.floating],
    *,
    folds: int,
    target: float = 0.05,
    embedding: npt.NDArray[np.floating] | None = None,
) -> Coarse:
    """Merge hard components until the predicted leakage is under the target.

    It stops where the effective number of groups would fall below ``max(6 * folds, 20)``, and no
    group grows beyond ``1 / (2 * folds)`` of the tiles.

    The prediction takes each pair of components to be one slide or two slides by a two-component
    mixture fitted to all pairs. It assumes that slides scatter normally in the learned axes and
    that regions of a slide differ alike everywhere; slides of one batch look like one slide to it,
    and regions of one slide that look nothing alike look like two.

    Args:
        component: ``(n_tiles,)`` hard component of each tile.
        vectors: ``(n_tiles, d)`` colour vectors.
        folds: Number of folds that the groups are for.
        target: Predicted leakage to reach.
        embedding: ``(n_tiles, e)`` features of an encoder; as a whole they weigh what the colour
            vectors weigh.

    Returns:
        The groups; where there is nothing to learn from, the components as they are.
    """
    component = np.unique(component, return_inverse=True)[1].astype(np.int64)
    sizes = np.bincount(component)
    if len(component) - len(sizes) < _ENOUGH:
        reason = (
            f"only {len(component) - len(sizes)} tiles are hard-linked to another "
            f"(at least {_ENOUGH} are needed to learn what a slide looks like)"
        )
        return _result(component, sizes, np.arange(len(sizes)), (), np.nan, reason, target)
    blocks = vectors if embedding is None else _beside(vectors, embedding)
    signature = learn(blocks, component)
    graph = _calibrate(signature)
    floor = max(6 * folds, 20)
    merges = _merges(signature, graph, sizes, floor, 1 / (2 * folds))
    curve = []
    for n_merges in np.unique(np.linspace(0, len(merges), _STEPS).astype(int)):
        label = _labels(len(sizes), merges[:n_merges])
        leakage = _leakage(graph, label, sizes, folds)
        shares = np.bincount(label, weights=sizes) / sizes.sum()
        curve.append(Step(len(shares), 1 / float(np.sum(shares**2)), float(shares.max()), leakage))
        if leakage <= target:
            break
    if leakage <= target:
        reason = f"the predicted leakage {leakage:.3f} is within the target {target:g}"
    else:
        reason = (
            f"the predicted leakage {leakage:.3f} is above the target {target:g}, and {folds} folds "
            f"allow no coarser groups (n_eff at least {floor}, no group above {1 / (2 * folds):.2f})"
        )
    return _result(component, sizes, label, tuple(curve), leakage, reason, target)


def _result(
    component: _Codes,
    sizes: _Codes,
    label: _Codes,
    curve: tuple[Step, ...],
    leakage: float,
    reason: str,
    target: float,
) -> Coarse:
    shares = np.bincount(label, weights=sizes) / sizes.sum()
    return Coarse(
        group=label[component],
        predicted_leakage=leakage,
        n_eff=1 / float(np.sum(shares**2)),
        largest_share=float(shares.max()),
        satisfied=leakage <= target,
        reason=reason,
        curve=curve,
    )


def _beside(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> _Floats:
    """Two blocks of columns, standardised, of one total variance each."""
    blocks = []
    for block in (first.astype(np.float64), second.astype(np.float64)):
        centred = block - block.mean(axis=0)
        blocks.append(centred / (centred.std(axis=0) + 1e-9) / np.sqrt(block.shape[1]))
    return np.concatenate(blocks, axis=1)


def _calibrate(signature: Signature) -> _Graph:
    """Fit how many pairs of components are one slide, and how much its regions differ.

    The likelihood of all pairs under ``1 - prior + prior * ratio`` is highest where both are right,
    if the model of the ratio is; pairs that are no near neighbours count as ratio 0.
    """
    n = len(signature.n_tiles)
    means = signature.mean.astype(np.float32)
    near, _ = nearest(means, means, _NEIGHBOURS + 1)
    rows = np.repeat(np.arange(n), near.shape[1])
    pairs = np.sort(np.stack([rows, near.ravel()], axis=1), axis=1)
    pairs = np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs[:, 0] >= 0)], axis=0)
    sample = pairs[:: 1 + len(pairs) // _SAMPLE]
    n_far = (n * (n - 1) / 2 - len(pairs)) * len(sample) / len(pairs)
    best = (-np.inf, _SPREADS[0], 0.0)
    for spread in _SPREADS:
        ratio = np.exp(np.minimum(_ratios(signature, sample, spread), 50.0))
        prior = 0.01
        for _ in range(_ROUNDS):
            prior = float(np.sum(prior * ratio / (1 - prior + prior * ratio))) / (
                len(sample) + n_far
            )
        fit = float(np.sum(np.log1p(prior * (ratio - 1)))) + n_far * np.log1p(-prior)
        best = max(best, (fit, spread, prior))
    _, spread, prior = best
    odds = _ratios(signature, pairs, spread) + np.log(prior / (1 - prior))
    return _Graph(pairs, expit(odds), spread, prior)


def _ratios(signature: Signature, pairs: _Codes, spread: float) -> _Floats:
    regions = signature.regions(spread)
    first, second = (Regions(regions.weight[side], regions.moment[side]) for side in pairs.T)
    return _TEMPER * signature.evidence(first, second)


def _merges(
    signature: Signature, graph: _Graph, sizes: _Codes, floor: float, largest: float
) -> list[tuple[int, int]]:
    """Order in which groups are merged: pairs of group numbers, where merge i makes group n + i.

    The order follows the probability that two groups are one slide, judged by all their regions,
    times ``1/a + 1/b`` for groups of a and b tiles: tiles that are saved from leaking against the
    rise ``2ab`` of the sum of squared sizes.
    """
    n, total = len(sizes), float(sizes.sum())
    regions = signature.regions(graph.spread)
    weight, moment = (
        np.concatenate([part, np.zeros_like(part)]) for part in (regions.weight, regions.moment)
    )
    size = np.concatenate([sizes, np.zeros(n)]).astype(np.float64)
    neighbours: list[set[int]] = [set() for _ in range(2 * n)]
    for first, second in graph.pairs.tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    logit = np.log(graph.prior / (1 - graph.prior))

    def gains(group: _Codes, other: _Codes) -> _Floats:
        evidence = signature.evidence(
            Regions(weight[group], moment[group]), Regions(weight[other], moment[other])
        )
        chance = log_expit(_TEMPER * evidence + logit)
        return np.asarray(chance + np.log(1 / size[group] + 1 / size[other]))

    start = gains(graph.pairs[:, 0], graph.pairs[:, 1])
    heap = [(-gain, *pair) for gain, pair in zip(start.tolist(), graph.pairs.tolist(), strict=True)]
    heapq.heapify(heap)
    alive = size > 0
    squares = float(np.sum(size**2))
    done: list[tuple[int, int]] = []
    while heap:
        _, first, second = heapq.heappop(heap)
        if not (alive[first] and alive[second]) or size[first] + size[second] > largest * total:
            continue
        squares += 2 * size[first] * size[second]
        if total**2 / squares < floor:
            break
        new = n + len(done)
        done.append((first, second))
        for part in (weight, moment, size):
            part[new] = part[first] + part[second]
        alive[[first, second]], alive[new] = False, True
        around = np.array(
            [g for g in sorted(neighbours[first] | neighbours[second]) if alive[g]], dtype=np.int64
        )
        neighbours[first], neighbours[second] = set(), set()
        if len(around):
            gain = gains(np.full_like(around, new), around)
            kept = np.argsort(-gain, kind="stable")[:_NEIGHBOURS]
            for row in kept:
                other = int(around[row])
                neighbours[new].add(other)
                neighbours[other].add(new)
                heapq.heappush(heap, (-float(gain[row]), other, new))
    return done


def _labels(n: int, merges: list[tuple[int, int]]) -> _Codes:
    """Number the groups after the first merges: ``(n,)``."""
    links = np.array([[member, n + i] for i, pair in enumerate(merges) for member in pair])
    joined = components(n + len(merges), links.reshape(-1, 2).astype(np.int64))[:n]
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def _leakage(graph: _Graph, label: _Codes, sizes: _Codes, folds: int) -> float:
    """Expected share of test tiles whose slide has a tile in train."""
    first, second = np.concatenate([graph.pairs, graph.pairs[:, ::-1]]).T
    chance = np.concatenate([graph.probability, graph.probability])
    apart = label[first] != label[second]
    # Components of one group stand or fall together: of each group outside the likeliest counts.
    ties = first[apart] * (label.max() + 1) + label[second[apart]]
    keys, position = np.unique(ties, return_inverse=True)
    likeliest = np.zeros(len(keys))
    np.maximum.at(likeliest, position, chance[apart])
    source = keys // (label.max() + 1)
    kept = np.bincount(
        source, weights=np.log1p(-np.minimum(likeliest, 1 - 1e-9)), minlength=len(label)
    )
    escaped = 1 - np.exp(kept)
    # What is one slide with a component that leaks leaks too.
    along = escaped.copy()
    np.maximum.at(along, first[~apart], chance[~apart] * escaped[second[~apart]])
    return float((1 - 1 / folds) * (along * sizes).sum() / sizes.sum())
