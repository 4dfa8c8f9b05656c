"""Groups of slides: what may never be cut, what each group holds, and who is dealt where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits import balance as search
from splits.artifacts import digest
from splits.content.links import components
from splits.errors import InputError, unknown

__all__ = ["BALANCE", "PARTS", "UNITS", "Groups", "regroup", "slide_rows", "text"]

PARTS: Final = ("train", "val", "test")
BALANCE: Final = ("label", "site", "tiles")
UNITS: Final = ("patient", "slide", "site")
_TRAIN, _VAL, _TEST = range(3)
_GROUP_WEIGHT: Final = 0.1  # even numbers of groups are a wish, even classes are the aim

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def text(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of ids as text, with null for what is null or empty; all null where it is absent."""
    if column not in table.columns:
        return pd.Series(pd.NA, index=table.index, dtype="string")
    values = table[column].astype("string")
    return values.mask(values == "")


def slide_rows(slides: pd.DataFrame) -> pd.DataFrame:
    """The slide table with text ids, sorted by ``slide_id``.

    Raises:
        InputError: No rows, no ``slide_id``, or a slide that is null or listed twice.
    """
    if "slide_id" not in slides.columns or slides.empty:
        message = f"a slide table needs a row a slide and slide_id; got {list(slides.columns)}"
        raise InputError(message)
    names = [name for name in slides.columns if name.endswith("_id") or name == "label"]
    table = slides.assign(**{name: text(slides, name) for name in names})
    twice = table["slide_id"].duplicated()
    if table["slide_id"].isna().any() or twice.any():
        what = table.loc[twice, "slide_id"].dropna().tolist()[:3]
        message = f"slide_id must be unique and never empty; repeated: {what}"
        raise InputError(message)
    return table.sort_values("slide_id", kind="stable").reset_index(drop=True)


def regroup(slides: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return the slide table with ``group_id`` set to the closure of ``unit``.

    A site holds its patients, and a patient its slides: where one patient has slides of two sites,
    these sites become one group. Groups that exist already are kept whole, except for unit
    ``slide``, where each slide is its own group.

    Raises:
        InputError: Unknown unit, or slides without the id that it needs.
    """
    if unit not in UNITS:
        raise unknown(kind="unit", given=unit, allowed=UNITS)
    table = slide_rows(slides)
    if unit == "slide":
        return table.assign(group_id=table["slide_id"])
    name = f"{unit}_id"
    ids = text(table, name)
    if ids.isna().any():
        message = (
            f"unit {unit!r} needs {name} for every slide; {int(ids.isna().sum())} of {len(table)} "
            f"have none, the first is {table.loc[ids.isna(), 'slide_id'].iloc[0]!r} "
            f"(give them, or choose another unit: {', '.join(UNITS)})"
        )
        raise InputError(message)
    links = [name, *(["patient_id"] if unit == "site" else []), "group_id"]
    component = _closure([text(table, link) for link in links])
    # A component is named by its first unit, and no unit lies in two components.
    return table.assign(group_id=ids.groupby(component).transform("min"))


def _closure(links: list[pd.Series]) -> Ints:
    """Component of each row, where rows that share a value of any column are linked."""
    n_rows, rows, nodes = len(links[0]), [], []
    n_nodes = n_rows
    for values in links:
        codes, names = pd.factorize(values)
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        nodes.append(codes[known] + n_nodes)
        n_nodes += len(names)
    i, j = np.concatenate(rows), np.concatenate(nodes)
    return components(n_nodes, np.stack([i, j], axis=1))[:n_rows]


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
        self.classes, label = self._required("label", "a label table")
        if len(self.classes) < 2:
            message = f"all slides have the label {self.classes[0]!r}: two classes are needed"
            raise InputError(message)
        self.n = len(self.names)
        self.labels = self._count(label, len(self.classes))
        site = text(self.rows, "site_id")
        self.has_sites = bool(site.notna().any())
        # Slides of unknown site are balanced as one site more.
        site_code, self.sites = pd.factorize(site.fillna("(unknown)"), sort=True)
        self.by_site = self._count(site_code, len(self.sites))
        self.tiles = self._n_tiles()
        self.unit = self._checked_unit(unit)
        self.balance = self._checked_balance(balance)
        self.features, self.weights = self._features()

    def assign(self, shares: npt.ArrayLike, seed: int) -> Ints:
        """Part of each group for these shares, every class in every part where attainable."""
        return search.assign(
            self.features, shares, seed=seed, weights=self.weights, classes=self.labels
        )

    def train_or_val(self, rest: npt.NDArray[np.bool_], val_share: float, seed: int) -> Ints:
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
                f"(groups per class: {self._groups_per_class()}); ask for other folds, "
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
        for name, count in self._groups_per_class().items():
            if count < n_groups:
                message = (
                    f"class {name!r} has {count} group(s) ({self.unit}) and {method} needs "
                    f"{n_groups}, {why}: add slides of it, merge it with another class, "
                    "or leave it out (data.classes)"
                )
                raise InputError(message)

    def notes(self, n_parts: int) -> list[str]:
        """What a reader of the split should know about these groups."""
        found = [
            f"class {name!r} has {count} group(s) for {n_parts} test parts: some have none of it"
            for name, count in self._groups_per_class().items()
            if count < n_parts
        ]
        mixed = int(((self.labels > 0).sum(axis=1) > 1).sum())
        if mixed:
            found.append(
                f"{mixed} of {self.n} group(s) hold slides of several classes; "
                "each slide counts for its own class"
            )
        unplaced = int(text(self.rows, "site_id").isna().sum())
        if "site" in self.balance and unplaced:
            found.append(f"{unplaced} slide(s) have no site and were balanced as a site of its own")
        return found

    def floor(self, share: float) -> dict[str, float]:
        """Deviation per class, in points, that no split into parts of ``share`` can avoid.

        The group with the largest share of a class has to go somewhere.
        """
        largest = self.labels.max(axis=0) / self.labels.sum(axis=0)
        points = 100 * np.maximum(largest - share, 0)
        return {
            name: round(float(value), 4) for name, value in zip(self.classes, points, strict=True)
        }

    def record(self, part: Ints, fold: int, index: int, share: float) -> dict[str, Any]:
        """What one part of one fold holds; deviations from ``share`` are in points."""
        inside = part == index
        labels, sites = self.labels[inside].sum(axis=0), self.by_site[inside].sum(axis=0)
        slides = max(int(labels.sum()), 1)
        deviation = np.abs(labels / self.labels.sum(axis=0) - share).max()
        mix = np.abs(sites / slides - self.by_site.sum(axis=0) / len(self.rows)).sum() / 2
        return {
            "fold": fold,
            "part": PARTS[index],
            "n_groups": int(inside.sum()),
            "n_slides": int(labels.sum()),
            "n_tiles": int(self.tiles[inside].sum()),
            "n_sites": int((sites > 0).sum()) if self.has_sites else None,
            "class_deviation_points": round(float(100 * deviation), 4),
            "site_deviation_points": round(float(100 * mix), 4) if self.has_sites else None,
            "classes": dict(zip(self.classes, labels.astype(int).tolist(), strict=True)),
            "sites": dict(zip(self.sites.tolist(), sites.astype(int).tolist(), strict=True))
            if self.has_sites
            else {},
        }

    def digest(self) -> str:
        """Digest of what the split depends on, whatever the order of the rows."""
        columns = ["slide_id", "group_id", "label", "patient_id", "site_id"]
        content = {name: text(self.rows, name).fillna("").tolist() for name in columns}
        return digest(content | {"n_tiles": self._n_tiles_a_slide().tolist()})

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

    def _count(self, codes: Ints, n_values: int) -> Floats:
        counts = np.zeros((self.n, n_values))
        np.add.at(counts, (self.of, codes), 1)
        return counts

    def _n_tiles_a_slide(self) -> Floats:
        if "n_tiles" not in self.rows.columns:
            return np.ones(len(self.rows))
        values = np.asarray(pd.to_numeric(self.rows["n_tiles"], errors="coerce"), dtype=np.float64)
        if not (values >= 0).all():
            message = "n_tiles must be a number from 0 for every slide"
            raise InputError(message)
        return values

    def _n_tiles(self) -> Floats:
        tiles = self._n_tiles_a_slide()
        return np.asarray(np.bincount(self.of, weights=tiles, minlength=self.n), dtype=np.float64)

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
            if name == "tissue":
                message = f"balance by tissue is not available yet (allowed: {', '.join(BALANCE)})"
                raise InputError(message)
            if name not in BALANCE:
                raise unknown(kind="balance", given=name, allowed=BALANCE)
        if "site" in balance and not self.has_sites:
            message = "balance by site needs site_id, and no slide has one: leave site out"
            raise InputError(message)
        return tuple(name for name in BALANCE if name in balance)

    def _features(self) -> tuple[Floats, Floats]:
        """Amounts per group and the weight of each: an error of a point weighs alike anywhere."""
        slides = self.labels.sum(axis=1, keepdims=True)
        blocks = [(slides, np.ones(1)), (np.ones((self.n, 1)), np.full(1, _GROUP_WEIGHT))]
        if "label" in self.balance:
            blocks.append((self.labels, np.ones(len(self.classes))))
        if "site" in self.balance:
            blocks.append((self.by_site, self.by_site.sum(axis=0) / len(self.rows)))
        if "tiles" in self.balance:
            blocks.append((self.tiles[:, None], np.ones(1)))
        return np.hstack([block for block, _ in blocks]), np.concatenate([w for _, w in blocks])

    def _groups_per_class(self) -> dict[str, int]:
        held = (self.labels > 0).sum(axis=0)
        return {name: int(n) for name, n in zip(self.classes, held, strict=True)}
