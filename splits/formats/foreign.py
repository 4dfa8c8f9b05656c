"""Reading split files of any known tool: the files of one split, brought to one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd

from splits.errors import InputError, unknown
from splits.formats.folders import is_tree, read_tree
from splits.formats.readers import recognise
from splits.formats.source import PART_NAMES, Found, Source, is_fold, load

__all__ = ["RECOGNISED", "ForeignSplit", "read", "read_all"]

RECOGNISED: Final = (
    "slidewise split.csv",
    "a table of slide_id (or slide, bag_name), part (or split, dataset) and optionally fold",
    "CLAM splits_<k>.csv",
    "CLAM splits_<k>_bool.csv",
    "Patho-Bench k=all.tsv",
    "STAMP splits.json",
    "torchmil splits.csv",
    "slideflow annotations with a column dataset, or splits.json",
    "MIL_BASELINE train_slide_path, val_slide_path, test_slide_path",
    "eva manifest.csv",
    "PathBench dataset and category or value",
    "PreservedSiteCV CV<k>_<feature>_preserved_site",
    "folders train, val, test",
)
_WHOLE: Final = (
    *("split.csv", "k=all.tsv", "splits.json", "splits.csv", "manifest.csv", "annotations.csv"),
)
_ORDER: Final = ("slide_id", "patient_id", "tile_id")


@dataclass(frozen=True)
class ForeignSplit:
    """A split in one shape.

    Attributes:
        table: ``fold`` (int), ``part`` (train, val, test) and any of ``slide_id``, ``patient_id``,
            ``site_id``, ``group_id``, ``tile_id``, ``label``, all text; the first two of these
            where the file names them.
        formats: What the files were recognised as.
        notes: What was set aside, in words.
        name: Which split of the files it is (a column, say); "" where they hold one.
        unit: What the split itself claims to keep whole: ``site``, or None where it says nothing.
    """

    table: pd.DataFrame
    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()
    name: str = ""
    unit: str | None = None


def read(path: Path | Sequence[Path]) -> ForeignSplit:
    """Read split files: one file, several that are one split (a fold each), or their folder.

    Raises:
        InputError: A file is missing, unreadable, of no recognised format or holds several splits,
            or two files claim the same fold or contradict each other.
    """
    found = read_all(path)
    if len(found) > 1:
        message = (
            f"{len(found)} splits stand in the files given, one is needed: "
            f"{', '.join(split.name for split in found)} (formats.read_all reads them all)"
        )
        raise InputError(message)
    return found[0]


def read_all(path: Path | Sequence[Path]) -> list[ForeignSplit]:
    """Read every split of files of which each holds several, or the one that files make together.

    Raises:
        InputError: As for `read`, but that several splits in a file are welcome.
    """
    given = [path] if isinstance(path, Path) else list(path)
    found = [item for entry in given for item in _expand(entry)]
    if not found:
        message = "no split file was given"
        raise InputError(message)
    several = [item for _, item in found if item.name]
    if not several:
        return [_finished(_folds(found), [item for _, item in found])]
    if len(several) < len(found):
        one, more = (
            next(source.path for source, item in found if bool(item.name) is named)
            for named in (False, True)
        )
        message = f"{one} is one split, and {more} holds several: give them one by one"
        raise InputError(message)
    single = len({source.path for source, _ in found}) == 1
    return [
        _finished(
            [item],
            [item],
            name="" if len(found) == 1 else item.name if single else f"{source.path} {item.name}",
        )
        for source, item in found
    ]


def _expand(path: Path) -> list[tuple[Source, Found]]:
    """The splits of a file, or of the split files of a folder in the order of their folds."""
    if not path.is_dir():
        source = load(path)
        return [(source, item) for item in _recognised(source)]
    for name in _WHOLE:
        if (path / name).is_file():
            return _expand(path / name)
    inside = [file for file in path.glob("splits*.csv") if "_descriptor" not in file.name]
    inside = inside or [folder for folder in path.iterdir() if is_fold(folder)]
    if not inside and is_tree(path):
        return [(Source(path), read_tree(path))]
    inside = inside or [file for end in ("csv", "tsv", "json") for file in path.glob(f"*.{end}")]
    if not inside:
        message = f"{path} holds no split file (recognised: {'; '.join(RECOGNISED)})"
        raise InputError(message)
    return [item for file in sorted(inside, key=_by_fold) for item in _expand(file)]


def _by_fold(path: Path) -> tuple[int, str]:
    return Source(path).fold() or 0, str(path)


def _recognised(source: Source) -> list[Found]:
    found = recognise(source)
    if found is None:
        shape = f"columns {list(source.names)[:8]}" if source.names else "a JSON document"
        message = (
            f"{source.path} is no split file that is recognised ({shape}); "
            f"recognised are: {'; '.join(RECOGNISED)}"
        )
        raise InputError(message)
    return found


def _folds(found: Sequence[tuple[Source, Found]]) -> list[Found]:
    """Give each file its fold, and refuse files that are not folds of one split.

    Together, the files of two splits would look like a leak.
    """
    named = [(source, item) for source, item in found if not item.kind.endswith("descriptor")]
    families = sorted({item.kind.split()[0] for _, item in found})
    whole = [source.path for source, item in named if "fold" in item.rows.columns]
    rests = {(numbered or ("", 0))[0] for numbered in (s.numbered() for s, _ in named)}
    loose = len(named) > 1 and (len(rests) > 1 or any(s.fold() is None for s, _ in named))
    mixed = families != ["CLAM"] and loose
    if len(families) > 1 or len(whole) > 1 or (whole and len(named) > 1) or mixed:
        message = (
            f"{len(found)} files of {', '.join(families)}: give the files of one split at once, "
            "a fold each, with the number of the fold at the end of its name"
        )
        raise InputError(message)
    seen: dict[int, list[tuple[Path, Found]]] = {}
    dealt = []
    for position, (source, item) in enumerate(named):
        if "fold" not in item.rows.columns:
            alone = len(named) == 1 and item.kind not in ("CLAM", "CLAM bool", "MIL_BASELINE")
            fold = 0 if alone else source.fold()
            fold = position if fold is None else fold
            item = replace(item, rows=item.rows.assign(fold=fold))
            _require_agreement(seen.setdefault(fold, []), source.path, item, fold)
            seen[fold].append((source.path, item))
        dealt.append(item)
    return dealt


def _require_agreement(
    before: Iterable[tuple[Path, Found]], path: Path, item: Found, fold: int
) -> None:
    """CLAM writes a fold twice, as ids and as booleans; they must say the same."""
    for other_path, other in before:
        if other.kind == item.kind:
            message = f"{other_path} and {path} are both fold {fold}: give the files of one split"
            raise InputError(message)
        here, there = (_places(rows) for rows in (item.rows, other.rows))
        differ = sorted(here ^ there)
        if differ:
            slide = differ[0][0]
            said = [
                ", ".join(part for name, part in sorted(places) if name == slide) or "no part"
                for places in (there, here)
            ]
            message = (
                f"{other_path} and {path} disagree about {slide!r}: "
                f"{said[0]} in the first, {said[1]} in the second"
            )
            raise InputError(message)


def _places(rows: pd.DataFrame) -> set[tuple[str, str]]:
    parts = rows["part"].str.strip().str.lower().replace(PART_NAMES)
    return {pair for pair in zip(rows["slide_id"], parts, strict=True) if pair[1]}


def _finished(dealt: Sequence[Found], found: Sequence[Found], name: str = "") -> ForeignSplit:
    """One table of the folds, with the usual part names; what is left out is counted."""
    notes = [note for item in found for note in item.notes]
    table = pd.concat([item.rows for item in dealt], ignore_index=True) if dealt else None
    if table is None or table.empty:
        message = f"the split holds no slide ids: {'; '.join(notes) or 'its table is empty'}"
        raise InputError(message)
    table, said = _named_parts(table)
    notes += said
    n_twice = sum(int(item.rows.duplicated().sum()) for item in dealt)
    if n_twice:
        notes.append(f"{n_twice} row(s) repeat another row and were counted once")
    # A fold that is written twice, as CLAM does with its _bool files, is one fold.
    ids = [column for column in _ORDER if column in table.columns]
    table = table.drop_duplicates().sort_values(["fold", *ids], kind="stable")
    kinds = tuple(sorted({item.kind for item in found}))
    unit = dealt[0].unit if len(dealt) == 1 else None
    return ForeignSplit(table.reset_index(drop=True), kinds, tuple(notes), name, unit)


def _named_parts(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Bring part names to train, val and test; drops and counts rows without a part or an id."""
    given = table["part"].astype(str).str.strip().str.lower()
    strange = sorted(set(given) - set(PART_NAMES) - {""})
    if strange:
        raise unknown(kind="part", given=strange[0], allowed=PART_NAMES)
    ids = table[[column for column in _ORDER if column in table.columns]]
    nameless = (given != "") & (ids.fillna("") == "").all(axis=1)
    kept = table.assign(part=given.map(PART_NAMES), fold=table["fold"].astype("int64"))
    kept = kept[(given != "") & ~nameless]
    texts = [column for column in kept.columns if column != "fold"]
    kept[texts] = kept[texts].astype("string")
    if kept.empty:
        message = "no row of the split names a part (train, val or test)"
        raise InputError(message)
    counted = (
        (int((given == "").sum()), "name no part and take part in no fold"),
        (int(nameless.sum()), "name a part and no slide"),
    )
    return kept, [f"{n} row(s) {what}" for n, what in counted if n]
