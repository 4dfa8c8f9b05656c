"""A run that starts from feature files: one packed matrix, and the tile table that goes with it.

The label table says which slide, patient and site a file is of, so there are no names to read and
no pixels to compare. Tiles with the very same features in two slides take their place: slides that
share most of their tiles are copies, and one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.config import Data
from mil.features.bag import Bag, require_usable
from mil.features.columns import Columns, Suspect
from mil.features.copies import Copies, copies, row_digests
from mil.features.folder import FeatureFiles, find
from mil.features.labels import label
from mil.features.packing import packed
from splits import folds, ledger, tiles
from splits.artifacts import (
    atomic,
    digest,
    file_digest,
    is_current,
    read_json,
    write_json,
    write_table,
)
from splits.content.links import components
from splits.errors import InputError, NegativeVerdictError, unknown
from splits.groups import UNITS, text

__all__ = [
    "MATRIX",
    "SOURCE",
    "UNKNOWN",
    "bring_in",
    "common_tiles",
    "declared",
    "tile_names",
    "tile_rows",
    "told",
]

MATRIX: Final = Path("cache", "features.npy")
"""All features of a run, rows as in its tile table."""
SOURCE: Final = Path("features", "source.json")
"""Where they come from."""
UNKNOWN: Final = "unknown"
"""What ``meta.json`` says of the slides that an encoder saw, where nobody knows."""
_COUNTED: Final = ("format", "frame", "encoder")
_DIGITS: Final = 7  # of a row in a tile id: text then sorts as the numbers do

Progress = Callable[[str, int], Callable[[int], object]]


def bring_in(run: Path, data: Data, progress: Progress | None = None) -> None:
    """Feature files -> ``cache/features.npy``, ``tiles.parquet`` and the ledger.

    Nothing is done where files, labels and settings are those of last time. One slide is in memory
    at a time; a run that is interrupted here begins this stage anew.

    Args:
        run: The run folder.
        data: Its settings, with ``features``.
        progress: Shown while slides are read.

    Raises:
        InputError: A file that cannot be read or learned from, slides of several dimensions, no
            labels, or none that fit.
        NegativeVerdictError: A column of the features holds the label.
    """
    if data.features is None:
        message = "data.features names no folder of feature files"
        raise InputError(message)
    found = find(data.features)
    settings = data.model_dump(mode="json", include={"features", "columns", "classes"})
    digests = {
        "listing": found.digest,
        "labels": "" if data.labels is None else file_digest(data.labels),
        "scan": digest(settings),
    }
    scanned = run / "cache" / "scan.parquet"
    current = [is_current(path, digests) for path in (scanned, run / SOURCE)]
    if all(current) and (run / MATRIX).exists():
        return
    labelled = label(found, data.labels, data.columns)
    skipped = [("slide", name, "it has features and no label") for name in labelled.without_label]
    skipped += [("slide", name, "it has no feature file") for name in labelled.without_features]
    slides, others = _of_classes(labelled.slides, data.classes)
    skipped += [("slide", name, f"its class {c!r} is not in data.classes") for name, c in others]
    table, facts = _pack(run, found, slides, progress, source="manifest" if data.labels else "name")
    table, copied = _group(table)
    facts["notes"] = [*found.notes, *labelled.notes, *facts["notes"], *_told(copied)]
    facts["copies"] = [list(pair) for pair in copied.pairs]
    facts["encoder_saw"] = UNKNOWN if found.seen is None else found.seen
    write_json(run / SOURCE, {"path": str(data.features), **facts}, digests)
    write_table(run / "tiles.parquet", table, digests)
    ledger.record(run, "scan", skipped)
    with atomic(scanned) as temporary:
        temporary.write_bytes((run / "tiles.parquet").read_bytes())


def declared(run: Path, table: pd.DataFrame, unit: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Groups of the brought-in slides, and the report of their identity (``identity.json``).

    Args:
        run: The run folder.
        table: As :func:`bring_in` made it.
        unit: What is never cut.

    Returns:
        The identified tile table, and the report; its grade is A.
    """
    source = read_json(run / SOURCE)
    slides = folds.regroup(tiles.slides(table), unit).set_index("slide_id")
    table = tiles.check(table.assign(group_id=table["slide_id"].map(slides["group_id"])))
    members = slides.reset_index().groupby("group_id")[f"{unit}_id"].unique()
    names = table["id_source"].astype(str).iloc[0]
    said = "the label table" if names == "manifest" else "the file or set of bags"
    return table, {
        "grade": "A",
        "reason": f"{said} says of every feature file which slide it is",
        "rule": None,
        "unit": unit,
        "coverage": 1.0,
        "n": {
            "tiles": len(table),
            **{f"{n}s": int(table[f"{n}_id"].nunique()) for n in (*UNITS, "group")},
        },
        "sources": {n: int((table["id_source"] == n).sum()) for n in tiles.ID_SOURCES},
        "merges": [
            {"group_id": str(group), "members": sorted(map(str, of))}
            for group, of in members.items()
            if len(of) > 1
        ],
        "conflicts": [],
        "notes": source["notes"],
        "unidentified": [],
        "blank": [],
    }


def told(run: Path) -> str:
    """What was brought in, in one line."""
    source = read_json(run / SOURCE)
    n, forms = source["n"], ", ".join(source["formats"])
    seen = source["encoder_saw"]
    saw = (
        "which slides their encoder saw is unknown and counts as none"
        if seen == UNKNOWN
        else f"their encoder saw {len(seen)} slide(s)"
    )
    return (
        f"features: {n['tiles']} tiles of {n['slides']} slides ({forms}, dim {source['dim']}, "
        f"{source['dtype']}); {saw}"
    )


def common_tiles(table: pd.DataFrame) -> set[str]:
    """``sha256`` of tiles that are in several slides which are no copies: background, as a rule."""
    found = copies(table["sha256"].astype(object), table["slide_id"].astype(object))
    return {str(name) for name in found.common}


def tile_names(found: FeatureFiles, slide_id: str, n_tiles: int) -> list[str]:
    """``<file>#<row>`` of each tile; where one file holds many slides, ``<slide>#<row>``."""
    prefix = _prefix(found, slide_id)
    return [f"{prefix}#{row:0{_DIGITS}d}" for row in range(n_tiles)]


def _prefix(found: FeatureFiles, slide_id: str) -> str:
    file = found.files[slide_id]
    several = len(set(found.files.values())) < len(found.files)
    if several or not file.is_relative_to(found.root) or file == found.root:
        return slide_id if several else file.name
    return file.relative_to(found.root).as_posix()


def _pack(
    run: Path, found: FeatureFiles, slides: pd.DataFrame, progress: Progress | None, source: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Write the matrix, slide by slide in the order of the table, and make the table."""
    known = slides.set_index("slide_id")
    order = sorted(known.index, key=lambda name: _prefix(found, name) + "#")
    advance = progress("features", len(order)) if progress else None
    parts: list[pd.DataFrame] = []
    told: dict[str, dict[str, list[str]]] = {kind: {} for kind in (*_COUNTED, "note")}
    columns = Columns()
    with packed(run / MATRIX) as matrix:
        for name in order:
            bag = found.read(name)
            where = f"slide {name!r} ({found.files[name]})"
            require_usable(bag, where)
            matrix.add(bag.x, where)
            columns.add(name, bag.x)
            parts.append(tile_rows(bag, tile_names(found, name, len(bag))))
            said = [("format", bag.form), ("frame", bag.frame or _no_frame(bag))]
            said += [("encoder", bag.encoder or UNKNOWN)]
            said += [("note", words) for words in (*bag.notes, *bag.warnings)]
            for what, value in said:
                told[what].setdefault(value, []).append(name)
            _require_one(told["encoder"])
            if advance is not None:
                advance(1)
        suspects = list(columns.suspects(dict(known["label"].astype(str))))
        _refuse_labels(found, suspects)
    table = pd.concat(parts, ignore_index=True)
    for ours, theirs in (("slide_label", "label"), ("patient_id",) * 2, ("site_id",) * 2):
        table[ours] = table["slide_id"].map(known[theirs])
    group = text(known, "group_id").fillna(pd.Series(known.index, known.index))
    table["group_id"] = table["slide_id"].map(group)
    table = table.assign(id_source=source, id_confidence=1.0)
    result = tiles.check(table)
    if result["tile_id"].tolist() != table["tile_id"].tolist():
        message = (
            f"{found.root}: a file name ends like a row of another ('#' and digits): rename it"
        )
        raise InputError(message)
    facts = {
        **{f"{kind}s": {k: len(v) for k, v in told[kind].items()} for kind in _COUNTED},
        "dim": matrix.shape[1],
        "dtype": str(matrix.dtype),
        "n": {"slides": len(order), "tiles": matrix.shape[0]},
        "notes": [
            f"{note} ({len(names)} slide(s), the first is {names[0]!r})"
            for note, names in told["note"].items()
        ]
        + [
            f"{len(one.columns)} column(s) {one.what} (`slidewise verify` lists them)"
            for one in suspects
        ],
    }
    return result, facts


def _refuse_labels(found: FeatureFiles, suspects: Sequence[Suspect]) -> None:
    """Stop before the label is learned from itself."""
    for one in suspects:
        if one.severity == "unsafe":
            message = f"{found.root}: column(s) {one.listed} {one.what}: take them out"
            raise NegativeVerdictError(message)


def _require_one(encoders: Mapping[str, list[str]]) -> None:
    """Refuse features of two encoders: each has a space of its own, whatever the dimension."""
    named = [(name, slides[0]) for name, slides in encoders.items() if name != UNKNOWN]
    if len(named) > 1:
        (one, a), (other, b) = named[:2]
        message = f"features of two encoders: {one} (slide {a!r}) and {other} (slide {b!r})"
        raise InputError(message)


def _no_frame(bag: Bag) -> str:
    return "none" if bag.coords is None else "not declared"


def tile_rows(bag: Bag, names: list[str]) -> pd.DataFrame:
    """Rows of the tile table for one slide: what its file says of each tile."""
    place, side = bag.place_px(), bag.side_px()
    side_px = 0 if side is None else round(side)
    rows = pd.DataFrame({"tile_id": names, "slide_id": bag.slide_id, "sha256": row_digests(bag.x)})
    rows = rows.assign(width_px=side_px, height_px=side_px, mpp=bag.mpp if bag.mpp else pd.NA)
    if place is not None and np.isfinite(place).all():
        whole = np.rint(place).astype(np.int64)
        rows = rows.assign(x_px=whole[:, 0], y_px=whole[:, 1])
    return rows


def _of_classes(
    slides: pd.DataFrame, classes: tuple[str, ...] | None
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    if classes is None:
        return slides, []
    kind = "class in data.classes:"
    for name in classes:
        if name not in set(slides["label"]):
            raise unknown(kind, name, set(slides["label"]))
    other = ~slides["label"].isin(classes)
    left = slides.loc[other, ["slide_id", "label"]].astype(object).to_numpy().tolist()
    return slides[~other].reset_index(drop=True), [(str(a), str(b)) for a, b in left]


def _group(table: pd.DataFrame) -> tuple[pd.DataFrame, Copies]:
    """Slides that are copies of each other get one ``group_id``."""
    found = copies(table["sha256"].astype(object), table["slide_id"].astype(object))
    if not found.pairs:
        return table, found
    slides = table.drop_duplicates("slide_id").set_index("slide_id")["group_id"]
    code, names = pd.factorize(slides, sort=True)
    of_slide = dict(zip(slides.index, code, strict=True))
    pairs = np.array([[of_slide[a], of_slide[b]] for a, b, _ in found.pairs], dtype=np.int64)
    component = components(len(names), pairs)
    first = pd.Series(names).groupby(component).transform("min")
    merged = dict(zip(names, first, strict=True))
    return tiles.check(table.assign(group_id=table["group_id"].map(merged))), found


def _told(found: Copies) -> list[str]:
    notes = []
    if found.pairs:
        a, b, share = found.pairs[0]
        notes.append(
            f"{len(found.pairs)} pair(s) of slides share half of their tiles or more and are one "
            "group, so that neither can leak into the other; the first: "
            f"{a!r} and {b!r} ({share:.0%})"
        )
    if found.common:
        notes.append(
            f"{len(found.common)} feature vector(s) occur in several slides that are no copies: "
            "taken for background, they tie no slides together"
        )
    if found.within:
        n = sum(found.within.values())
        notes.append(f"{n} tile(s) occur again within their slide ({len(found.within)} slides)")
    return notes
