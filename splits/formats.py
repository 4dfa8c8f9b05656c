"""Split files of other tools, recognised by their content and brought to one table.

Each reader is one function that returns ``None`` where a file is not of its kind, so a further
format is one more function in ``_READERS``. The exact keys come from the tools themselves: CLAM
(``splits_<k>.csv``, ``_bool.csv``, ``_descriptor.csv``), Patho-Bench (``k=all.tsv``), STAMP
(``splits.json``), torchmil (``splits.csv``), PathBench (``dataset`` and ``category`` columns).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from splits.errors import InputError, unknown

__all__ = ["PART_NAMES", "RECOGNISED", "ForeignSplit", "read"]

RECOGNISED: Final = (
    "slidewise split.csv",
    "a table of slide_id (or slide, bag_name), part (or split, dataset) and optionally fold",
    "CLAM splits_<k>.csv",
    "CLAM splits_<k>_bool.csv",
    "Patho-Bench k=all.tsv",
    "STAMP splits.json",
)
PART_NAMES: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_ALIASES: Final = {
    "tile_id": ("tile_id",),
    "slide_id": ("slide_id", "slide", "bag_name"),
    "patient_id": ("patient_id", "patient", "case_id"),
    "group_id": ("group_id",),
    "label": ("label", "slide_label", "category"),
    "part": ("part", "split", "dataset"),
    "fold": ("fold",),
}
_CLAM_NAME: Final = re.compile(r"splits_(\d+)(?:_bool|_descriptor)?$")
_FOLD_COLUMN: Final = re.compile(r"fold_(\d+)$")


@dataclass(frozen=True)
class ForeignSplit:
    """A split file in one shape.

    Attributes:
        table: ``fold`` (int), ``part`` (train, val, test) and any of ``slide_id``, ``patient_id``,
            ``group_id``, ``tile_id``, ``label``, all text; the first two of these where the file
            names them.
        formats: What the files were recognised as.
        notes: What was set aside, in words.
    """

    table: pd.DataFrame
    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    path: Path
    header: list[str]
    rows: pd.DataFrame
    document: Any
    position: int


@dataclass(frozen=True)
class _Found:
    kind: str
    rows: pd.DataFrame
    fold: int | None = None


def read(path: Path | Sequence[Path]) -> ForeignSplit:
    """Read split files: one file, several that are one split (a fold each), or their folder.

    Raises:
        InputError: A file is missing, unreadable, of no recognised format, or two files claim the
            same fold.
    """
    given = [path] if isinstance(path, Path) else list(path)
    files = [file for entry in given for file in _expand(entry)]
    if not files:
        message = "no split file was given"
        raise InputError(message)
    found = [_recognise(_load(file, position)) for position, file in enumerate(files)]
    _require_one_split(files, found)
    notes = [
        f"{file.name} holds class counts and no slides"
        for file, item in zip(files, found, strict=True)
        if item.kind.endswith("descriptor")
    ]
    table = pd.concat([item.rows for item in found], ignore_index=True)
    if table.empty:
        message = f"{files[0]} holds no slide ids: {'; '.join(notes) or 'the table is empty'}"
        raise InputError(message)
    table, left_out = _named_parts(table)
    if left_out:
        notes.append(f"{left_out} row(s) name no part and take part in no fold")
    # A fold that is written twice, as CLAM does with its _bool files, is one fold.
    table = table.drop_duplicates().sort_values(["fold", *_ids(table)], kind="stable")
    kinds = tuple(sorted({item.kind for item in found}))
    return ForeignSplit(table.reset_index(drop=True), kinds, tuple(notes))


def _ids(table: pd.DataFrame) -> list[str]:
    return [name for name in ("slide_id", "patient_id", "tile_id") if name in table.columns]


def _expand(path: Path) -> list[Path]:
    """The split files of a folder, in the order of their folds; a file is itself."""
    if not path.is_dir():
        return [path]
    own = [path / name for name in ("split.csv", "k=all.tsv", "splits.json")]
    for file in own:
        if file.exists():
            return [file]
    files = [file for file in sorted(path.glob("splits*.csv")) if "_descriptor" not in file.name]
    if not files:
        message = f"{path} holds no split file (recognised: {'; '.join(RECOGNISED)})"
        raise InputError(message)
    return sorted(files, key=lambda file: (_fold_of(file, 0), file.name))


def _fold_of(path: Path, otherwise: int) -> int:
    match = _CLAM_NAME.match(path.stem)
    return int(match.group(1)) if match else otherwise


def _load(path: Path, position: int) -> _Source:
    """Every cell as text: ``NA``, ``05`` and ``3E`` are ids."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        message = f"{path} does not exist"
        raise InputError(message) from error
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} is not a readable text file ({error})"
        raise InputError(message) from error
    document: Any = None
    rows = pd.DataFrame()
    try:
        if content.lstrip().startswith(("{", "[")):
            document = json.loads(content)
        elif content.strip():
            first = content.lstrip().splitlines()[0]
            separator = max(",\t;", key=first.count)
            with path.open(encoding="utf-8-sig", newline="") as stream:
                rows = pd.read_csv(stream, sep=separator, dtype=str, keep_default_na=False)
    except ValueError as error:  # of json and of pandas alike
        message = f"{path} is not a readable table or JSON file ({error})"
        raise InputError(message) from error
    header = ["" if str(name).startswith("Unnamed:") else str(name) for name in rows.columns]
    return _Source(path, header, rows, document, position)


def _recognise(source: _Source) -> _Found:
    for reader in _READERS:
        found = reader(source)
        if found is not None:
            return found
    shape = f"columns {source.header[:8]}" if source.document is None else "a JSON document"
    message = (
        f"{source.path} is no split file that is recognised ({shape}); "
        f"recognised are: {'; '.join(RECOGNISED)}"
    )
    raise InputError(message)


def _clam(source: _Source) -> _Found | None:
    """CLAM: an unnamed index, then ``train, val, test`` as ids, as booleans or as counts."""
    if source.header not in (["", "train", "val", "test"], ["", "train", "test"]):
        return None
    frame = source.rows.set_axis(["index", *source.header[1:]], axis=1)
    cells = frame.drop(columns="index")
    fold = _fold_of(source.path, source.position)
    if len(frame) and cells.isin(["True", "False"]).all(axis=None):
        long = frame.melt("index", var_name="part", value_name="member")
        absent = ~frame["index"].isin(long.loc[long["member"] == "True", "index"])
        none = pd.DataFrame({"index": frame.loc[absent, "index"], "part": ""})
        long = pd.concat([long.loc[long["member"] == "True", ["index", "part"]], none])
        return _Found(
            "CLAM bool", long.rename(columns={"index": "slide_id"}).assign(fold=fold), fold
        )
    counted = list(frame["index"]) != [str(row) for row in range(len(frame))]
    if source.path.stem.endswith("_descriptor") or counted:
        if not cells.apply(lambda column: column.str.fullmatch(r"\d+")).all(axis=None):
            return None
        return _Found("CLAM descriptor", pd.DataFrame(columns=["slide_id", "part", "fold"]))
    long = cells.melt(var_name="part", value_name="slide_id")
    # Columns are ragged: the shorter ones end in empty cells.
    return _Found("CLAM", long[long["slide_id"] != ""].assign(fold=fold), fold)


def _patho_bench(source: _Source) -> _Found | None:
    """Patho-Bench: ``slide_id`` or ``case_id``, and ``fold_0`` to ``fold_<n>`` with part names."""
    folds = [name for name in source.header if _FOLD_COLUMN.match(name)]
    ids = {name: key for key in ("slide_id", "patient_id") for name in _ALIASES[key]}
    keep = [name for name in source.header if name in ids]
    if not folds or not keep:
        return None
    long = source.rows.melt(keep, folds, var_name="fold", value_name="part")
    long["fold"] = long["fold"].str.extract(_FOLD_COLUMN, expand=False).astype("int64")
    return _Found("Patho-Bench", long.rename(columns=ids))


def _stamp(source: _Source) -> _Found | None:
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
            if suffix == "patients" and isinstance(patients, list):
                rows.extend((str(patient), part, fold) for patient in patients)
    return _Found("STAMP", pd.DataFrame(rows, columns=["patient_id", "part", "fold"]))


def _long(source: _Source) -> _Found | None:
    """One row a slide (or tile) and fold; our own ``split.csv`` is of this kind."""
    names = {
        key: next((alias for alias in aliases if alias in source.header), None)
        for key, aliases in _ALIASES.items()
    }
    part = names["part"]
    if part is None or not any(names[key] for key in ("slide_id", "patient_id", "tile_id")):
        return None
    values = set(source.rows[part].str.strip().str.lower())
    # slideflow uses `dataset` for the name of a project, which is no part.
    if part == "dataset" and not values <= {*PART_NAMES, ""}:
        return None
    table = pd.DataFrame({key: source.rows[name] for key, name in names.items() if name})
    if "fold" not in table.columns:
        table["fold"] = 0
    elif not table["fold"].str.fullmatch(r"\d{1,6}").all():
        message = f"{source.path}: every row needs a fold that is a number from 0"
        raise InputError(message)
    table["fold"] = table["fold"].astype("int64")
    own = {"slide_id", "group_id", "fold", "part"} == set(source.header)
    return _Found("slidewise" if own else "table", table)


_READERS: Final[tuple[Callable[[_Source], _Found | None], ...]] = (
    _clam,
    _stamp,
    _patho_bench,
    _long,
)


def _require_one_split(files: Sequence[Path], found: Sequence[_Found]) -> None:
    """Refuse files that are not folds of one split: together they would look like a leak."""
    families = sorted({item.kind.split()[0] for item in found})
    whole = [item for item in found if item.fold is None and not item.kind.endswith("descriptor")]
    if len(families) > 1 or len(whole) > 1:
        message = (
            f"{len(files)} files of {', '.join(families)}: give the files of one split at once"
        )
        raise InputError(message)
    seen: dict[tuple[str, int], Path] = {}
    for file, item in zip(files, found, strict=True):
        if item.fold is None:
            continue
        first = seen.setdefault((item.kind, item.fold), file)
        if first is not file:
            message = f"{first} and {file} are both fold {item.fold}: give the files of one split"
            raise InputError(message)


def _named_parts(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Bring part names to train, val and test; drops and counts the rows without a part."""
    given = table["part"].astype(str).str.strip().str.lower()
    strange = sorted(set(given) - set(PART_NAMES) - {""})
    if strange:
        raise unknown(kind="part", given=strange[0], allowed=PART_NAMES)
    kept = table.assign(part=given.map(PART_NAMES), fold=table["fold"].astype("int64"))
    kept = kept[given != ""]
    if kept.empty:
        message = "no row of the split names a part (train, val or test)"
        raise InputError(message)
    return kept, int((given == "").sum())
