"""How the rows of a manifest find their tiles: by path, by slide or by patient.

Every tile matches once, or it is an error that lists the misfits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import pandas as pd

from splits.errors import InputError
from splits.identity.exporter import without_uuid
from splits.identity.grammar import WEAK, parse
from splits.identity.name import clean, posix, split_fragment, stem

__all__ = ["match", "match_slides"]

_Key = TypeVar("_Key", int, str)
_NUMBERS: Final = ("x_px", "y_px", "mpp")


def match(manifest: pd.DataFrame, tile_ids: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Give every tile its row: by relative path, else by the longest end of it that is unique.

    A row for a file holds for all tiles that were cut from it. A manifest that was written under
    another root (``C:/study/tiles/a/1.png``) is found by the last parts of its paths, and one
    of bare file names by the stem, as long as no two rows and no two tiles share it.

    Args:
        manifest: What `splits.identity.manifest.read` returned, with a column ``path``.
        tile_ids: Tile ids, POSIX.

    Returns:
        The manifest's other columns aligned to ``tile_ids`` (null where nothing matched), and a
        report with the counts ``rows``, ``by_path``, ``by_stem`` (by an end of the path),
        ``unmatched``, ``ambiguous`` (those of the unmatched with several rows, or with a row that
        several tiles could claim) and ``unused_rows``.

    Raises:
        InputError: The manifest gives slides and does not match every tile exactly once, two rows
            of one tile contradict each other, or a position is no number.
    """
    columns = [name for name in manifest.columns if name != "path"]
    if manifest["path"].isna().any():
        message = f"the manifest has {int(manifest['path'].isna().sum())} row(s) without a path"
        raise InputError(message)
    rows = manifest.assign(path=[_relative(path) for path in manifest["path"]])
    rows = rows.drop_duplicates().reset_index(drop=True)
    _require_single(rows, "path", "tile")
    by_path = {str(path): row for row, path in enumerate(rows["path"])}
    names = [_relative(name) for name in tile_ids]
    files = [split_fragment(name)[0] for name in names]
    order = [
        by_path.get(name, by_path.get(file, -1)) for name, file in zip(names, files, strict=True)
    ]
    n_by_path = sum(row >= 0 for row in order)
    ambiguous: list[str] = []
    if n_by_path < len(order):
        claimed, doubtful = _by_ends(rows["path"], files, order)
        order = [
            claimed.get(file, -1) if row < 0 else row
            for row, file in zip(order, files, strict=True)
        ]
        ambiguous = [
            tile
            for tile, file, row in zip(tile_ids, files, order, strict=True)
            if row < 0 and file in doubtful
        ]
    unmatched = [tile for tile, row in zip(tile_ids, order, strict=True) if row < 0]
    used = set(order) - {-1}
    report = {
        "rows": len(rows),
        "by_path": n_by_path,
        "by_stem": len(order) - n_by_path - len(unmatched),
        "unmatched": len(unmatched),
        "ambiguous": len(ambiguous),
        "unused_rows": len(rows) - len(used),
    }
    result = rows[columns].reindex(order).reset_index(drop=True)
    unused = [str(path) for row, path in enumerate(rows["path"]) if row not in used]
    _refuse_misfits(result, tile_ids, unmatched, ambiguous, unused)
    return _typed(result), report


def match_slides(
    manifest: pd.DataFrame,
    slide_ids: Sequence[str | None],
    patient_ids: Sequence[str | None] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Join a table of one row a slide or a patient over the ids that the names gave.

    Slides are compared under the same grammars as file names, so that a barcode with its UUID or a
    file name finds the barcode without; a short barcode (patient and section, or the patient alone)
    finds the only row that it can mean. A table without slides is joined over the patients.

    Args:
        manifest: What `splits.identity.manifest.read` returned, without a column ``path``.
        slide_ids: Slide of every tile, as the names give it.
        patient_ids: Patient of every tile; by default what the slide's name says.

    Returns:
        Columns aligned to ``slide_ids`` (without ids that the join used), and counts as in `match`.

    Raises:
        InputError: Two rows of one slide (patient) contradict each other, or one has no row.
    """
    unit = "slide" if "slide_id" in manifest.columns else "patient"
    key = f"{unit}_id"
    rows = manifest.dropna(subset=[key])
    read = _slide_key if unit == "slide" else _patient_key
    rows = rows.assign(**{key: [read(name) for name in rows[key]]}).drop_duplicates()
    rows = rows.reset_index(drop=True)
    _require_single(rows, key, unit)
    if unit == "slide":
        wanted = slide_ids
    elif patient_ids is not None:
        wanted = patient_ids
    else:
        wanted = [name if name is None else _patient_key(name) for name in slide_ids]
    distinct = sorted({name for name in wanted if name is not None})
    found = _find(rows[key], distinct, read)
    missing = [name for name in distinct if name not in found]
    if missing:
        message = (
            f"the manifest has no row for {len(missing)} of {len(distinct)} {unit}s: "
            f"{_few(missing)}; its {unit}s look like {_few(rows[key])}"
        )
        raise InputError(message)
    order = [-1 if name is None else found[name] for name in wanted]
    report = {
        "rows": len(rows),
        f"by_{unit}": sum(row >= 0 for row in order),
        "unmatched": sum(row < 0 for row in order),
        "unused_rows": len(rows) - len(set(order) - {-1}),
    }
    columns = [name for name in rows.columns if name != key]
    return _typed(rows[columns].reindex(order).reset_index(drop=True)), report


def _relative(path: str) -> str:
    return re.sub(r"^(?:\./)+", "", posix(str(path)))


def _by_ends(
    paths: Iterable[str], files: Sequence[str], order: Sequence[int]
) -> tuple[dict[str, int], set[str]]:
    """Match what has no row by its full path: the longest end first, down to the file's stem.

    Returns:
        The row of each file that got one, and the files that several rows or several files of the
        same stem leave in doubt.
    """
    rows = {row: clean(split_fragment(path)[0]) for row, path in enumerate(paths)}
    names = {file: clean(file) for file in files}
    taken = set(order) - {-1}
    left = {file for file, row in zip(files, order, strict=True) if row < 0}
    claimed: dict[str, int] = {}
    row_at: dict[str, int | None] = {}
    deepest = min(
        max((name.count("/") for name in given.values()), default=0) for given in (rows, names)
    )
    for depth in range(deepest + 1, 0, -1):
        row_at, file_at = _by_end(rows, depth), _by_end(names, depth)
        for end, file in file_at.items():
            row = row_at.get(end)
            if file in left and row is not None and row not in taken:
                claimed[file] = row
                taken.add(row)
        left.difference_update(claimed)
    return claimed, {file for file in left if stem(names[file]) in row_at}


def _by_end(paths: Mapping[_Key, str], depth: int) -> dict[str, _Key | None]:
    """The key of each last part of ``depth`` names, ``None`` where several paths share it."""
    found: dict[str, _Key | None] = {}
    for key, path in paths.items():
        parts = path.rsplit("/", depth)
        if len(parts) >= depth:
            end = "/".join(parts[-depth:])
            found[end] = None if end in found else key
    return found


def _find(keys: Iterable[str], names: Iterable[str], read: Callable[[str], str]) -> dict[str, int]:
    """The row of each name: by its key, else by a shorter form that only one row has."""
    rows = {str(key): row for row, key in enumerate(keys)}
    shorter: dict[str, set[int]] = {}
    for key, row in rows.items():
        for form in _short_forms(key):
            shorter.setdefault(form, set()).add(row)
    found: dict[str, int] = {}
    for name in names:
        key = read(name)
        meant = shorter.get(key, set())
        # Where the table is the one that abbreviates; two long ids are never the same slide.
        short = next(iter(_short_forms(key)), key)
        one = min(meant) if len(meant) == 1 else rows.get(short)
        if (fit := rows.get(key, rows.get(name, one))) is not None:
            found[name] = fit
    return found


def _short_forms(slide: str) -> list[str]:
    """Section without sample (``TCGA-A1-A0SK-DX1``), the patient, and the name without folders."""
    found = parse(slide)
    if found is None or found.patient is None or found.confidence <= WEAK:
        return [slide.rsplit("/", 1)[-1]] if "/" in slide else []
    section = slide.rsplit("-", 1)[-1]
    short = f"{found.patient}-{section}" if slide != found.patient else found.patient
    return list(dict.fromkeys([short, found.patient]))


def _slide_key(slide: str) -> str:
    """A slide id as `parse` would give it; ids that only look like a weak name stay as they are."""
    found = parse(slide)
    if found is not None and found.slide is not None and found.confidence > WEAK:
        return found.slide
    return without_uuid(clean(slide))


def _patient_key(patient: str) -> str:
    found = parse(patient)
    if found is not None and found.patient is not None and found.confidence > WEAK:
        return found.patient
    return posix(patient)


def _require_single(rows: pd.DataFrame, key: str, kind: str) -> None:
    """Refuse two rows of one tile, slide or patient that say different things."""
    repeated = rows.loc[rows[key].duplicated(), key].unique()
    if not len(repeated):
        return
    rest = rows.columns.drop(key)
    of_first = rows[rows[key] == min(repeated)]
    differ = [name for name in rest if of_first[name].nunique(dropna=False) > 1]
    values = " and ".join(str(value) for value in of_first[differ[0]].unique()) if differ else ""
    message = (
        f"the manifest contradicts itself about {len(repeated)} {kind}(s): {_few(repeated)}; "
        f"{min(repeated)} has {', '.join(differ)} {values}"
    )
    raise InputError(message)


def _refuse_misfits(
    result: pd.DataFrame,
    tile_ids: Sequence[str],
    unmatched: list[str],
    ambiguous: list[str],
    unused: list[str],
) -> None:
    """A manifest that gives slides or patients has to give one to every tile."""
    level = next((name for name in ("slide_id", "patient_id") if name in result.columns), None)
    if level is None:
        return
    if unmatched:
        doubtful = set(ambiguous)
        missing = [name for name in unmatched if name not in doubtful]
        parts = [f"the manifest matches {len(tile_ids) - len(unmatched)} of {len(tile_ids)} tiles"]
        if missing:
            parts.append(f"no row for {len(missing)}: {_few(missing)}")
        if ambiguous:
            parts.append(
                f"no unique row for {len(ambiguous)} whose name several rows or several tiles "
                f"share: {_few(ambiguous)}"
            )
        if unused:
            parts.append(f"{len(unused)} row(s) match no tile: {_few(unused)}")
        if len(unmatched) == len(tile_ids):
            parts.append("if the files are slides, map their column: columns slide_id=NAME")
        raise InputError("; ".join(parts))
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
