"""The test to which a rule is put for a whole folder of names.

One name can look like anything; a folder of them cannot. A rule is accepted if it covers the files,
if its groups hold several tiles, if positions do not collide and if its groups are not the label.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from splits.identity import lattice
from splits.identity.grammar import ARCHIVE, WEAK, Name
from splits.identity.name import stem

__all__ = ["MIN_COVERAGE", "Candidate", "Labels", "assess"]

MIN_COVERAGE: Final = 0.95
_USERS_NAMES: Final = ("qupath", "deepzoom")
"""Grammars whose slide is whatever a user called an image: no archive keeps such names apart."""
Labels = Sequence[Sequence[str | None]]
"""Columns of labels, each aligned to the tiles."""


@dataclass
class Candidate:
    """A rule, what it reads and how it stands the test.

    Attributes:
        coverage: Share of tiles with an identity.
        refusals: Why it is no identity.
        doubts: Why it is weak evidence.
        is_label: Its groups are a label.
    """

    rule: str
    names: list[Name | None]
    confidence: float
    coverage: float
    refusals: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_label: bool = False

    def row(self, standing: str = "") -> dict[str, Any]:
        """Its row in the table of candidates; ``standing`` says whether it was taken and why."""
        verdict = "refused" if self.refusals else "weak" if self.doubts else "accepted"
        reason = "; ".join(filter(None, [standing, *self.refusals, *self.doubts]))
        coverage = round(self.coverage, 4)
        return {"rule": self.rule, "coverage": coverage, "verdict": verdict, "reason": reason}


def assess(
    rule: str,
    confidence: float,
    read: Callable[[str], Name | None],
    split: list[tuple[str, tuple[int, int] | None]],
    paths: list[str],
    labels: Labels,
) -> Candidate:
    """Read all names under one rule and put them to the folder-wide test."""
    names = [read(path) for path in paths]
    n_named = sum(name is not None for name in names)
    coverage = n_named / max(1, len(names))
    result = Candidate(rule, names, confidence, coverage)
    if coverage < MIN_COVERAGE:
        result.refusals.append(f"covers {coverage:.1%} of the tiles, {MIN_COVERAGE:.0%} are needed")
        return result
    weak = confidence <= WEAK
    # Under a weak rule a file cut into tiles proves nothing: only its files count.
    members: dict[str, set[object]] = defaultdict(set)
    for name, path, (_, corner) in zip(names, paths, split, strict=True):
        if name is not None and len(group := members[str(name.slide)]) < 2:
            group.add(path if weak else (path, corner))
    sizes = sorted(len(tiles) for tiles in members.values())
    if sizes[len(sizes) // 2] < 2:
        # An archive's barcode stays true where a slide has a single tile; a counter does not.
        target = result.doubts if confidence >= ARCHIVE else result.refusals
        target.append("the median is below 2 tiles a slide: a group a tile is no slide-level split")
    result.names = lattice.positions(names, split, paths)
    if rule in _USERS_NAMES:
        result.names, n_recurring = lattice.qualified(result.names, split, paths)
        if n_recurring:
            result.notes.append(
                f"{n_recurring} name(s) of a slide recur at the same place in several folders: "
                "the folder was made a part of their id"
            )
    n_collisions = lattice.collisions(result.names, split, paths, by_path=weak)
    if n_collisions:
        target = result.refusals if weak else result.doubts
        target.append(
            f"{n_collisions} tile(s) share a position within their slide: positions dropped"
        )
        result.names = [
            name and replace(name, x=None, y=None, col=None, row=None) for name in result.names
        ]
    slides = [name.slide if name else None for name in result.names]
    patients = [name.patient if name else None for name in result.names]
    if confidence < ARCHIVE and any(
        _is_label(ids, column) for column in labels for ids in (slides, patients)
    ):
        result.is_label = True
        result.refusals.append("its groups are the label, and a label is no identity")
    if weak:
        result.refusals += _weak_refusals(rule, result.names, paths, slides, labels)
    return result


def _weak_refusals(
    rule: str,
    names: list[Name | None],
    paths: list[str],
    slides: list[str | None],
    labels: Labels,
) -> list[str]:
    refusals = []
    if len({slide for slide in slides if slide is not None}) < 2:
        refusals.append("all tiles fall into one group: more likely a prefix than a slide")
    for column in labels[:1]:
        pairs = {
            (slide, label) for slide, label in zip(slides, column, strict=True) if slide and label
        }
        repeated = [slide for slide, n in Counter(slide for slide, _ in pairs).items() if n > 1]
        if repeated:
            first = min(str(slide) for slide in repeated)
            refusals.append(f"{len(repeated)} id(s) occur in two classes, the first is {first!r}")
    if rule == "weak" and lattice.are_positions([stem(path) for path in paths]):
        refusals.append(
            "the two numbers of a name are its place in a grid, not a slide and a count"
        )
    if rule == "slide_folder" and not lattice.written_alike([stem(path) for path in paths]):
        refusals.append("the two numbers of a name are written differently: they are no x and y")
    n_stems = len({stem(path) for path in paths})
    n_recurring = len(set(paths)) - n_stems
    if rule == "weak" and n_recurring:
        refusals.append(
            f"{n_recurring} file name(s) recur in other folders: they count in each anew"
        )
    if not lattice.on_lattice(names):
        refusals.append("the numbers of a name lie on no lattice: they are no positions")
    return refusals


def _is_label(slides: list[str | None], labels: Sequence[str | None]) -> bool:
    """Whether the groups are the label, or the label within each of train, val and test."""
    for ids in (slides, [slide and lattice.without_parts(slide) for slide in slides]):
        pairs = {
            (slide, label)
            for slide, label in zip(ids, labels, strict=True)
            if slide is not None and label is not None
        }
        n_slides = len({slide for slide, _ in pairs})
        if n_slides > 1 and n_slides == len(pairs) == len({label for _, label in pairs}):
            return True
    return False
