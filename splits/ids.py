"""Ids as text: what spreadsheets and exports do to them, and which two spellings mean the same.

A split file and a slide table often name one slide in two ways: ``/data/S1.svs`` and ``s1``,
``123.0`` and ``0123``. `reconcile` pairs them where the difference is of a known kind and the pair
is the only one possible; `hygiene` reports what makes a list of ids doubtful by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from splits.auditing.findings import Finding, finding
from splits.identity.exporter import without_uuid
from splits.identity.name import SUFFIX, posix

__all__ = ["Matched", "bare", "hygiene", "reconcile"]

_MISSING: Final = frozenset(
    ("", "-", "--", "?", ".", "na", "n/a", "#n/a", "nan", "none", "null", "nil", "unknown")
)
_FLOAT: Final = re.compile(r"(\d+)\.0+", re.ASCII)
_MONTH: Final = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_EXCEL: Final = re.compile(
    # A long number in scientific notation, an error value, and an id that was taken for a date.
    rf"\d+(?:[.,]\d+)?e\+\d+|#(?:ref!|value!|name\?|div/0!|num!|null!)|\d{{1,2}}-{_MONTH}"
    rf"|{_MONTH}-\d{{2}}|\d{{4}}-\d\d-\d\d 00:00:00",
    re.I | re.ASCII,
)
_DEPTH: Final = 3  # names of folders in front of a file that are compared, at most


@dataclass(frozen=True)
class Matched:
    """Which known id each given id means.

    Attributes:
        mapping: Given id -> known id, one-to-one, for those that mean one; equal text included.
        findings: How the text differed, a finding each kind, and the ids that stay unmatched
            because several could be meant.
    """

    mapping: dict[str, str]
    findings: tuple[Finding, ...]


def reconcile(given: Iterable[str], known: Iterable[str], *, level: str = "slide") -> Matched:
    """Find the known id that each given id means where their text differs.

    The kinds of difference are tried from the harmless to the doubtful, each on top of those
    before: white space, folder and file extension, the UUID that a portal appends (TCGA), a float's
    ``.0``, upper and lower case, leading zeros. Two ids are paired only where no third one, given
    or known, could take part.

    Args:
        given: Ids of a split file.
        known: Ids of the slide (patient, tile) table.
        level: What the ids name, for the messages.
    """
    ours, theirs = ({name: name for name in sorted(set(names))} for names in (given, known))
    mapping = {name: name for name in ours if name in theirs}
    open_ids = [name for name in ours if name not in mapping]
    findings: list[Finding] = []
    ambiguous: dict[str, str] = {}
    for what, severity, step in _STEPS:
        if not open_ids:
            break
        ours = {name: step(key) for name, key in ours.items()}
        theirs = {name: step(key) for name, key in theirs.items()}
        mine, candidates = _by_key(ours), _by_key(theirs)
        paired: dict[str, str] = {}
        for name in open_ids:
            same = candidates.get(ours[name], [])
            rivals = [rival for rival in mine[ours[name]] if rival != name] if same else []
            if len(same) == 1 and not rivals:
                mapping[name] = same[0]
                paired[name] = f"{name}: {same[0]} in the table"
            elif same:
                ambiguous[name] = f"{name}: could be {_few(same)} of the table" + (
                    f", and so could {_few(rivals)}" if rivals else ""
                )
        open_ids = [name for name in open_ids if name not in mapping and name not in ambiguous]
        if paired:
            findings.append(_finding(severity, level, paired, f"found in the table by {what}"))
    if ambiguous:
        what = "left unmatched, because several ids differ only in how they are written"
        findings.append(_finding("warning", level, ambiguous, what))
    return Matched(mapping, tuple(findings))


def hygiene(ids: Iterable[str], *, level: str = "slide") -> list[Finding]:
    """What makes a list of ids doubtful by itself; empty where nothing does.

    Looks for codes of a missing value, floats, what a spreadsheet makes of ids, white space, mixed
    extensions, leading zeros that may be lost, and ids that differ only in how they are written.

    Args:
        ids: Ids as a file has them, repeats allowed.
        level: What the ids name, for the messages.

    Returns:
        Findings of kind ``id_hygiene`` in the shape of `splits.audit.audit`.
    """
    names = sorted(set(ids))
    found = [
        _about(names, level, "warning", what, doubtful)
        for what, doubtful in (
            (
                "look like codes for a missing value (NA is also the code of a TCGA site)",
                lambda name: name.strip().lower() in _MISSING,
            ),
            ("are written as floats: a spreadsheet read them as numbers", _FLOAT.fullmatch),
            ("look like what a spreadsheet makes of ids (1E+05, 3-Mar)", _EXCEL.fullmatch),
            (
                "have white space around them or more than a space within",
                lambda name: name != " ".join(name.split()),
            ),
        )
    ]
    found += [_zeros(names, level), _extensions(names, level), _twins(names, level)]
    return [one for one in found if one is not None]


def _space(name: str) -> str:
    return " ".join(posix(name).split())


def bare(name: str) -> str:
    """Without file extensions; the folder stays."""
    while (match := SUFFIX.search(name)) is not None and match.start() > 0:
        name = name[: match.start()]
    return name


def _end(depth: int) -> Callable[[str], str]:
    """The last ``depth`` names of a path."""
    return lambda name: "/".join(name.rstrip("/").split("/")[-depth:])


def _whole(name: str) -> str:
    match = _FLOAT.fullmatch(name)
    return match[1] if match else name


def _without_zeros(name: str) -> str:
    return (name.lstrip("0") or "0") if name.isdecimal() else name


# Each step works on what the one before left of an id.
_STEPS: Final[tuple[tuple[str, str, Callable[[str], str]], ...]] = (
    ("leaving white space out", "note", _space),
    ("leaving the file extension out", "note", bare),
    *(("leaving its folder out", "note", _end(depth)) for depth in range(_DEPTH, 0, -1)),
    ("leaving a UUID out", "note", without_uuid),
    ("reading a float as the number it was", "warning", _whole),
    ("ignoring upper and lower case", "note", str.casefold),
    ("adding leading zeros that were lost", "warning", _without_zeros),
)


def _by_key(keys: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    return groups


def _about(
    names: Iterable[str], level: str, severity: str, what: str, doubtful: Callable[[str], object]
) -> Finding | None:
    evidence = {name: repr(name) for name in names if doubtful(name)}
    return _finding(severity, level, evidence, what) if evidence else None


def _zeros(names: Iterable[str], level: str) -> Finding | None:
    """Numbers of mixed width: certain only where some of them still have their zeros."""
    numbers = [name for name in names if name.isdecimal()]
    widths = {len(name) for name in numbers}
    if len(widths) < 2:
        return None
    padded = {len(name) for name in numbers if name.startswith("0") and len(name) > 1}
    short = [name for name in numbers if len(name) < max(padded or widths)]
    evidence = {name: f"{name}: {len(name)} of {max(padded or widths)} digits" for name in short}
    if not evidence:
        return None
    if padded:
        return _finding(
            "warning", level, evidence, "are numbers without the leading zeros that others have"
        )
    what = "are numbers of fewer digits than others: leading zeros may be lost"
    return _finding("note", level, evidence, what)


def _extensions(names: Iterable[str], level: str) -> Finding | None:
    kinds = _by_key({name: name[len(bare(name)) :].lower() for name in map(_space, names)})
    if len(kinds) < 2:
        return None
    counts = ", ".join(f"{kind or 'none'} {len(of)}" for kind, of in sorted(kinds.items()))
    usual = max(kinds, key=lambda kind: (len(kinds[kind]), kind))
    evidence = {name: name for kind, of in kinds.items() if kind != usual for name in of}
    return _finding("note", level, evidence, f"have another file extension than most ({counts})")


def _twins(names: Iterable[str], level: str) -> Finding | None:
    """Ids that may be one: equal but for white space, extension, case, or a UUID that one lacks."""
    keys = {name: bare(_space(name)).casefold() for name in names}
    whole = set(keys.values())
    # Two ids with a UUID each are two scans: there the UUID is the name.
    short = {name: without_uuid(key) for name, key in keys.items()}
    groups = _by_key({name: key if key in whole else keys[name] for name, key in short.items()})
    evidence = {
        name: f"{name}: beside {_few(other for other in of if other != name)}"
        for of in groups.values()
        if len(of) > 1
        for name in of
    }
    what = "differ only in case, white space, extension or UUID: are they one?"
    return _finding("warning", level, evidence, what) if evidence else None


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _finding(severity: str, level: str, evidence: Mapping[str, str], what: str) -> Finding:
    return finding("id_hygiene", severity, level, evidence, what=what)
