"""Samples of a cohort for ``slidewise preview``: some tiles of several slides and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil import prepare
from mil.config import Config
from mil.data import cache
from mil.encoders.augment import centre_view, random_view
from mil.report.preview import preview
from mil.seeds import derive, generator, of_rows
from mil.stain.channels import CHANNELS
from mil.stain.slides import fit_stains
from splits.images import read_tile

__all__ = ["preview_run"]

_N_VIEWS = 4
_SLIDES_A_CLASS = 2


def preview_run(run: Path, config: Config, progress: prepare.Progress | None = None) -> Path:
    """Write ``preview.png``: RGB, the encoder's channels, and augmented views of some tiles.

    Two slides a class and one tile of each are drawn by the seed; stain
    vectors are fitted as the encode stage does it, on these slides only.
    """
    prepare.scan(run, config, progress)
    prepare.identify(run, config)
    table = prepare.read_tiles(run)
    root = prepare.data_root(run, config)
    encoder = config.encoder
    chosen = _choose(table, config.seed)
    slides = table[table["slide_id"].isin(chosen["slide_id"])]
    stains = fit_stains(
        root, slides, config.stain.method, size_px=encoder.resize_px, seed=config.seed
    )
    blocks = cache.render(root, chosen, stains, encoder.channels, size_px=encoder.resize_px)
    tiles = torch.from_numpy(np.concatenate(list(blocks)))
    views = [
        random_view(
            tiles,
            encoder.image_px,
            of_rows(derive(config.seed, "preview", view), np.arange(len(tiles))),
            optical=encoder.channels != "rgb",
            **config.train.augment.model_dump(),
        )
        for view in range(_N_VIEWS)
    ]
    seen = centre_view(tiles, encoder.image_px)
    panels: list[dict[str, Any]] = [
        {
            "title": f"{row.slide_label}: {row.slide_id}",
            "rgb": read_tile(root, row.tile_id),
            "channels": seen[i].round().byte().numpy(),
            "channel_names": list(CHANNELS[encoder.channels]),
            "augmented": [view[i].round().byte().numpy() for view in views],
        }
        for i, row in enumerate(chosen.itertuples(index=False))
    ]
    return preview(panels, run / "preview.png")


def _choose(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    rng = generator(seed, "preview tiles")
    rows = []
    for _, of_class in table.groupby("slide_label"):
        slides = np.array(sorted(of_class["slide_id"].unique()), dtype=object)
        for slide in rng.permutation(slides)[:_SLIDES_A_CLASS]:
            tiles = of_class.index[of_class["slide_id"] == slide]
            rows.append(tiles[rng.integers(len(tiles))])
    return table.loc[rows].reset_index(drop=True)
