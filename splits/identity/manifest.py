"""A table that says which slide, patient, site and label a tile has: the top evidence.

Column names are recognised by their usual synonyms and every cell stays text, because ``NA``,
``05`` and ``3E`` are codes. A table with one row a slide and no path is joined over the slide id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from splits.artifacts import read_table
from splits.errors import InputError
from splits.identity.exporter import without_uuid
from splits.identity.grammar import WEAK, parse
from splits.identity.name import clean, split_fragment, stem

__all__ = ["SYNONYMS", "match", "match_slides", "read"]

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "path": (
        *("path", "tile_id", "tile", "tile_path", "file", "filename", "file_name", "filepath"),
        *("file_path", "image", "image_path", "img", "img_path", "patch", "patch_path", "stem"),
    ),
    "slide_id": ("slide_id", "slide", "slide_name", "wsi", "wsi_id"),
    "patient_id": (
        *("patient_id", "patient", "case_id", "case", "subject_id", "subject", "participant"),
        "donor",
    ),
    "site_id": ("site_id", "site", "tss", "institution", "center", "centre", "hospital", "batch"),
    "slide_label": ("slide_label", "label", "class", "target", "diagnosis"),
    "tile_label": ("tile_label", "tissue", "tissue_class", "tile_class", "patch_label"),
    "region": ("region", "region_id", "field", "roi"),
    "x_px": ("x_px", "x", "coord_x", "x_coord"),
    "y_px": ("y_px", "y", "coord_y", "y_coord"),
    "mpp": ("mpp", "um_per_px"),
}
_NUMBERS: Final = ("x_px", "y_px", "mpp")


def read(path: Path) -> pd.DataFrame:
    """Read a manifest (comma, semicolon or tab separated, or parquet) with every cell as text.

    Returns:
        The recognised columns under the names of `SYNONYMS`; an empty cell is null.

    Raises:
        InputError: The file is missing, empty or unreadable, has neither a path nor a slide column,
            or two columns that mean the same.
    """
    table = _read_text(path)
    found: dict[str, str] = {}
    exact = {
        name for name in SYNONYMS if name in {str(given).strip().lower() for given in table.columns}
    }
    for given in table.columns:
        key = re.sub(r"[\s-]+", "_", str(given).strip().lower())
        meaning = next((name for name, words in SYNONYMS.items() if key in words), None)
        if meaning is None:
            continue
        if key == meaning or (meaning not in found and meaning not in exact):
            found[meaning] = str(given)
        elif meaning not in exact:  # `site_id` beside `batch` leaves no doubt, two synonyms do
            message = (
                f"manifest {path}: the columns {found[meaning]!r} and {given!r} both mean "
                f"{meaning}; name one of them {meaning}"
            )
            raise InputError(message)
    if not {"path", "slide_id"} & set(found):
        message = (
            f"manifest {path} has the columns {', '.join(map(str, table.columns))}: one for the "
            "tile (path, tile_id, file) or for the slide (slide_id, slide) is needed"
        )
        raise InputError(message)
    result = pd.DataFrame({name: table[given] for name, given in found.items()}, dtype="string")
    return result.apply(lambda column: column.str.strip().mask(lambda cell: cell == "", pd.NA))


def match(manifest: pd.DataFrame, tile_ids: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Give every tile its row: by relative path, else by file stem where that is unique.

    A row for a file holds for all tiles that were cut from it.

    Args:
        manifest: What `read` returned, with a column ``path``.
        tile_ids: Tile ids, POSIX.

    Returns:
        The manifest's other columns aligned to ``tile_ids`` (null where nothing matched), and a
        report with the counts ``rows``, ``by_path``, ``by_stem``, ``unmatched``, ``unused_rows``.

    Raises:
        InputError: The manifest gives slides and does not match every tile exactly once, two rows
            of one tile contradict each other, or a position is no number.
    """
    columns = [name for name in manifest.columns if name != "path"]
    if manifest["path"].isna().any():
        message = f"the manifest has {int(manifest['path'].isna().sum())} row(s) without a path"
        raise InputError(message)
    rows = manifest.assign(path=manifest["path"].map(_posix)).drop_duplicates().reset_index()
    _require_single(rows, columns)
    by_path = {str(path): row for row, path in enumerate(rows["path"])}
    row_stems = _unique_stems(by_path)
    files = [split_fragment(_posix(name))[0] for name in tile_ids]
    tile_stems = _unique_stems(dict.fromkeys(files, 0))
    order: list[int] = []
    n_by_path = 0
    for tile_id, file in zip(tile_ids, files, strict=True):
        row = by_path.get(_posix(tile_id), by_path.get(file, -1))
        n_by_path += row >= 0
        name = stem(clean(file))
        if row < 0 and name in tile_stems:
            row = row_stems.get(name, -1)
        order.append(row)
    unmatched = [name for name, row in zip(tile_ids, order, strict=True) if row < 0]
    used = {row for row in order if row >= 0}
    report = {
        "rows": len(rows),
        "by_path": n_by_path,
        "by_stem": len(order) - n_by_path - len(unmatched),
        "unmatched": len(unmatched),
        "unused_rows": len(rows) - len(used),
    }
    result = rows[columns].reindex(order).reset_index(drop=True)
    _refuse_misfits(result, unmatched, rows, used, tile_ids)
    return _typed(result), report


def match_slides(
    manifest: pd.DataFrame, slide_ids: Sequence[str | None]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Join a table of one row a slide over the slide ids that the names gave.

    The slide of the table is compared under the same grammars as a file name, so that a barcode
    with its UUID finds the barcode without.

    Returns:
        Columns aligned to ``slide_ids`` (without ``slide_id``), and counts as in `match`.

    Raises:
        InputError: Two rows of one slide contradict each other, or a slide has no row.
    """
    columns = [name for name in manifest.columns if name != "slide_id"]
    rows = manifest.dropna(subset=["slide_id"])
    rows = rows.assign(slide_id=rows["slide_id"].map(_slide_key)).drop_duplicates()
    rows = rows.reset_index(drop=True)
    repeated = rows.loc[rows["slide_id"].duplicated(), "slide_id"].unique()
    if len(repeated):
        message = (
            f"the manifest contradicts itself about {len(repeated)} slide(s): {_few(repeated)}"
        )
        raise InputError(message)
    by_slide = {str(name): row for row, name in enumerate(rows["slide_id"])}
    order = [by_slide.get(name, -1) if name is not None else -1 for name in slide_ids]
    missing = {
        name for name, row in zip(slide_ids, order, strict=True) if row < 0 and name is not None
    }
    if missing:
        message = (
            f"the manifest has no row for {len(missing)} of {len(set(slide_ids))} slides: "
            f"{_few(missing)}; its slides look like {_few(by_slide)}"
        )
        raise InputError(message)
    report = {
        "rows": len(rows),
        "by_slide": sum(row >= 0 for row in order),
        "unmatched": sum(row < 0 for row in order),
        "unused_rows": len(rows) - len(set(order) - {-1}),
    }
    return _typed(rows[columns].reindex(order).reset_index(drop=True)), report


def _read_text(path: Path) -> pd.DataFrame:
    if path.suffix.lower() in {".parquet", ".pq"}:
        try:
            return read_table(path).astype("string").fillna("")
        except (pa.ArrowException, OSError) as error:
            message = f"manifest {path} is not a readable parquet table ({error})"
            raise InputError(message) from error
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        message = f"manifest {path} cannot be read as UTF-8 text ({error})"
        raise InputError(message) from error
    header = text.lstrip().split("\n", 1)[0]
    separator = max((",", ";", "\t"), key=header.count)
    try:
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig",
            index_col=False,
        )  # fmt: skip
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        message = f"manifest {path} is not a readable table ({error})"
        raise InputError(message) from error


def _posix(path: str) -> str:
    return re.sub(r"^(?:\./)+", "", str(path).replace("\\", "/"))


def _slide_key(slide: str) -> str:
    """A slide id as `parse` would give it; ids that only look like a weak name stay as they are."""
    found = parse(slide)
    if found is not None and found.slide is not None and found.confidence > WEAK:
        return found.slide
    return without_uuid(clean(slide))


def _unique_stems(paths: Iterable[str] | dict[str, int]) -> dict[str, int]:
    """The row of each file stem that occurs once."""
    rows = dict(paths) if isinstance(paths, dict) else dict.fromkeys(paths, 0)
    stems = {path: stem(clean(split_fragment(path)[0])) for path in rows}
    counts = Counter(stems.values())
    return {name: rows[path] for path, name in stems.items() if counts[name] == 1}


def _require_single(rows: pd.DataFrame, columns: list[str]) -> None:
    repeated = rows.loc[rows["path"].duplicated(), "path"].unique()
    if len(repeated):
        message = (
            f"the manifest contradicts itself about {len(repeated)} tile(s) in "
            f"{', '.join(columns)}: {_few(repeated)}"
        )
        raise InputError(message)


def _refuse_misfits(
    result: pd.DataFrame,
    unmatched: list[str],
    rows: pd.DataFrame,
    used: set[int],
    tile_ids: Sequence[str],
) -> None:
    """A manifest that gives slides or patients has to give one to every tile."""
    level = next((name for name in ("slide_id", "patient_id") if name in result.columns), None)
    if level is None:
        return
    unused = [str(path) for row, path in enumerate(rows["path"]) if row not in used]
    if unmatched:
        message = (
            f"the manifest matches {len(tile_ids) - len(unmatched)} of {len(tile_ids)} tiles; no "
            f"or no unique row for {len(unmatched)}: {_few(unmatched)}"
        )
        if unused:
            message += f"; {len(unused)} row(s) match no tile: {_few(unused)}"
        raise InputError(message)
    empty = [name for name, null in zip(tile_ids, result[level].isna(), strict=True) if null]
    if empty:
        message = f"the manifest leaves {level} empty for {len(empty)} tile(s): {_few(empty)}"
        raise InputError(message)


def _typed(result: pd.DataFrame) -> pd.DataFrame:
    for column in _NUMBERS:
        if column not in result.columns:
            continue
        values = pd.to_numeric(result[column], errors="coerce").astype("Float64")
        bad = result.loc[values.isna() & result[column].notna(), column]
        if column != "mpp":
            bad = pd.concat([bad, result.loc[values.notna() & (values % 1 != 0), column]])
        if len(bad):
            message = f"the manifest's column {column} holds {bad.iloc[0]!r}: a number is needed"
            raise InputError(message)
        result[column] = values if column == "mpp" else values.astype("Int64")
    return result


def _few(names: Iterable[str]) -> str:
    return ", ".join(sorted(str(name) for name in names)[:3])
