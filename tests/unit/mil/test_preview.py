from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mil.report import preview
from mil.report.pictures import tint
from splits.errors import InputError
from tests.report_run import EOSIN


def test_tint_follows_beer_lambert() -> None:
    amounts = np.array([[0.0, 0.5, 1.0, 9.0]])
    colours = tint(amounts, 3 * EOSIN).astype(float)
    assert (colours[0, 0] == 255).all()
    assert (colours[0, 3] == colours[0, 2]).all()
    density = -np.log(colours[0, 1:3] / 255)
    np.testing.assert_allclose(density[1], 2 * density[0], atol=0.02)
    np.testing.assert_allclose(density[1] / density[1, 1], EOSIN / EOSIN[1], atol=0.02)


def _panel(names: list[str], value: int) -> dict[str, object]:
    channels = np.zeros((len(names), 32, 32), np.uint8)
    channels[0] = value
    rgb = np.full((64, 64, 3), 200, np.uint8)
    views = [channels, channels]
    panel = {"title": "slide 1, lung", "rgb": rgb, "channels": channels}
    return {**panel, "channel_names": names, "augmented": views}


@pytest.mark.parametrize(("names", "n_columns"), [(["H", "E"], 5), (["R", "G", "B"], 4)])
def test_preview_draws_every_column(tmp_path: Path, names: list[str], n_columns: int) -> None:
    path = preview([_panel(names, 255), _panel(names, 0)], tmp_path / "preview.png")
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert image.shape[1] == 10 + n_columns * 154
    second = image[image.shape[0] - 60, 10 + 154 + 70]
    first = image[image.shape[0] // 2 - 60, 10 + 154 + 70]
    if names[0] == "H":
        assert (second == 255).all()  # no hematoxylin is white glass
        assert first[2] > first[0] > first[1]  # and much of it is purple
    else:
        assert (first == [255, 0, 0]).all()


def test_preview_draws_the_surroundings_beside_the_tile(tmp_path: Path) -> None:
    for names, n_columns in ((["H", "E"], 7), (["R", "G", "B"], 5)):
        panel = _panel(names, 0)
        around = np.full((len(names), 32, 32), 255, np.uint8)
        both = np.concatenate([panel["channels"], around])
        panel |= {"channels": both, "augmented": [both, both], "scales": (1, 4)}
        image = np.asarray(Image.open(preview([panel], tmp_path / "p.png")).convert("RGB"))
        assert image.shape[1] == 10 + n_columns * 154
        stained = image[100, 80::154].min(axis=1) < 250
        if names[0] == "H":  # RGB, H, E, H around, E around, two views of the tile alone
            assert stained.tolist() == [True, False, False, True, True, False, False]
        else:
            assert image[100, 80 + 2 * 154].tolist() == [255, 255, 255]


def test_preview_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none was given"):
        preview([], tmp_path / "a.png")
    with pytest.raises(InputError, match="2 channel names"):
        preview([{**_panel(["H"], 1), "channel_names": ["H", "E"]}], tmp_path / "a.png")
