"""Which grammar is believed for a whole folder of names, and why it goes before others.

The test that a grammar has to stand is in :mod:`splits.identity.acceptance`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from splits.errors import InputError, unknown
from splits.identity.acceptance import MIN_COVERAGE, Candidate, Labels, assess
from splits.identity.grammar import GRAMMARS, STRONG, WEAK
from splits.identity.name import Name, clean, posix, split_fragment
from splits.identity.rule import compile_rule, reader

__all__ = ["FolderNames", "parse_folder"]

_SAMPLE: Final = 1000


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
        candidate = assess(rule, grammar.confidence, grammar.read, split, paths, labels)
    elif re.search(r"[\\^$.*+?()\[\]{}|]", rule):
        raw = [posix(name) for name, _ in split]
        read = reader(compile_rule(rule))
        candidate = assess(rule, STRONG, read, split, raw, labels)
    else:
        kind = "rule"
        raise unknown(kind, rule, ["auto", *GRAMMARS])
    if not tile_ids:
        return FolderNames(None, ())
    _require_usable(candidate, tile_ids)
    # The user asked for this rule: what fails of the test makes its ids weak evidence.
    candidate.doubts += candidate.refusals
    candidate.refusals = []
    return _result(candidate, [candidate], "asked for")


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

    def assess_all(names: list[str]) -> list[Candidate]:
        return [
            assess(name, GRAMMARS[name].confidence, GRAMMARS[name].read, split, paths, labels)
            for name in names
            if hits[name] > 0.05
        ]

    strong = [name for name in order if GRAMMARS[name].confidence > WEAK and hits[name] > 0]
    candidates = assess_all(strong)
    fitting = _ranked(candidates)
    if len(strong) > 1 and (not fitting or fitting[0].coverage < 1):
        # Of several sources in one folder each name is read by the most certain grammar.
        mixed = assess(
            "+".join(sorted(strong)),
            min(GRAMMARS[name].confidence for name in strong),
            lambda path: next(filter(None, (GRAMMARS[name].read(path) for name in strong)), None),
            split,
            paths,
            labels,
        )
        candidates.append(mixed)
        if not mixed.refusals and (not fitting or mixed.coverage > fitting[0].coverage):
            fitting = [mixed, *fitting]
    if not fitting:
        weak = assess_all(["slide_folder", "weak"])
        candidates += weak
        fitting = _ranked(weak)
    if not fitting:
        rows = tuple(item.row() for item in candidates)
        return FolderNames(None, (None,) * len(paths), candidates=rows)
    return _result(fitting[0], candidates, "taken")


def _ranked(candidates: list[Candidate]) -> list[Candidate]:
    """Those that fit: an archive's ids first, as only they name the patient, then by cover."""
    fitting = [item for item in candidates if not item.refusals]
    return sorted(fitting, key=lambda item: (-item.confidence, -item.coverage))


def _why(taken: Candidate, other: Candidate) -> str:
    """Why one of two rules that both fit goes first."""
    if "+" in taken.rule:
        return (
            f"it covers {taken.coverage:.1%} of the tiles, each by the most certain grammar, and "
            f"{other.rule} alone {other.coverage:.1%}"
        )
    if taken.confidence > other.confidence:
        return (
            f"its ids are more certain ({taken.confidence:g}) than those of {other.rule} "
            f"({other.confidence:g})"
        )
    if taken.coverage > other.coverage:
        return f"it covers {taken.coverage:.1%} of the tiles, {other.rule} {other.coverage:.1%}"
    if taken.rule == "slide_folder":
        return "a folder is a slide more often than a number is"
    return f"both cover {taken.coverage:.1%}, and {taken.rule} is the narrower grammar"


def _result(taken: Candidate, candidates: list[Candidate], verb: str) -> FolderNames:
    confidence = min(taken.confidence, WEAK) if taken.doubts else taken.confidence
    names = [
        name if name is None or name.confidence == confidence
        else replace(name, confidence=confidence)
        for name in taken.names
    ]  # fmt: skip
    reasons = {id(taken): f"{verb}: covers {taken.coverage:.1%} of the tiles"}
    rivals = [item for item in candidates if item is not taken and not item.refusals]
    for item in rivals:
        reasons[id(item)] = f"fits too, but {taken.rule} was {verb}: {_why(taken, item)}"
    return FolderNames(
        taken.rule,
        tuple(names),
        taken.coverage,
        confidence,
        (
            *(f"{item.rule} {reasons[id(item)]}" for item in rivals),
            *taken.notes,
            *taken.doubts,
        ),
        tuple(item.row(reasons.get(id(item), "")) for item in candidates),
    )


def _require_usable(candidate: Candidate, tile_ids: Sequence[str]) -> None:
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
        message = f"rule {rule!r} gives the label as slide or patient: a label is no identity"
        raise InputError(message)
    if rule not in GRAMMARS and 1 < len(named) == len({name.patient for name in named}):
        message = (
            f"rule {rule!r} gives each of the {len(named)} tiles a slide of its own: that is a "
            "tile-level split; let the group slide match what the tiles of one slide share"
        )
        raise InputError(message)
