"""Whether a grammar may be believed for a whole folder of names.

One name can look like anything; a folder of them cannot. A rule is accepted if it covers the files,
if its groups hold several tiles, if positions do not collide and if its groups are not the label.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from splits.errors import InputError, unknown
from splits.identity import lattice
from splits.identity.grammar import ARCHIVE, GRAMMARS, STRONG, WEAK, Name
from splits.identity.name import clean, split_fragment, stem

__all__ = ["MIN_COVERAGE", "FolderNames", "parse_folder"]

MIN_COVERAGE: Final = 0.95
_SAMPLE: Final = 1000
_FIELDS: Final = ("slide", "patient", "site", "region", "x", "y")
_PART_WORDS = re.compile(
    r"(?:^|[/_. -])(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(?![a-z])", re.I
)
Labels = Sequence[Sequence[str | None]]


@dataclass(frozen=True)
class FolderNames:
    """What the accepted rule says about each tile of a folder.

    Attributes:
        rule: The accepted rule; ``None`` where no rule was accepted.
        names: Aligned to the tile ids that were given; ``None`` where the rule says nothing.
        coverage: Share of tiles with an identity.
        confidence: How far the ids are believed, lower where a rule failed a part of the test.
        candidates: Every rule that was considered: rule, coverage, verdict and reason.
    """

    rule: str | None
    names: tuple[Name | None, ...]
    coverage: float = 0.0
    confidence: float = 0.0
    notes: tuple[str, ...] = ()
    candidates: tuple[dict[str, Any], ...] = ()


@dataclass
class _Candidate:
    rule: str
    names: list[Name | None]
    confidence: float
    coverage: float
    refusals: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    is_label: bool = False

    def row(self) -> dict[str, Any]:
        verdict = "refused" if self.refusals else "weak" if self.doubts else "accepted"
        reason = "; ".join(self.refusals + self.doubts)
        coverage = round(self.coverage, 4)
        return {"rule": self.rule, "coverage": coverage, "verdict": verdict, "reason": reason}


def parse_folder(tile_ids: Sequence[str], rule: str = "auto", labels: Labels = ()) -> FolderNames:
    """Read the identity of all tiles of a folder from their names.

    Args:
        tile_ids: Relative paths, with a media fragment where a tile was cut from a larger image.
        rule: ``auto``; the name of a grammar; or a regular expression with the named group
            ``slide`` (optional: ``patient``, ``site``, ``region``, ``x``, ``y``) that is searched
            in the path without its fragment.
        labels: Columns of labels, each aligned to ``tile_ids``. A label is never an identity: a
            rule whose groups equal one of them is refused.

    Raises:
        InputError: The rule is unknown, is no usable regular expression, covers less than 95 % of
            the tiles, gives every tile a slide of its own, or gives the label as identity.
    """
    split = [split_fragment(name) for name in tile_ids]
    paths = [clean(name) for name, _ in split]
    if rule == "auto":
        return _automatic(split, paths, labels)
    if rule in GRAMMARS:
        grammar = GRAMMARS[rule]
        candidate = _assess(rule, grammar.confidence, grammar.read, split, paths, labels)
    elif re.search(r"[\\^$.*+?()\[\]{}|]", rule):
        pattern = _compile(rule)
        raw = [name.replace("\\", "/") for name, _ in split]
        read = _regex_reader(pattern)
        candidate = _assess(rule, STRONG, read, split, raw, labels)
    else:
        kind = "rule"
        raise unknown(kind, rule, ["auto", *GRAMMARS])
    _require_usable(candidate, tile_ids)
    # The user asked for this rule: what fails of the test makes its ids weak evidence.
    candidate.doubts += candidate.refusals
    candidate.refusals = []
    return _result(candidate, [candidate], [])


def _automatic(
    split: list[tuple[str, tuple[int, int] | None]], paths: list[str], labels: Labels
) -> FolderNames:
    ordered = sorted(set(paths))
    sample = ordered[:: max(1, len(ordered) // _SAMPLE)]
    hits = {
        name: sum(grammar.read(path) is not None for path in sample) / max(1, len(sample))
        for name, grammar in GRAMMARS.items()
    }
    order = list(GRAMMARS)

    def assess(names: list[str]) -> list[_Candidate]:
        return [
            _assess(name, GRAMMARS[name].confidence, GRAMMARS[name].read, split, paths, labels)
            for name in names
            if hits[name] > 0.05
        ]

    strong = [name for name in order if GRAMMARS[name].confidence > WEAK and hits[name] > 0]
    candidates = assess(strong)
    fitting = [item for item in candidates if not item.refusals]
    fitting.sort(key=lambda item: (-item.coverage, order.index(item.rule)))
    notes = []
    if len(fitting) > 1:
        notes.append(
            f"{len(fitting)} grammars fit: {fitting[0].rule} was taken because it covers "
            f"{fitting[0].coverage:.1%} and {fitting[1].rule} {fitting[1].coverage:.1%} "
            "(at equal cover an archive's own grammar goes first)"
        )
    if not fitting and len(strong) > 1:
        mixed = _assess(
            "+".join(sorted(strong)),
            min(GRAMMARS[name].confidence for name in strong),
            lambda path: next(filter(None, (GRAMMARS[name].read(path) for name in strong)), None),
            split,
            paths,
            labels,
        )
        candidates.append(mixed)
        fitting = [mixed] if not mixed.refusals else []
    if not fitting:
        # The folder before the file name: it is a slide more often than a number is.
        weak = assess(["slide_folder", "weak"])
        candidates += weak
        fitting = [item for item in weak if not item.refusals]
    if not fitting:
        rows = tuple(item.row() for item in candidates)
        return FolderNames(None, (None,) * len(paths), candidates=rows)
    return _result(fitting[0], candidates, notes)


def _result(taken: _Candidate, candidates: list[_Candidate], notes: list[str]) -> FolderNames:
    confidence = min(taken.confidence, WEAK) if taken.doubts else taken.confidence
    names = [name and replace(name, confidence=confidence) for name in taken.names]
    return FolderNames(
        taken.rule,
        tuple(names),
        taken.coverage,
        confidence,
        (*notes, *taken.doubts),
        tuple(item.row() for item in candidates),
    )


def _assess(
    rule: str,
    confidence: float,
    read: Callable[[str], Name | None],
    split: list[tuple[str, tuple[int, int] | None]],
    paths: list[str],
    labels: Labels,
) -> _Candidate:
    """Read all names under one rule and put them to the folder-wide test."""
    names = [read(path) for path in paths]
    n_named = sum(name is not None for name in names)
    coverage = n_named / max(1, len(names))
    result = _Candidate(rule, names, confidence, coverage)
    if coverage < MIN_COVERAGE:
        result.refusals.append(f"covers {coverage:.1%} of the tiles, {MIN_COVERAGE:.0%} are needed")
        return result
    weak = confidence <= WEAK
    # Under a weak rule a file cut into tiles proves nothing: only its files count.
    members: dict[str, set[object]] = defaultdict(set)
    for name, path, (_, corner) in zip(names, paths, split, strict=True):
        if name is not None:
            members[str(name.slide)].add(path if weak else (path, corner))
    sizes = sorted(len(tiles) for tiles in members.values())
    if sizes[len(sizes) // 2] < 2:
        # An archive's barcode stays true where a slide has a single tile; a counter does not.
        target = result.doubts if confidence >= ARCHIVE else result.refusals
        target.append("the median is below 2 tiles a slide: a group a tile is no slide-level split")
    result.names = lattice.positions(names, split, paths)
    n_collisions = lattice.collisions(result.names, split, paths, by_path=weak)
    if n_collisions:
        target = result.refusals if weak else result.doubts
        target.append(
            f"{n_collisions} tile(s) share a position within their slide: positions dropped"
        )
        result.names = [
            name and replace(name, x=None, y=None, col=None, row=None) for name in result.names
        ]
    slides = [name.slide if name else None for name in names]
    if confidence < ARCHIVE and any(_is_label(slides, column) for column in labels):
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
    if not lattice.on_lattice(names):
        refusals.append("the numbers of a name lie on no lattice: they are no positions")
    return refusals


def _is_label(slides: list[str | None], labels: Sequence[str | None]) -> bool:
    """Whether the groups are the label, or the label within each of train, val and test."""
    for ids in (slides, [slide and _PART_WORDS.sub("", slide).strip("/_. -") for slide in slides]):
        pairs = {
            (slide, label)
            for slide, label in zip(ids, labels, strict=True)
            if slide is not None and label is not None
        }
        n_slides = len({slide for slide, _ in pairs})
        if n_slides > 1 and n_slides == len(pairs) == len({label for _, label in pairs}):
            return True
    return False


def _compile(rule: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        message = f"rule {rule!r} is not a regular expression: {error}"
        raise InputError(message) from error
    if "slide" not in pattern.groupindex:
        message = f"rule {rule!r} has no named group slide: write it as (?P<slide>...)"
        raise InputError(message)
    for group in pattern.groupindex:
        if group not in _FIELDS:
            kind = "named group in the rule"
            raise unknown(kind, group, _FIELDS)
    return pattern


def _regex_reader(pattern: re.Pattern[str]) -> Callable[[str], Name | None]:
    def read(path: str) -> Name | None:
        match = pattern.search(path)
        found = match.groupdict() if match else {}
        if not found.get("slide"):
            return None
        numbers = {}
        for axis in ("x", "y"):
            text = found.get(axis)
            if text is not None and not re.fullmatch(r"\d{1,9}", text, re.ASCII):
                message = f"the rule reads {axis} = {text!r} in {path!r}: a whole number is needed"
                raise InputError(message)
            numbers[axis] = int(text) if text else None
        slide = found["slide"]
        return Name(
            "regex", found.get("site") or None, found.get("patient") or slide, slide,
            found.get("region") or None, numbers["x"], numbers["y"], confidence=STRONG,
        )  # fmt: skip

    return read


def _require_usable(candidate: _Candidate, tile_ids: Sequence[str]) -> None:
    """Refuse a rule that the user asked for and that cannot be an identity."""
    rule = candidate.rule
    named = [name for name in candidate.names if name is not None]
    if candidate.coverage < MIN_COVERAGE:
        pairs = zip(tile_ids, candidate.names, strict=True)
        misfits = [tile for tile, name in pairs if name is None]
        message = (
            f"rule {rule!r} says nothing about {len(misfits)} of {len(tile_ids)} tiles (5 % may be "
            f"left at most), the first: {', '.join(sorted(misfits)[:3])}"
        )
        raise InputError(message)
    if candidate.is_label:
        message = f"rule {rule!r} gives the label as the slide: a label is no identity"
        raise InputError(message)
    if rule not in GRAMMARS and 1 < len(named) == len({name.patient for name in named}):
        message = (
            f"rule {rule!r} gives each of the {len(named)} tiles a slide of its own: that is a "
            "tile-level split; let the group slide match what the tiles of one slide share"
        )
        raise InputError(message)
