"""One fold of a run, in the rows of its tile table.

Training gets a :class:`Fold`, and a fold does not hold the labels of its test slides: they are
dropped when it is made, so no code that is given one can learn from, stop by or tune on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.config import Config
from mil.data.positions import grid_positions
from mil.prepare import read_tiles
from splits import split as splitting
from splits import tiles
from splits.artifacts import digest, digests_of, require_digests
from splits.errors import InputError

__all__ = ["Fold", "KnownLabels", "class_order", "folds_of", "label_names", "positions_of"]


class KnownLabels(dict[str, int]):
    """Slide -> class index, for the slides whose label may be known.

    Raises:
        InputError: Another slide is asked for.
    """

    def __missing__(self, slide: str) -> int:
        message = (
            f"the label of slide {slide!r} is sealed: it is a test slide of this fold, and nothing "
            "may be trained, stopped early, tuned or calibrated on it"
        )
        raise InputError(message)


@dataclass(frozen=True)
class Fold:
    """Who trains, validates and tests.

    Attributes:
        number: From 0.
        classes: Class names; a class index is a place in it.
        slides: Part (train, val, test) -> its slides, sorted.
        labels: Slide -> class index, of training and validation slides only: those of test slides
            are dropped here, whoever gives them, and asking for one raises.
        group_of: Slide -> what may never be cut.
        patient_of: Slide -> its patient.
        rows_by_slide: Slide -> rows of the tile table, ascending.
        tile_ids: Tile of each row, ``(n_tiles,)``.
        slide_of: Slide of each row, ``(n_tiles,)``.
        identity: Digest of the tile table.
        split: Digest of the split.
        inner: Number of a fold within this one; None is the fold itself.

    Raises:
        InputError: A slide is in two parts.
    """

    number: int
    classes: list[str]
    slides: dict[str, list[str]]
    labels: Mapping[str, int]
    group_of: dict[str, str] = field(repr=False)
    patient_of: dict[str, str] = field(repr=False)
    rows_by_slide: dict[str, npt.NDArray[np.int64]] = field(repr=False)
    tile_ids: npt.NDArray[np.object_] = field(repr=False)
    slide_of: npt.NDArray[np.object_] = field(repr=False)
    identity: str
    split: str
    inner: int | None = None

    def __post_init__(self) -> None:
        counts = Counter(slide for slides in self.slides.values() for slide in slides)
        twice = sorted(slide for slide, n in counts.items() if n > 1)
        if twice:
            message = (
                f"fold {self.number}: {len(twice)} slide(s) in two parts or twice in one, the "
                f"first is {twice[0]!r}: what is tested may neither train nor validate"
            )
            raise InputError(message)
        # Also after `replace`: a slide that becomes a test slide loses its label.
        sealed = set(self.slides.get("test", ()))
        known = KnownLabels({s: k for s, k in self.labels.items() if s not in sealed})
        object.__setattr__(self, "labels", known)

    @property
    def key(self) -> str:
        """What its files are called: ``0``, or ``0-inner1`` within it."""
        return str(self.number) if self.inner is None else f"{self.number}-inner{self.inner}"

    def within(self, inner: int, slides: dict[str, list[str]]) -> Fold:
        """A fold inside this one: what it does not deal has neither label nor rows in it.

        Args:
            inner: Its number.
            slides: Part (train, val, test) -> its slides, sorted.
        """
        inside = sorted(slide for names in slides.values() for slide in names)
        return replace(
            self,
            slides=slides,
            labels={slide: self.labels[slide] for slide in inside},
            group_of={slide: self.group_of[slide] for slide in inside},
            patient_of={slide: self.patient_of[slide] for slide in inside},
            rows_by_slide={slide: self.rows_by_slide[slide] for slide in inside},
            split=digest([self.split, slides]),
            inner=inner,
        )

    def rows(self, *parts: str) -> npt.NDArray[np.int64]:
        """Rows of all tiles in these parts, ascending."""
        slides = [slide for part in parts for slide in self.slides[part]]
        return np.sort(np.concatenate([self.rows_by_slide[slide] for slide in slides]))

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class index of these rows, that of their slides, ``(n_rows,)``.

        Raises:
            InputError: A row is of a test slide.
        """
        code, names = pd.factorize(self.slide_of[rows])
        of_names = np.array([self.labels[name] for name in names], dtype=np.int64)
        target: npt.NDArray[np.int64] = of_names[code]
        return target

    @property
    def unseen(self) -> set[str]:
        """Slides that no weight of this fold may have met: validation and test."""
        return {*self.slides["val"], *self.slides["test"]}

    def in_bags(self, bags: Literal["slide", "patient"]) -> Fold:
        """With one bag a slide, as it is, or one a patient (:meth:`of_patients`)."""
        return self.of_patients() if bags == "patient" else self

    def of_patients(self) -> Fold:
        """The same fold with patients in the place of slides: one bag each.

        ``slide_of`` still says the slide of each row, so :meth:`targets` is of slides: it is not
        to be asked here.

        Raises:
            InputError: Slides of one patient have different labels, as far as they are known, or
                lie in different parts.
        """
        slides_of: dict[str, list[str]] = {}
        for slide in sorted(self.rows_by_slide):
            slides_of.setdefault(self.patient_of[slide], []).append(slide)
        _one_label_a_patient(self.labels, self.patient_of, self.classes)
        parts = {
            part: sorted({self.patient_of[slide] for slide in slides})
            for part, slides in self.slides.items()
        }
        cut = [p for p, n in Counter(p for names in parts.values() for p in names).items() if n > 1]
        if cut:
            message = (
                f"mil.bags=patient: {len(cut)} patient(s) have slides in several parts, the first "
                f"is {min(cut)!r}: split by patient or site (split.unit)"
            )
            raise InputError(message)
        rows = {
            patient: np.sort(np.concatenate([self.rows_by_slide[slide] for slide in slides]))
            for patient, slides in slides_of.items()
        }
        return replace(
            self,
            slides=parts,
            labels={self.patient_of[slide]: k for slide, k in self.labels.items()},
            group_of={patient: self.group_of[slides[0]] for patient, slides in slides_of.items()},
            patient_of={patient: patient for patient in slides_of},
            rows_by_slide=rows,
        )


def _one_label_a_patient(
    labels: Mapping[str, int], patient_of: Mapping[str, str], classes: list[str]
) -> None:
    """Refuse patients as bags where slides of one have different labels.

    Raises:
        InputError: With the first such patient.
    """
    found: dict[str, set[int]] = {}
    for slide, label in labels.items():
        found.setdefault(patient_of[slide], set()).add(label)
    mixed = sorted(patient for patient, several in found.items() if len(several) > 1)
    if mixed:
        names = sorted(classes[k] for k in found[mixed[0]])
        message = (
            f"mil.bags=patient: slides of patient {mixed[0]!r} have different labels "
            f"({', '.join(names)}): choose split.label_policy=majority or max, which give "
            "them one, or mil.bags=slide"
        )
        raise InputError(message)


def label_names(run: Path) -> pd.Series:
    """Class name by slide of every slide of a run, test slides included.

    For the ``label`` column of prediction tables and nothing else: what is learned goes by
    :class:`Fold`, what is scored by :func:`mil.seal.open_test_labels`.
    """
    slides = tiles.slides(read_tiles(run)).astype({"slide_id": object})
    return slides.set_index("slide_id")["label"].astype(object)


def positions_of(run: Path, fold: Fold, bags: str) -> dict[str, npt.NDArray[np.int64]]:
    """Column and row of each tile of a bag, ``(n_tiles, 2)``; absent where they are not known.

    Args:
        run: Run folder.
        fold: With slides, not of patients.
        bags: ``slide`` or ``patient``. Several slides have no grid in common, so only a patient of
            one slide has positions.
    """
    placed = grid_positions(read_tiles(run))
    if bags == "slide":
        return placed
    n_slides = Counter(fold.patient_of.values())
    patients = {slide: fold.patient_of[slide] for slide in placed if slide in fold.patient_of}
    return {p: placed[s] for s, p in patients.items() if n_slides[p] == 1}


def class_order(config: Config, table: pd.DataFrame) -> list[str]:
    """Class names in the order of their indices, from the config or the tile table."""
    return list(config.data.classes or sorted(table["slide_label"].astype(str).unique()))


def folds_of(run: Path, config: Config) -> Iterator[Fold]:
    """The folds of a run's split.

    Raises:
        InputError: The split is missing or of another tile table; where bags are patients, one has
            slides of different labels.
        NegativeVerdictError: A slide or group is in two parts of a fold.
    """
    table = read_tiles(run)
    split = splitting.load(run)
    splitting.refuse_cuts(split)
    identity = tiles.identity_digest(table)
    require_digests(run / "split.json", {"identity": identity}, f"slidewise split {run}")
    # Folds within folds change nothing outside them.
    found = {k: v for k, v in digests_of(run / "split.json").items() if k != "inner"}
    slides = tiles.slides(table)
    classes = class_order(config, table)
    index = {name: i for i, name in enumerate(classes)}
    labels = {s: index[c] for s, c in slides[["slide_id", "label"]].itertuples(index=False)}
    ids = table.drop_duplicates("slide_id").set_index("slide_id")[["group_id", "patient_id"]]
    if config.mil.bags == "patient":
        # Here all labels are at hand; a fold alone knows nothing of its test patients.
        _one_label_a_patient(labels, ids["patient_id"].to_dict(), classes)
    slide_of = table["slide_id"].to_numpy(dtype=object)
    rows = {str(k): np.sort(v) for k, v in table.groupby("slide_id").indices.items()}
    for number in sorted(split.table["fold"].unique()):
        yield Fold(
            number=int(number),
            classes=classes,
            slides={part: sorted(names) for part, names in splitting.parts(split, number).items()},
            labels=labels,
            group_of=ids["group_id"].to_dict(),
            patient_of=ids["patient_id"].to_dict(),
            rows_by_slide=rows,
            tile_ids=table["tile_id"].to_numpy(dtype=object),
            slide_of=slide_of,
            identity=identity,
            split=digest([found, split.digest]),
        )
