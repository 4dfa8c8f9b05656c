"""One fold of a run, in the rows of its tile table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mil.config import Config
from mil.data.positions import grid_positions
from mil.prepare import read_tiles
from splits import split as splitting
from splits import tiles
from splits.artifacts import digest, digests_of, require_digests
from splits.errors import InputError

__all__ = ["Fold", "folds_of", "positions_of"]


@dataclass(frozen=True)
class Fold:
    """Who trains, validates and tests.

    Attributes:
        number: From 0.
        classes: Class names; a class index is a place in it.
        slides: Part (train, val, test) -> its slides, sorted.
        labels: Slide -> class index.
        group_of: Slide -> what may never be cut.
        patient_of: Slide -> its patient.
        rows_by_slide: Slide -> rows of the tile table, ascending.
        tile_ids: Tile of each row, ``(n_tiles,)``.
        slide_of: Slide of each row, ``(n_tiles,)``.
        target: Class index of each row, that of its slide, ``(n_tiles,)`` int64.
        identity: Digest of the tile table.
        split: Digest of the split.
    """

    number: int
    classes: list[str]
    slides: dict[str, list[str]]
    labels: dict[str, int]
    group_of: dict[str, str] = field(repr=False)
    patient_of: dict[str, str] = field(repr=False)
    rows_by_slide: dict[str, npt.NDArray[np.int64]] = field(repr=False)
    tile_ids: npt.NDArray[np.object_] = field(repr=False)
    slide_of: npt.NDArray[np.object_] = field(repr=False)
    target: npt.NDArray[np.int64] = field(repr=False)
    identity: str
    split: str

    def rows(self, *parts: str) -> npt.NDArray[np.int64]:
        """Rows of all tiles in these parts, ascending."""
        slides = [slide for part in parts for slide in self.slides[part]]
        return np.sort(np.concatenate([self.rows_by_slide[slide] for slide in slides]))

    @property
    def unseen(self) -> set[str]:
        """Slides that no weight of this fold may have met: validation and test."""
        return {*self.slides["val"], *self.slides["test"]}

    def of_patients(self) -> Fold:
        """The same fold with patients in the place of slides: one bag each.

        ``slide_of`` still says the slide of each row.

        Raises:
            InputError: Slides of one patient have different labels or lie in different parts.
        """
        slides_of: dict[str, list[str]] = {}
        for slide in sorted(self.rows_by_slide):
            slides_of.setdefault(self.patient_of[slide], []).append(slide)
        for patient, slides in slides_of.items():
            found = sorted({self.classes[self.labels[slide]] for slide in slides})
            if len(found) > 1:
                message = (
                    f"mil.bags=patient: slides of patient {patient!r} have different labels "
                    f"({', '.join(found)}): choose split.label_policy=majority or max, which give "
                    "them one, or mil.bags=slide"
                )
                raise InputError(message)
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
            labels={patient: self.labels[slides[0]] for patient, slides in slides_of.items()},
            group_of={patient: self.group_of[slides[0]] for patient, slides in slides_of.items()},
            patient_of={patient: patient for patient in slides_of},
            rows_by_slide=rows,
        )


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
    patients = {slide: fold.patient_of[slide] for slide in placed}
    return {patients[s]: at for s, at in placed.items() if n_slides[patients[s]] == 1}


def folds_of(run: Path, config: Config) -> Iterator[Fold]:
    """The folds of a run's split.

    Raises:
        InputError: The split is missing or of another tile table.
    """
    table = read_tiles(run)
    split = splitting.load(run)
    identity = tiles.identity_digest(table)
    require_digests(run / "split.json", {"identity": identity}, f"slidewise split {run}")
    found = digests_of(run / "split.json")
    slides = tiles.slides(table)
    classes = list(config.data.classes or sorted(slides["label"].unique()))
    index = {name: i for i, name in enumerate(classes)}
    labels = {s: index[c] for s, c in slides[["slide_id", "label"]].itertuples(index=False)}
    ids = table.drop_duplicates("slide_id").set_index("slide_id")[["group_id", "patient_id"]]
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
            target=np.array([labels[name] for name in slide_of], dtype=np.int64),
            identity=identity,
            split=digest([found, split.digest]),
        )
