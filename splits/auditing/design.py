"""Which tiles lie where, by group, and how else the groups could have been dealt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.groups import PARTS

__all__ = ["Design", "design"]

MAX_TILES: Final = 2_000
"""Tiles that the battery looks at, evenly from all groups."""
_ABSENT: Final = -1
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """Tiles of a split, sorted by id.

    Attributes:
        tile_ids: Their ids.
        group: ``(n,)`` code of the group that a fair split keeps whole.
        stratum: ``(n_groups,)`` class that most tiles of each group have.
        part: ``(n, n_folds)`` place in `PARTS`; -1 where a tile is not in a fold.
        names: ``slide``, ``site`` and ``label`` of each tile, null where unknown.
        kind: What the groups are.
    """

    tile_ids: npt.NDArray[np.str_]
    group: Ints
    stratum: Ints
    part: Ints
    names: pd.DataFrame
    kind: str

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.stratum)

    def shuffled(self, random: np.random.Generator, *, within_class: bool = True) -> Ints:
        """For each group, another one: a permutation, of groups of one class if so asked."""
        order = random.permutation(self.n_groups)
        if not within_class:
            return order
        # Groups in the order of their class, once as they are and once shuffled.
        own = np.argsort(self.stratum, kind="stable")
        other = order[np.argsort(self.stratum[order], kind="stable")]
        result = np.empty(self.n_groups, np.int64)
        result[own] = other
        return result

    def dealt(self, random: np.random.Generator) -> Ints:
        """``part`` of another split, as like this one as one that keeps every group whole can be.

        Groups change places with others of their class. Where this split cuts groups, they are
        dealt anew, in random order, to parts of the same number of tiles.
        """
        order = self.shuffled(random)
        if (whole := self._whole()) is not None:
            return np.asarray(whole[order][self.group])
        sizes = np.bincount(self.group, minlength=self.n_groups)
        columns = []
        for fold in self.part.T:
            ends = np.cumsum([(fold == part).sum() for part in range(len(PARTS))])
            place = np.empty(self.n_groups, np.int64)
            for stratum in np.unique(self.stratum):
                inside = order[self.stratum[order] == stratum]
                middle = (np.cumsum(sizes[inside]) - sizes[inside] / 2) / sizes[inside].sum()
                place[inside] = np.searchsorted(ends[:-1] / ends[-1], middle, side="right")
            columns.append(place[self.group])
        return np.stack(columns, axis=1)

    def _whole(self) -> Ints | None:
        """Part of each group a fold, ``(n_groups, n_folds)``; None where a group is cut."""
        first = np.unique(self.group, return_index=True)[1]
        whole = self.part[first]
        return whole if (whole[self.group] == self.part).all() else None


def design(
    placed: pd.DataFrame, component: pd.Series | None, unit: str, seed: int
) -> Design | None:
    """Groups of the tiles of a split; None where nothing says which tiles belong together.

    Args:
        placed: As `tile_places` gives it.
        component: By tile id, which tiles the pixels tie together; used where no id is known.
        unit: What the split claims to keep whole.
        seed: Seed of the sample of tiles.
    """
    tiles = placed.drop_duplicates("tile_id").sort_values("tile_id").set_index("tile_id")
    levels = {"site": ("site_id", "patient_id", "slide_id"), "slide": ("slide_id",)}
    group = pd.Series(pd.NA, index=tiles.index, dtype="string")
    kinds = []
    for name in levels.get(unit, ("patient_id", "slide_id")):
        if (group.isna() & tiles[name].notna()).any():
            kinds.append(name.removesuffix("_id"))
        group = group.fillna(name + " " + tiles[name].astype("string"))
    if component is not None and group.isna().any():
        tied = component[component.duplicated(keep=False)].astype("string")
        group = group.fillna("component " + tied.reindex(tiles.index))
        kinds.append("piece that the pixels tie together")
    tiles, group = tiles[group.notna()], group.dropna()
    if group.nunique() < 2:
        return None
    kept = _spread(group, MAX_TILES, np.random.default_rng(seed))
    tiles, group = tiles[kept], group[kept]
    codes = pd.factorize(group, sort=True)[0].astype(np.int64)
    labels = pd.factorize(tiles["label"], sort=True)[0]
    counts = np.zeros((codes.max() + 1, labels.max() + 2), np.int64)
    np.add.at(counts, (codes, labels), 1)
    slide = tiles["slide_id"].fillna(group)
    names = tiles[["site_id", "label"]].rename(columns={"site_id": "site"}).assign(slide=slide)
    return Design(
        tiles.index.to_numpy(dtype=str),
        codes,
        counts.argmax(axis=1),
        _parts(placed, tiles.index),
        names,
        " or ".join(kinds),
    )


def _parts(placed: pd.DataFrame, tile_ids: pd.Index) -> Ints:
    """``(n_tiles, n_folds)``; a tile in several parts of a fold counts for the last of them."""
    table = placed[placed["tile_id"].isin(tile_ids)]
    row = tile_ids.get_indexer(table["tile_id"])
    column, folds = pd.factorize(table["fold"], sort=True)
    part = np.full((len(tile_ids), len(folds)), _ABSENT, np.int64)
    np.maximum.at(part, (row, column), table["part"].map(PARTS.index).to_numpy(np.int64))
    return part


def _spread(group: pd.Series, n_most: int, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which tiles to keep: at most so many, as even over the groups as they allow."""
    if len(group) <= n_most:
        return np.ones(len(group), bool)
    order = random.permutation(len(group))
    # The first tile of every group, then the second of every group that has one, ...
    rank = group.iloc[order].groupby(group.iloc[order].to_numpy()).cumcount().to_numpy()
    kept = np.zeros(len(group), bool)
    kept[order[np.argsort(rank, kind="stable")[:n_most]]] = True
    return kept
