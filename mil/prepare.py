"""The stages before any learning, on a run folder: scan, identify, split.

Each stage compares the digests of its inputs with those that its output carries, and does nothing
where they agree. The tables themselves are made by :mod:`splits`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil import phantom
from mil.config import Config, Split
from mil.features import cohort as feature_cohort
from splits import folds, formats, labels, ledger, slide_table, tiles
from splits import split as splitting
from splits.artifacts import (
    atomic,
    digest,
    digests_of,
    file_digest,
    is_current,
    read_json,
    read_table,
    write_json,
    write_table,
)
from splits.content.evidence import Evidence, gather
from splits.content.signatures import FORM, Signatures, n_workers, sign
from splits.errors import InputError, NegativeVerdictError
from splits.identity import embedding as embeddings
from splits.identity import identify as identify_tiles
from splits.images import read_tile
from splits.scan import list_folder
from splits.scan import scan as scan_folder

__all__ = [
    "EMBEDDING",
    "Advance",
    "Progress",
    "bar",
    "data_root",
    "export",
    "identify",
    "manifest_of",
    "read_tiles",
    "scan",
    "scanned_table",
    "slides_to_split",
    "split",
    "split_table",
    "tile_reader",
    "unseen",
]

EMBEDDING = Path("cache", "embedding.npz")
"""What ``identity.embedding=encoder`` says of every scanned tile, in a run folder."""
_CONTENT_TABLES = ("links.parquet", "layout.parquet")
Advance = Callable[[float], object]
Progress = Callable[[str, int], Advance]


def bar(progress: Progress | None, name: str, total: int) -> Advance:
    """Begin a bar of ``total`` steps; without somebody to show it, nothing comes of it."""
    return unseen if progress is None else progress(name, total)


def unseen(_: float) -> None:
    """Nobody looks."""


def data_root(run: Path, config: Config) -> Path:
    """The folder that tile ids are relative to.

    Raises:
        InputError: The run began with features.
    """
    if config.data.features is not None:
        message = f"{run} began with features: there are no pixels (data.root names a folder)"
        raise InputError(message)
    return config.data.root if config.data.root is not None else run / "phantom" / "tiles"


def tile_reader(run: Path, config: Config) -> Callable[[str], npt.NDArray[np.uint8]] | None:
    """Gives the pixels (H, W, 3) of a tile id; None where the run began with features."""
    return None if config.data.features is not None else partial(read_tile, data_root(run, config))


def manifest_of(run: Path, config: Config) -> Path | None:
    """The manifest in use; the phantom brings its own, which says the tissue of each tile."""
    if config.identity.manifest is None and config.data.phantom is not None:
        return run / "phantom" / "manifest.csv"
    return config.identity.manifest


def scan(run: Path, config: Config, progress: Progress | None = None) -> None:
    """Folder -> ``tiles.parquet`` (identity still null) and the ledger of what was left out."""
    if config.data.features is not None:
        feature_cohort.bring_in(run, config.data, progress)
        return
    if config.data.phantom is not None:
        phantom.generate(config.data.phantom, run / "phantom")
    listing = list_folder(data_root(run, config))
    settings = config.data.model_dump(mode="json", include={"label", "tile_px", "mixed_sizes"})
    digests = {"listing": listing.digest, "scan": digest(settings)}
    scanned = run / "cache" / "scan.parquet"
    if is_current(scanned, digests):
        return
    advance = progress("scan", len(listing.images)) if progress else None
    table, skipped = scan_folder(listing, progress=advance, **settings)
    write_table(run / "tiles.parquet", table, digests)
    ledger.record(run, "scan", skipped)
    # `identify` rewrites tiles.parquet; this copy lets it run again with another rule.
    with atomic(scanned) as temporary:
        shutil.copyfile(run / "tiles.parquet", temporary)


def identify(
    run: Path, config: Config, truth: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Fill the identity columns of ``tiles.parquet`` and write ``identity.json``.

    With content, ``links.parquet`` and ``layout.parquet`` say which tiles belong together and where
    each lies on the lattice of its component.
    """
    scanned = scanned_table(run)
    table = read_table(scanned)
    given, manifest = config.identity, manifest_of(run, config)
    features = run / EMBEDDING if given.embedding == "encoder" else given.embedding
    files = (manifest, given.patients, given.sites, features, truth)
    settings = {
        "identity": given.model_dump(mode="json"),
        "files": [_content(path and Path(path)) for path in files],
        "unit": config.split.unit,
        "folds": config.split.folds,
        "classes": config.data.classes,
        "labels": [config.split.label_policy, _label_order(config)],
    }
    digests = {"pixels": tiles.pixels_digest(table), "identify": digest(settings)}
    if is_current(run / "identity.json", digests) and "identity" in digests_of(
        run / "tiles.parquet"
    ):
        return read_json(run / "identity.json")
    if config.data.features is not None:
        if truth is not None:
            message = "a truth scores ids that were reconstructed; a run of features declares them"
            raise InputError(message)
        identified, report = feature_cohort.declared(run, table, config.split.unit)
    else:
        identified, report = _identified(run, config, table, truth, features, progress)
    identified, report["labels"] = _settle_labels(identified, config)
    digests_table = {
        **digests_of(scanned),
        "pixels": tiles.pixels_digest(identified),
        "identity": tiles.identity_digest(identified),
    }
    write_table(run / "tiles.parquet", identified, digests_table)
    write_json(run / "identity.json", report, digests)
    return read_json(run / "identity.json")


def _identified(
    run: Path,
    config: Config,
    table: pd.DataFrame,
    truth: Path | None,
    features: Path | None,
    progress: Progress | None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Identity from manifest, names and pixels, and the ledger of what it left out."""
    given, manifest = config.identity, manifest_of(run, config)
    embedding = None
    if features is not None:
        embedding = embeddings.read(features, table["tile_id"].tolist())
    evidence = _evidence(run, config, table, progress)
    identified, report = identify_tiles(
        table,
        rule=given.rule,
        manifest=manifest,
        columns=given.columns,
        patients=given.patients,
        sites=given.sites,
        evidence=evidence,
        embedding=embedding,
        unit=config.split.unit,
        folds=config.split.folds,
        classes=config.data.classes,
        truth=truth,
    )
    left = [("tile", name, "its name carries no identity") for name in report["unidentified"]]
    left += [("tile", name, "blank: nothing ties it to a slide") for name in report["blank"]]
    left += [
        ("tile", name, f"its class {label!r} is not in data.classes")
        for name, label in report.pop("other_classes")
    ]
    ledger.record(run, "identify", left)
    return identified, report


def scanned_table(run: Path) -> Path:
    """The table of all tiles as they were scanned, before `identify` left any out.

    Raises:
        InputError: Nothing was scanned.
    """
    path = run / "cache" / "scan.parquet"
    if not path.exists():
        message = f"{run} holds no tile table: run `slidewise scan ROOT --out {run}` first"
        raise InputError(message)
    return path


def _evidence(
    run: Path, config: Config, table: pd.DataFrame, progress: Progress | None
) -> Evidence | None:
    """What the pixels say, and its tables; the one pass over all tiles is kept for another rule."""
    if not config.identity.content:
        for name in _CONTENT_TABLES:
            (run / name).unlink(missing_ok=True)
        return None
    pixels = tiles.pixels_digest(table)
    names = table["tile_id"].tolist()
    # An array of text is shared with other processes, a list would be copied to them.
    read = partial(_read_row, data_root(run, config), np.array(names))
    kept = run / "cache" / f"signatures-{FORM}-{pixels}.npz"
    if not kept.exists():
        for stale in kept.parent.glob("signatures-*.npz"):
            stale.unlink()
        advance = progress("pixels", len(names)) if progress else None
        with atomic(kept) as temporary:
            sign(read, len(names), advance, workers=n_workers(len(names))).save(temporary)
    evidence = gather([*table["sha256"]], read, Signatures.load(kept))
    links, layout = (evidence.links_table(names), evidence.layout_table(names))
    for name, content in zip(_CONTENT_TABLES, (links, layout), strict=True):
        write_table(run / name, content, {"pixels": pixels})
    return evidence


def _read_row(root: Path, names: npt.NDArray[np.str_], row: int) -> npt.NDArray[np.uint8]:
    return read_tile(root, str(names[row]))


def _label_order(config: Config) -> Sequence[str] | None:
    return config.split.label_order or config.data.classes


def _settle_labels(table: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Apply the label policy to the tile table; every later stage sees the labels that count."""
    policy = config.split.label_policy
    slides, changed = labels.apply(tiles.slides(table), policy, _label_order(config))
    if changed:
        label = slides.set_index("slide_id")["label"]
        table = table.assign(slide_label=table["slide_id"].map(label).astype("string"))
    return table, {"policy": policy, "relabelled": changed}


def split(run: Path, config: Config, amounts: pd.DataFrame | None = None) -> splitting.Split:
    """Deal the groups to folds: ``split.csv`` and ``split.json``.

    Args:
        run: The run folder.
        config: Its config.
        amounts: ``slide_id`` and the columns ``tissue:…`` and ``stain:…`` to balance.

    Raises:
        NegativeVerdictError: Nothing says which slide a tile comes from (grade D).
        InputError: The request cannot be met; the message says what would meet it.
    """
    report = identify(run, config)
    table, settings = read_tiles(run), config.split
    slides = slides_to_split(table, report)
    digests = {
        "identity": tiles.identity_digest(table),
        "split": digest({**settings.model_dump(mode="json"), "inner": None}),
    }
    if settings.inner is not None:
        digests["inner"] = str(settings.inner)
    if amounts is not None:
        slides = slides.merge(amounts, on="slide_id", how="left")
        digests["amounts"] = digest(amounts.to_dict("list"))
    if is_current(run / "split.json", digests) and (run / "split.csv").exists():
        return splitting.load(run)
    result = _deal(slides, settings, report["labels"])
    splitting.save(result, run / "split.csv", digests)
    return result


def slides_to_split(table: pd.DataFrame, identity: Mapping[str, Any]) -> pd.DataFrame:
    """The slides of an identified run, which can be dealt to parts.

    Args:
        table: Its tile table.
        identity: What :func:`identify` found.

    Raises:
        NegativeVerdictError: Nothing says which slide a tile comes from (grade D).
        InputError: A slide has no label, or there is one class only.
    """
    if identity["grade"] == "D":
        message = f"grade D, no slide-level split exists: {identity['reason']}"
        raise NegativeVerdictError(message)
    slides = tiles.slides(table)
    labels.require_classes(slides)
    return slides


def split_table(
    source: Path, out: Path, settings: Split, columns: Mapping[str, str]
) -> tuple[splitting.Split, pd.DataFrame, list[str]]:
    """Split a table of slides, without tiles: ``out`` (CSV) and its JSON beside it.

    Returns:
        The split, the slides as they were dealt, and notes on what the table did not say.
    """
    slides, notes = slide_table.read(source, columns)
    labels.require_classes(slides)
    policy = settings.label_policy
    slides, changed = labels.apply(slides, policy, settings.label_order)
    if "group_id" not in slides.columns:
        slides = slides.assign(group_id=slides["slide_id"])
    slides = folds.regroup(slides, settings.unit)
    result = _deal(slides, settings, {"policy": policy, "relabelled": changed})
    digests = {"slides": digest(slides.astype(str).to_numpy().tolist())}
    splitting.save(result, out, digests)
    return result, slides, notes


def export(
    run: Path, config: Config, result: splitting.Split, kind: str, to: Path
) -> formats.Written:
    """Write the split of a run for another tool; see `splits.formats.write`."""
    table = read_tiles(run)
    root = data_root(run, config)
    slides = tiles.slides(table)
    return formats.write(result.table, kind, to, slides=slides, tiles=table, root=root)


def _deal(slides: pd.DataFrame, settings: Split, settled: Mapping[str, Any]) -> splitting.Split:
    deal: Callable[..., splitting.Split]
    if settings.method == "holdout":
        deal = partial(folds.holdout, ratios=settings.ratios, unit=settings.unit, prove=True)
    elif settings.method == "leave-one-site-out":
        deal = partial(folds.leave_one_site_out, val_share=settings.val_share)
    else:
        deal = partial(
            folds.kfold,
            folds=settings.folds,
            repeats=settings.repeats,
            inner=settings.inner,
            val_share=settings.val_share,
            unit=settings.unit,
            prove=True,
        )
    result = deal(slides, balance=settings.balance, seed=settings.seed)
    result.meta.update(label_policy=settled["policy"], relabelled=settled["relabelled"])
    splitting.check(result, slides)
    return result


def read_tiles(run: Path) -> pd.DataFrame:
    """The identified tile table of a run."""
    path = run / "tiles.parquet"
    if "identity" not in digests_of(path):
        message = f"{path} has no slide identity: run `slidewise identify {run}` first"
        raise InputError(message)
    return tiles.check(read_table(path))


def _content(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        message = f"{path} does not exist"
        raise InputError(message)
    return file_digest(path)
