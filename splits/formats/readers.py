"""One reader a format: what a file says, or ``None`` where it is of another kind.

A further format is one more function in `READERS`. They are tried in this order, from the shapes
that nothing else has to the plain table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pandas as pd

from splits.errors import InputError
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


def _stamp(source: Source) -> Found | None:
    """STAMP: ``{"splits": [{"train_patients": [...], "test_patients": [...]}]}``."""
    document = source.document
    splits = document.get("splits") if isinstance(document, dict) else None
    if not isinstance(splits, list) or not splits:
        return None
    rows: list[tuple[str, str, int]] = []
    for fold, split in enumerate(splits):
        if not isinstance(split, dict) or not {"train_patients", "test_patients"} <= set(split):
            return None
        for key, patients in split.items():
            part, _, suffix = key.partition("_")
            if suffix == "patients":
                rows.extend((name, part, fold) for name in _texts(source, patients))
    return Found("STAMP", pd.DataFrame(rows, columns=["patient_id", "part", "fold"]))


def _texts(source: Source, names: Any) -> Iterator[str]:
    """Ids of a JSON list: text, or whole numbers that were written without quotes."""
    if not isinstance(names, list):
        message = f"{source.path}: a list of ids is needed, not {str(names)[:40]!r}"
        raise InputError(message)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            message = f"{source.path}: an id must be text, not {str(name)[:40]!r}"
            raise InputError(message)
        yield str(name)


def _slideflow(source: Source) -> list[Found] | None:
    """The log of splits of slideflow: a list of ``strategy``, ``patients`` and ``tfrecords``.

    ``tfrecords`` has the slides of ``training`` and ``validation``, or of ``k-fold-1`` to
    ``k-fold-<k>``; each of those is held out once (`Dataset.split`, strategy ``k-fold``).
    """
    document = source.document
    keys = {"strategy", "patients", "tfrecords"}
    if not isinstance(document, list) or not document:
        return None
    if not all(isinstance(entry, dict) and keys <= set(entry) for entry in document):
        return None
    return [_slideflow_entry(source, number, entry) for number, entry in enumerate(document)]


def _slideflow_entry(source: Source, number: int, entry: dict[str, Any]) -> Found:
    said: dict[str, tuple[str, str | None, str | None]] = {}
    for patient, known in entry["patients"].items():
        label = known.get("outcome_label", known.get("outcome"))
        site = known.get("site")
        for slide in _texts(source, known.get("slides", [])):
            said[slide] = (patient, *(None if v is None else str(v) for v in (label, site)))
    listed = {key: [*_texts(source, slides)] for key, slides in entry["tfrecords"].items()}
    held_out = {key: match for key in listed if (match := re.fullmatch(r"k-fold-(\d+)", key))}
    rows: list[tuple[str, str, int]] = []
    for key, slides in listed.items():
        if key not in held_out:
            rows.extend((slide, key, 0) for slide in slides)
            continue
        for other, match in held_out.items():
            part = "test" if other == key else "train"
            rows.extend((slide, part, int(match[1])) for slide in slides)
    table = pd.DataFrame(rows, columns=["slide_id", "part", "fold"])
    for position, column in enumerate(("patient_id", "label", "site_id")):
        values = [said.get(slide, (None, None, None))[position] for slide in table["slide_id"]]
        if any(value is not None for value in values):
            table[column] = values
    note = "slideflow calls the fold that is held out validation; it is read as the test part"
    return Found(
        "slideflow",
        table,
        name=f"{number} {entry['strategy']}",
        unit="site" if "preserved-site" in str(entry["strategy"]) else None,
        notes=(note,) if held_out else (),
    )


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
    _stamp,
    _slideflow,
    _preserved_site,
    _patho_bench,
    _eva,
    _long,
)
