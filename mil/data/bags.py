"""Bags of tile embeddings, packed: the tiles of all slides of a batch lie one after the other.

Nothing is padded, so memory and time follow the number of tiles, however uneven the slides are.
A bag may be a slide or a patient with all tiles of its slides; here both are called slides.
"""

from __future__ import annotations

import copy
import difflib
import mmap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from mil.data.store import Features
from mil.seeds import generator as generator_of
from splits.errors import InputError

__all__ = ["Bags", "Batch"]

Rows = npt.NDArray[np.int64]
_WILLNEED: Final[int | None] = getattr(mmap, "MADV_WILLNEED", None)  # Windows has none


@dataclass(frozen=True)
class Batch:
    """Several bags, packed. Tiles of bag ``i`` are ``x[offsets[i]:offsets[i + 1]]``.

    Attributes:
        x: Embeddings, ``(n_tiles, dim)`` float32; of the type of the file where ``streams``.
        offsets: ``(n_bags + 1,)`` int64, from 0 to ``n_tiles``, strictly ascending.
        labels: Class index a bag, ``(n_bags,)`` int64; None where that of a bag is sealed.
        rows: Row of each tile in the tile table, ``(n_tiles,)`` int64.
        slide_ids: The slide of each bag, ``n_bags`` texts.
        positions: Column and row of each tile on the grid of its slide, ``(n_tiles, 2)`` int64;
            None where they are not known, for all bags of the batch.
        streams: Whether ``x`` is one bag beyond the budget, which stays on disk (or in host memory)
            for aggregators to bring over block by block.
    """

    x: torch.Tensor
    offsets: torch.Tensor
    labels: torch.Tensor | None
    rows: torch.Tensor
    slide_ids: tuple[str, ...]
    positions: torch.Tensor | None = None
    streams: bool = False

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def label(self) -> torch.Tensor:
        """Class index a bag, ``(n_bags,)`` int64.

        Raises:
            InputError: A bag has no label here, as test slides of a fold have none.
        """
        if self.labels is None:
            message = (
                f"a bag of {', '.join(map(repr, self.slide_ids[:3]))} has no label here: the "
                "labels of test slides are sealed"
            )
            raise InputError(message)
        return self.labels

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``; an ``x`` that streams stays."""
        return Batch(
            self.x if self.streams else self.x.to(device),
            self.offsets.to(device),
            None if self.labels is None else self.labels.to(device),
            self.rows.to(device),
            self.slide_ids,
            None if self.positions is None else self.positions.to(device),
            self.streams,
        )


class Bags:
    """The slides of a cohort as bags of rows of one feature matrix.

    Args:
        features: ``(n_tiles, dim)``, row-aligned to the tile table; a memory map stays on disk.
        rows_by_slide: Rows of each slide in ascending order, as the table is sorted by
            ``tile_id``; ``tiles.groupby("slide_id").indices`` gives it.
        labels: Class index of each slide that has one; :attr:`Batch.label` of others raises.
        positions: Column and row of each tile of a slide, ``(n_tiles, 2)`` in the order of its
            rows, for the slides where they are known.

    Attributes:
        dim: Length of an embedding.
        slide_ids: All slides, sorted.

    Raises:
        InputError: A slide without tiles, a label that is no class index, rows that are not
            ascending, lie outside the features, or belong to two slides, or positions of another
            number of tiles.
    """

    def __init__(
        self,
        features: Features,
        rows_by_slide: Mapping[str, Rows],
        labels: Mapping[str, int],
        positions: Mapping[str, Rows] | None = None,
    ) -> None:
        if features.ndim != 2:
            message = f"features of shape {features.shape} given, allowed (n_tiles, dim)"
            raise InputError(message)
        self._features = features
        self._rows = {slide: np.asarray(rows) for slide, rows in rows_by_slide.items()}
        self.dim = int(features.shape[1])
        self.slide_ids = tuple(sorted(self._rows))
        self._check_rows()
        self._labels = {s: _label(s, labels[s]) for s in self.slide_ids if s in labels}
        self._positions = {
            slide: np.asarray(places, dtype=np.int64)
            for slide, places in (positions or {}).items()
            if slide in self._rows
        }
        for slide, places in self._positions.items():
            if places.shape != (self.n_tiles(slide), 2):
                message = (
                    f"slide {slide!r} has positions of shape {places.shape} and "
                    f"{self.n_tiles(slide)} tiles: allowed is (n_tiles, 2)"
                )
                raise InputError(message)

    def __len__(self) -> int:
        return len(self.slide_ids)

    def n_tiles(self, slide_id: str) -> int:
        """Size of one bag.

        Raises:
            InputError: No such slide.
        """
        return len(self._rows_of(slide_id))

    def sampled(
        self,
        slide_ids: Sequence[str],
        seed: int,
        *,
        dropout: float = 0.0,
        most: int | None = None,
    ) -> Bags:
        """The same bags with a random part of the tiles of some slides, without replacement.

        What is drawn for a slide follows from the seed and its name, whatever the other slides.

        Args:
            slide_ids: The slides; all others keep all their tiles.
            seed: Another one draws other tiles.
            dropout: Share of the tiles that is left out, rounded down; at least one tile stays.
            most: No slide keeps more tiles than this.
        """
        result = copy.copy(self)
        result._rows, result._positions = dict(self._rows), dict(self._positions)
        for slide in slide_ids:
            rows = self._rows_of(slide)
            n = max(1, len(rows) - int(dropout * len(rows)))
            n = n if most is None else min(n, most)
            drawn = np.sort(generator_of(seed, "tiles", slide).permutation(len(rows))[:n])
            result._rows[slide] = rows[drawn]
            if slide in self._positions:
                result._positions[slide] = self._positions[slide][drawn]
        return result

    def batch(self, slide_ids: Sequence[str], *, max_tiles: int | None = None) -> Batch:
        """Pack these slides, in this order, into one batch.

        Args:
            slide_ids: The slides.
            max_tiles: One slide beyond this budget is not copied: ``x`` is a view of the features
                where its rows are consecutive, and otherwise its rows in the type of the features.

        Raises:
            InputError: No slide is given, one is unknown, or only some have positions.
        """
        if len(slide_ids) == 0:
            message = "a batch of no slides was asked for: at least one is needed"
            raise InputError(message)
        rows = [self._rows_of(slide) for slide in slide_ids]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        streams = max_tiles is not None and len(rows) == 1 and len(rows[0]) > max_tiles
        if streams:
            x = _tensor(self._read(rows[0]))
        else:
            # torch widens half precision faster than numpy.
            x = torch.empty(int(offsets[-1]), self.dim)
            for start, of_slide in zip(offsets[:-1].tolist(), rows, strict=True):
                x[start : start + len(of_slide)].copy_(_tensor(self._read(of_slide)))
        return Batch(
            x=x,
            offsets=torch.from_numpy(offsets),
            labels=self._labels_of(slide_ids),
            rows=torch.from_numpy(np.concatenate(rows).astype(np.int64)),
            slide_ids=tuple(slide_ids),
            positions=self._places(slide_ids),
            streams=streams,
        )

    def batches(
        self,
        slide_ids: Sequence[str],
        *,
        max_tiles: int,
        generator: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        """The batches of :meth:`plan`, packed one at a time."""
        plan = self.plan(slide_ids, max_tiles=max_tiles, generator=generator)
        return self.packed(plan, max_tiles=max_tiles)

    def packed(
        self, plan: Sequence[Sequence[str]], *, max_tiles: int | None = None
    ) -> Iterator[Batch]:
        """The batches of a plan; the disk reads the next one while one is in use."""
        for slides, following in zip_longest(plan, plan[1:], fillvalue=()):
            self._expect(following)
            yield self.batch(slides, max_tiles=max_tiles)

    def plan(
        self,
        slide_ids: Sequence[str],
        *,
        max_tiles: int,
        generator: np.random.Generator | None = None,
    ) -> list[list[str]]:
        """Deal slides to batches of at most ``max_tiles`` tiles; each slide comes once.

        Slides are taken one after the other and a batch ends where the next slide would exceed
        the budget. A slide larger than the budget is a batch of its own and never cut. Slides
        with and without positions never share a batch, so that company changes nothing.

        Args:
            slide_ids: The slides, in the order they are wanted where there is no generator.
            max_tiles: Budget of a batch; its memory is in proportion to it.
            generator: Shuffles the slides. The order then depends on the set of slides and the
                state of the generator, not on the order they are given in.

        Returns:
            The slides of each batch.

        Raises:
            InputError: No slide is given, one is unknown or given twice, or ``max_tiles`` is
                below 1. All of it is raised here, before the first batch.
        """
        if max_tiles < 1:
            message = f"max_tiles is {max_tiles}, allowed is 1 or more"
            raise InputError(message)
        order = list(slide_ids)
        if not order:
            message = "batches of no slides were asked for: at least one is needed"
            raise InputError(message)
        repeated = sorted(slide for slide, n in Counter(order).items() if n > 1)
        if repeated:
            message = f"slide {repeated[0]!r} is given more than once"
            raise InputError(message)
        if generator is not None:
            order.sort()
            order = [order[i] for i in generator.permutation(len(order))]
        plan: list[list[str]] = []
        filling: dict[bool, list[str]] = {}
        n_free = {True: 0, False: 0}
        for slide in order:
            size, kind = self.n_tiles(slide), slide in self._positions
            if kind not in filling or size > n_free[kind]:
                filling[kind] = []
                plan.append(filling[kind])
                n_free[kind] = max_tiles
            filling[kind].append(slide)
            n_free[kind] -= size
        return plan

    def _labels_of(self, slide_ids: Sequence[str]) -> torch.Tensor | None:
        if not all(slide in self._labels for slide in slide_ids):
            return None
        return torch.tensor([self._labels[slide] for slide in slide_ids], dtype=torch.int64)

    def _places(self, slide_ids: Sequence[str]) -> torch.Tensor | None:
        found = [self._positions[slide] for slide in slide_ids if slide in self._positions]
        if found and len(found) < len(slide_ids):
            without = next(slide for slide in slide_ids if slide not in self._positions)
            message = (
                f"slide {without!r} has no positions and others of its batch have: "
                "batches of plan() keep them apart"
            )
            raise InputError(message)
        return torch.from_numpy(np.concatenate(found)) if found else None

    def _expect(self, slide_ids: Sequence[str]) -> None:
        """Ask the system for the pages of these slides, without waiting for them."""
        features: Any = self._features  # of which only a memory map has what is asked here
        mapped = getattr(features, "_mmap", None)
        if mapped is None or features.base is not mapped or _WILLNEED is None:
            return
        # A map begins at a multiple of the granularity, the matrix where its header ends.
        first = features.offset % mmap.ALLOCATIONGRANULARITY
        width = features.strides[0]
        for slide in slide_ids:
            rows = self._rows_of(slide)
            if int(rows[-1]) - int(rows[0]) < 2 * len(rows):  # else mostly of other slides
                start = (first + int(rows[0]) * width) // mmap.PAGESIZE * mmap.PAGESIZE
                stop = first + (int(rows[-1]) + 1) * width
                mapped.madvise(_WILLNEED, start, stop - start)

    def _read(self, rows: Rows) -> Features:
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            # Consecutive rows are a view: they are copied once, into the batch.
            return self._features[first : last + 1]
        return self._features[rows]

    def _rows_of(self, slide_id: str) -> Rows:
        if slide_id not in self._rows:
            near = difflib.get_close_matches(slide_id, self.slide_ids, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            message = f"unknown slide {slide_id!r}{hint} ({len(self)} slides have tiles)"
            raise InputError(message)
        return self._rows[slide_id]

    def _check_rows(self) -> None:
        n_tiles = len(self._features)
        owner = np.full(n_tiles, -1, dtype=np.int64)
        for i, slide in enumerate(self.slide_ids):
            rows = self._rows[slide]
            if len(rows) == 0:
                message = f"slide {slide!r} has no tiles: a bag needs at least one"
                raise InputError(message)
            if rows.ndim != 1 or rows.dtype.kind not in "iu" or (np.diff(rows) <= 0).any():
                message = f"rows of slide {slide!r} must be ascending integers, each given once"
                raise InputError(message)
            if rows[0] < 0 or rows[-1] >= n_tiles:
                bad = rows[0] if rows[0] < 0 else rows[-1]
                message = (
                    f"slide {slide!r} has tile row {bad}, the features have rows 0 to "
                    f"{n_tiles - 1}: they belong to another tile table"
                )
                raise InputError(message)
            taken = rows[owner[rows] >= 0]
            if len(taken):
                other = self.slide_ids[owner[taken[0]]]
                message = f"tile row {taken[0]} is in two slides: {other!r} and {slide!r}"
                raise InputError(message)
            owner[rows] = i


def _tensor(x: Features) -> torch.Tensor:
    with warnings.catch_warnings():
        # Nobody writes to a batch; torch warns once that this view of a file could be written to.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x)


def _label(slide: str, label: object) -> int:
    if not isinstance(label, int | np.integer) or label < 0:
        message = f"slide {slide!r} has label {label!r}, allowed is a class index from 0"
        raise InputError(message)
    return int(label)
