"""Slide predictions from tile probabilities, without training.

Every rule of ``VOTES`` is a function of the probabilities of packed tiles, ``(n_tiles, n_classes)``
with rows that sum to 1, and of ``offsets (n_bags + 1,)``. What they share:

* A tile *abstains* where its highest probability is below ``abstain_below`` (None: no tile does).
  It is then as good as absent. Where all tiles of a slide abstain, all of them count.
* A tile votes for its most probable class, of equally probable ones for the lowest index.
* ``probabilities`` are what the rule counts for each class, scaled to sum 1. Where classes tie, the
  higher mean probability of the tiles that count wins, and then the lowest index; so ``predicted``
  may differ from the first maximum.
* Results are independent of the order of the tiles, to the last bit: sums run over sorted values,
  since the order of floating-point additions could otherwise break a tie.

What is no probability, and offsets that cut no bags from the tiles, is an ``InputError``.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mil.registry import Registry
from splits.errors import InputError

__all__ = [
    "VOTES",
    "Votes",
    "check_vote",
    "max_probability",
    "mean_probability",
    "noisy_or",
    "plurality_vote",
    "quality_vote",
    "top_k_mean",
    "weighted_vote",
]

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Given = npt.NDArray[np.floating[Any]]
Offsets = npt.NDArray[np.integer[Any]]


class Votes(NamedTuple):
    """What the tiles say together about each slide.

    Attributes:
        predicted: Class index, ``(n_bags,)`` int64.
        probabilities: ``(n_bags, n_classes)`` float64, rows summing to 1.
        all_counted: Slides of which no tile would have counted, so that all did, ``(n_bags,)``;
            None where nothing was left out.
    """

    predicted: npt.NDArray[np.int64]
    probabilities: Matrix
    all_counted: Mask | None = None


VOTES: Final[Registry[Votes]] = Registry("vote")
"""Rules by the name of their method: ``VOTES.create(name, probabilities=..., offsets=...)``."""


def check_vote(name: str, **args: Any) -> None:
    """Try a rule on one tile, so that a wrong argument is found before any work starts.

    Raises:
        InputError: The name or an argument is unknown, outside its range, or not a setting but
            data (``probabilities``, ``offsets``, ``quality``).
    """
    for argument in ("probabilities", "offsets", "quality"):
        if argument in args:
            message = f"{argument} of vote {name!r} comes from the tiles, it cannot be set"
            raise InputError(message)
    given = {"quality": np.ones(1)} if name == "quality_vote" else {}
    even, one = np.full((1, 2), 0.5), np.array([0, 1])
    VOTES.create(name, probabilities=even, offsets=one, **given, **args)


@VOTES.register("vote")
def plurality_vote(
    probabilities: Given, offsets: Offsets, *, abstain_below: float | None = None
) -> Votes:
    """Each tile has one vote; the probability of a class is its share of them."""
    bags = _bags(probabilities, offsets, abstain_below)
    return bags.vote(np.ones(len(bags.p)))


@VOTES.register("weighted_vote")
def weighted_vote(
    probabilities: Given, offsets: Offsets, *, abstain_below: float | None = None
) -> Votes:
    """A vote counts the confidence of its tile: how far its highest probability is above chance.

    With C classes ``(C max p - 1) / (C - 1)``: 0 where all classes are equally probable, 1 where
    one is certain. Where no tile of a slide has any, all votes count the same.
    """
    bags = _bags(probabilities, offsets, abstain_below)
    n_classes = bags.p.shape[1]
    return bags.vote(np.clip((n_classes * bags.p.max(axis=1) - 1) / (n_classes - 1), 0, 1))


@VOTES.register("quality_vote")
def quality_vote(
    probabilities: Given,
    offsets: Offsets,
    *,
    quality: Given,
    abstain_below: float | None = None,
) -> Votes:
    """A vote counts the quality of its tile; a blank tile has none and does not vote.

    Where all tiles of a slide are blank, all of them vote the same.

    Args:
        probabilities: Of each tile, ``(n_tiles, n_classes)``.
        offsets: ``(n_bags + 1,)``.
        quality: From 0 (blank) to 1, ``(n_tiles,)``.
        abstain_below: As for all rules; only tiles that are not blank can abstain.

    Raises:
        InputError: As for all rules, or a quality outside 0 to 1.
    """
    n_tiles = len(probabilities)
    if quality.shape != (n_tiles,) or not ((quality >= 0) & (quality <= 1)).all():
        message = f"quality is a number from 0 to 1 for each of the {n_tiles} tiles"
        raise InputError(message)
    bags = _bags(probabilities, offsets, abstain_below, quality > 0)
    return bags.vote(quality[bags.rows].astype(np.float64))


@VOTES.register("mean_probability")
def mean_probability(
    probabilities: Given, offsets: Offsets, *, abstain_below: float | None = None
) -> Votes:
    """The mean probability of the tiles."""
    bags = _bags(probabilities, offsets, abstain_below)
    return bags.decide(bags.mean())


@VOTES.register("top_k_mean")
def top_k_mean(
    probabilities: Given, offsets: Offsets, *, k: int = 10, abstain_below: float | None = None
) -> Votes:
    """For each class the mean of its k highest tile probabilities, of all where there are fewer.

    Args:
        probabilities: Of each tile, ``(n_tiles, n_classes)``.
        offsets: ``(n_bags + 1,)``.
        k: At least 1.
        abstain_below: As for all rules.

    Raises:
        InputError: As for all rules, or k below 1.
    """
    if not isinstance(k, int) or k < 1:
        message = f"k is {k!r}, allowed is an integer of 1 or more"
        raise InputError(message)
    bags = _bags(probabilities, offsets, abstain_below)
    return bags.decide(bags.mean(k))


@VOTES.register("max_probability")
def max_probability(
    probabilities: Given, offsets: Offsets, *, abstain_below: float | None = None
) -> Votes:
    """For each class the probability that its surest tile gives it: ``top_k_mean`` with k = 1."""
    return top_k_mean(probabilities, offsets, k=1, abstain_below=abstain_below)


@VOTES.register("noisy_or")
def noisy_or(
    probabilities: Given, offsets: Offsets, *, abstain_below: float | None = None
) -> Votes:
    """The probability that a tile of the class is there, were tiles independent.

    ``1 - prod_t (1 - p_t)`` for each class (Pearl 1988, "Probabilistic reasoning in intelligent
    systems"). Tiles of a slide are not independent, so it is far too sure, and in a large bag all
    classes reach 1. Classes are therefore compared by ``sum_t log(1 - p_t)``, which does not
    saturate; the probabilities grow equal.
    """
    bags = _bags(probabilities, offsets, abstain_below)
    with np.errstate(divide="ignore"):
        none = bags.sum(np.log1p(-np.minimum(bags.p, 1.0)))  # (n_bags, n_classes), up to 0
    return bags.decide(-none, -np.expm1(none))


class _Bags(NamedTuple):
    """The tiles that count, packed.

    Attributes:
        p: Their probabilities.
        offsets: Where the bags begin.
        rows: Where they stood among all tiles.
        all_counted: As in :class:`Votes`.
    """

    p: Matrix
    offsets: Offsets
    rows: npt.NDArray[np.intp]
    all_counted: Mask | None

    def decide(self, merit: Matrix, share: Matrix | None = None) -> Votes:
        """The class of the highest merit, and shares (merit itself) scaled to sum 1."""
        share = merit if share is None else share
        tied = merit == merit.max(axis=1, keepdims=True)
        predicted = np.where(tied, self.mean(), -1.0).argmax(axis=1)
        scaled = share / share.sum(axis=1, keepdims=True)
        return Votes(predicted.astype(np.int64), scaled, self.all_counted)

    def vote(self, weights: Matrix) -> Votes:
        """Each tile for its most probable class; where no tile of a bag weighs, all do."""
        has_weight = np.add.reduceat(weights, self.offsets[:-1]) > 0
        weights = np.where(np.repeat(has_weight, np.diff(self.offsets)), weights, 1.0)
        ballots = np.zeros_like(self.p)
        ballots[np.arange(len(self.p)), self.p.argmax(axis=1)] = weights
        return self.decide(self.sum(ballots))

    def mean(self, k: int | None = None) -> Matrix:
        """Of each class the mean over its k highest tiles, or over all; rows sum to about 1."""
        lengths = np.diff(self.offsets)
        n_used = lengths if k is None else np.minimum(lengths, k)
        mean: Matrix = self.sum(self.p, n_used) / n_used[:, None]
        return mean

    def sum(self, values: Matrix, n_highest: Offsets | None = None) -> Matrix:
        """Sum of the highest values of each bag, or of all: ``(n, n_classes)`` to bags."""
        lengths = np.diff(self.offsets)
        bag = np.repeat(np.arange(len(lengths)), lengths)  # (n_tiles,)
        used, starts = np.ones(len(bag), dtype=bool), self.offsets[:-1]
        if n_highest is not None:
            from_the_end = self.offsets[1:][bag] - np.arange(len(bag))
            used = from_the_end <= n_highest[bag]
            starts = np.cumsum(n_highest) - n_highest
        columns = [
            np.add.reduceat(column[np.lexsort((column, bag))][used], starts) for column in values.T
        ]
        return np.stack(columns, axis=1)


def _bags(
    probabilities: Given,
    offsets: Offsets,
    abstain_below: float | None,
    counted: Mask | None = None,
) -> _Bags:
    """Check tiles and leave out those that abstain, or that do not count to begin with."""
    p = _check(probabilities, offsets)
    left_out = []
    if counted is not None:
        left_out.append(counted)
    if abstain_below is not None:
        if not isinstance(abstain_below, int | float) or not 0 <= abstain_below <= 1:
            message = f"abstain_below is {abstain_below!r}, allowed is a number from 0 to 1"
            raise InputError(message)
        left_out.append(p.max(axis=1) >= abstain_below)
    if not left_out:
        return _Bags(p, offsets, np.arange(len(p)), None)
    lengths = np.diff(offsets)
    keep, all_counted = np.ones(len(p), dtype=bool), np.zeros(len(lengths), dtype=bool)
    for mask in left_out:
        nobody = ~np.logical_or.reduceat(keep & mask, offsets[:-1])
        keep &= mask | np.repeat(nobody, lengths)
        all_counted |= nobody
    kept = np.concatenate([[0], np.cumsum(np.add.reduceat(keep.astype(np.int64), offsets[:-1]))])
    return _Bags(p[keep], kept, np.flatnonzero(keep), all_counted)


def _check(
    probabilities: npt.NDArray[np.floating[Any]], offsets: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        message = (
            f"tile probabilities of shape {probabilities.shape} given, allowed (n_tiles, n_classes)"
            " with 2 classes or more"
        )
        raise InputError(message)
    if (
        offsets.ndim != 1
        or len(offsets) < 2
        or offsets[0] != 0
        or offsets[-1] != len(probabilities)
        or (np.diff(offsets) < 1).any()
    ):
        message = (
            f"bag offsets must ascend strictly from 0 to the number of tiles, "
            f"{len(probabilities)}: a bag needs at least one tile"
        )
        raise InputError(message)
    widened = probabilities.astype(np.float64)
    # 1e-3 is twice what rounding each probability to float16 can add up to.
    wrong = ~((widened >= 0).all(axis=1) & (np.abs(widened.sum(axis=1) - 1) <= 1e-3))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        message = (
            f"tile {row} has probabilities {widened[row].tolist()}: allowed are values from 0 "
            "that sum to 1"
        )
        raise InputError(message)
    return widened
