"""How far parts are from their share, and how far they have to be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["floor_points", "relative_percent", "shares_of", "variation_points"]

Floats = npt.NDArray[np.float64]


def shares_of(amounts: Floats) -> Floats:
    """Share of each column in the sum of all, ``(d,)``; zero where all are."""
    total = amounts.sum()
    return np.asarray(amounts.sum(axis=0) / (total if total > 0 else 1.0))


def variation_points(amounts: Floats, inside: npt.NDArray[np.bool_]) -> float:
    """Total variation between the mix of some rows of ``(n, d)`` and the whole mix, in points."""
    return round(float(50 * np.abs(shares_of(amounts[inside]) - shares_of(amounts)).sum()), 4)


def relative_percent(value: float, wanted: float) -> float:
    """By how much a size exceeds the wanted one, in percent of the latter."""
    return round(float(100 * (value / wanted - 1)), 4) if wanted else 0.0


def floor_points(amounts: Floats, shares: Floats) -> float:
    """Largest deviation of a part from its share, in points, that cannot be avoided.

    The largest group has to go somewhere, and whole groups add up to multiples of a common step.
    """
    total = amounts.sum()
    if total == 0:
        return 0.0
    targets = shares / shares.sum() * total
    least = amounts.max() - targets.max()
    step = np.gcd.reduce(amounts.astype(np.int64)) if (amounts % 1 == 0).all() else 0
    if step:
        over = targets % step
        under = np.where(over > 1e-9 * total, step - over, 0.0)
        over = np.where(over > 1e-9 * total, over, 0.0)
        # Of equal parts one has to get more than its share, and one less.
        equal = np.ptp(shares) < 1e-12
        least = max(least, (np.maximum(over, under) if equal else np.minimum(over, under)).max())
    return round(float(100 * max(least, 0.0) / total), 4)
