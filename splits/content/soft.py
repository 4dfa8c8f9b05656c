"""Soft evidence: coarsen hard components until few slides are likely to be split.

Merging only ever coarsens. Which components look like one slide is judged by the learned signature
(`splits.content.signature_model`), and merged first is what saves most leakage for what it costs in
the effective number of groups.
"""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import log_expit

from splits.content.links import components
from splits.content.signature_model import (
    CAUTIOUS,
    NEIGHBOURS,
    Pairs,
    Regions,
    Signature,
    learn,
    likely_pairs,
    missed,
)

__all__ = ["Coarse", "Step", "coarsen"]

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
        step: Size of the groups and their predicted leakage.
        target: Leakage that was to be reached.
        reason: Why it ended here, in a sentence.
        curve: Groupings that were looked at, the finest first; empty where nothing was merged
            because nothing could be learned or the components are too coarse as they are.
    """

    group: _Codes
    step: Step
    target: float
    reason: str
    curve: tuple[Step, ...]

    @property
    def predicted_leakage(self) -> float:
        """Share of test tiles whose slide has a tile in train, where folds are random groups."""
        return self.step.predicted_leakage

    @property
    def satisfied(self) -> bool:
        """Whether the prediction reaches the target within the bounds."""
        return bool(self.curve) and self.predicted_leakage <= self.target

    def summary(self) -> dict[str, Any]:
        """As plain values for ``identity.json``."""
        return {
            "predicted": self.predicted_leakage,
            "target": self.target,
            "satisfied": self.satisfied,
            "reason": self.reason,
            "n_eff": self.step.n_eff,
            "largest_share": self.step.largest_share,
            "curve": [asdict(step) for step in self.curve],
        }


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

    The prediction takes each pair of components to be one slide or two by a mixture fitted to all
    pairs, under the cautious assumption that regions of a slide differ by at least three times the
    variance of tiles within one (`signature_model.CAUTIOUS`). It is never below what components cut
    in two would leak that are not known again (`signature_model.missed`). It is no proof: slides of
    one batch look like one to it, which makes it too high, and regions that look nothing alike look
    like two slides, which makes it too low.

    An encoder's features may do harm: those of a network trained on ImageNet follow the tissue
    rather than the slide, and left as much leakage as colour alone or more.

    Args:
        component: ``(n_tiles,)`` hard component of each tile.
        vectors: ``(n_tiles, d)`` colour vectors.
        folds: Number of folds that the groups are for.
        target: Predicted leakage to reach.
        embedding: ``(n_tiles, e)`` features of an encoder; as a whole they weigh what the colour
            vectors weigh.

    Returns:
        The groups. The components as they are, with the worst leakage there can be, where they
        break the bounds themselves or there is nothing to learn from.
    """
    component = np.unique(component, return_inverse=True)[1].astype(np.int64)
    sizes = np.bincount(component)
    floor, largest = max(6 * folds, 20), 1 / (2 * folds)
    bounds = f"{folds} folds need n_eff of at least {floor} and no group above {largest:.0%}"
    worst = 1 - 1 / folds
    as_they_are = _step(np.arange(len(sizes)), sizes, worst)
    if as_they_are.n_eff < floor or as_they_are.largest_share > largest:
        reason = (
            f"{bounds}; the hard-linked components have n_eff {as_they_are.n_eff:.1f} and the "
            f"largest holds {as_they_are.largest_share:.0%} of the tiles"
        )
        return Coarse(component, as_they_are, target, reason, ())
    if len(component) - len(sizes) < _ENOUGH:
        reason = (
            f"only {len(component) - len(sizes)} tiles are hard-linked to another "
            f"(at least {_ENOUGH} are needed to learn what a slide looks like)"
        )
        return Coarse(component, as_they_are, target, reason, ())
    blocks = vectors.astype(np.float32) if embedding is None else _beside(vectors, embedding)
    signature = learn(blocks, component)
    graph = likely_pairs(signature)
    merges = _merges(signature, graph, sizes, floor, largest)

    cautious = likely_pairs(signature, CAUTIOUS)
    least = worst * missed(blocks, component)

    def after(n_merges: int) -> Step:
        label = _labels(len(sizes), merges[:n_merges])
        return _step(label, sizes, max(least, _leakage(cautious, label, sizes, folds)))

    steps: dict[int, Step] = {}
    for n_merges in np.linspace(0, len(merges), _STEPS).astype(int).tolist():
        steps[n_merges] = after(n_merges)
        if steps[n_merges].predicted_leakage <= target:
            break
    chosen = max(steps)
    finer = max((n for n in steps if n < chosen), default=chosen)
    while steps[chosen].predicted_leakage <= target and chosen - finer > 1:
        middle = (finer + chosen) // 2
        steps[middle] = after(middle)
        if steps[middle].predicted_leakage <= target:
            chosen = middle
        else:
            finer = middle
    predicted = steps[chosen].predicted_leakage
    reason = (
        f"the predicted leakage {predicted:.3f} is within the target {target:g}"
        if predicted <= target
        else f"the predicted leakage {predicted:.3f} is above the target {target:g}, and {bounds}"
    )
    curve = tuple(steps[n] for n in sorted(steps))
    return Coarse(
        _labels(len(sizes), merges[:chosen])[component], steps[chosen], target, reason, curve
    )


def _step(label: _Codes, sizes: _Codes, leakage: float) -> Step:
    shares = np.bincount(label, weights=sizes) / sizes.sum()
    n_eff = 1 / float(np.sum(shares**2))
    return Step(len(shares), n_eff, float(shares.max()), leakage)


def _beside(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> _Floats:
    """Two blocks of columns, standardised, of one total variance each."""
    blocks = []
    for block in (first.astype(np.float64), second.astype(np.float64)):
        centred = block - block.mean(axis=0)
        blocks.append(centred / (centred.std(axis=0) + 1e-9) / np.sqrt(block.shape[1]))
    return np.concatenate(blocks, axis=1)


def _merges(
    signature: Signature, graph: Pairs, sizes: _Codes, floor: float, largest: float
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
        chance = log_expit(evidence + logit)
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
            kept = np.argsort(-gain, kind="stable")[:NEIGHBOURS]
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


def _leakage(graph: Pairs, label: _Codes, sizes: _Codes, folds: int) -> float:
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
