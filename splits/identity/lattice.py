"""Positions of the tiles of a slide: composed, checked for collisions and for a common step."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import replace

from splits.identity.name import Name, stem

__all__ = [
    "Corner",
    "are_positions",
    "collisions",
    "on_lattice",
    "positions",
    "qualified",
    "without_parts",
    "written_alike",
]

_PART_WORDS = re.compile(
    r"(?:^|[/_. -])(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(?![a-z])", re.I
)
Corner = tuple[int, int] | None
"""Where a tile was cut from its file, in pixels of the file."""


def positions(
    names: list[Name | None], split: list[tuple[str, Corner]], paths: list[str]
) -> list[Name | None]:
    """Add the corners of cut tiles to the positions that the names give."""
    if all(corner is None for _, corner in split):
        return names
    files: dict[str, set[str]] = defaultdict(set)
    for name, path in zip(names, paths, strict=True):
        if name is not None:
            files[str(name.slide)].add(path)
    placed: list[Name | None] = []
    for name, (_, corner), path in zip(names, split, paths, strict=True):
        moved = name
        if name is not None and corner is not None and name.col is None:
            x, y = (round(name.downsample * value) for value in corner)
            if name.x is not None and name.y is not None:
                moved = replace(name, x=name.x + x, y=name.y + y)
            else:
                # The corner counts within its file: several files of a slide are its regions.
                several = len(files[str(name.slide)]) > 1
                region = stem(path) if several else name.region
                moved = replace(name, x=corner[0], y=corner[1], region=region)
        placed.append(moved)
    return placed


def collisions(
    names: list[Name | None],
    split: list[tuple[str, Corner]],
    paths: list[str],
    *,
    by_path: bool,
) -> int:
    """Tiles at a place that another tile holds; a copy of one file elsewhere is no collision."""
    holders: dict[tuple[object, ...], str] = {}
    n_collisions = 0
    for name, (_, corner), path in zip(names, split, paths, strict=True):
        if name is None or (name.x is None and name.col is None):
            continue
        key = (name.slide, name.region, name.x, name.y, name.col, name.row, corner)
        token = path if by_path else stem(path)
        n_collisions += holders.setdefault(key, token) != token
    return n_collisions


def qualified(
    names: list[Name | None], split: list[tuple[str, Corner]], paths: list[str]
) -> tuple[list[Name | None], int]:
    """Add the folder to the id of slides whose tiles recur in several folders at the same place.

    Two patients' folders may each hold an ``HE.svs``. Folders that only name a part of a split are
    no difference: there, the same place is a copy.

    Returns:
        The names, and the number of slide ids that were several slides.
    """
    homes = [
        without_parts((path.rpartition("_files/")[0] or path).rpartition("/")[0]) for path in paths
    ]
    holders: dict[tuple[object, ...], str] = {}
    recurring: set[str | None] = set()
    for name, home, (_, corner) in zip(names, homes, split, strict=True):
        if name is not None and (name.x is not None or name.col is not None):
            key = (name.slide, name.region, name.x, name.y, name.col, name.row, corner)
            if holders.setdefault(key, home) != home:
                recurring.add(name.slide)
    result = list(names)
    for row, (name, home) in enumerate(zip(names, homes, strict=True)):
        if name is not None and name.slide in recurring:
            slide = f"{home}/{name.slide}".strip("/")
            result[row] = replace(name, slide=slide, patient=slide)
    return result, len(recurring)


def without_parts(text: str) -> str:
    """A folder or id without the words train, val and test."""
    return _PART_WORDS.sub("", text).strip("/_. -")


def are_positions(stems: list[str]) -> bool:
    """Whether names of two bare numbers are x and y or row and column."""
    pairs = [match.groups() for text in stems if (match := re.fullmatch(r"(\d+)_(\d+)", text))]
    if len(pairs) < 0.95 * len(stems):
        return False
    columns = [sorted({int(value) for value in column}) for column in zip(*pairs, strict=True)]
    if all(len(values) > 2 and _step(values) > 1 for values in columns):
        return True
    padded = any(len(value) > 1 and value[0] == "0" for pair in pairs for value in pair)
    full = len(set(pairs)) == len(columns[0]) * len(columns[1])
    counted = all(values == list(range(len(values))) for values in columns)
    return not padded and full and counted and len(columns[0]) > 1


def on_lattice(names: list[Name | None]) -> bool:
    """Whether positions repeat or keep a common step in at least half of the larger groups."""
    groups: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name in names:
        if name is not None and name.x is not None and name.y is not None:
            groups[str(name.slide)].add((name.x, name.y))
    large = [places for places in groups.values() if len(places) > 2]
    regular = 0
    for places in large:
        axes = [sorted(set(axis)) for axis in zip(*places, strict=True)]
        regular += all(len(axis) < len(places) or _step(axis) > 1 for axis in axes)
    return regular >= len(large) / 2


def written_alike(stems: list[str]) -> bool:
    """Whether both numbers of the names are zero-padded or neither: ``04_7`` is no x and y."""
    pairs = [match.groups() for text in stems if (match := re.fullmatch(r"(\d+)_(\d+)", text))]
    padded = [
        any(len(v) > 1 and v[0] == "0" for v in column) for column in zip(*pairs, strict=True)
    ]
    return len(set(padded)) < 2


def _step(values: list[int]) -> int:
    return math.gcd(*(value - values[0] for value in values))
