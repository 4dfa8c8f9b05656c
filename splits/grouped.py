"""The slide table by group: what each holds of all that is balanced, and who is dealt where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits import balance as search
from splits import optimum
from splits.artifacts import digest
from splits.deviation import floor_points, relative_percent, shares_of, variation_points
from splits.errors import InputError, unknown
from splits.groups import AMOUNTS, PARTS, UNITS, Ints, slide_rows, text

__all__ = ["BALANCE", "Groups"]

BALANCE: Final = ("label", "tissue", "site", "tiles", "stain")
# A point of error weighs alike anywhere, but for these. Classes come first, counted in what a group
# is made of: a patient of slides, a site of patients. Site, tissue and stain are mixes, each of
# their columns weighs by its share; even numbers of groups are but a wish.
_LABEL: Final = 16.0
_MIX: Final = 4.0
_GROUPS: Final = 0.1
_CELLS: Final = 400  # of site x label, at the most; beyond, and for very many groups, they even out
_MANY: Final = 5_000
_TRAIN: Final = PARTS.index("train")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Block:
    """Amounts per group, ``(n_groups, d)``, and what each column weighs."""

    amounts: Floats
    weights: Floats

    @classmethod
    def even(cls, amounts: Floats, weight: float) -> _Block:
        return cls(amounts, np.full(amounts.shape[1], weight))

    @classmethod
    def mix(cls, amounts: Floats, weight: float) -> _Block:
        return cls(amounts, weight * shares_of(amounts))


class Groups:
    """The slide table by group: groups sorted by id, and what each of them holds.

    Attributes:
        rows: The slide table, sorted by slide.
        of: Group of each slide, ``(n_slides,)``.
        classes: Names of the classes, sorted.
        labels: Slides per class, ``(n_groups, n_classes)``.
        unit: What the groups encode.
    """

    def __init__(self, slides: pd.DataFrame, balance: Sequence[str], unit: str | None) -> None:
        self.rows = slide_rows(slides)
        self.names, self.of = self._required("group_id", "slidewise identify, or `regroup`")
        self.classes, self._label = self._required("label", "a label table")
        if len(self.classes) < 2:
            message = f"all slides have the label {self.classes[0]!r}: two classes are needed"
            raise InputError(message)
        self.n = len(self.names)
        self.labels = self._sum(self._label, len(self.classes))
        site = text(self.rows, "site_id")
        self.has_sites = bool(site.notna().any())
        # Slides of unknown site are balanced as one site more.
        self._site, self.sites = pd.factorize(site.fillna("(unknown)"), sort=True)
        self.by_site = self._sum(self._site, len(self.sites))
        self.slide_tiles = self._n_tiles()
        self.tiles = self._sum(np.zeros(len(self.of), dtype=np.int64), 1, self.slide_tiles)[:, 0]
        self.unit = self._checked_unit(unit)
        self.balance = self._checked_balance(balance)
        self.mixes = {name: self._amounts(name) for name in AMOUNTS if name in self.balance}
        blocks = self._blocks()
        self.features = np.hstack([block.amounts for block in blocks])
        self.weights = np.concatenate([block.weights for block in blocks])

    def assign(
        self,
        shares: npt.ArrayLike,
        seed: Sequence[int],
        best: optimum.Optimum | None = None,
        rest: npt.NDArray[np.bool_] | slice = slice(None),
    ) -> Ints:
        """Part of each group for these shares, every class in every part where attainable.

        Args:
            shares: ``(n_parts,)``.
            seed: Seed of the search.
            best: What :meth:`best` says of these shares; among all that is as good, seeds choose.
            rest: The groups to deal, by default all.
        """
        part = search.assign(
            self.features[rest],
            shares,
            seed=seed,
            weights=self.weights,
            classes=self.labels[rest],
            enough=0.0 if best is None else best.enough,
        )
        if best is not None and self.cost(shares, part) > best.enough:
            return best.part
        return part

    def best(self, shares: npt.ArrayLike, *, prove: bool) -> optimum.Optimum | None:
        """The best that is known for these shares; None for more groups than that is known of.

        Args:
            shares: ``(n_parts,)``.
            prove: Bound what can be reached, which takes seconds.
        """
        if self.n > optimum.MAX_GROUPS:
            return None
        return optimum.best(
            self.features,
            shares,
            weights=self.weights,
            classes=self.labels,
            rounds=optimum.ROUNDS if prove else 0,
        )

    def cost(self, shares: npt.ArrayLike, part: Ints) -> float:
        """Cost of an assignment, as the search has it."""
        return search.cost(self.features, shares, part, self.weights)

    def train_or_val(
        self, rest: npt.NDArray[np.bool_], val_share: float, seed: Sequence[int]
    ) -> Ints:
        """Deal the groups in ``rest`` to train (0) and val (1); training has the first claim.

        A class of which one group is left stays in training.

        Raises:
            InputError: No group can be spared for validation.
        """
        labels = self.labels[rest]
        scarce = (labels > 0).sum(axis=0) == 1
        fixed = np.where((labels[:, scarce] > 0).any(axis=1), _TRAIN, -1)
        if len(fixed) < 2 or (fixed == _TRAIN).all():
            message = (
                "no group is left to validate: outside a test part every group is needed to train "
                f"(groups per class: {self.groups_per_class()}); ask for other folds, "
                "merge the smallest class with another or leave it out (data.classes)"
            )
            raise InputError(message)
        part = search.assign(
            self.features[rest],
            [1 - val_share, val_share],
            seed=seed,
            weights=self.weights,
            classes=labels,
            fixed=fixed,
        )
        # Groups that hold several classes can make a class unattainable on one side: never train.
        for column in range(labels.shape[1]):
            held = labels[:, column] > 0
            if held.any() and not (held & (part == _TRAIN)).any():
                back = np.flatnonzero(held)
                part[back[np.argmin(labels[back].sum(axis=1))]] = _TRAIN
        return part

    def require(self, n_groups: int, method: str, why: str) -> None:
        """Refuse classes with fewer groups than a method needs.

        Raises:
            InputError: It names the class, its count, and what would meet the request.
        """
        for name, count in self.groups_per_class().items():
            if count < n_groups:
                message = (
                    f"class {name!r} has {count} group(s) ({self.unit}) and {method} needs "
                    f"{n_groups}, {why}: add slides of it, merge it with another class, "
                    "or leave it out (data.classes)"
                )
                raise InputError(message)

    def notes(self, shares: npt.ArrayLike) -> list[str]:
        """What a reader of a deal to parts of these shares should know about the groups."""
        return [*self._too_few_or_large(np.asarray(shares)), *self._peculiar()]

    def _too_few_or_large(self, share: Floats) -> list[str]:
        if len(share) == self.n:  # a group a part, whatever its classes and its size
            return []
        found = [
            f"class {name!r} has {count} group(s) for {len(share)} parts: some have none of it "
            f"(ask for {max(count, 2)} folds or fewer, or merge it with another class)"
            for name, count in self.groups_per_class().items()
            if count < len(share)
        ]
        for what, amounts in (("slides", self.labels.sum(axis=1)), ("tiles", self.tiles)):
            largest = int(np.argmax(amounts))
            held = amounts[largest] / amounts.sum()
            if held > share.max() and what in ("slides", *self.balance):
                found.append(
                    f"group {self.names[largest]!r} holds {100 * held:.1f} % of the {what}: its "
                    f"part is larger than its share ({100 * share.max():.1f} %) in every split"
                )
        return found

    def _peculiar(self) -> list[str]:
        found = []
        mixed = int(((self.labels > 0).sum(axis=1) > 1).sum())
        if mixed and self.unit != "site":
            found.append(
                f"{mixed} of {self.n} group(s) hold slides of several classes; "
                "each slide counts for its own class"
            )
        unplaced = int(text(self.rows, "site_id").isna().sum())
        if "site" in self.balance and unplaced:
            found.append(f"{unplaced} slide(s) have no site and were balanced as a site of its own")
        merged = (self.by_site > 0).sum(axis=1) > 1
        if self.unit == "site" and merged.any():
            row = int(np.argmax(merged))
            names = ", ".join(self.sites[self.by_site[row] > 0][:5])
            found.append(
                f"{int(merged.sum())} group(s) hold several sites that share a patient or tissue "
                f"and cannot be told apart, such as {names}"
            )
        return found

    def floor(self, shares: npt.ArrayLike) -> dict[str, float]:
        """Deviation per class, in points, that no split into parts of these shares can avoid."""
        return {
            name: floor_points(self.labels[:, column], np.asarray(shares))
            for column, name in enumerate(self.classes)
        }

    def floor_size(self, shares: npt.ArrayLike) -> dict[str, float]:
        """The same for the number of slides and of tiles."""
        share = np.asarray(shares)
        return {
            "slides": floor_points(self.labels.sum(axis=1), share),
            "tiles": floor_points(self.tiles, share),
        }

    def record(self, part: Ints, fold: int, index: int, share: float) -> dict[str, Any]:
        """What one part of one fold holds.

        ``_points`` are percentage points: the largest deviation of a class's share from ``share``,
        and the total variation between the mix of the part and of the whole. ``_percent`` is the
        deviation of the size from its share, relative to the latter.
        """
        inside = part == index
        labels, sites = self.labels[inside].sum(axis=0), self.by_site[inside].sum(axis=0)
        n_slides, n_tiles = labels.sum(), self.tiles[inside].sum()
        deviation = np.abs(labels / self.labels.sum(axis=0) - share).max()
        return {
            "fold": fold,
            "part": PARTS[index],
            "n_groups": int(inside.sum()),
            "n_slides": int(n_slides),
            "n_tiles": int(n_tiles),
            "n_sites": int((sites > 0).sum()) if self.has_sites else None,
            "class_deviation_points": round(float(100 * deviation), 4),
            "slides_deviation_percent": relative_percent(n_slides, len(self.rows) * share),
            "tiles_deviation_percent": relative_percent(n_tiles, self.tiles.sum() * share),
            "site_deviation_points": variation_points(self.by_site, inside)
            if self.has_sites
            else None,
            **{
                f"{name}_deviation_points": variation_points(amounts, inside)
                for name, amounts in self.mixes.items()
            },
            "classes": dict(zip(self.classes, labels.astype(int).tolist(), strict=True)),
            "sites": dict(zip(self.sites.tolist(), sites.astype(int).tolist(), strict=True))
            if self.has_sites
            else {},
        }

    def digest(self) -> str:
        """Digest of what the split depends on, whatever the order of the rows."""
        columns = ["slide_id", "group_id", "label", "patient_id", "site_id"]
        content = {name: text(self.rows, name).fillna("").tolist() for name in columns}
        extra = {name: amounts.tolist() for name, amounts in self.mixes.items()}
        return digest(content | {"n_tiles": self.slide_tiles.tolist()} | extra)

    def groups_per_class(self) -> dict[str, int]:
        """Groups that hold a class."""
        held = (self.labels > 0).sum(axis=0)
        return {name: int(n) for name, n in zip(self.classes, held, strict=True)}

    def _required(self, column: str, source: str) -> tuple[list[str], Ints]:
        values = text(self.rows, column)
        if values.isna().any():
            example = self.rows.loc[values.isna(), "slide_id"].iloc[0]
            message = (
                f"{int(values.isna().sum())} of {len(values)} slide(s) have no {column}, the first "
                f"is {example!r}: it comes from {source}"
            )
            raise InputError(message)
        codes, names = pd.factorize(values, sort=True)
        return [str(name) for name in names], np.asarray(codes, dtype=np.int64)

    def _sum(self, codes: Ints, n_values: int, amounts: Floats | None = None) -> Floats:
        """Slides (or amounts of them) per group and value, ``(n_groups, n_values)``."""
        cell = self.of * n_values + codes
        total = np.bincount(cell, weights=amounts, minlength=self.n * n_values)
        return np.asarray(total.reshape(self.n, n_values), dtype=np.float64)

    def _n_tiles(self) -> Floats:
        if "n_tiles" not in self.rows.columns:
            return np.ones(len(self.rows))
        values = np.asarray(pd.to_numeric(self.rows["n_tiles"], errors="coerce"), dtype=np.float64)
        if not (values >= 0).all():
            message = "n_tiles must be a number from 0 for every slide"
            raise InputError(message)
        return values

    def _amounts(self, kind: str) -> Floats:
        """Tiles per tissue type, or slides per bin of stain, ``(n_groups, n_types)``."""
        columns = sorted(c for c in self.rows.columns if c.startswith(AMOUNTS[kind]))
        if not columns:
            message = (
                f"balance by {kind} needs columns that begin with {AMOUNTS[kind]!r} in the slide "
                f"table, such as {AMOUNTS[kind]}T1: a run makes them from its tiles, a table on "
                "its own has to bring them"
            )
            raise InputError(message)
        values = self.rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        if not (values >= 0).all():
            message = f"columns {AMOUNTS[kind]}… must be numbers from 0 for every slide"
            raise InputError(message)
        zero = np.zeros(len(self.rows), dtype=np.int64)
        return np.hstack([self._sum(zero, 1, values[:, j]) for j in range(values.shape[1])])

    def _checked_unit(self, unit: str | None) -> str:
        if unit is not None and unit not in UNITS:
            raise unknown(kind="unit", given=unit, allowed=UNITS)
        for name in (unit,) if unit else ("site", "patient"):
            values = text(self.rows, f"{name}_id")
            cut = pd.Series(self.of).groupby(values.to_numpy()).nunique()
            if values.notna().all() and not (cut > 1).any():
                return str(name)
            if unit is not None:
                message = (
                    f"the groups do not keep every {unit} whole ({int((cut > 1).sum())} in several "
                    f"groups, {int(values.isna().sum())} slide(s) without {unit}_id): regroup first"
                )
                raise InputError(message)
        return "slide"

    def _checked_balance(self, balance: Sequence[str]) -> tuple[str, ...]:
        for name in balance:
            if name not in BALANCE:
                raise unknown(kind="balance", given=name, allowed=BALANCE)
        if "site" in balance and not self.has_sites:
            message = "balance by site needs site_id, and no slide has one: leave site out"
            raise InputError(message)
        return tuple(name for name in BALANCE if name in balance)

    @cached_property
    def _patients(self) -> Floats:
        """Patients per class, ``(n_groups, n_classes)``."""
        patient = text(self.rows, "patient_id").fillna(self.rows["slide_id"])
        first = ~pd.DataFrame({"patient": patient, "label": self._label}).duplicated()
        return self._sum(self._label, len(self.classes), first.to_numpy(dtype=np.float64))

    def _blocks(self) -> list[_Block]:
        on = self.balance
        n_classes, n_sites = len(self.classes), len(self.sites)
        blocks = [
            _Block.even(self.labels.sum(axis=1, keepdims=True), 1.0),
            _Block.even(np.ones((self.n, 1)), _GROUPS),
        ]
        if "label" in on:
            counts = [self.labels, self._patients]
            first, second = reversed(counts) if self.unit == "site" else counts
            blocks.append(_Block.even(first, _LABEL))
            if (first != second).any():
                blocks.append(_Block.even(second, 1.0))
        if "tiles" in on:
            blocks.append(_Block.even(self.tiles[:, None], 1.0))
            if "label" in on:
                by_class = self._sum(self._label, n_classes, self.slide_tiles)
                blocks.append(_Block.even(by_class, 1.0))
        if "site" in on:
            blocks.append(_Block.mix(self.by_site, _MIX))
            if "tiles" in on:
                by_site = self._sum(self._site, n_sites, self.slide_tiles)
                blocks.append(_Block.mix(by_site, 1.0))
            if "label" in on and n_sites * n_classes <= _CELLS and self.n <= _MANY:
                cells = self._sum(self._site * n_classes + self._label, n_sites * n_classes)
                blocks.append(_Block.mix(cells, 1.0))
        blocks += [_Block.mix(amounts, _MIX) for amounts in self.mixes.values()]
        return blocks
