"""The design of a shortcut probe: who is held out, and what is fitted (see :mod:`.probe`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg, sparse
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from mil.seeds import derive

__all__ = ["Floats", "Ints", "Left", "Part", "components", "held_out", "of_patients", "of_slides"]

_COMPONENTS: Final = 128
_FOLDS: Final = 50

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Left = list[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One kind of name in one pool.

    Attributes:
        hits: Names (integers from 0) of what changes places -> share found of each counted unit.
        code: True name of each unit whose name may change places: a tile or a patient.
        kept: What a name never leaves, of each such unit: the half of a tile, nothing of a patient.
        stratum: Class of each such unit.
        unit: Id of each counted unit (slide or patient),
        patient: its patient,
        name: and its true name; ``None`` names a slide by itself.
    """

    hits: Callable[[Ints], Floats]
    code: Ints
    kept: Ints
    stratum: Ints
    unit: list[str]
    patient: list[str]
    name: list[str] | None = None

    def macro(self, given: Ints) -> float:
        """Mean over names of the share found, were these the names."""
        share = self.hits(given)
        if self.name is None:
            return float(share.mean())
        return float((np.bincount(given, share) / np.bincount(given)).mean())


def components(x: npt.NDArray[np.floating], seed: int) -> Floats:
    """At most 128 principal components of standardised embeddings ``(n, dim)``: ``(n, d)``."""
    z = StandardScaler().fit_transform(np.asarray(x, dtype=np.float64))
    random = derive(seed, "probe", "components") % 2**32
    model = PCA(min(_COMPONENTS, *z.shape), random_state=random)
    return np.asarray(model.fit_transform(z), dtype=np.float64)


def held_out(z: Floats, fold: Ints, *, alpha: float | None = None) -> npt.NDArray[np.float32]:
    """The matrix that turns targets into held-out ridge predictions, ``(n, n)`` float32.

    ``held_out(z, fold) @ y`` is what scikit-learn's ``Ridge(alpha)`` says of each row when it is
    fitted on the rows of the other folds. The features are factorised once for all targets, so that
    hundreds of permutations cost a product each.

    Args:
        z: Features ``(n, d)``.
        fold: Fold of each row, ``(n,)``.
        alpha: Penalty; None takes one a training row.
    """
    matrix = np.zeros((len(z), len(z)), dtype=np.float32)
    for held in (fold == k for k in np.unique(fold)):
        fit = ~held
        mean = z[fit].mean(axis=0)
        x = z[fit] - mean
        penalty = float(len(x)) if alpha is None else alpha
        weights = linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T, assume_a="pos")
        matrix[np.ix_(held, fit)] = (z[held] - mean) @ weights + 1 / len(x)
    return matrix


def of_slides(
    z: Floats, slide: npt.NDArray[np.str_], slides: pd.DataFrame, random: np.random.Generator
) -> tuple[Part | None, Left]:
    """Probe one pool for the slide of its tiles; a slide of one tile has none to learn from.

    Args:
        z: Components ``(n_tiles, d)``.
        slide: Slide of each tile.
        slides: ``patient_id, label``, the index being the slide.
        random: Deals each slide to halves.

    Returns:
        The part, None where there are no two such slides, and what is left out.
    """
    names, count = np.unique(slide, return_counts=True)
    lone = [{"name": str(name), "why": "one tile"} for name in names[count < 2]]
    keep = ~np.isin(slide, names[count < 2])
    if len(names) - len(lone) < 2:
        return None, lone
    names, code = np.unique(slide[keep], return_inverse=True)
    half = np.empty(len(code), dtype=np.int64)
    half[np.lexsort((random.random(len(code)), code))] = np.arange(len(code)) % 2
    from_tiles = np.ascontiguousarray(held_out(z[keep], half).T)  # (n_tiles, n_tiles)
    rows, n_tiles = np.arange(len(code)), np.bincount(code)

    def hits(given: Ints) -> Floats:
        ones = np.ones(len(given), dtype=np.float32)
        shape = (len(names), len(given))
        scores = sparse.csr_array((ones, (given, rows)), shape=shape) @ from_tiles
        learnt = np.stack([np.bincount(given[half != k], minlength=shape[0]) for k in (0, 1)])
        found = (scores / learnt[half].T).argmax(axis=0) == given
        return np.asarray(np.bincount(given, found) / n_tiles)

    labels = pd.factorize(slides.loc[names, "label"], sort=True)[0].astype(np.int64)
    patients = slides.loc[names, "patient_id"].tolist()
    return Part(hits, code, half, labels[code], names.tolist(), patients), lone


def of_patients(
    z: Floats,
    slide: npt.NDArray[np.str_],
    slides: pd.DataFrame,
    kind: str,
    random: np.random.Generator,
) -> tuple[Part | None, Left]:
    """Probe one pool for a name that patients have; two patients of each name are needed.

    Args:
        z: Components ``(n_tiles, d)``.
        slide: Slide of each tile.
        slides: ``patient_id, label`` and the column ``kind``, the index being the slide.
        kind: ``site`` or ``preparation``.
        random: Deals patients to folds where there are very many.

    Returns:
        The part, None where there are no two such names, and what is left out.
    """
    here = slides.loc[np.unique(slide)]
    name_of, out = _names(here, kind)
    if name_of.nunique() < 2:
        return None, out
    patients = name_of.index
    keep = np.isin(slide, here.index[here["patient_id"].isin(patients)])
    own, slide_of = np.unique(slide[keep], return_inverse=True)
    patient_of = patients.get_indexer(slides.loc[own, "patient_id"])  # of each slide
    tile_patient = patient_of[slide_of]
    fold = random.permutation(len(patients)) % _FOLDS
    predict = held_out(z[keep], fold[tile_patient])
    # All tiles of a patient have one name, and those of a slide are averaged.
    to_slide = _indicators(slide_of, len(own)) / np.bincount(slide_of)[:, None]
    by_slide = to_slide @ predict @ _indicators(tile_patient, len(patients)).T
    n_tiles = np.bincount(tile_patient)
    learns = (fold[patient_of][:, None] != fold) * n_tiles  # (n_slides, n_patients)

    def hits(given: Ints) -> Floats:
        name = np.eye(int(given.max()) + 1)[given]  # (n_patients, n_names)
        learnt = learns @ name
        scores = np.where(learnt > 0, (by_slide @ name) / np.maximum(learnt, 1), -np.inf)
        found = scores.argmax(axis=1) == given[patient_of]
        return np.asarray(np.bincount(patient_of, found) / np.bincount(patient_of))

    classes = here.groupby("patient_id")["label"].agg(lambda found: repr(sorted(set(found))))
    stratum = pd.factorize(classes[patients], sort=True)[0].astype(np.int64)
    code = pd.factorize(name_of, sort=True)[0].astype(np.int64)
    ids, free = patients.tolist(), np.zeros_like(code)
    return Part(hits, code, free, stratum, ids, ids, name_of.tolist()), out


def _names(here: pd.DataFrame, kind: str) -> tuple[pd.Series, Left]:
    """Name of each patient that counts, and who does not."""
    out: Left = []
    by_patient = here.groupby("patient_id")[kind]
    known, several = by_patient.count() == by_patient.size(), by_patient.nunique() > 1
    for which, why in ((~known, f"no {kind} known"), (known & several, f"of several {kind}s")):
        if which.any():
            out.append({"name": None, "why": why, "n_patients": int(which.sum())})
    name_of = by_patient.first()[known & ~several].astype(str).sort_index()
    n_patients = name_of.value_counts()
    lone = sorted(n_patients.index[n_patients < 2])
    out += [{"name": name, "why": "one patient", "n_patients": 1} for name in lone]
    return name_of[~name_of.isin(lone)], out


def _indicators(code: Ints, n: int) -> npt.NDArray[np.float32]:
    """``(n, n_rows)``: one where a row has that code."""
    hit: npt.NDArray[np.float32] = (np.arange(n)[:, None] == code).astype(np.float32)
    return hit
