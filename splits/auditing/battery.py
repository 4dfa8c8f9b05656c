"""Tests on features and file headers, each against what whole groups, dealt anew, would give.

None of them is proof of a leak. A value that permuted splits hardly ever reach is a word of
caution: p values are corrected for the number of tests (Holm, Scandinavian Journal of Statistics
6, 1979), and below 0.01 an entry is a ``warning`` where it speaks of the split, and a ``note``
where it speaks of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from splits.auditing.design import Design
from splits.content.nearest import nearest
from splits.groups import PARTS

__all__ = [
    "NAMES",
    "Entry",
    "Features",
    "ReadHeaders",
    "association",
    "battery",
    "corrected",
    "cramers_v",
    "entry",
    "not_run",
]

N_PERMUTATIONS: Final = 999
ALPHA: Final = 0.01
NAMES: Final = (
    "slide_probe",
    "site_probe",
    "train_against_test",
    "nearest_across",
    "header_part",
    "header_class",
    "site_class",
    "preparation_class",
)
_OF_SPLIT: Final = ("train_against_test", "nearest_across", "header_part", "header_class")
_FOLDS: Final = 5
_TEST: Final = PARTS.index("test")
_AT_ONCE: Final = 1_000
Entry = dict[str, Any]
ReadHeaders = Callable[[Sequence[str]], Mapping[str, str]]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Features:
    """Features of tiles.

    Attributes:
        tile_ids: Ids of the rows.
        x: ``(n_tiles, d)``.
        source: Where they come from, in words.
    """

    tile_ids: Sequence[str]
    x: Floats
    source: str


def entry(name: str, value: float, null: Floats, meaning: str) -> Entry:
    """One test: its value, the mean under permutation, and p with the value counted in."""
    # Equal values count against the finding; rounding must not decide which they are.
    p = (1 + int((null >= value - 1e-9).sum())) / (1 + len(null))
    return {
        "name": name,
        "value": round(float(value), 4),
        "chance": round(float(null.mean()), 4),
        "p": round(p, 4),
        "meaning": meaning,
        "severity": None,
    }


def not_run(name: str, reason: str) -> Entry:
    """A test that could not be made, with the reason."""
    empty: Entry = dict.fromkeys(("value", "chance", "p"))
    return {"name": name, **empty, "meaning": f"not run: {reason}", "severity": None}


def corrected(entries: Sequence[Entry]) -> list[Entry]:
    """Set the severity of each entry from Holm's correction over all that were run."""
    run = sorted((one["p"], place) for place, one in enumerate(entries) if one["p"] is not None)
    result = [dict(one) for one in entries]
    highest = 0.0
    for rank, (p, place) in enumerate(run):
        highest = max(highest, p * (len(run) - rank))
        if highest < ALPHA:
            of_split = result[place]["name"] in _OF_SPLIT
            result[place]["severity"] = "warning" if of_split else "note"
    return result


def battery(
    features: Features | None,
    headers: ReadHeaders | None,
    tiles: Design | None,
    *,
    seed: int = 0,
) -> Iterator[Entry]:
    """The tests on tiles: four on features, two on file headers.

    Args:
        features: Of the tiles; None where there are none.
        headers: Gives, for tile ids, one text each for format, size, compression and software.
        tiles: Groups and parts of the tiles; None where no groups are known.
        seed: Seed of all permutations.
    """
    why = "no features and no pixels of the tiles"
    if tiles is None:
        why = "nothing says which tiles belong together"
    if tiles is None or features is None:
        for name in NAMES[:4]:
            yield not_run(name, why)
    else:
        row = {name: place for place, name in enumerate(features.tile_ids)}
        here = [row.get(name, -1) for name in tiles.tile_ids]
        if min(here) < 0:
            message = f"{here.count(-1)} of {len(here)} tiles have no features"
            yield from (not_run(name, message) for name in NAMES[:4])
        else:
            x = StandardScaler().fit_transform(features.x[here].astype(np.float64))
            yield from _on_features(x.astype(np.float32), tiles, seed)
    if tiles is None or headers is None:
        why = why if tiles is None else "no image files"
        yield from (not_run(name, why) for name in NAMES[4:6])
    else:
        said = headers(tiles.tile_ids.tolist())
        yield from _on_headers([said[name] for name in tiles.tile_ids], tiles, seed)


def _on_features(x: npt.NDArray[np.float32], tiles: Design, seed: int) -> Iterator[Entry]:
    random = [np.random.default_rng([seed, place]) for place in range(4)]
    near = _nearest(x)
    slide = pd.factorize(tiles.names["slide"])[0]
    yield _slide_probe(slide, near, random[0])
    yield _site_probe(x, tiles, random[1])
    deals = [tiles.part, *(tiles.dealt(random[2]) for _ in range(N_PERMUTATIONS))]
    tested = np.stack([part == _TEST for part in deals])  # (1 + permutations, n_tiles, n_folds)
    auc = _adversarial(x, tiles.group, tested)
    yield entry(
        "train_against_test",
        float(auc[0]),
        auc[1:],
        "AUC of a linear model that tells test tiles from all others, on groups that it was not "
        "fitted on (the fold where it does best). Above permuted splits, test is another "
        "population than train.",
    )
    across = [_most(~test[near] & test, test) for test in tested]
    yield entry(
        "nearest_across",
        across[0],
        np.array(across[1:]),
        "Share of test tiles whose nearest look-alike is not in test (the fold where it is "
        f"largest). Above permuted splits that keep every {tiles.kind} whole, something is cut.",
    )


def _slide_probe(slide: Ints, near: Ints, random: np.random.Generator) -> Entry:
    """Whether the nearest tile is of the same slide."""
    if np.bincount(slide).max() < 2:
        return not_run("slide_probe", "no slide has two tiles")
    null = [np.mean(mixed == mixed[near]) for mixed in _permuted(slide, random)]
    return entry(
        "slide_probe",
        float(np.mean(slide == slide[near])),
        np.array(null),
        "Share of tiles whose nearest look-alike is of their own slide. Where it is far above "
        "chance, slides can be told apart, and a split that cuts them leaks.",
    )


def _nearest(x: npt.NDArray[np.float32]) -> Ints:
    """The nearest other tile of each."""
    rows, _ = nearest(x, x, 2)
    own = np.arange(len(x))
    return np.asarray(np.where(rows[:, 0] == own, rows[:, 1], rows[:, 0]))


def _permuted(codes: Ints, random: np.random.Generator) -> Iterator[Ints]:
    for _ in range(N_PERMUTATIONS):
        yield random.permutation(codes)


def _most(hit: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float:
    """The largest share over the folds."""
    return float((hit.sum(axis=0) / np.maximum(of.sum(axis=0), 1)).max())


def _site_probe(x: npt.NDArray[np.float32], tiles: Design, random: np.random.Generator) -> Entry:
    """Whether the nearest tile of another group is of the same site."""
    if tiles.names["site"].isna().any():
        return not_run("site_probe", "not every tile has a site")
    site, first = pd.factorize(tiles.names["site"])[0], np.unique(tiles.group, return_index=True)[1]
    of_group = site[first]
    if len(set(site)) < 2 or np.bincount(of_group).max() < 2:
        return not_run("site_probe", "it takes two sites, and two groups of one site")
    near = np.empty(len(x), np.int64)
    norms = np.einsum("ij,ij->i", x, x)
    for start in range(0, len(x), _AT_ONCE):
        block = np.s_[start : start + _AT_ONCE]
        far = norms - 2 * x[block] @ x.T
        far[tiles.group[block, None] == tiles.group] = np.inf
        near[block] = far.argmin(axis=1)

    def same(names: Ints) -> float:
        return float(np.mean(names[tiles.group] == names[tiles.group[near]]))

    null = [same(of_group[tiles.shuffled(random)]) for _ in range(N_PERMUTATIONS)]
    return entry(
        "site_probe",
        same(of_group),
        np.array(null),
        "Share of tiles whose nearest look-alike of another group is of the same site. Above "
        "permuted sites (of one class), the site can be read off the tiles.",
    )


def _adversarial(x: npt.NDArray[np.float32], group: Ints, tested: npt.NDArray[np.bool_]) -> Floats:
    """For each deal, the largest AUC over its folds of "is this tile in test?".

    One ridge regression answers all deals at once: they share the tiles and their groups.
    """
    n_deals, n_tiles, n_folds = tested.shape
    y = tested.transpose(1, 0, 2).reshape(n_tiles, n_deals * n_folds)
    auc = np.empty(y.shape[1])
    folds = GroupKFold(min(_FOLDS, len(np.unique(group))))
    halves = list(folds.split(x, groups=group))
    for start in range(0, y.shape[1], _AT_ONCE):
        block = np.s_[start : start + _AT_ONCE]
        score = np.empty(y[:, block].shape, np.float32)
        for fit, held in halves:
            model = Ridge(alpha=float(len(fit))).fit(x[fit], y[fit, block].astype(np.float32))
            score[held] = model.predict(x[held]).reshape(len(held), -1)
        auc[block] = _auc(score, y[:, block])
    return np.asarray(auc.reshape(n_deals, n_folds).max(axis=1))


def _auc(score: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> Floats:
    """Area under the ROC curve of each column, from ranks; 0.5 where a class is absent."""
    n_positive = positive.sum(axis=0)
    pairs = n_positive * (len(score) - n_positive)
    above = (rankdata(score, axis=0) * positive).sum(axis=0) - n_positive * (n_positive + 1) / 2
    return np.asarray(np.where(pairs > 0, above / np.maximum(pairs, 1), 0.5))


def cramers_v(one: Ints, other: Ints) -> float:
    """Cramér's V of two codes from 0: from 0 (independent) to 1 (one follows from the other)."""
    n_rows, n_columns = one.max() + 1, other.max() + 1
    counts = np.bincount(one * n_columns + other, minlength=n_rows * n_columns)
    counts = counts.reshape(n_rows, n_columns).astype(float)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape) < 2:
        return 0.0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi2 / counts.sum() / (min(counts.shape) - 1)))


def _on_headers(headers: Sequence[str], tiles: Design, seed: int) -> Iterator[Entry]:
    code = pd.factorize(np.array(headers, dtype=object), sort=True)[0].astype(np.int64)
    n_codes = code.max() + 1
    if n_codes < 2:
        reason = "all files have one format, size, compression and software"
        yield from (not_run(name, reason) for name in NAMES[4:6])
        return
    random = np.random.default_rng([seed, len(headers)])

    def by_part(part: Ints) -> float:
        return max(
            cramers_v(code[fold >= 0], fold[fold >= 0]) if (fold >= 0).any() else 0.0
            for fold in part.T
        )

    yield entry(
        "header_part",
        by_part(tiles.part),
        np.array([by_part(tiles.dealt(random)) for _ in range(N_PERMUTATIONS)]),
        f"Cramér's V of the {n_codes} kinds of file headers and the part (the fold where it is "
        "largest). Above permuted splits, parts were written by different software or settings.",
    )
    yield association(
        "header_class",
        code,
        tiles.names["label"],
        tiles.group,
        random,
        f"Cramér's V of the {n_codes} kinds of file headers and the class. Above permuted labels, "
        "the way a file was written gives its class away.",
    )


def association(
    name: str,
    code: Ints,
    label: pd.Series,
    group: Ints,
    random: np.random.Generator,
    meaning: str,
) -> Entry:
    """Cramér's V of a code and the class, against labels that are dealt anew to whole groups."""
    known = label.notna().to_numpy()
    if label[known].nunique() < 2:
        return not_run(name, "it takes two classes")
    code, group = code[known], pd.factorize(group[known])[0]
    classes = pd.factorize(label[known], sort=True)[0].astype(np.int64)
    if len(set(code)) < 2:
        return not_run(name, "there is one kind only")
    first = np.unique(group, return_index=True)[1]
    null = [cramers_v(code, shuffled[group]) for shuffled in _permuted(classes[first], random)]
    return entry(name, cramers_v(code, classes), np.array(null), meaning)
