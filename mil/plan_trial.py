"""Simulated evaluations of a planned cohort: the project's interval and paired test on each.

All cohorts of a trial have the same patients, so they share one set of bootstrap draws, as
methods do in ``evaluate``; accuracy is a ratio of sums a patient, so one matrix product serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from mil import statistics
from mil.plan_cohort import Cohort, Expected, evaluated, ranks
from mil.seeds import generator
from splits.errors import InputError

__all__ = ["LEVEL", "POWER", "Precision", "Trial", "formula_difference", "formula_power"]

POWER: Final = 0.8
LEVEL: Final = 0.95
_Z: Final = float(norm.ppf((1 + LEVEL) / 2))
# Where the power curve is simulated, as multiples of what the normal formula expects.
_GRID: Final = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0, 3.0)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Precision:
    """What one cohort can show.

    Attributes:
        slides: Slides of the whole cohort.
        patients: Patients of the whole cohort.
        width: Mean width of the 95 % interval of the accuracy.
        width_low: 5 % of the simulated cohorts have a narrower interval.
        width_high: 5 % have a wider one.
        coverage: Share of the intervals that hold the expected accuracy.
        smallest_difference: Smallest difference between two methods that the paired test finds in
            80 % of the cohorts; ``None`` where none does.
        false_alarm: Share of cohorts in which the test finds a difference where there is none.
        power: ``(difference, power)``, ascending.
    """

    slides: int
    patients: int
    width: float
    width_low: float
    width_high: float
    coverage: float
    smallest_difference: float | None
    false_alarm: float
    power: tuple[tuple[float, float], ...]


class Trial:
    """Simulated cohorts of one kind, with the bootstrap draws that all of them share."""

    def __init__(
        self, cohort: Cohort, expected: Expected, seed: int, n_cohorts: int, n_draws: int
    ) -> None:
        self.cohort = cohort
        self.test = test = evaluated(cohort, expected.holdout)
        self.n_class = np.bincount(test.label, minlength=len(test.classes))
        self.p = expected.accuracies(test.classes)
        self.truth = float(self.p[test.label].mean())
        stream = generator(seed, "plan")
        self.ranks = ranks(test.patient, expected.correlation, n_cohorts, stream)
        self.right = self.ranks < self.p[test.label]
        self._start = np.searchsorted(test.patient, np.arange(test.n_patients))
        draws = statistics.draw_clusters(test.label, test.patient, n_draws=n_draws, seed=seed)
        self._weights = np.concatenate(list(draws))
        self._df = statistics.degrees(test.label, test.patient)
        self._set_variance(expected.correlation)
        self._set_discordance(expected.discordance)

    def _set_variance(self, correlation: float) -> None:
        """Variance of the accuracy: of slides by themselves, and shared within patients.

        Two slides of a patient, of classes ``a`` and ``b``, covary by ``r (min(p_a, p_b) - p_a
        p_b)``; with one accuracy and ``m`` slides each this is ``1 + (m - 1) r`` times the binomial
        variance (Kish, *Survey Sampling*, 1965, section 5.4).
        """
        kernel = np.minimum.outer(self.p, self.p) - np.outer(self.p, self.p)
        held = np.zeros((self.test.n_patients, len(self.p)))
        np.add.at(held, (self.test.patient, self.test.label), 1)
        n = self.test.n_slides
        independent = float(np.diag(kernel) @ self.n_class) / n**2
        self.own = (1 - correlation) * independent
        self.shared = correlation * float(np.einsum("ia,ab,ib->", held, kernel, held)) / n**2
        self.design_effect = (self.own + self.shared) / independent
        self.normal_width = 2 * _Z * float(np.sqrt(self.own + self.shared))

    def _set_discordance(self, given: float | None) -> None:
        """Discordance of each class, in proportion to the variance of its accuracy."""
        share = self.n_class / self.test.n_slides
        spread = self.p * (1 - self.p)
        usual = float(share @ spread)
        self.discordance = usual if given is None else given
        self._q = spread * self.discordance / usual
        room = float(np.min(2 * np.minimum(self.p, 1 - self.p) / self._q))
        if room < 1 - 1e-9:
            message = (
                f"discordance is {given:g}: with this accuracy it is at most "
                f"{room * self.discordance:.3g}"
            )
            raise InputError(message)
        self.largest_difference = self.discordance * room

    def _draws(self, values: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> FloatArray:
        """Bootstrap draws of ``sum of values / sum of sizes``: ``(n_draws, n_cohorts)``."""
        sums = np.add.reduceat(values.astype(np.float64), self._start, axis=1)
        weight = np.add.reduceat(sizes.astype(np.float64), self._start)
        return np.asarray((self._weights @ sums.T) / (self._weights @ weight)[:, None])

    def _intervals(self, values: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> FloatArray:
        return statistics.ratio_intervals(
            np.add.reduceat(values.astype(np.float64), self._start, axis=1).T,
            np.add.reduceat(sizes.astype(np.float64), self._start),
            self._draws(values, sizes),
            self.test.label,
            self.test.patient,
        )

    def intervals(self) -> FloatArray:
        """Interval of the accuracy in every simulated cohort, ``(n_cohorts, 2)``."""
        return self._intervals(self.right, np.ones(self.test.n_slides))

    def sensitivity_width(self, k: int) -> float:
        """Mean width of the interval of the sensitivity of class ``k``."""
        inside = self.test.label == k
        low, high = self._intervals(self.right & inside, inside).T
        return float((high - low).mean())

    def fold_sd(self, n_folds: int) -> float:
        """Mean standard deviation between folds (by patients in turn) of the same true accuracy."""
        fold = self.test.patient % n_folds
        by_fold = [self.right[:, fold == k].mean(axis=1) for k in range(n_folds)]
        return float(np.std(by_fold, axis=0, ddof=1).mean())

    def preferred(self, difference: float) -> npt.NDArray[np.int8]:
        """1 where only the first of two methods is right, -1 where only the second, else 0.

        The accuracies are ``p + d/2`` and ``p - d/2``. Both are right below ``p - q/2``, then only
        the first for a share ``(q + d)/2``, then only the second for ``(q - d)/2``; ``q`` is the
        discordance, which grows to ``d`` where it is smaller. So the four outcomes of a patient are
        Dirichlet-multinomial (Mosimann, *Biometrika* 49, 1962).
        """
        q = (self._q * max(1.0, difference / self.discordance))[self.test.label]
        first_wins = (1 + difference / max(difference, self.discordance)) / 2
        lower = self.p[self.test.label] - q / 2
        middle, upper = lower + q * first_wins, lower + q
        values = (self.ranks >= lower).astype(np.int8)
        values[self.ranks >= middle] = -1
        values[self.ranks >= upper] = 0
        return values

    def power(self, difference: float) -> float:
        """Share of the cohorts in which the paired test finds this difference."""
        draws = self._draws(self.preferred(difference), np.ones(self.test.n_slides))
        zero = np.zeros(len(draws))
        tests = [statistics.paired(column, zero, difference, self._df)["p"] for column in draws.T]
        return float(np.mean(np.array(tests) <= 1 - LEVEL))

    def precision(self) -> Precision:
        """Intervals and power curve of the project's own interval and test."""
        low, high = self.intervals().T
        guess = formula_difference(self, self.design_effect)
        grid = self.largest_difference if guess is None else guess
        steps = np.minimum(np.array(_GRID) * grid, self.largest_difference)
        curve = [(float(d), self.power(d)) for d in np.unique(steps)]
        return self._precision(low, high, curve, _first_reach(curve))

    def naive(self) -> Precision:
        """The same cohorts by Wald intervals and McNemar's test of independent slides."""
        n = self.test.n_slides
        found = self.right.mean(axis=1)
        half = _Z * np.sqrt(found * (1 - found) / n)
        preferred = self.preferred(0.0).astype(np.int64)
        discordant = np.abs(preferred).sum(axis=1)
        alarms = preferred.sum(axis=1) ** 2 > _Z**2 * discordant
        smallest = formula_difference(self, 1.0)
        return self._precision(found - half, found + half, [(0.0, float(alarms.mean()))], smallest)

    def _precision(
        self,
        low: FloatArray,
        high: FloatArray,
        curve: Sequence[tuple[float, float]],
        smallest: float | None,
    ) -> Precision:
        widths = high - low
        # Draws are ratios of whole numbers, and an end may be the truth itself up to rounding.
        inside = (low <= self.truth + 1e-12) & (self.truth - 1e-12 <= high)
        return Precision(
            slides=self.cohort.n_slides,
            patients=self.cohort.n_patients,
            width=float(widths.mean()),
            width_low=float(np.quantile(widths, 0.05)),
            width_high=float(np.quantile(widths, 0.95)),
            coverage=float(inside.mean()),
            smallest_difference=smallest,
            false_alarm=curve[0][1],
            power=tuple(curve),
        )


def formula_power(difference: float, discordance: float, n: float) -> float:
    """Power of a paired test of ``n`` independent slides (Connor, *Biometrics* 43, 1987)."""
    q = max(discordance, difference)
    alternative = np.sqrt(max(q - difference**2, 1e-12))
    return float(norm.cdf((difference * np.sqrt(n) - _Z * np.sqrt(q)) / alternative))


def formula_difference(trial: Trial, design_effect: float) -> float | None:
    """Difference that the formula finds with a power of 0.8; ``None`` if not even the largest."""
    n = trial.test.n_slides / design_effect

    def excess(d: float) -> float:
        return formula_power(d, trial.discordance, n) - POWER

    if excess(trial.largest_difference) < 0:
        return None
    return float(brentq(excess, 1e-9, trial.largest_difference))


def _first_reach(curve: Sequence[tuple[float, float]]) -> float | None:
    """Where the curve first reaches the power of 0.8, between its points by a straight line."""
    for (d0, p0), (d1, p1) in pairwise(curve):
        if p0 < POWER <= p1:
            return d0 + (d1 - d0) * (POWER - p0) / (p1 - p0)
    return None
