from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.phantom import render
from mil.phantom_plan import Phantom
from mil.report import stain
from mil.stain.fit import to_table
from mil.stain.slides import fit_tiles
from splits.errors import InputError

PHANTOM = Phantom(slides=8, tiles_per_slide=2, tile_px=132, seed=1)


@pytest.fixture(scope="module")
def slides() -> dict[str, Any]:
    """Eight slides of two tiles; one of them is grey."""
    found = {f"s{i}": render(PHANTOM, i) for i in range(8)}
    found["s4"] = np.repeat(found["s4"].mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    return found


def run(slides: dict[str, Any], path: Path) -> Any:
    fits = {name: fit_tiles(t, "macenko", np.random.default_rng(0)) for name, t in slides.items()}
    rows = [(f"{name}/{i}", name) for name in slides for i in range(2)]
    tiles = pd.DataFrame(rows, columns=["tile_id", "slide_id"])
    return SimpleNamespace(stain=to_table(fits), tiles=tiles, run=path)


def test_the_worst_slide_comes_first(slides: dict[str, Any], tmp_path: Path) -> None:
    found = run(slides, tmp_path)
    assert found.stain.set_index("slide_id")["severity"].idxmax() == "s4"
    section = stain.section(found, lambda name: slides[name[:2]][int(name[-1])])
    assert section is not None
    assert section.n_shown == 6
    assert section.sentence.startswith("1 of 8 slides have an unusual stain, worst s4: ")
    assert section.uri is not None
    sheet = np.asarray(Image.open(tmp_path / "stain.png").convert("RGB"))
    first = [np.ascontiguousarray(tile) for tile in slides["s4"]]
    # Tiles of 132 px are drawn as they are.
    assert any(
        (np.lib.stride_tricks.sliding_window_view(sheet[:, 12:144], (132, 132, 3)) == tile)
        .all(axis=(3, 4, 5))[:120]
        .any()
        for tile in first
    )


def test_without_tiles_the_flags_remain(slides: dict[str, Any], tmp_path: Path) -> None:
    def unreadable(name: str) -> Any:
        raise InputError(name)

    (tmp_path / "stain.png").write_bytes(b"of an earlier run")
    for read in (None, unreadable):
        section = stain.section(run(slides, tmp_path), read)
        assert section is not None
        assert (section.uri, section.n_shown) == (None, 0)
        assert "worst s4" in section.sentence
    assert not (tmp_path / "stain.png").exists()


def test_no_table_or_one_without_qualities_is_no_section(
    slides: dict[str, Any], tmp_path: Path
) -> None:
    found = run(slides, tmp_path)
    found.stain = found.stain.drop(columns="severity")
    assert stain.section(found, None) is None
    found.stain = None
    assert stain.section(found, None) is None
