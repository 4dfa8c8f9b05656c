"""Embeddings of a run: one feature matrix a fold."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from mil import devices
from mil.cohort import Fold
from mil.config import Config
from mil.data import images as decoding
from mil.data.images import decode, in_threads
from mil.data.store import Features, open_features, save_features, start_features, write_rows
from mil.devices import memory
from mil.encoders import TileEncoder, create
from mil.encoders.inference import Reader, fast
from mil.encoders.weights import origin_digest
from mil.features.cohort import MATRIX
from mil.pixels import Tiles
from mil.prepare import EMBEDDING, Advance, Progress, bar, data_root, read_tiles, scanned_table
from splits.artifacts import (
    atomic,
    digest,
    digests_of,
    read_json,
    read_table,
    write_json,
)
from splits.errors import InputError

__all__ = [
    "are_current",
    "bag_features",
    "bag_key",
    "embed",
    "embed_scanned",
    "features",
    "fold_meta",
    "given_features",
    "link",
    "read_features",
    "reader",
    "write_scores",
]

Say = Callable[[str], object]


def reader(
    encoder: TileEncoder, config: Config, fabric: Fabric, say: Say = warnings.warn
) -> Reader:
    """The fast form of a finished encoder, as the config asks for it."""
    return fast(
        encoder,
        fabric,
        config.encoder.image_px,
        batch=config.compute.encode_batch,
        compiled=config.compute.compile,
        say=say,
    )


def embed(read: Reader, tiles: Tiles, batch: int) -> Features:
    """Embeddings ``(n_tiles, dim)`` float32 of tiles, ``batch`` at a time."""
    return np.concatenate(list(_embeddings(read, tiles, range(len(tiles)), batch)))


def embed_scanned(run: Path, config: Config, progress: Progress | None = None) -> None:
    """Write what the published weights of the encoder say of every scanned tile, in RGB.

    It is made before anything is known of slides, so there are no stain channels yet.

    Raises:
        InputError: Nothing was scanned, or the encoder has no published weights.
    """
    settings, scanned = config.encoder, scanned_table(run)
    if not (settings.pretrained or settings.checkpoint):
        message = (
            "identity.embedding=encoder needs weights: set encoder.checkpoint or encoder.pretrained"
        )
        raise InputError(message)
    names = read_table(scanned)["tile_id"].tolist()
    fields = {"name", "args", "image_px", "pretrained"}
    asked = settings.model_dump(mode="json", include=fields)
    weights = settings.checkpoint
    made_from = digest(
        [decoding.FORM, digests_of(scanned), asked, origin_digest(settings.name, weights)]
    )
    path = run / EMBEDDING
    if path.exists():
        with np.load(path) as made:
            if str(made["made_from"]) == made_from:
                return
    encoder = create(
        settings.name,
        channels="rgb",
        n_classes=1,
        image_px=settings.image_px,
        pretrained=settings.pretrained,
        checkpoint=weights,
        args=settings.args,
    )
    n_batch = config.compute.encode_batch
    embedder = reader(encoder, config, devices.fabric(config.compute, processes=1))
    advance = progress("embedding", len(names)) if progress else None
    read = partial(decode, data_root(run, config), size_px=settings.image_px)
    images = in_threads(read, names, config.compute.threads)
    parts = []
    while block := list(islice(images, n_batch)):
        tiles = np.stack(block).transpose(0, 3, 1, 2)
        parts.append(embed(embedder, tiles, n_batch))
        if advance is not None:
            advance(len(block))
    with atomic(path) as temporary, temporary.open("wb") as file:
        x = np.concatenate(parts)
        np.savez(file, tile_id=np.array(names), x=x, made_from=np.array(made_from))


def features(
    run: Path,
    config: Config,
    key: str,
    encoder: TileEncoder,
    tiles: Tiles,
    fabric: Fabric,
    say: Say,
    card: dict[str, Any],
    digests: dict[str, str],
    progress: Progress | None = None,
) -> None:
    """``features/fold<key>.npy`` and its entry in ``meta.json``; does nothing where current.

    Every process writes its share of the rows.

    Args:
        run: Run folder.
        config: Its configuration.
        key: Which encoder this is: the number of its fold.
        encoder: With the weights to use.
        tiles: What it sees.
        fabric: Device, precision and processes.
        say: Called with a line where the encoder cannot be compiled.
        card: Encoder card; its ``slides_seen`` is what protects the aggregators.
        digests: Of the encoder and its input; equal digests mean equal features, so folds that
            share a frozen encoder share one file (a hard link where the disk allows it).
        progress: Shows the tiles that are encoded, by all processes.
    """
    path = _file(run, key)
    same = [k for k in _meta(run) if are_current(run, k, digests)]
    if key in same:
        return
    if same:
        if fabric.is_global_zero:
            link(_file(run, same[0]), path)
            _enter(run, key, card, digests)
        fabric.barrier()
        return
    partial = path.with_name(f".{path.name}.partial")
    rank, n_ranks = fabric.global_rank, fabric.world_size
    mine = range(len(tiles) * rank // n_ranks, len(tiles) * (rank + 1) // n_ranks)
    if fabric.is_global_zero:
        start_features(partial, (len(tiles), encoder.dim))
    fabric.barrier()
    embedder = reader(encoder, config, fabric, say)
    blocks = _embeddings(embedder, tiles, mine, config.compute.encode_batch)
    advance = bar(progress, f"features of fold {key}, tiles", len(tiles))
    write_rows(partial, mine.start, _counted(blocks, lambda n: advance(n * n_ranks)))
    fabric.barrier()
    if fabric.is_global_zero:
        open_features(partial, n_tiles=len(tiles))  # reads every value once
        partial.replace(path)
        _enter(run, key, card, digests)
    fabric.barrier()


def given_features(run: Path, key: str, card: dict[str, Any], digests: dict[str, str]) -> None:
    """``features/fold<key>.npy`` of a run that began with features: one matrix for all folds.

    Args:
        run: Run folder.
        key: The number of the fold.
        card: As for :func:`features`.
        digests: Of the tile table, which covers every value.
    """
    if not are_current(run, key, digests):
        link(run / MATRIX, _file(run, key))
        _enter(run, key, card, digests)


def write_scores(
    run: Path, key: str, scores: Features, card: dict[str, Any], digests: dict[str, str]
) -> None:
    """Write cross-fitted log probabilities ``(n_tiles, n_classes)`` beside the features."""
    save_features(_file(run, key), scores)
    seen = sorted({slide for part in card["parts"] for slide in part["slides_seen"]})
    _enter(run, key, {**card, "slides_seen": seen}, digests)


def are_current(run: Path, key: str, digests: Mapping[str, str]) -> bool:
    """Whether ``features/fold<key>.npy`` was made from exactly these inputs."""
    entry = _meta(run).get(key)
    return entry is not None and entry["digests"] == dict(digests) and _file(run, key).exists()


def fold_meta(run: Path, key: str) -> dict[str, Any]:
    """What ``features/meta.json`` says of an encoder.

    Raises:
        InputError: Nothing was encoded with it yet.
    """
    meta = _meta(run)
    if key not in meta:
        message = f"{run} has no features of fold {key}: run `slidewise train {run}` first"
        raise InputError(message)
    entry: dict[str, Any] = meta[key]
    return entry


def bag_features(run: Path, config: Config, fold: Fold) -> tuple[Features, str]:
    """What the aggregators of a fold learn from, and the digest of it."""
    key = bag_key(config, fold)
    found = read_features(run, key, unseen=fold.unseen)
    return found, digest(fold_meta(run, key)["digests"])


def bag_key(config: Config, fold: Fold) -> str:
    """Which features the aggregators of a fold learn from.

    Embeddings of its encoder, those of the fold around it where no training changes them; with
    ``train.crossfit`` the cross-fitted log probabilities.
    """
    key = str(fold.number) if config.keeps_weights else fold.key
    return key if config.train.crossfit is None else f"{key}-crossfit"


def read_features(run: Path, key: str, *, unseen: set[str]) -> Features:
    """Features of an encoder, refused where it was trained on an unseen slide.

    Args:
        run: Run folder.
        key: The number of its fold.
        unseen: The fold's validation and test slides.

    Raises:
        InputError: The encoder saw one of them, or the features are of another tile table.
    """
    entry = fold_meta(run, key)
    seen = unseen.intersection(entry["slides_seen"])
    if seen:
        message = (
            f"features of fold {key}: their encoder saw {len(seen)} validation or test slide(s), "
            f"the first is {min(seen)!r}: train an encoder without them"
        )
        raise InputError(message)
    table = read_tiles(run)
    identity = digests_of(run / "tiles.parquet")["identity"]
    if entry["digests"]["identity"] != identity:
        message = f"features of fold {key} are of another tile table: run `slidewise train {run}`"
        raise InputError(message)
    return open_features(_file(run, key), n_tiles=len(table))


def _embeddings(read: Reader, tiles: Tiles, rows: range, batch: int) -> Iterator[Features]:
    """Embeddings of consecutive rows, a batch at a time."""
    for start in range(rows.start, rows.stop, batch):
        block = torch.from_numpy(np.array(tiles[start : min(start + batch, rows.stop)]))
        with memory("compute.encode_batch"):
            yield read(block).float().cpu().numpy()


def _counted(blocks: Iterator[Features], advance: Advance) -> Iterator[Features]:
    for block in blocks:
        yield block
        advance(len(block))


def _enter(run: Path, key: str, card: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    entries = {**_meta(run), key: {**card, "digests": dict(digests)}}
    identity = {"identity": digests["identity"]}
    write_json(run / "features" / "meta.json", {"folds": entries}, identity)


def _file(run: Path, key: str) -> Path:
    return run / "features" / f"fold{key}.npy"


def _meta(run: Path) -> dict[str, Any]:
    path = run / "features" / "meta.json"
    return dict(read_json(path)["folds"]) if path.exists() else {}


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the disk has no hard links."""
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
