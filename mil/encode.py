"""Embeddings of a run: one feature matrix a fold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from mil import devices
from mil.config import Config
from mil.data.images import decode, in_threads
from mil.data.store import Features, open_features, save_features
from mil.encoders import TileEncoder, create
from mil.encoders.augment import centre_view
from mil.pixels import Tiles
from mil.prepare import EMBEDDING, Progress, data_root, read_tiles, scanned_table
from splits.artifacts import (
    atomic,
    digest,
    digests_of,
    file_digest,
    read_json,
    read_table,
    write_json,
)
from splits.errors import InputError

__all__ = ["embed", "embed_scanned", "features", "fold_meta", "read_features"]

_BATCH = 64


def embed(encoder: TileEncoder, tiles: Tiles, image_px: int, fabric: Fabric) -> Features:
    """Embeddings ``(n_tiles, dim)`` float32 of cached tiles, in eval mode."""
    encoder.eval().to(fabric.device)
    result = np.empty((len(tiles), encoder.dim), dtype=np.float32)
    with torch.inference_mode(), fabric.autocast():
        for start, block in _blocks(tiles):
            view = centre_view(block.to(fabric.device), image_px)
            result[start : start + len(view)] = encoder.embed(view).float().cpu().numpy()
    return result


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
    # Other weights may come to stand under the same name.
    own = file_digest(weights) if weights is not None and weights.is_file() else None
    made_from = digest([digests_of(scanned), asked, own])
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
    fabric = devices.fabric(config.compute)
    advance = progress("embedding", len(names)) if progress else None
    read = partial(decode, data_root(run, config), size_px=settings.image_px)
    images = in_threads(read, names, config.compute.threads)
    parts = []
    while block := list(islice(images, _BATCH)):
        tiles = np.stack(block).transpose(0, 3, 1, 2)
        parts.append(embed(encoder, tiles, settings.image_px, fabric))
        if advance is not None:
            advance(len(block))
    with atomic(path) as temporary, temporary.open("wb") as file:
        x = np.concatenate(parts)
        np.savez(file, tile_id=np.array(names), x=x, made_from=np.array(made_from))


def features(
    run: Path,
    config: Config,
    fold: int,
    encoder: TileEncoder,
    tiles: Tiles,
    fabric: Fabric,
    *,
    card: dict[str, Any],
    digests: dict[str, str],
) -> Features:
    """``features/fold<k>.npy`` and its entry in ``meta.json``; does nothing where current.

    Args:
        run: Run folder.
        config: Its configuration.
        fold: Which encoder this is.
        encoder: With the weights to use.
        tiles: What it sees.
        fabric: Device and precision.
        card: Encoder card; its ``slides_seen`` is what protects the aggregators.
        digests: Of the encoder and its input; equal digests mean equal features, so folds that
            share a frozen encoder share one file (a hard link where the disk allows it).
    """
    path = _file(run, fold)
    meta = _meta(run)
    same = [
        k for k, other in meta.items() if other["digests"] == digests and _file(run, k).exists()
    ]
    if str(fold) in same:
        return open_features(path)
    if same:
        _link(_file(run, same[0]), path)
    else:
        save_features(path, embed(encoder, tiles, config.encoder.image_px, fabric))
    meta[str(fold)] = {**card, "digests": digests}
    identity = {"identity": digests["identity"]}
    write_json(run / "features" / "meta.json", {"folds": meta}, identity)
    return open_features(path)


def fold_meta(run: Path, fold: int) -> dict[str, Any]:
    """What ``features/meta.json`` says of a fold's encoder.

    Raises:
        InputError: The fold was not encoded yet.
    """
    meta = _meta(run)
    if str(fold) not in meta:
        message = f"{run} has no features of fold {fold}: run `slidewise train {run}` first"
        raise InputError(message)
    entry: dict[str, Any] = meta[str(fold)]
    return entry


def read_features(run: Path, fold: int, *, unseen: set[str]) -> Features:
    """Features of a fold, refused where their encoder was trained on an unseen slide.

    Args:
        run: Run folder.
        fold: Fold.
        unseen: The fold's validation and test slides.

    Raises:
        InputError: The encoder saw one of them, or the features are of another tile table.
    """
    entry = fold_meta(run, fold)
    seen = unseen.intersection(entry["slides_seen"])
    if seen:
        message = (
            f"features of fold {fold}: their encoder saw {len(seen)} validation or test slide(s), "
            f"the first is {min(seen)!r}: train an encoder without them"
        )
        raise InputError(message)
    table = read_tiles(run)
    identity = digests_of(run / "tiles.parquet")["identity"]
    if entry["digests"]["identity"] != identity:
        message = f"features of fold {fold} are of another tile table: run `slidewise train {run}`"
        raise InputError(message)
    return open_features(_file(run, fold), n_tiles=len(table))


def _file(run: Path, fold: int | str) -> Path:
    return run / "features" / f"fold{fold}.npy"


def _meta(run: Path) -> dict[str, Any]:
    path = run / "features" / "meta.json"
    return dict(read_json(path)["folds"]) if path.exists() else {}


def _blocks(tiles: Tiles) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(tiles), _BATCH):
        yield start, torch.from_numpy(np.array(tiles[start : start + _BATCH]))


def _link(source: Path, target: Path) -> None:
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
