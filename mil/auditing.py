"""The audit with what a run, or a folder of images, adds to ids: tiles, pixels, files, encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mil.config import Config
from mil.data.store import open_features
from mil.features.cohort import MATRIX, UNKNOWN, common_tiles
from mil.prepare import Progress, data_root, read_tiles
from splits import audit as audits
from splits import formats, slide_table, tiles
from splits import split as splitting
from splits.artifacts import digest, digests_of, is_current, read_json, read_table, write_json
from splits.auditing.battery import Features
from splits.auditing.headers import read_headers
from splits.auditing.pixels import Pixels
from splits.content.evidence import gather
from splits.content.signatures import FORM, Signatures, n_workers, sign
from splits.errors import InputError, NegativeVerdictError
from splits.groups import text
from splits.identity import embedding
from splits.identity.declare import declare
from splits.ids import reconcile
from splits.images import image_of, read_tile
from splits.scan import list_folder
from splits.scan import scan as scan_folder

__all__ = ["Material", "audit", "audit_files", "audit_run", "look", "material_of"]

_FORM: Final = 1
"""Version of what the audit looks at: raised with every new check, so that old runs are asked."""


@dataclass(frozen=True)
class Material:
    """What an audit has besides the split.

    Attributes:
        tiles: The tile table, sorted by ``tile_id``.
        root: Folder that tile ids are relative to.
        pixels: What the pixels say of these tiles (and perhaps of others).
        features: A user's features of these tiles.
        notes: What was set aside, in words.
    """

    tiles: pd.DataFrame | None = None
    root: Path | None = None
    pixels: Pixels | None = None
    features: Features | None = None
    notes: tuple[str, ...] = ()


def audit(run: Path, config: Config) -> dict[str, Any]:
    """Look for leaks in the run's split and write ``audit.json``.

    Encoders are left aside: those of an earlier split are about to be trained anew.

    Raises:
        NegativeVerdictError: A leak was found.
    """
    result = audit_run(run, config, encoders=False)
    if result["verdict"] == "leak":
        message = f"{audits.summarise(result)} (see {run}/audit.json)"
        raise NegativeVerdictError(message)
    return result


def audit_run(run: Path, config: Config, *, encoders: bool = True) -> dict[str, Any]:
    """Findings on the run's split, a leak included, as ``audit.json`` holds them.

    Args:
        run: The run folder, split.
        config: Its configuration.
        encoders: Compare the slides that the encoder of each fold saw with its test slides.
    """
    split = splitting.load(run)
    meta = run / "features" / "meta.json"
    seen: dict[int, Any] | None = None
    entries = read_json(meta)["folds"] if encoders and meta.exists() else {}
    # Of features that others made nobody says what their encoder saw: that is no clean bill.
    if entries and not any(entry.get("encoder_saw") == UNKNOWN for entry in entries.values()):
        seen = {}
        for key, entry in sorted(entries.items()):  # "0", and cross-fitted "0-crossfit"
            seen.setdefault(int(key.partition("-")[0]), set()).update(entry["slides_seen"])
        seen = {fold: sorted(slides) for fold, slides in seen.items()}
    digests = {
        **digests_of(run / "split.json"),
        "table": split.digest,
        "audit": digest([_FORM, seen, digests_of(run / "links.parquet")]),
    }
    path = run / "audit.json"
    if not is_current(path, digests):
        result = look(
            run,
            config,
            split.table,
            unit=config.split.unit,
            claims="holdout" if config.split.method == "holdout" else "kfold",
            repeats=config.split.repeats,
            seen=seen,
        )
        write_json(path, result, digests)
    return read_json(path)


def look(
    run: Path,
    config: Config,
    split_table: pd.DataFrame,
    *,
    unit: str,
    claims: str,
    repeats: int = 1,
    seen: Mapping[int, Any] | None = None,
) -> dict[str, Any]:
    """Findings on any split of a run's slides or tiles, with all that the run knows of them.

    Args:
        run: The run folder, identified.
        config: Its configuration.
        split_table: As for :func:`splits.audit.audit`.
        unit: What it claims to keep whole.
        claims: How often it claims to test each slide.
        repeats: Times that it was dealt.
        seen: By fold, the slides that its encoder saw.
    """
    table = read_tiles(run)
    blank, headers, features = None, None, None
    if config.data.features is None:
        headers = partial(read_headers, data_root(run, config))
    else:
        blank = common_tiles(table)
        matrix = open_features(run / MATRIX, n_tiles=len(table))
        features = Features(table["tile_id"].tolist(), matrix, "those that the run began with")
    return audits.audit(
        split_table,
        tiles.slides(table),
        table,
        unit=unit,
        claims=claims,
        repeats=repeats,
        found=_pixels_of(run),
        blank=blank,
        features=features,
        headers=headers,
        seen=seen,
    )


def _pixels_of(run: Path) -> Pixels | None:
    """What `identify` kept of the pixels; None where they were not compared."""
    pixels = digests_of(run / "links.parquet").get("pixels")
    signatures = run / "cache" / f"signatures-{FORM}-{pixels}.npz"
    if not signatures.exists():
        return None
    layout = read_table(run / "layout.parquet")
    signed = Signatures.load(signatures)
    return Pixels(
        layout["tile_id"].tolist(),
        read_table(run / "links.parquet"),
        layout["component"].to_numpy(),
        signed.blank,
        signed.vectors,
        read_json(run / "identity.json").get("twins") or {},
    )


def audit_files(
    paths: Sequence[Path],
    slides: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    tiles_root: Path | None = None,
    features: Path | None = None,
    unit: str | None = None,
    claims: str | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Material]:
    """Findings on split files of any known format, or on a folder of parts.

    Args:
        paths: Split files, or the folder that they are in; or one folder of ``train``, ``val`` and
            ``test``, whose images then are the tiles.
        slides: Table of slides.
        columns: Our name -> its name, for columns of that table.
        tiles_root: Folder of the tiles, whose pixels are then compared.
        features: Features of these tiles, see `splits.identity.embedding`. Without a folder, the
            file has to name its tiles.
        unit: What the split claims to keep whole; by default what it says itself, else the patient.
        claims: See `splits.audit.audit`.
        progress: Shown while the tiles are read.

    Returns:
        The result of `splits.audit.audit`, and what it was made from. Of several splits in a file
        each is audited by itself: findings and battery then name their ``split``.

    Raises:
        InputError: A file cannot be read, or features without images do not name their tiles.
    """
    found = formats.read_all(list(paths))
    root = tiles_root
    if root is None and len(paths) == 1 and "folders" in found[0].formats:
        root = paths[0]
    known = None if slides is None else slide_table.read(slides, columns or {}, labels=False)[0]
    names = set().union(*(set(text(split.table, "slide_id").dropna()) for split in found))
    names |= set() if known is None else set(known["slide_id"])
    # A split of tiles needs no slides of its own to be looked at.
    of_tiles = all(text(split.table, "tile_id").notna().any() for split in found)
    wanted = set() if of_tiles else names
    material = Material()
    if root is not None:
        material = material_of(root, wanted, features, progress)
    elif features is not None:
        tile_ids = embedding.tile_ids_of(features)
        table = tiles.check(pd.DataFrame({"tile_id": tile_ids}))
        given = Features(tile_ids, embedding.read(features, tile_ids), features.name)
        material = Material(_declared(table, wanted), features=given)
    headers = None if root is None else partial(read_headers, root)
    results = []
    for split in found:
        result = audits.audit(
            split.table,
            known,
            material.tiles,
            unit=unit or split.unit or "patient",
            claims=claims,
            found=material.pixels,
            features=material.features,
            headers=headers,
        )
        said = {} if len(found) == 1 else {"split": split.name}
        result["findings"] = [said | one for one in result["findings"]]
        result["battery"] = [said | one for one in result["battery"]]
        result["had"] += [f"{split.name}: {note}".removeprefix(": ") for note in split.notes]
        results.append(result)
    first = results[0]
    merged = {
        **first,
        "verdict": max((result["verdict"] for result in results), key=("clean", "leak").index),
        "findings": [finding for result in results for finding in result["findings"]],
        "battery": [entry for result in results for entry in result["battery"]],
        "had": list(dict.fromkeys(line for result in results for line in result["had"]))
        + list(material.notes),
    }
    return merged, material


def material_of(
    root: Path,
    slides: set[str],
    features: Path | None = None,
    progress: Progress | None = None,
) -> Material:
    """Scan a folder of tiles and compare their pixels.

    Args:
        root: The folder.
        slides: Slides that are known of: where names do not say the slide of a tile by a rule, the
            name of its folder is compared with these.
        features: A user's features of the tiles.
        progress: Shown while the tiles are read.
    """
    listing = list_folder(root)
    advance = progress("scan", len(listing.images)) if progress else None
    table, skipped = scan_folder(listing, mixed_sizes="resize", progress=advance)
    names = table["tile_id"].tolist()
    declared = _declared(table.copy(), slides)

    def read(row: int) -> Any:
        return read_tile(root, names[row])

    advance = progress("pixels", len(names)) if progress else None
    signatures = sign(read, len(names), advance, workers=n_workers(len(names)))
    pixels = Pixels.of(gather([*table["sha256"]], read, signatures), names)
    given = None
    if features is not None:
        given = Features(names, embedding.read(features, names), str(features.name))
    left = [f"{len(skipped)} file(s) of {root.name} are no usable tile"] if skipped else []
    return Material(declared, root, pixels, given, tuple(left))


def _declared(table: pd.DataFrame, slides: set[str]) -> pd.DataFrame:
    """The tile table with the slide of each tile: by a rule on names, its folder, or its file.

    Where slides are known of, the source that names most of them is taken.

    Raises:
        InputError: No tile is of a known slide.
    """
    result = tiles.check(declare(table, None, "auto", [])[0])
    if not slides:
        return result
    parent = result["tile_id"].str.rsplit("/", n=2).str[-2].astype("string")
    matched = []
    for names in (result["slide_id"], parent, result["tile_id"].map(image_of)):
        mapping = reconcile(names.dropna(), slides).mapping
        matched.append(names.map(mapping).astype("string"))
    best = max(matched, key=lambda names: int(names.notna().sum()))
    if best.isna().all():
        message = (
            "no tile is of a slide of the split: neither its name nor its folder says so "
            f"(the first tile is {result['tile_id'].iloc[0]!r}, the first slide {min(slides)!r})"
        )
        raise InputError(message)
    return result.assign(slide_id=best)
