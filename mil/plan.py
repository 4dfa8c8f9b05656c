"""How precise an evaluation will be, before anybody trains: interval width and power by simulation.

Cohorts are simulated under stated assumptions (:mod:`mil.plan_cohort`), and every one gets the
interval and the paired test of ``evaluate``, not a formula for them (:mod:`mil.plan_trial`). Beside
it stands what a calculation that takes slides for independent would have promised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
from scipy.optimize import brentq

from mil import statistics
from mil.plan_cohort import MAX_SLIDES, Cohort, Expected, resized
from mil.plan_trial import POWER, Precision, Trial, formula_power
from splits.errors import InputError

__all__ = ["Need", "Plan", "plan"]


@dataclass(frozen=True)
class Need:
    """What reaches a goal.

    Attributes:
        goal: ``"width"`` or ``"difference"``.
        wanted: The width, or the difference to be found with a power of 0.8.
        patients: Patients needed, at the present slides per patient.
        slides: Slides of these patients.
        slides_of_same_patients: Slides needed of the present patients, evenly multiplied; ``None``
            where no number of them is enough.
        simulated: The width, or the power, simulated with ``patients``; ``None`` where they have
            more slides than is simulated.
    """

    goal: str
    wanted: float
    patients: int
    slides: int
    slides_of_same_patients: int | None
    simulated: float | None


@dataclass(frozen=True)
class Plan:
    """The answer, with its assumptions.

    Attributes:
        accuracy: Expected accuracy over the tested slides.
        correlation: Within patients, as assumed.
        discordance: Share of slides for which exactly one of two methods is right, as assumed.
        folds: Folds, or ``None``.
        holdout: Tested share of patients, or ``None``.
        test_slides: Slides that are tested.
        test_patients: Their patients.
        design_effect: Variance of the accuracy over that of as many independent slides.
        effective_slides: ``test_slides / design_effect``.
        now: The cohort as it is planned, with the project's own interval and test.
        naive: The same cohorts, by formulas for independent slides (Wald, McNemar).
        smallest_class: Class with the fewest tested slides.
        smallest_class_slides: Their number.
        smallest_class_width: Mean width of the interval of its sensitivity.
        fold_sd: Standard deviation between the accuracies of the folds that chance alone gives;
            ``None`` with a holdout.
        doubled_slides: Twice the slides of every patient.
        doubled_patients: Twice the patients.
        needs: What reaches the wanted width and difference.
        warnings: What limits the plan, a sentence each.
    """

    accuracy: float
    correlation: float
    discordance: float
    folds: int | None
    holdout: float | None
    test_slides: int
    test_patients: int
    design_effect: float
    effective_slides: float
    now: Precision
    naive: Precision
    smallest_class: str
    smallest_class_slides: int
    smallest_class_width: float
    fold_sd: float | None
    doubled_slides: Precision
    doubled_patients: Precision
    needs: tuple[Need, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain types, for JSON."""
        return asdict(self)


def plan(
    cohort: Cohort,
    expected: Expected,
    *,
    width: float | None = None,
    difference: float | None = None,
    seed: int = 0,
    n_cohorts: int = 400,
    n_draws: int = 2000,
) -> Plan:
    """Simulate what an evaluation of this cohort will be able to say.

    Args:
        cohort: Slides, patients and classes (:func:`mil.plan_cohort.even_cohort`,
            :func:`mil.plan_cohort.table_cohort`).
        expected: What is assumed of the methods.
        width: Wanted width of the interval of the accuracy (upper minus lower end).
        difference: Difference between two methods that should be found.
        seed: Equal arguments give equal plans.
        n_cohorts: Simulated cohorts; 400 give a coverage to 0.011 and a power to 0.02 (standard
            errors).
        n_draws: Bootstrap draws an interval, as in :func:`mil.evaluate.evaluate`.

    Raises:
        InputError: Fewer patients than folds, a discordance that the accuracy does not allow, or a
            goal out of range.
    """
    if expected.n_folds is not None and expected.n_folds > cohort.n_patients:
        message = (
            f"{expected.n_folds} folds for {cohort.n_patients} patients: "
            f"give at most {cohort.n_patients}"
        )
        raise InputError(message)
    for name, value in (("width", width), ("difference", difference)):
        if value is not None and not 0 < value < 1:
            message = f"{name} is {value:g}: give a share between 0 and 1, such as 0.1"
            raise InputError(message)
    if n_cohorts < 1 or n_draws < 1:
        message = f"{n_cohorts} cohorts of {n_draws} draws: at least 1 of each is needed"
        raise InputError(message)
    settings = (expected, seed, n_cohorts, n_draws)
    trial = Trial(cohort, *settings)
    if difference is not None and difference > trial.largest_difference:
        message = (
            f"difference is {difference:g}: two methods around an accuracy of {trial.truth:.3g} "
            f"differ by at most {trial.largest_difference:.3g}"
        )
        raise InputError(message)
    now = trial.precision()
    rare = int(np.argmin(np.where(trial.n_class > 0, trial.n_class, np.inf)))
    needs = []
    if width is not None:
        needs.append(_need_width(cohort, trial, width, settings))
    if difference is not None:
        needs.append(_need_difference(cohort, trial, difference, settings))
    doubled = (
        resized(cohort, slides_factor=2),
        resized(cohort, patients=2 * cohort.n_patients),
    )
    return Plan(
        accuracy=trial.truth,
        correlation=expected.correlation,
        discordance=trial.discordance,
        folds=expected.n_folds,
        holdout=expected.holdout,
        test_slides=trial.test.n_slides,
        test_patients=trial.test.n_patients,
        design_effect=trial.design_effect,
        effective_slides=trial.test.n_slides / trial.design_effect,
        now=now,
        naive=trial.naive(),
        smallest_class=cohort.classes[rare],
        smallest_class_slides=int(trial.n_class[rare]),
        smallest_class_width=trial.sensitivity_width(rare),
        fold_sd=None if expected.n_folds is None else trial.fold_sd(expected.n_folds),
        doubled_slides=Trial(doubled[0], *settings).precision(),
        doubled_patients=Trial(doubled[1], *settings).precision(),
        needs=tuple(needs),
        warnings=tuple(_warnings(cohort, trial, expected, now)),
    )


_Settings = tuple[Expected, int, int, int]


def _need_width(cohort: Cohort, trial: Trial, wanted: float, use: _Settings) -> Need:
    """Scale the normal width by the square root; where the simulation differs, scale once more."""
    less = trial.normal_width**2 / wanted**2
    patients = _at_least(cohort.n_patients * less, use[0])
    found = _simulated_width(cohort, patients, use)
    if found is not None and abs(found / wanted - 1) > 0.01:
        patients = _at_least(patients * (found / wanted) ** 2, use[0])
        found = _simulated_width(cohort, patients, use)
    return _need("width", wanted, cohort, trial, less, patients, found)


def _need_difference(cohort: Cohort, trial: Trial, wanted: float, use: _Settings) -> Need:
    """Scale by the formula for independent slides and the design effect; simulate the power."""

    def excess(log_n: float) -> float:
        return formula_power(wanted, trial.discordance, np.exp(log_n)) - POWER

    more = float(np.exp(brentq(excess, 0.0, 40.0))) * trial.design_effect / trial.test.n_slides
    patients = _at_least(cohort.n_patients * more, use[0])
    bigger = _scaled(cohort, patients)
    found = None if bigger is None else Trial(bigger, *use).power(wanted)
    return _need("difference", wanted, cohort, trial, more, patients, found)


def _need(
    goal: str,
    wanted: float,
    cohort: Cohort,
    trial: Trial,
    less: float,
    patients: int,
    simulated: float | None,
) -> Need:
    """A need, with the slides of the present patients that make the variance ``less`` times less.

    With ``f`` times the slides of every patient it is ``own / f + shared``, never under ``shared``.
    """
    left = (trial.own + trial.shared) / less - trial.shared
    slides = None
    if left > 1e-12:
        slides = max(cohort.n_patients, ceil(cohort.n_slides * trial.own / left))
    return Need(
        goal=goal,
        wanted=wanted,
        patients=patients,
        slides=ceil(patients * cohort.n_slides / cohort.n_patients),
        slides_of_same_patients=slides,
        simulated=simulated,
    )


def _at_least(patients: float, expected: Expected) -> int:
    """Whole patients, and no fewer than an interval needs."""
    share = expected.holdout or 1.0
    return max(ceil(patients - 1e-9), ceil(statistics.MIN_CLUSTERS / share))


def _scaled(cohort: Cohort, patients: int) -> Cohort | None:
    """The cohort with so many patients, unless it is larger than what is simulated."""
    if patients * cohort.n_slides / cohort.n_patients > MAX_SLIDES:
        return None
    return resized(cohort, patients=patients)


def _simulated_width(cohort: Cohort, patients: int, use: _Settings) -> float | None:
    bigger = _scaled(cohort, patients)
    if bigger is None:
        return None
    low, high = Trial(bigger, *use).intervals().T
    return float((high - low).mean())


def _warnings(cohort: Cohort, trial: Trial, expected: Expected, now: Precision) -> Iterator[str]:
    test = trial.test
    yield from statistics.caveats(test.label, test.patient, test.classes)
    if expected.n_folds is not None:
        counts = {
            name: len(np.unique(cohort.patient[cohort.label == k]))
            for k, name in enumerate(cohort.classes)
        }
        rare = min(counts, key=lambda name: counts[name])
        n_short = sum(n < expected.n_folds for n in counts.values())
        if n_short:
            yield (
                f"{n_short} class(es) have fewer patients than the {expected.n_folds} folds, "
                f"{rare!r} has {counts[rare]}: some folds test without it"
            )
    largest = int(np.argmax(trial.n_class))
    chance = trial.n_class[largest] / test.n_slides
    if trial.truth <= chance:
        yield (
            f"accuracy {trial.truth:.3g} is not above chance: calling every slide "
            f"{test.classes[largest]!r} is right for {chance:.3g}"
        )
    # Both bounds are 2.7 standard errors from the nominal value with 400 cohorts.
    if now.coverage < 0.92:
        yield (
            f"the 95 % interval held the truth in {now.coverage:.1%} of the simulated cohorts: "
            "it will be too narrow"
        )
    if now.false_alarm > 0.08:
        yield (
            f"the paired test found a difference that is not there in {now.false_alarm:.1%} of "
            "the simulated cohorts instead of 5 %"
        )
