"""The ways to deal tiles to folds that the leakage gap compares: honest ones and the usual one.

Under ``tile`` every tile is dealt by itself, as ``train_test_split`` on a list of files does. Under
``slide``, ``patient`` and ``site`` whole units are dealt by the search of :mod:`splits.folds`. In
each of them every tile is tested once, by a model of one of k folds, and the same share of what is
left validates.

A split of tiles is run by the same stages as any other: within a fold, the tiles of a slide that
lie in one part are a *piece*, and pieces stand in the place of slides. This is the one place where
a slide is ever cut, and no run can ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.config import Split as Settings
from mil.seeds import generator
from splits import folds, tiles
from splits.artifacts import digest
from splits.errors import InputError
from splits.groups import regroup
from splits.split import Split

__all__ = ["SCHEMES", "Deal", "deal", "shuffled", "unlike"]

SCHEMES: Final = ("tile", "slide", "patient", "site")
"""From the one that leaks most to the strictest."""
_VERSION: Final = 1
Names = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Deal:
    """Where every tile goes, under one scheme and seed.

    Attributes:
        scheme: One of ``SCHEMES``.
        seed: Of the deal.
        part: Part of each tile in each fold, ``(n_folds, n_tiles)``, rows of the tile table.
        group: What the scheme keeps whole: of each tile, ``(n_tiles,)``.
    """

    scheme: str
    seed: int
    part: Names = field(repr=False)
    group: Names = field(repr=False)

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return len(self.part)

    @property
    def digest(self) -> str:
        """Digest of all parts and groups."""
        return digest([self.scheme, self.seed, self.part.tolist(), self.group.tolist()])

    def split_table(self, table: pd.DataFrame) -> pd.DataFrame:
        """All folds with true ids, as an audit reads them: a row a slide, or a tile if cut."""
        ids = ["slide_id"] if self.scheme != "tile" else ["tile_id", "slide_id"]
        rows = table[ids].astype(object)
        folds_ = [rows.assign(fold=fold, part=part) for fold, part in enumerate(self.part)]
        return pd.concat(folds_, ignore_index=True).drop_duplicates(ignore_index=True)

    def fold(self, table: pd.DataFrame, number: int) -> tuple[pd.DataFrame, Split]:
        """The tile table and the split of one fold, as the stages of a run read them.

        Where a slide is cut, every slide of the fold is named by its part (``S (train)``), and a
        piece is its own group; patient and site stay what they are, so an audit sees the leak.
        """
        part = self.part[number]
        slide = table["slide_id"].to_numpy(dtype=object)
        group = self.group
        cut = pd.DataFrame({"slide": slide, "part": part}).groupby("slide")["part"].nunique().max()
        if cut > 1:
            slide = np.array([f"{s} ({p})" for s, p in zip(slide, part, strict=True)], dtype=object)
            group = slide
        made = tiles.check(table.assign(slide_id=slide, group_id=group))
        rows = pd.DataFrame({"slide_id": slide, "group_id": group, "fold": number, "part": part})
        rows = rows.drop_duplicates("slide_id").sort_values("slide_id", kind="stable")
        return made, Split(rows.reset_index(drop=True), self._meta(leaks=bool(cut > 1)))

    def _meta(self, *, leaks: bool) -> dict[str, Any]:
        said = {"version": _VERSION, "method": "gap", "scheme": self.scheme, "seed": self.seed}
        if leaks:
            said["warnings"] = ["this split leaks on purpose: slides are cut"]
        return said


def deal(
    scheme: str,
    table: pd.DataFrame,
    settings: Settings,
    *,
    seed: int,
    amounts: pd.DataFrame | None = None,
) -> Deal:
    """Deal the tiles of a cohort to k folds.

    Args:
        scheme: One of ``SCHEMES``.
        table: The identified tile table, its groups those of patients.
        settings: Folds, share of validation, and what whole units are balanced on.
        seed: Of the deal.
        amounts: ``slide_id`` and what else units are balanced on.

    Raises:
        InputError: The cohort cannot be dealt like that; the message says what would meet it.
    """
    if scheme == "tile":
        part = _tiles_at_random(table["slide_label"], settings.folds, settings.val_share, seed)
        return Deal(scheme, seed, part, table["tile_id"].to_numpy(dtype=object))
    slides = regroup(tiles.slides(table), scheme)
    given = slides if amounts is None else slides.merge(amounts, on="slide_id", how="left")
    split = folds.kfold(
        given,
        folds=settings.folds,
        val_share=settings.val_share,
        balance=settings.balance,
        seed=seed,
        unit=scheme,
        prove=True,
    )
    slide = table["slide_id"].astype(object)
    wide = split.table.pivot(index="fold", columns="slide_id", values="part").sort_index()
    part = wide[slide].to_numpy(dtype=object)  # (n_folds, n_tiles)
    group = slide.map(slides.astype(object).set_index("slide_id")["group_id"])
    return Deal(scheme, seed, part, group.to_numpy(dtype=object))


def _tiles_at_random(label: pd.Series, n_folds: int, val_share: float, seed: int) -> Names:
    """Part of each tile in each fold, ``(n_folds, n_tiles)``; classes even, slides ignored.

    Raises:
        InputError: A class has too few tiles to be in every part.
    """
    names = label.to_numpy(dtype=object).astype(str)
    fold = np.empty(len(names), dtype=np.int64)
    part = np.full((n_folds, len(names)), "train", dtype=object)
    for place, name in enumerate(sorted(set(names.tolist()))):
        rows = generator(seed, "gap", "tile", name).permutation(np.flatnonzero(names == name))
        if len(rows) < 2 * n_folds:
            message = (
                f"class {name!r} has {len(rows)} tiles: {n_folds} folds of random tiles need "
                f"{2 * n_folds}; lower split.folds or leave the class out (data.classes)"
            )
            raise InputError(message)
        # Each class begins with another fold, so that remainders do not add up in the first.
        fold[rows] = (np.arange(len(rows)) + place) % n_folds
        for number in range(n_folds):
            rest = rows[fold[rows] != number]
            n_val = min(max(round(val_share * len(rest)), 1), len(rest) - 1)
            judges = generator(seed, "gap", "val", name, number).permutation(rest)[:n_val]
            part[number, judges] = "val"
    part[fold, np.arange(len(names))] = "test"
    return part


def unlike(table: pd.DataFrame, a: str, b: str) -> bool:
    """Whether two schemes keep different things whole: with one slide a patient they do not."""
    slides = tiles.slides(table)
    of_a, of_b = (pd.factorize(regroup(slides, unit)["group_id"])[0] for unit in (a, b))
    return bool((of_a != of_b).any())


def shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The tile table with labels that say nothing: those of the groups, dealt to groups anew.

    A group whose slides differ in label has the commonest of them, the first by name among equals.
    Classes keep their number of groups, and slides of a group never differ.

    Raises:
        InputError: A class would be lost: it is never the commonest of a group.
    """
    slides = tiles.slides(table).astype({"group_id": object, "label": object})
    of_group = slides.groupby("group_id")["label"].agg(lambda labels: labels.mode().iloc[0])
    lost = sorted(set(slides["label"]) - set(of_group))
    if lost:
        message = f"class {lost[0]!r} is not the commonest of any group: labels of whole groups "
        raise InputError(message + "cannot be shuffled")
    order = generator(seed, "gap", "labels").permutation(len(of_group))
    new: Mapping[Any, Any] = dict(zip(of_group.index, of_group.to_numpy()[order], strict=True))
    label = table["group_id"].astype(object).map(new)
    return tiles.check(table.assign(slide_label=label))
