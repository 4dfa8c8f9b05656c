"""A table that says which slide, patient, site and label a tile has: the top evidence.

Column names are recognised by their usual synonyms, so that the label tables of CLAM, TRIDENT,
STAMP, slideflow and Patho-Bench are read as they are, and every cell stays text, because ``NA``,
``05`` and ``3E`` are codes. How rows find their tiles is in :mod:`splits.identity.matching`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import pandas as pd

from splits.errors import InputError, unknown
from splits.identity.matching import match, match_slides
from splits.identity.name import SUFFIX
from splits.identity.table import read_cells
from splits.images import SUFFIXES

__all__ = ["SYNONYMS", "match", "match_slides", "read"]

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "path": (
        *("path", "tile_id", "tile", "tile_path", "file", "filename", "file_name", "filepath"),
        *("file_path", "image", "image_path", "img", "img_path", "patch", "patch_path", "stem"),
    ),
    "slide_id": (
        *("slide_id", "slide", "slide_name", "slide_path", "slide_file", "slide_filename", "wsi"),
        *("wsi_id", "wsi_name", "wsi_path", "bag_name"),
    ),
    "patient_id": (
        *("patient_id", "patient", "case_id", "case", "subject_id", "subject", "participant"),
        *("donor", "submitter_id", "bcr_patient_barcode"),
    ),
    "site_id": ("site_id", "site", "tss", "institution", "center", "centre", "hospital", "batch"),
    "slide_label": ("slide_label", "label", "class", "target", "diagnosis", "category"),
    "tile_label": ("tile_label", "tissue", "tissue_class", "tile_class", "patch_label"),
    "region": ("region", "region_id", "field", "roi"),
    "x_px": ("x_px", "x", "coord_x", "x_coord"),
    "y_px": ("y_px", "y", "coord_y", "y_coord"),
    "mpp": ("mpp", "um_per_px"),
}
_IDS: Final = ("path", "slide_id", "patient_id")


def read(
    path: Path, columns: Mapping[str, str] | None = None, patients: Path | None = None
) -> pd.DataFrame:
    """Read a manifest (comma, semicolon or tab separated, or parquet) with every cell as text.

    A column of files that are slides or features of slides (``.svs``, ``.h5``) gives the slides.

    Args:
        path: Table with a row a tile, a slide or a patient.
        columns: Our name -> the table's name, for columns that are not recognised.
        patients: Table with a row a patient that is joined to it (STAMP's clinical table beside
            its slide table).

    Returns:
        The recognised columns under the names of `SYNONYMS`; an empty cell is null.

    Raises:
        InputError: A file is missing, empty or unreadable; a column to map is unknown or missing;
            no column for tile, slide or patient; two columns that mean the same; a patient twice.
    """
    tables = {path: read_cells(path)}
    if patients is not None:
        tables[patients] = read_cells(patients)
    mapped = _require_columns(columns or {}, tables)
    result = _ids(_recognised(tables[path], mapped, path), tables[path], path)
    if patients is None:
        return result
    rows = _recognised(tables[patients], mapped, patients)
    for name, table in ((path, result), (patients, rows)):
        if "patient_id" not in table.columns:
            message = (
                f"{name} has no column patient_id, over which {path} and {patients} are joined"
            )
            raise InputError(message)
    return _join(result, rows.drop(columns=["path", "slide_id"], errors="ignore"), patients)


def _require_columns(
    columns: Mapping[str, str], tables: Mapping[Path, pd.DataFrame]
) -> dict[str, str]:
    """Refuse a mapping that names what does not exist."""
    given = {name for table in tables.values() for name in table.columns}
    for ours, theirs in columns.items():
        if ours not in SYNONYMS:
            raise unknown(kind="column to map", given=ours, allowed=SYNONYMS)
        if theirs.strip() not in given:
            where = " and ".join(map(str, tables))
            raise unknown(kind=f"column of {where}", given=theirs, allowed=given)
    return {theirs.strip(): ours for ours, theirs in columns.items()}


def _recognised(table: pd.DataFrame, mapped: Mapping[str, str], path: Path) -> pd.DataFrame:
    """The columns that a mapping or a synonym gives a meaning, empty ones left out."""
    found = {mapped[name]: name for name in table.columns if name in mapped}
    settled = set(found)
    words = {_key(word): name for name, words in SYNONYMS.items() for word in words}
    exact = {name for name in SYNONYMS if any(_key(given) == _key(name) for given in table.columns)}
    for given in table.columns:
        meaning = words.get(_key(given))
        if meaning is None or meaning in settled or given in mapped:
            continue
        if _key(given) == _key(meaning) or (meaning not in found and meaning not in exact):
            found[meaning] = given
        elif meaning not in exact:  # `site_id` beside `batch` leaves no doubt, two synonyms do
            message = (
                f"manifest {path}: the columns {found[meaning]!r} and {given!r} both mean "
                f"{meaning}; name one of them {meaning}, or map it (columns: {meaning}: {given})"
            )
            raise InputError(message)
    result = pd.DataFrame({name: table[given] for name, given in found.items()}, dtype="string")
    result = result.apply(lambda column: column.str.strip().mask(lambda cell: cell == "", pd.NA))
    return result if result.empty else result.dropna(axis=1, how="all")


def _ids(result: pd.DataFrame, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table with slides for files of slides, and at least one column of ids."""
    if "path" in result.columns and _are_slides(result["path"].dropna()):
        given = result.pop("path")
        if "slide_id" not in result.columns:
            result.insert(0, "slide_id", given)
    if not set(_IDS) & set(result.columns):
        message = (
            f"manifest {path} has the columns {', '.join(table.columns)}: one for the tile (path, "
            "tile_id, file), the slide (slide_id, slide) or the patient (patient_id, case_id) is "
            "needed; map it with columns, as in slide_id=NAME"
        )
        raise InputError(message)
    return result


def _are_slides(files: Iterable[str]) -> bool:
    """Whether all files are slides or features: no tile is read from such a file."""
    suffixes = {found[0].lower() if (found := SUFFIX.search(name)) else "" for name in files}
    return bool(suffixes) and not suffixes & {"", *SUFFIXES}


def _join(result: pd.DataFrame, rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add what a table says of patients; where both speak the slide's own row counts."""
    rows = rows.dropna(subset=["patient_id"]).drop_duplicates()
    repeated = rows.loc[rows["patient_id"].duplicated(), "patient_id"]
    if len(repeated):
        message = (
            f"{path} contradicts itself about {repeated.nunique()} patient(s), the first is "
            f"{repeated.iloc[0]!r}"
        )
        raise InputError(message)
    added = result[["patient_id"]].merge(rows, on="patient_id", how="left")
    for name in added.columns:
        result[name] = result[name].fillna(added[name]) if name in result.columns else added[name]
    return result


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
