"""The phantom cohort: synthetic H&E tiles of which everything is known.

Four classes of slides. The class shows in a part of a slide's tiles only (``bearing``); the others
are tissue that every class has, so that a slide has to be judged by its bag. Each slide carries a
*signature* of stain, strength, white point and blur that says nothing about its class, and that a
model finds at once when tiles of one slide are on both sides of a split.

Pixels follow the Beer-Lambert law of stain separation (Ruifrok and Johnston 2001):
``white * exp(-(c_h * v_h + c_e * v_e))``, then blur and camera noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mil.phantom_plan import (
    CLASSES,
    DEFOCUS_PX,
    Phantom,
    defects_of,
    layout_of,
    plan,
    random_of,
    signature_of,
    slides_of,
)
from mil.phantom_tissue import draw_tissue
from splits.artifacts import atomic, is_current, read_csv, write_csv, write_json
from splits.errors import InputError

__all__ = ["CLASSES", "Phantom", "contact_sheet", "generate", "plan", "render"]

_NOISE_LEVELS: Final = 2.0


def render(settings: Phantom, slide_index: int) -> npt.NDArray[np.uint8]:
    """The tiles of one slide, shape (tiles_per_slide, tile_px, tile_px, 3), RGB.

    The slide is drawn as one field and then cut, so facing edges of neighbours continue each other.

    Raises:
        InputError: There is no such slide.
    """
    slides = slides_of(settings)
    if not 0 <= slide_index < len(slides):
        message = (
            f"slide {slide_index} does not exist: the phantom has slides 0 to {len(slides) - 1}"
        )
        raise InputError(message)
    slide = slides[slide_index]
    look = signature_of(settings, slide)
    layout = layout_of(settings, slide)
    defects = defects_of(settings, slide, layout)
    tissue = random_of(settings, slide, "tissue")
    c_h, c_e = draw_tissue(layout, settings.tile_px, tissue)
    density = look.strength * (
        c_h[..., None] * look.hematoxylin.astype(np.float32)
        + c_e[..., None] * look.eosin.astype(np.float32)
    )
    light = look.white.astype(np.float32) * np.exp(-density)
    sharp = ndimage.gaussian_filter(light, (look.blur_px, look.blur_px, 0))
    noise = random_of(settings, slide, "noise").standard_normal(light.shape, dtype=np.float32)
    tiles = np.empty((settings.tiles_per_slide, settings.tile_px, settings.tile_px, 3), np.uint8)
    for tile in range(settings.tiles_per_slide):
        row, column = divmod(tile, layout.shape[1])
        window = tuple(
            slice(at * settings.tile_px, (at + 1) * settings.tile_px) for at in (row, column)
        )
        seen = sharp[window]
        if defects.get(tile) == "blank":
            seen = np.broadcast_to(look.white.astype(np.float32), seen.shape)
        elif defects.get(tile) == "blurred":
            seen = ndimage.gaussian_filter(light[window], (DEFOCUS_PX, DEFOCUS_PX, 0))
        tiles[tile] = np.rint(seen + _NOISE_LEVELS * noise[window]).clip(0, 255)
    return tiles


def generate(settings: Phantom, out: Path) -> Path:
    """Write the cohort: ``tiles/<class>/<name>.png``, ``truth.csv``, ``manifest.csv``.

    ``truth.csv`` is the table of :func:`plan`; ``manifest.csv`` has only ``path`` and
    ``tile_label``, what a user with tile annotations would have. ``phantom.json`` is written last;
    a folder where it is current and no tile is missing is left as it is.

    Args:
        settings: What to draw.
        out: Folder for all of it; tiles of an earlier phantom in it are replaced.

    Returns:
        The folder of tiles, ``out/tiles``.

    Raises:
        InputError: ``out/tiles`` holds files that no phantom wrote.
    """
    folder, note = out / "tiles", out / "phantom.json"
    digests = {"phantom": settings.digest()}
    truth = plan(settings)
    if is_current(note, digests) and all((folder / path).is_file() for path in truth["path"]):
        return folder
    note.unlink(missing_ok=True)
    _make_room(folder, out / "truth.csv", set(truth["path"]))
    write_csv(out / "truth.csv", truth)
    write_csv(out / "manifest.csv", truth[["path", "tile_label"]])
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
    for index, (_, rows) in enumerate(truth.groupby("slide_id", sort=False)):
        for pixels, path, defect in zip(
            render(settings, index), rows["path"], rows["defect"], strict=True
        ):
            with atomic(folder / path) as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG", compress_level=4)
                if defect == "truncated":
                    content = temporary.read_bytes()
                    temporary.write_bytes(content[: len(content) // 3])
    write_json(
        note,
        {
            "settings": settings.model_dump(mode="json"),
            "classes": list(CLASSES),
            "n_tiles": len(truth),
            "n_slides": int(truth["slide_id"].nunique()),
            "n_patients": int(truth["patient_id"].nunique()),
        },
        digests,
    )
    return folder


def contact_sheet(settings: Phantom, path: Path) -> None:
    """Write one picture of the cohort: a row a class, a column a slide.

    Five columns show the tissue that makes the class, three show other tissue of such slides.
    """
    focus, other, cell, gap, left, top = 5, 3, 128, 4, 84, 26
    size = (left + (focus + other) * (cell + gap), top + len(CLASSES) * (cell + gap + 16))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    pen.text((left, 6), "shows the class", "black", font)
    pen.text((left + focus * (cell + gap), 6), "other tissue of such slides", "black", font)
    truth = plan(settings)
    truth["index"] = pd.factorize(truth["slide_id"])[0]
    truth["tile"] = truth.groupby("slide_id").cumcount()
    for row, label in enumerate(CLASSES):
        y = top + row * (cell + gap + 16)
        pen.text((4, y + cell // 2), label, "black", font)
        sound = truth[(truth["label"] == label) & (truth["defect"] == "")]
        shows = sound["tile_label"] == label
        # Read from the end, the tiles on the right come from other slides than those on the left.
        rest = _spread(sound[~shows][::-1], "tile_label", other)
        picked = [*_spread(sound[shows], "slide_id", focus), *rest]
        for column, (index, tile, tissue) in enumerate(picked):
            image = Image.fromarray(render(settings, index)[tile]).resize((cell, cell))
            x = left + column * (cell + gap)
            sheet.paste(image, (x, y))
            pen.text((x, y + cell), f"{tissue}, slide {index}", "black", font)
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _spread(rows: pd.DataFrame, over: str, n: int) -> list[tuple[int, int, str]]:
    """(slide, tile, tissue) of ``n`` tiles, from as many different values of ``over`` as can be."""
    order = rows.assign(again=rows.groupby(over).cumcount()).sort_values("again", kind="stable")
    found = order.head(n)[["index", "tile", "tile_label"]].itertuples(index=False, name=None)
    return list(found)


def _make_room(folder: Path, truth: Path, wanted: set[str]) -> None:
    """Remove tiles of another phantom, which the truth table beside them lists."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    earlier = set(read_csv(truth)["path"]) if truth.exists() else set()
    foreign = sorted(there - wanted - earlier)
    if foreign:
        message = (
            f"{folder} holds {len(foreign)} files that no phantom wrote, such as {foreign[0]}: "
            "choose another folder"
        )
        raise InputError(message)
    for name in there - wanted:
        (folder / name).unlink()
