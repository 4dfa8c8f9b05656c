"""Features of a run in the layouts of other tools, for their aggregators to be tried on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mil.features import arrays, hdf5, ours, tensors
from mil.features.bag import Bag
from mil.features.folder import CARD
from splits.errors import InputError, unknown

__all__ = ["WRITERS", "Exported", "export"]

Write = Callable[[Bag, Path], list[str]]
Progress = Callable[[str, int], Callable[[int], object]]

WRITERS: Final[dict[str, Write]] = {
    "trident": hdf5.write_trident,
    "clam-h5": hdf5.write_clam,
    "clam-pt": tensors.write_clam,
    "stamp": hdf5.write_stamp,
    "torchmil": arrays.write_torchmil,
    "slideflow": tensors.write_slideflow,
    "npz": arrays.write_npz,
}
"""Format -> what writes one bag into a folder and says what it left out."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        n_slides: So many.
        notes: What the format cannot hold, and what its user must know, in words.
    """

    n_slides: int
    notes: list[str]


def export(
    run: Path, kind: str, out: Path, *, fold: int | None = None, progress: Progress | None = None
) -> Exported:
    """Write every slide of a run for another tool, all of them or nothing.

    ``slidewise.json`` beside them says which slides the encoder was trained on; Slidewise reads it
    back and refuses to test on these.

    Args:
        run: The run folder, with features.
        kind: One of ``WRITERS``.
        out: A new or empty folder.
        fold: Whose encoder; None is allowed where all folds share one matrix.
        progress: Shown while slides are written.

    Raises:
        InputError: An unknown format, ``out`` holds something, a slide id that is no file name, or
            the format needs what the run does not know.
    """
    if kind not in WRITERS:
        raise unknown(kind="format", given=kind, allowed=WRITERS)
    if not ours.is_run(run):
        message = f"{run} has no features: run `slidewise train {run}` first"
        raise InputError(message)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        message = f"{out} is there and not empty: give a new folder"
        raise InputError(message)
    slides = ours.slides(run, fold)
    wrong = [name for name in slides.rows if Path(name).name != name or name.startswith(".")]
    if wrong:
        message = f"slide id {wrong[0]!r} cannot be the name of a file"
        raise InputError(message)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    notes: dict[str, int] = {}
    advance = progress(kind, len(slides.rows)) if progress else None
    try:
        for name in sorted(slides.rows):
            bag = slides.read(name)
            for note in [*WRITERS[kind](bag, partial), *bag.notes]:
                notes[note] = notes.get(note, 0) + 1
            if advance is not None:
                advance(1)
        classes = sorted(set(slides.labels.values()))
        if kind == "torchmil":
            for name, label in slides.labels.items():
                arrays.write_label(classes.index(label), partial, name)
        card = {"slides_seen": slides.seen, "classes": classes, "labels": slides.labels}
        text = json.dumps({"format_version": 1, **card}, indent=1, ensure_ascii=False)
        (partial / CARD).write_text(text + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    listed = [f"{note} ({n} slide{'' if n == 1 else 's'})" for note, n in notes.items()]
    return Exported(len(slides.rows), [*listed, *_seen(slides.seen, len(slides.rows))])


def _seen(seen: list[str] | None, n_slides: int) -> list[str]:
    if seen is None:
        return ["which slides the encoder was trained on is unknown"]
    if not seen:
        return []
    return [
        f"the encoder was trained on {len(seen)} of these {n_slides} slides: test on the others "
        f"only ({CARD} lists them)"
    ]
