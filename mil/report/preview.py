"""A picture of what the encoder will see: tiles, their stain channels, and augmented views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mil.report.pictures import cut_text, tint
from mil.stain.vectors import REFERENCE
from splits.artifacts import atomic
from splits.errors import InputError

__all__ = ["composed", "preview"]

# For display only: channels hold amounts and do not know the vectors of their slide.
_STAINS = {"h": ("H", REFERENCE[0]), "e": ("E", REFERENCE[1])}
_PLAIN = np.ones(3)
_SIDE_PX = 144
_GAP_PX = 10
_TITLE_PX = 26
_INK = (34, 29, 43)
_SOFT = (100, 93, 112)

Pixels = npt.NDArray[np.uint8]


def preview(panels: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw one row a tile: RGB, each channel in its colour, then augmented views.

    Args:
        panels: One mapping a tile: ``title`` (text), ``rgb`` (H, W, 3) uint8, ``channels``
            (C, S, S) uint8, ``channel_names`` (C names; ``H``, ``E``, or ``R``, ``G``, ``B``),
            ``augmented``, a list of (C, S, S) uint8, and where there is context ``scales``: then
            the channels come once for each scale, and of augmented views the first is drawn.
        path: The PNG to write.

    Returns:
        ``path``.

    Raises:
        InputError: There are no panels, or names and channels differ in number.
    """
    if not panels:
        message = "a preview needs at least one tile, and none was given"
        raise InputError(message)
    rows = [(str(panel["title"]), _cells(panel)) for panel in panels]
    step = _SIDE_PX + _GAP_PX
    width = _GAP_PX + step * max(len(cells) for _, cells in rows)
    height = _GAP_PX + _TITLE_PX + len(rows) * (step + _TITLE_PX)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=13)
    widest = max((cells for _, cells in rows), key=len)
    for place, (heading, _) in enumerate(widest):
        draw.text((_GAP_PX + place * step, _GAP_PX), heading, fill=_SOFT, font=small)
    for line, (title, cells) in enumerate(rows):
        top = _GAP_PX + _TITLE_PX + line * (step + _TITLE_PX)
        fitted = cut_text(title, width - 2 * _GAP_PX, font)
        draw.text((_GAP_PX, top), fitted, fill=_INK, font=font)
        for place, (_, pixels) in enumerate(cells):
            image = Image.fromarray(pixels).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
            sheet.paste(image, (_GAP_PX + place * step, top + _TITLE_PX - 2))
    with atomic(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def _cells(panel: Mapping[str, Any]) -> list[tuple[str, Pixels]]:
    """Heading and RGB pixels of every column of a row."""
    channels, names = panel["channels"], [str(name) for name in panel["channel_names"]]
    scales = panel.get("scales", (1,))
    if len(channels) != len(names) * len(scales):
        message = f"{len(names)} channel names {names} were given for {len(channels)} channels"
        raise InputError(message)
    cells = [("RGB", panel["rgb"])]
    for place, scale in enumerate(scales):
        around = "" if scale == 1 else f", {scale} x around"
        seen = channels[place * len(names) : (place + 1) * len(names)]
        if _is_rgb(names):
            cells.append((f"seen{around}" if around else "seen by encoder", composed(seen, names)))
        else:
            cells += [
                (_heading(name) + around, composed(channel[None], [name]))
                for channel, name in zip(seen, names, strict=True)
            ]
    cells += [
        (f"augmented {place}", composed(view[: len(names)], names))
        for place, view in enumerate(panel["augmented"], start=1)
    ]
    return cells


def composed(channels: Pixels, names: list[str]) -> Pixels:
    """Channels (C, S, S) as one RGB picture; stains overlay as light passing through both."""
    if _is_rgb(names):
        return np.ascontiguousarray(np.moveaxis(channels, 0, -1))
    light = np.ones((*channels.shape[1:], 3))
    for channel, name in zip(channels, names, strict=True):
        _, vector = _STAINS.get(name[:1].lower(), (name, _PLAIN))
        light *= tint(channel / 255, vector) / 255
    return np.round(255 * light).astype(np.uint8)


def _heading(name: str) -> str:
    return _STAINS.get(name[:1].lower(), (name, _PLAIN))[0]


def _is_rgb(names: list[str]) -> bool:
    return [name[:1].lower() for name in names] == ["r", "g", "b"]
