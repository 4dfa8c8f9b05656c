"""The features of a run folder, slide by slide, as any other tool's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.data.store import Features, open_features
from mil.features.bag import Array, Bag
from splits.artifacts import digests_of, read_json, read_table
from splits.errors import InputError, unknown
from splits.tiles import check

__all__ = ["Slides", "is_run", "slides"]


@dataclass(frozen=True)
class Slides:
    """Slides of a run with the features of one fold.

    Attributes:
        matrix: The file of features.
        rows: Slide -> its rows in the tile table, ascending.
        labels: Slide -> label, where it has one.
        seen: Slides that the encoder was trained on; None where that is unknown.
        card: What ``meta.json`` says of the encoder.
    """

    matrix: Path
    rows: dict[str, Array]
    labels: dict[str, str]
    seen: list[str] | None
    card: dict[str, Any]
    _features: Features = field(repr=False)
    _table: pd.DataFrame = field(repr=False)

    def read(self, slide_id: str) -> Bag:
        """One slide."""
        rows = self.rows[slide_id]
        tiles = self._table.iloc[rows]
        place = tiles[["x_px", "y_px"]]
        placed = bool(place.notna().all(axis=None))
        sizes, mpps = tiles["width_px"].unique(), tiles["mpp"].dropna().unique()
        side = int(sizes[0]) if len(sizes) == 1 and sizes[0] > 0 else None
        regions = tiles["region"].fillna("").nunique()
        notes: list[str] = []
        if placed and regions > 1:
            notes = [f"coordinates of {regions} regions have origins of their own: left out"]
            placed = False
        return Bag(
            slide_id,
            "slidewise",
            np.asarray(self._features[rows]),
            place.to_numpy(dtype=np.int64) if placed else None,
            "level0_px" if placed else None,
            tile=side,
            tile_px=side,
            mpp=float(mpps[0]) if len(mpps) == 1 and tiles["mpp"].notna().all() else None,
            encoder=_encoder(self.card),
            notes=tuple(notes),
        )


def is_run(path: Path) -> bool:
    """Whether a folder is a run with features."""
    return (path / "tiles.parquet").exists() and (path / "features" / "meta.json").exists()


def slides(run: Path, fold: int | None = None) -> Slides:
    """Open the features of a run.

    Args:
        run: The run folder.
        fold: Whose encoder; None is allowed where all folds share one matrix.

    Raises:
        InputError: No such fold, several to choose from, or features of another tile table.
    """
    entries = read_json(run / "features" / "meta.json")["folds"]
    keys = sorted((key for key in entries if key.isdecimal()), key=int)
    if fold is not None and str(fold) not in keys:
        raise unknown(kind=f"fold of {run}", given=str(fold), allowed=keys)
    if fold is None and any(entries[k]["digests"] != entries[keys[0]]["digests"] for k in keys):
        message = (
            f"{run} has features of {len(keys)} encoders, one a fold, each trained on other slides:"
            f" say which with --fold ({', '.join(keys)})"
        )
        raise InputError(message)
    key = keys[0] if fold is None else str(fold)
    entry = entries[key]
    if entry["digests"]["identity"] != digests_of(run / "tiles.parquet").get("identity"):
        message = f"features of fold {key} are of another tile table: run `slidewise train {run}`"
        raise InputError(message)
    table = check(read_table(run / "tiles.parquet"))
    matrix = run / "features" / f"fold{key}.npy"
    known = table.dropna(subset="slide_label").drop_duplicates("slide_id")
    return Slides(
        matrix,
        {str(name): np.sort(rows) for name, rows in table.groupby("slide_id").indices.items()},
        {str(row.slide_id): str(row.slide_label) for row in known.itertuples()},
        None if entry.get("encoder_saw") == "unknown" else list(entry["slides_seen"]),
        entry,
        open_features(matrix, n_tiles=len(table)),
        table,
    )


def _encoder(card: dict[str, Any]) -> str | None:
    name = card.get("encoder")
    if isinstance(name, dict):
        name = name.get("name")
    return None if name is None else str(name)
