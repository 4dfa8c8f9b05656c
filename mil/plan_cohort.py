"""What a plan assumes: which slides will be tested, and how right and how alike they will be.

A cohort is two vectors, patient and class of each slide. Everything random about it is in
:func:`ranks`: one uniform number a slide, from which "the method is right" follows by a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.errors import InputError

__all__ = [
    "MAX_SLIDES",
    "Cohort",
    "Expected",
    "evaluated",
    "even_cohort",
    "ranks",
    "resized",
    "table_cohort",
]

MAX_SLIDES: Final = 20_000
_DEFAULT_FOLDS: Final = 5

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Slides in the order of their patients; patients by class, then by number of slides.

    Attributes:
        patient: Patient of each slide, ``(n_slides,)``, ascending ``0 … n_patients - 1``.
        label: Class index of each slide, ``(n_slides,)``.
        classes: Name of each class.
    """

    patient: IntArray
    label: IntArray
    classes: tuple[str, ...]

    @property
    def n_slides(self) -> int:
        """Number of slides."""
        return len(self.patient)

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return len(np.unique(self.patient))


@dataclass(frozen=True)
class Expected:
    """What is assumed of the method; nothing here is estimated from data.

    Attributes:
        accuracy: Expected slide accuracy, as one share, or one a class (the sensitivities).
        correlation: Correlation of "right" between two slides of one patient: 0, slides are
            independent; 1, a patient's slides are all right or all wrong. The default is a middle
            value and no measurement.
        discordance: Share of slides for which exactly one of two methods is right; by default half
            of what two methods with independent errors would give, ``p (1 - p)``.
        folds: Every slide is tested once, in one of so many folds; 5 where nothing is given.
        holdout: Test this share of the patients instead.

    Raises:
        InputError: A value is out of range, or both folds and holdout are given.
    """

    accuracy: float | Sequence[float]
    correlation: float = 0.3
    discordance: float | None = None
    folds: int | None = None
    holdout: float | None = None

    def __post_init__(self) -> None:
        for value in np.atleast_1d(self.accuracy):
            _open_share("accuracy", float(value))
        if not 0 <= self.correlation <= 1:
            message = f"correlation is {self.correlation}: give 0 (independent slides) to 1"
            raise InputError(message)
        if self.discordance is not None:
            _open_share("discordance", self.discordance)
        if self.holdout is not None:
            _open_share("holdout", self.holdout)
        if self.folds is not None and self.holdout is not None:
            message = "folds and holdout exclude each other: give one of them"
            raise InputError(message)
        if self.folds is not None and self.folds < 2:
            message = f"folds is {self.folds}: at least 2 are needed (or give holdout, a share)"
            raise InputError(message)

    @property
    def n_folds(self) -> int | None:
        """Number of folds; ``None`` with a holdout."""
        return None if self.holdout is not None else self.folds or _DEFAULT_FOLDS

    def accuracies(self, classes: Sequence[str]) -> FloatArray:
        """Accuracy of each class, ``(n_classes,)``."""
        given = np.atleast_1d(np.asarray(self.accuracy, dtype=np.float64))
        if len(given) not in (1, len(classes)):
            message = (
                f"{len(given)} accuracies for {len(classes)} classes: give one for all, or one each"
            )
            raise InputError(message)
        return np.broadcast_to(given, len(classes)).copy()


def even_cohort(
    *, slides: int, patients: int, classes: int = 2, shares: Sequence[float] | None = None
) -> Cohort:
    """A cohort with slides per patient as even as possible, and one class a patient.

    Args:
        slides: Number of slides.
        patients: Number of patients.
        classes: Number of classes.
        shares: Share of the patients of each class, summing to 1; by default equal.

    Raises:
        InputError: More patients than slides, fewer than 2 classes, shares that do not fit, or a
            class without a patient.
    """
    if slides < 1 or patients < 1:
        message = f"{slides} slides of {patients} patients: at least 1 of each is needed"
        raise InputError(message)
    if patients > slides:
        message = f"{patients} patients have {slides} slides: every patient needs at least one"
        raise InputError(message)
    _check_size(slides)
    if classes < 2:
        message = f"classes is {classes}: at least 2 are needed"
        raise InputError(message)
    wanted = np.asarray(shares if shares is not None else [1 / classes] * classes, dtype=np.float64)
    if not (len(wanted) == classes and np.all(wanted > 0) and abs(wanted.sum() - 1) < 1e-6):
        message = (
            f"{len(wanted)} class shares that sum to {wanted.sum():.4g} for {classes} classes: "
            "give one positive share a class, summing to 1"
        )
        raise InputError(message)
    counts = np.floor(wanted * patients + 1e-9).astype(np.int64)
    remainder = wanted * patients - counts
    counts[np.argsort(-remainder, kind="stable")[: patients - counts.sum()]] += 1
    if np.any(counts == 0):
        message = (
            f"class {int(np.argmin(counts)) + 1} gets no patient: {patients} patients are too few "
            f"for a share of {wanted[np.argmin(counts)]:.3g}"
        )
        raise InputError(message)
    sizes = np.diff(np.arange(patients + 1) * slides // patients)
    patient = np.repeat(np.arange(patients), sizes)
    label = np.repeat(np.arange(classes), counts)[patient]
    return _sorted(patient, label, tuple(str(k + 1) for k in range(classes)))


def table_cohort(slides: pd.DataFrame) -> Cohort:
    """The cohort of a slide table, as :func:`splits.slide_table.read` gives it.

    Args:
        slides: One row a slide, with ``patient_id`` and ``label``; row order has no influence.

    Raises:
        InputError: A column is missing or empty in a row, or there are fewer than 2 classes.
    """
    for column in ("patient_id", "label"):
        if column not in slides.columns:
            message = f"the slide table has no column {column}: map one with --columns"
            raise InputError(message)
        empty = slides[column].isna() | (slides[column].astype(str) == "")
        if empty.any():
            message = f"{int(empty.sum())} slide(s) without {column}: a plan needs it for all"
            raise InputError(message)
    _check_size(len(slides))
    classes, label = np.unique(slides["label"].astype(str).to_numpy(), return_inverse=True)
    if len(classes) < 2:
        message = f"the slide table has {len(classes)} class(es): at least 2 are needed"
        raise InputError(message)
    patient = np.unique(slides["patient_id"].astype(str).to_numpy(), return_inverse=True)[1]
    return _sorted(patient, label, tuple(str(name) for name in classes))


def evaluated(cohort: Cohort, holdout: float | None) -> Cohort:
    """The slides that are tested: all of them, or those of an even choice of patients.

    Raises:
        InputError: The holdout has no patient.
    """
    if holdout is None:
        return cohort
    steps = np.floor(np.arange(cohort.n_patients + 1) * holdout + 0.5)
    kept = np.diff(steps)[cohort.patient] > 0
    if not kept.any():
        message = f"holdout {holdout} of {cohort.n_patients} patients leaves nobody to test"
        raise InputError(message)
    patient = np.unique(cohort.patient[kept], return_inverse=True)[1]
    return Cohort(patient.astype(np.int64), cohort.label[kept], cohort.classes)


def resized(cohort: Cohort, *, patients: int | None = None, slides_factor: int = 1) -> Cohort:
    """Another number of patients of the same kinds, or every slide so many times.

    Args:
        cohort: The cohort to start from.
        patients: New number of patients; their slides and classes repeat those that are there.
        slides_factor: How many slides stand for each slide, of the same patient and class.
    """
    n = cohort.n_patients
    target = n if patients is None else patients
    model = (2 * np.arange(target) + 1) * n // (2 * target)
    start = np.searchsorted(cohort.patient, np.arange(n + 1))
    rows = np.concatenate([np.arange(start[i], start[i + 1]) for i in model])
    patient = np.repeat(np.arange(target), np.diff(start)[model])
    return Cohort(
        np.repeat(patient, slides_factor),
        np.repeat(cohort.label[rows], slides_factor),
        cohort.classes,
    )


def ranks(
    patient: IntArray, correlation: float, n_cohorts: int, stream: np.random.Generator
) -> FloatArray:
    """One uniform number a slide, equal for two slides of a patient as often as they correlate.

    The urn of Blackwell and MacQueen (*Ann. Stat.* 1, 1973): the slide at position ``j = 0, 1, …``
    of its patient draws a new number with probability ``t / (t + j)``, else it repeats that of an
    earlier slide, where ``t = (1 - r) / r``. Any function of the number then correlates by exactly
    ``r`` between two slides of a patient, and the count of numbers below a threshold ``p`` is
    beta-binomial (Skellam, *J. R. Stat. Soc. B* 10, 1948) with mean ``p`` and correlation ``r``.

    Args:
        patient: Patient of each slide, ``(n_slides,)``, ascending.
        correlation: ``r``, from 0 to 1.
        n_cohorts: Number of simulated cohorts.
        stream: Source of randomness.

    Returns:
        ``(n_cohorts, n_slides)``.
    """
    values = stream.random((n_cohorts, len(patient)))
    start = np.searchsorted(patient, patient)
    position = np.arange(len(patient)) - start
    for j in range(1, int(position.max()) + 1):
        here = np.flatnonzero(position == j)
        shape = (n_cohorts, len(here))
        repeats = stream.random(shape) * (1 - correlation + correlation * j) < correlation * j
        source = start[here] + stream.integers(0, j, size=shape)
        earlier = np.take_along_axis(values, source, axis=1)
        values[:, here] = np.where(repeats, earlier, values[:, here])
    return values


def _sorted(patient: IntArray, label: IntArray, classes: tuple[str, ...]) -> Cohort:
    """Order patients by what they hold, so that ids and row order have no influence."""
    held = np.zeros((int(patient.max()) + 1, len(classes)), dtype=np.int64)
    np.add.at(held, (patient, label), 1)
    order = np.lexsort((*held.T[::-1], -held.sum(axis=1), held.argmax(axis=1)))
    cells = held[order].ravel()
    names, labels = np.divmod(np.arange(held.size), len(classes))
    return Cohort(np.repeat(names, cells), np.repeat(labels, cells), classes)


def _check_size(n_slides: int) -> None:
    if n_slides > MAX_SLIDES:
        message = (
            f"{n_slides} slides: plans are simulated up to {MAX_SLIDES}; plan with fewer, widths "
            "shrink with the square root of the number of patients"
        )
        raise InputError(message)


def _open_share(name: str, value: float) -> None:
    if 0 < value < 1:
        return
    message = f"{name} is {value:g}: give a share between 0 and 1"
    if 1 < value < 100:
        message += f", such as {value / 100:g} for {value:g} %"
    elif name == "accuracy":
        message += " (both ends excluded: nothing varies there, so there is nothing to plan)"
    raise InputError(message)
