"""Slide predictions from tile probabilities, without training: vote share and mean probability.

Every result is independent of the order of the tiles, to the last bit: sums run over the sorted
probabilities of a bag, since the order of floating-point additions could otherwise break a tie.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from splits.errors import InputError

__all__ = ["Votes", "mean_probability", "plurality_vote"]


class Votes(NamedTuple):
    """What the tiles say together about each slide.

    Attributes:
        predicted: Class index, ``(n_bags,)`` int64.
        probabilities: ``(n_bags, n_classes)`` float64, rows summing to 1.
    """

    predicted: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]


def plurality_vote(
    probabilities: npt.NDArray[np.floating[Any]], offsets: npt.NDArray[np.integer[Any]]
) -> Votes:
    """Each tile has one vote, for its most probable class; the class with most votes wins.

    A tile whose highest probability is shared votes for the lowest of those class indices. A tie
    of votes goes to the class with the higher mean probability over all tiles of the slide, and
    then to the lowest class index. ``predicted`` may therefore differ from the first maximum of
    ``probabilities``.

    Args:
        probabilities: Of each tile, ``(n_tiles, n_classes)``.
        offsets: Tiles of bag ``i`` are rows ``offsets[i]:offsets[i + 1]``; ``(n_bags + 1,)``.

    Returns:
        The winners, and the share of votes of each class as its probability.

    Raises:
        InputError: Values that are no probabilities, or offsets that cut no bags from them.
    """
    checked = _check(probabilities, offsets)
    n_bags, n_classes = len(offsets) - 1, checked.shape[1]
    lengths = np.diff(offsets)
    bag = np.repeat(np.arange(n_bags), lengths)  # (n_tiles,)
    counts = np.bincount(bag * n_classes + checked.argmax(axis=1), minlength=n_bags * n_classes)
    counts = counts.reshape(n_bags, n_classes)
    tied = counts == counts.max(axis=1, keepdims=True)
    mean = _mean(checked, offsets)
    predicted = np.where(tied, mean, -1.0).argmax(axis=1)
    return Votes(predicted.astype(np.int64), counts / lengths[:, None])


def mean_probability(
    probabilities: npt.NDArray[np.floating[Any]], offsets: npt.NDArray[np.integer[Any]]
) -> Votes:
    """The mean of the tile probabilities of each slide; the highest wins, then the lowest index.

    Args:
        probabilities: Of each tile, ``(n_tiles, n_classes)``.
        offsets: Tiles of bag ``i`` are rows ``offsets[i]:offsets[i + 1]``; ``(n_bags + 1,)``.

    Returns:
        The winners, and the mean probability of each class.

    Raises:
        InputError: Values that are no probabilities, or offsets that cut no bags from them.
    """
    mean = _mean(_check(probabilities, offsets), offsets)
    return Votes(mean.argmax(axis=1).astype(np.int64), mean)


def _mean(
    probabilities: npt.NDArray[np.float64], offsets: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    lengths = np.diff(offsets)
    bag = np.repeat(np.arange(len(lengths)), lengths)  # (n_tiles,)
    sums = [
        np.add.reduceat(column[np.lexsort((column, bag))], offsets[:-1])
        for column in probabilities.T
    ]
    mean: npt.NDArray[np.float64] = np.stack(sums, axis=1) / lengths[:, None]
    mean /= mean.sum(axis=1, keepdims=True)
    return mean


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
