"""The split of a run, or of a table, written for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mil.config import Config
from mil.prepare import data_root, read_tiles
from splits import formats, slide_table, tiles
from splits.split import Split

__all__ = ["of_run", "of_table"]


def of_run(run: Path, config: Config, split: Split, kind: str, to: Path) -> formats.Written:
    """Write the split of a run; see `splits.formats.write`."""
    table = read_tiles(run)
    return formats.write(
        split.table,
        kind,
        to,
        slides=tiles.slides(table),
        tiles=table,
        root=data_root(run, config),
    )


def of_table(
    source: Path, columns: Mapping[str, str], split: Split, kind: str, to: Path
) -> formats.Written:
    """Write the split of a table of slides."""
    slides, _ = slide_table.read(source, columns)
    changed = slides["slide_id"].map(split.meta["relabelled"])
    slides = slides.assign(label=changed.fillna(slides["label"]))
    return formats.write(split.table, kind, to, slides=slides)
