"""One reader a format: what a table says, or ``None`` where it is of another kind.

A further format is one more function in `READERS`. They are tried in this order, from the shapes
that nothing else has to the plain table; JSON is read in `splits.formats.documents`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import pandas as pd

from splits.errors import InputError
from splits.formats.documents import slideflow, stamp
from splits.formats.source import PART_NAMES, Found, Source
from splits.identity.manifest import SYNONYMS
from splits.images import SUFFIXES

__all__ = ["READERS", "recognise"]

_INDEX: Final = re.compile(r"|#\d+|index")
_FOLD_COLUMN: Final = re.compile(r"fold_(\d+)")
_NUMBER: Final = re.compile(r"(\d{1,6})(?:\.0+)?", re.ASCII)
_PRESERVED: Final = re.compile(r"cv(\d+)_.+_(preserved_site|standard)")
_PART_WORDS: Final = ("part", "split", "dataset", "partition", "subset", "set")
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "slide_id": SYNONYMS["slide_id"],
    "patient_id": SYNONYMS["patient_id"],
    "site_id": SYNONYMS["site_id"],
    "label": SYNONYMS["slide_label"],
    "group_id": ("group_id",),
}


def recognise(source: Source) -> list[Found] | None:
    """The splits in a file; None where no format fits."""
    for reader in READERS:
        found = reader(source)
        if found is not None:
            return found if isinstance(found, list) else [found]
    return None


def _clam(source: Source) -> Found | None:
    """CLAM: an index, then ``train, val, test`` as ids, as booleans or as counts."""
    parts = [name for name in source.header if name in PART_NAMES]
    others = [name for name in source.header if name not in parts]
    if not {"train", "test"} <= {PART_NAMES[name] for name in parts}:
        return None
    if any(not _INDEX.fullmatch(name) and name not in SYNONYMS["slide_id"] for name in others):
        return None
    _require_a_column_each(source, parts)
    cells = source.rows[parts]
    running = [str(row) for row in range(len(cells))]
    # pandas adds a further index each time that a file is saved again.
    ids = next((name for name in others if [*source.rows[name]] != running), None)
    if len(cells) and cells.apply(lambda column: column.str.lower()).isin(("true", "false")).all(
        axis=None
    ):
        return _clam_booleans(source, parts, ids if ids is not None else next(iter(others), None))
    counts = cells.apply(lambda column: column.str.fullmatch(r"\d+")).all(axis=None)
    if counts and (ids is not None or source.path.stem.endswith("_descriptor")):
        note = f"{source.path.name} holds class counts and no slides"
        return Found("CLAM descriptor", pd.DataFrame(columns=["slide_id", "part"]), notes=(note,))
    long = cells.melt(var_name="part", value_name="slide_id")
    # Columns are ragged: the shorter ones end in empty cells.
    return Found("CLAM", long[long["slide_id"] != ""])


def _require_a_column_each(source: Source, parts: list[str]) -> None:
    for part in set(PART_NAMES.values()):
        same = [source.written(name) for name in parts if PART_NAMES[name] == part]
        if len(same) > 1:
            message = f"{source.path} has two columns for {part}: {' and '.join(same)}"
            raise InputError(message)


def _clam_booleans(source: Source, parts: list[str], ids: str | None) -> Found:
    if ids is None:
        message = f"{source.path} says True or False of slides that it does not name"
        raise InputError(message)
    members = source.rows[parts].apply(lambda column: column.str.lower()) == "true"
    slides = source.rows[ids]
    rows = [pd.DataFrame({"slide_id": slides[members[part]], "part": part}) for part in parts]
    # A slide in no part stands with an empty one, so that it is counted.
    rows.append(pd.DataFrame({"slide_id": slides[~members.any(axis=1)], "part": ""}))
    return Found("CLAM bool", pd.concat(rows, ignore_index=True))


def _mil_baseline(source: Source) -> Found | None:
    """MIL_BASELINE: ``train_slide_path, train_label, val_…, test_…``, ragged."""
    if not {"train_slide_path", "test_slide_path"} <= set(source.header):
        return None
    blocks = []
    n_floats = 0
    for part in ("train", "val", "test"):
        paths, labels = f"{part}_slide_path", f"{part}_label"
        if paths not in source.header:
            continue
        block = pd.DataFrame({"slide_id": source.rows[paths], "part": part})
        if labels in source.header:
            given = source.rows[labels]
            # pandas turns the numbers of a ragged column into floats.
            block["label"] = given.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
            n_floats += int((block["label"] != given).sum())
        blocks.append(block[block["slide_id"] != ""])
    notes = (f"{n_floats} label(s) written as floats were read as whole numbers",)
    return Found("MIL_BASELINE", pd.concat(blocks), notes=notes if n_floats else ())


def _preserved_site(source: Source) -> list[Found] | None:
    """PreservedSiteCV: columns ``CV3_<feature>_preserved_site``; the value is the test fold."""
    splits = {name: match for name in source.header if (match := _PRESERVED.fullmatch(name))}
    ids = _columns(source)
    if not splits or not ids:
        return None
    found = []
    for column, match in splits.items():
        numbers = source.rows[column].str.strip()
        taking = numbers != ""
        folds = numbers[taking].str.extract(rf"^{_NUMBER.pattern}$", expand=False)
        if folds.isna().any():
            message = (
                f"{source.path}: column {source.written(column)} holds "
                f"{numbers[taking][folds.isna()].iloc[0]!r}, not the number of a test fold"
            )
            raise InputError(message)
        known = pd.DataFrame({key: source.rows.loc[taking, name] for key, name in ids.items()})
        tested = folds.astype("int64")
        blocks = [
            known.assign(fold=fold, part=(tested == fold).map({True: "test", False: "train"}))
            for fold in sorted(tested.unique())
        ]
        n_out = int((~taking).sum())
        found.append(
            Found(
                "PreservedSiteCV",
                pd.concat(blocks) if blocks else known.assign(fold=0, part=""),
                name=source.written(column),
                unit="site" if match[2] == "preserved_site" else None,
                notes=(f"{n_out} row(s) have no fold and do not take part",) if n_out else (),
            )
        )
    return found


def _patho_bench(source: Source) -> Found | None:
    """Patho-Bench: ``slide_id`` or ``case_id``, the task, and ``fold_0`` to ``fold_<n>``."""
    folds = [name for name in source.header if _FOLD_COLUMN.fullmatch(name)]
    ids = _columns(source)
    if not folds or not {"slide_id", "patient_id"} & set(ids):
        return None
    known = pd.DataFrame({key: source.rows[name] for key, name in ids.items()})
    tasks = [name for name in source.header if name not in {*folds, *ids.values()} and name]
    if "label" not in ids and len(tasks) == 1:
        known["label"] = source.rows[tasks[0]]
    long = known.join(source.rows[folds]).melt(
        list(known.columns), folds, var_name="fold", value_name="part"
    )
    long["fold"] = long["fold"].str.extract(r"(\d+)$", expand=False).astype("int64")
    return Found("Patho-Bench", long)


def _eva(source: Source) -> Found | None:
    """eva: ``origin, embeddings, target, split`` and, where images are of slides, ``wsi_id``."""
    if not {"origin", "embeddings", "split"} <= set(source.header):
        return None
    table = pd.DataFrame({"part": source.rows["split"]})
    origin = source.rows["origin"]
    slides = source.rows["wsi_id"] if "wsi_id" in source.header else None
    if slides is not None:
        table["slide_id"] = slides
    if slides is None and not _are_images(origin):
        table["slide_id"] = origin
    elif slides is None or (slides != origin).any():
        table["tile_id"] = origin
    if "target" in source.header:
        table["label"] = source.rows["target"]
    return Found("eva", table)


def _long(source: Source) -> Found | None:
    """One row a slide (or tile) and fold: our own ``split.csv``, torchmil, slideflow, PathBench."""
    part = _part_column(source)
    ids = _columns(source)
    if part is None or not {"slide_id", "patient_id", "tile_id"} & set(ids):
        return None
    table = pd.DataFrame({key: source.rows[name] for key, name in ids.items()})
    table["part"] = source.rows[part]
    if "fold" in source.header:
        folds = source.rows["fold"].str.extract(rf"^{_NUMBER.pattern}$", expand=False)
        if folds.isna().any():
            message = f"{source.path}: every row needs a fold that is a number from 0"
            raise InputError(message)
        table["fold"] = folds.astype("int64")
    return Found(_long_kind(set(source.header), part), table)


def _long_kind(header: set[str], part: str) -> str:
    if header == {"slide_id", "group_id", "fold", "part"}:
        return "slidewise"
    if header == {"bag_name", "split"}:
        return "torchmil"
    if part == "dataset" and {"slide", "patient"} <= header:
        return "PathBench" if {"category", "value"} & header else "slideflow"
    return "table"


def _part_column(source: Source) -> str | None:
    """The column of parts; a word such as ``dataset`` must also be used for parts."""
    for name in _PART_WORDS:
        if name in source.header:
            values = set(source.rows[name].str.strip().str.lower())
            if name in ("part", "split") or values <= {*PART_NAMES, ""}:
                return name
    return None


def _columns(source: Source) -> dict[str, str]:
    """Our name -> the file's column, for slides, patients, sites, groups, labels and tiles."""
    named = {re.sub(r"[\W_]", "", name): name for name in source.header}
    found: dict[str, str] = {}
    for ours, words in _WORDS.items():
        column = next((named[key] for word in words if (key := word.replace("_", "")) in named), "")
        if column and (source.rows[column] != "").any():
            found[ours] = column
    for word in SYNONYMS["path"]:
        column = named.get(word.replace("_", ""), "")
        if column and (source.rows[column] != "").any():
            # A column of files holds tiles where they are images, and slides where nothing else
            # does.
            if word.startswith(("tile", "patch")) or _are_images(source.rows[column]):
                found["tile_id"] = column
            else:
                found.setdefault("slide_id", column)
            break
    return found


def _are_images(names: pd.Series) -> bool:
    given = names[names != ""].str.lower()
    return bool(len(given)) and bool(given.str.endswith(SUFFIXES).all())


READERS: Final[tuple[Callable[[Source], list[Found] | Found | None], ...]] = (
    _clam,
    _mil_baseline,
    stamp,
    slideflow,
    _preserved_site,
    _patho_bench,
    _eva,
    _long,
)
