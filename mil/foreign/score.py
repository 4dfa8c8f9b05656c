"""Scores predictions of other tools: into a folder of tables, and through our own evaluation.

The folder has no tiles, no split and no model. Its ``slides.parquet`` stands in for the tile
table, ``predictions.parquet`` is as in a run, and :func:`mil.evaluate.evaluate` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mil import evaluate
from mil.config import Evaluate
from mil.foreign import classes as naming
from mil.foreign import cohort as cohorts
from mil.foreign.answers import Answers, Remarks, read
from mil.foreign.tables import covered, of_file, of_tiles, once_each, one_fold_each
from mil.predictions import SLIDES
from mil.prepare import Progress
from splits.artifacts import digest, file_digest, is_current, read_json, write_json, write_table
from splits.errors import InputError, unknown
from splits.identity.table import read_cells

__all__ = ["SOURCE", "Scored", "is_foreign", "score"]

SOURCE: Final = "source.json"
"""Where the predictions came from, and what was made of them."""


@dataclass(frozen=True)
class Scored:
    """What scoring gives.

    Attributes:
        metrics: The content of ``metrics.json``.
        notes: How the files were read, a sentence each.
        cautions: What limits the numbers, a sentence each; they stand in ``metrics.json``, too.
    """

    metrics: dict[str, Any]
    notes: tuple[str, ...]
    cautions: tuple[str, ...]


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds scored predictions of another tool, and no run."""
    return (folder / SLIDES).exists()


def score(
    files: Sequence[str],
    out: Path,
    *,
    slides: Path | None = None,
    tiles: Path | None = None,
    columns: Mapping[str, str] | None = None,
    partial: bool = False,
    label_order: Sequence[str] | None = None,
    n_draws: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scored:
    """Score files of predictions; a second look at the same ones is not taken.

    Args:
        files: ``FILE``, or ``METHOD=FILE``; several files of one method are its folds. A file
            without a column ``method`` is a method of the file's name.
        out: Folder for the tables, ``metrics.json`` and ``seal.json``.
        slides: Label table with a row a slide; it settles labels, patients, sites, and which
            slides have to be predicted.
        tiles: Predictions of single tiles, for the tile level.
        columns: Our name, or ``p_<class>`` -> the name in the files, where not recognised.
        partial: Score the slides that every method predicts although others are known.
        label_order: Classes from lowest to highest, if they have an order.
        n_draws: Bootstrap draws; None: as in a run.
        seed: Seed of the draws.
        progress: Shows what is scored.

    Raises:
        InputError: Anything that cannot be scored as it is: see ``docs/predictions.md``.
    """
    if any((out / name).exists() for name in ("config.yaml", "tiles.parquet")):
        message = f"{out} is a run: give another folder for the predictions of other tools"
        raise InputError(message)
    columns, remarks = columns or {}, Remarks()
    named = _named(files)
    paths = {"predictions": [path for _, path in named]}
    paths |= {"slides": [slides] if slides else [], "tiles": [tiles] if tiles else []}
    _require_columns(columns, [path for listed in paths.values() for path in listed])
    answers, cohort = _read(named, slides, columns, remarks)
    classes = naming.of_files(answers, cohort.labels)
    tables = [of_file(found, classes, remarks) for found in answers]
    predictions = one_fold_each(once_each(pd.concat(tables, ignore_index=True)), remarks)
    predictions = covered(predictions, cohort, remarks, partial=partial)
    predictions["label"] = predictions["slide_id"].map(cohort.labels)
    test = predictions[predictions["part"] == "test"].drop_duplicates("slide_id")
    fold_of = test.set_index("slide_id")["fold"]
    of_single_tiles = None
    if tiles is not None:
        found = cohort.matched(read(tiles, columns, remarks, classes, tiles=True), remarks)
        of_single_tiles = of_tiles(found, cohort, classes, fold_of, remarks)

    digests = {
        "predictions": digest(
            [
                {kind: [file_digest(path) for path in listed] for kind, listed in paths.items()},
                [name for name, _ in named],
                dict(columns),
                partial,
            ]
        )
    }
    n_draws = Evaluate().bootstrap if n_draws is None else n_draws
    scored = {**digests, "evaluate": digest([n_draws, seed, label_order])}
    if not is_current(out / "metrics.json", scored):
        about = cohort.slides[cohort.slides["slide_id"].isin(predictions["slide_id"])]
        fold = about["slide_id"].map(fold_of).astype("Int64")
        write_table(out / SLIDES, about.assign(fold=fold), digests)
        write_table(out / "predictions.parquet", predictions, digests)
        if of_single_tiles is None:  # never leave the file of an earlier look beside new metrics
            (out / "tile_predictions.parquet").unlink(missing_ok=True)
        else:
            write_table(out / "tile_predictions.parquet", of_single_tiles, digests)
        source = {
            "files": [_source(found) for found in answers],
            "slides": str(slides) if slides else None,
            "tiles": str(tiles) if tiles else None,
            "notes": remarks.notes,
            "cautions": remarks.cautions,
        }
        write_json(out / SOURCE, source, digests)
        evaluate.evaluate(
            out,
            n_draws=n_draws,
            seed=seed,
            order=label_order,
            digests=scored,
            cautions=remarks.cautions,
            progress=progress,
        )
    metrics = read_json(out / "metrics.json")
    return Scored(metrics, tuple(remarks.notes), tuple(remarks.cautions))


def _named(files: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Method, where it is named, and file."""
    named: list[tuple[str | None, Path]] = []
    for given in files:
        name, equals, path = given.partition("=")
        whole = not equals or Path(given).exists()
        named.append((None, Path(given)) if whole else (name.strip(), Path(path)))
        if not whole and not name.strip():
            message = f"--predictions {given!r}: METHOD=FILE needs the name of the method"
            raise InputError(message)
    return named


def _require_columns(columns: Mapping[str, str], paths: Sequence[Path]) -> None:
    """Refuse a mapping of a column that no file has."""
    has = {name for path in paths for name in read_cells(path).columns}
    for theirs in columns.values():
        if theirs not in has:
            raise unknown(kind="column of these files", given=theirs, allowed=has)


def _read(
    named: Sequence[tuple[str | None, Path]],
    slides: Path | None,
    columns: Mapping[str, str],
    remarks: Remarks,
) -> tuple[list[Answers], cohorts.Cohort]:
    """The files with ids and classes as the labels have them, and the cohort."""
    if slides is None:
        files = _methods([read(path, columns, remarks) for _, path in named], named)
        cohort, files = cohorts.of_files(files, _unit(files, remarks), remarks)
        return files, cohort
    # Classes may be names of columns; whether a row is a slide or a patient the files say.
    labels = set(cohorts.of_table(slides, columns, "slide", Remarks()).labels.values())
    read_ = [read(path, columns, remarks, labels) for _, path in named]
    files = _methods(read_, named)
    cohort = cohorts.of_table(slides, columns, _unit(files, remarks), remarks)
    matched = [cohort.matched(found, remarks) for found in files]
    return [naming.named(found, cohort.labels, remarks) for found in matched], cohort


def _unit(files: Sequence[Answers], remarks: Remarks) -> str:
    """What a row is in all files.

    Raises:
        InputError: A slide in one and a patient in another.
    """
    units = {found.shape.unit: found.path for found in files}
    if len(units) > 1:
        message = (
            f"a row is a slide in {units['slide']} and a patient in {units['patient']}: "
            "score them apart"
        )
        raise InputError(message)
    if "patient" in units:
        remarks.notes.append("a row is a patient: each counts as one slide")
    return next(iter(units))


def _methods(files: Sequence[Answers], named: Sequence[tuple[str | None, Path]]) -> list[Answers]:
    """The files with a method in every row, and a fold where files of one method are its folds."""
    asked = [name for name, _ in named]
    found = []
    for place, (name, answers) in enumerate(zip(asked, files, strict=True)):
        rows = answers.rows
        given = set(rows["method"]) if "method" in rows else set()
        if name is not None and len(given) > 1:
            message = (
                f"{answers.path} has {len(given)} methods of its own "
                f"({', '.join(sorted(given))}): leave {name}= out"
            )
            raise InputError(message)
        if "" in given:
            first = rows.loc[rows["method"] == "", "slide_id"].iloc[0]
            message = f"{answers.path}: a row has no method, the first is of slide {first!r}"
            raise InputError(message)
        if name is not None or not given:
            rows = rows.assign(method=name or answers.path.stem)
        if name is not None and "fold" not in rows and asked.count(name) > 1:
            rows = rows.assign(fold=str(asked[:place].count(name)))
        found.append(answers.with_rows(rows))
    plain = [f.path for f, name in zip(files, asked, strict=True) if name is None]
    stems = [path.stem for path in plain]
    twice = [path for path in plain if stems.count(path.stem) > 1]
    if twice and not all("method" in f.rows for f in files if f.path in twice):
        message = (
            f"{twice[0]} and {twice[1]} would both be the method {twice[0].stem!r}: name them, as "
            f"in --predictions METHOD={twice[0]} (files of one name are the folds of a method)"
        )
        raise InputError(message)
    return found


def _source(answers: Answers) -> dict[str, Any]:
    return {
        "file": str(answers.path),
        "sha256": file_digest(answers.path),
        "rows": len(answers.rows),
        "methods": sorted(set(answers.rows["method"])),
        "columns": {
            **answers.shape.fields,
            **{f"p_{n}": c for n, c in answers.shape.scores.items()},
        },
        "unused_columns": list(answers.shape.unused),
    }
