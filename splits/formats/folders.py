"""A split that is nothing but folders: ``train``, ``val`` and ``test``, read and made."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pandas as pd

from splits.errors import InputError
from splits.formats.source import PART_NAMES, Found
from splits.groups import PARTS, text

__all__ = ["each_fold", "is_tree", "link_tree", "read_tree"]


def is_tree(root: Path) -> bool:
    """Whether a folder has folders of parts, in itself or in each of its folders (the classes)."""
    return _depth(root) is not None


def read_tree(root: Path) -> Found:
    """Every file below a folder of a part, each taken for a tile.

    Where the same names of folders stand directly below every part (or the parts stand below
    them), they are classes, and each file gets its own as ``label``.

    Returns:
        ``tile_id`` (POSIX, relative to ``root``), ``part`` and, where there are classes, ``label``.

    Raises:
        InputError: The folders of the parts hold no files.
    """
    depth = _depth(root)
    rows: list[tuple[str, str, str]] = []
    n_outside = 0
    for file in _files(root):
        names = PurePosixPath(file).parts
        if depth is None or len(names) <= depth + 1 or names[depth].lower() not in PART_NAMES:
            n_outside += 1
            continue
        inner = names[0] if depth else names[1] if len(names) > 2 else ""
        rows.append((file, names[depth].lower(), inner))
    if not rows:
        message = f"{root} has folders of parts, and they hold no files"
        raise InputError(message)
    table = pd.DataFrame(rows, columns=["tile_id", "part", "label"])
    classes = [set(names) for _, names in table.groupby("part")["label"]]
    if len(classes) < 2 or any(names != classes[0] for names in classes) or "" in classes[0]:
        table = table.drop(columns="label")
    notes = (f"{n_outside} file(s) lie in no folder of a part",) if n_outside else ()
    return Found("folders", table, notes=notes)


def link_tree(
    rows: pd.DataFrame, folder: Path, tiles: pd.DataFrame | None, root: Path | None
) -> tuple[list[Path], list[str]]:
    """Link the tiles of each slide to ``<part>/<tile_id>``; folders of classes stay below.

    Args:
        rows: ``slide_id, fold, part``.
        folder: Where the folders of the parts go, in one of the fold where there are several.
        tiles: ``tile_id`` (relative to ``root``) and ``slide_id``.
        root: Where the tiles lie.

    Returns:
        The folders of the parts, and what is lost, in words.

    Raises:
        InputError: Tiles or root are not given, a slide has no tile, a tile is no file, or the file
            system has no links.
    """
    if tiles is None or root is None:
        message = "folders of parts are made of tiles: give tiles (tile_id, slide_id) and root"
        raise InputError(message)
    known = pd.DataFrame({name: text(tiles, name) for name in ("tile_id", "slide_id")})
    placed = known.merge(rows[["slide_id", "fold", "part"]], on="slide_id")
    without = sorted(set(rows["slide_id"]) - set(placed["slide_id"]))
    if without:
        message = f"{len(without)} slide(s) of the split have no tile, the first is {without[0]!r}"
        raise InputError(message)
    absent = [name for name in placed["tile_id"].unique() if not (root / name).is_file()]
    if absent:
        message = (
            f"{len(absent)} tile(s) are no files below {root}, the first is {absent[0]!r} "
            "(a window of an image cannot be linked to)"
        )
        raise InputError(message)
    made = []
    for base, members in each_fold(placed, folder):
        for name, part in zip(members["tile_id"], members["part"], strict=True):
            _link(base / part / name, (root / name).resolve())
        made += [base / part for part in PARTS if (members["part"] == part).any()]
    lost = ["which slide a tile is of", "the files: they are links, which break if the data move"]
    n_left = int((~known["slide_id"].isin(rows["slide_id"])).sum())
    if n_left:
        lost.append(f"{n_left} tile(s) of slides that are not in the split")
    return made, lost


def each_fold(rows: pd.DataFrame, folder: Path, name: str = "") -> list[tuple[Path, pd.DataFrame]]:
    """The file ``name`` of each fold, in a folder of its own where there are several."""
    folds = sorted(rows["fold"].unique())
    single = folds == [0]
    return [
        (folder / name if single else folder / f"fold_{fold}" / name, rows[rows["fold"] == fold])
        for fold in folds
    ]


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target)
    except OSError as error:  # a FAT disk, or Windows without the right to link
        message = f"{link} cannot be made as a link ({error.strerror or error})"
        raise InputError(message) from error


def _depth(root: Path) -> int | None:
    """How deep the folders of the parts lie below ``root``: 0, 1 below classes, None for no parts.

    One folder of a part is none yet: ``test`` alone may hold anything.
    """
    top = _subfolders(root)
    if sum(folder.name.lower() in PART_NAMES for folder in top) > 1:
        return 0
    below = [[folder.name.lower() for folder in _subfolders(entry)] for entry in top]
    if below and all(names and set(names) <= set(PART_NAMES) for names in below):
        return 1 if any(len(names) > 1 for names in below) else None
    return None


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name[0] != "."]


def _files(root: Path) -> list[str]:
    """All files below, without hidden ones, relative and sorted; links are followed."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(folder).relative_to(root)
        found += [(base / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)
