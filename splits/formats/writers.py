"""Writing a split for another tool, and saying in words what that tool's format cannot hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from splits.artifacts import atomic, write_csv
from splits.errors import InputError, unknown
from splits.formats.folders import each_fold, link_tree
from splits.groups import PARTS, slide_rows, text

__all__ = ["WRITABLE", "Written", "require_writable", "write"]


@dataclass(frozen=True)
class Written:
    """What `write` made.

    Attributes:
        files: The files, or the folders of the parts, in the order of their folds.
        lost: What the format cannot hold or its tool does not read, in words.
    """

    files: tuple[Path, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class _Kind:
    """A format: how it is written, what it needs of each slide, what else it keeps of a slide.

    Attributes:
        save: Writes the rows into a folder and returns the files and what is lost.
        needs: Columns that may not be empty.
        keeps: Columns that are written; others are lost.
    """

    save: Callable[[pd.DataFrame, Path], tuple[list[Path], list[str]]]
    needs: tuple[str, ...]
    keeps: tuple[str, ...]


def write(
    split_table: pd.DataFrame,
    kind: str,
    folder: Path,
    *,
    slides: pd.DataFrame | None = None,
    tiles: pd.DataFrame | None = None,
    root: Path | None = None,
) -> Written:
    """Write a split in the format of another tool.

    Args:
        split_table: ``slide_id, fold, part`` and, where known, ``group_id``; one row a slide in
            each fold.
        kind: One of `WRITABLE`.
        folder: A new or empty folder. Formats that hold a single fold get a folder ``fold_<k>``
            (or a numbered file) each where there are several.
        slides: The slide table: ``slide_id, patient_id, site_id, label``.
        tiles: For ``folders``: ``tile_id`` (relative to ``root``) and ``slide_id``.
        root: For ``folders``: where the tiles lie. They are linked to, not copied.

    Returns:
        The files, and what was lost.

    Raises:
        InputError: The folder is not empty, the kind is unknown, a slide is in two parts of a fold,
            or something that the format needs is not known of every slide.
    """
    require_writable(kind, folder)
    rows = _rows(split_table, slides)
    if kind == "folders":
        made, lost = link_tree(rows, folder, tiles, root)
        return Written(tuple(made), (*lost, *_unheld(rows, ("label", "fold"))))
    chosen = _KINDS[kind]
    for column in chosen.needs:
        missing = rows.loc[rows[column].isna(), "slide_id"]
        if len(missing):
            message = (
                f"{kind} needs {column} of every slide; {missing.nunique()} have none, the first "
                f"is {missing.iloc[0]!r}: give the slide table (slides)"
            )
            raise InputError(message)
    files, lost = chosen.save(rows, folder)
    return Written(tuple(files), (*lost, *_unheld(rows, chosen.keeps)))


def require_writable(kind: str, folder: Path) -> None:
    """Refuse an unknown format, and a folder that holds something: before the split is made.

    Raises:
        InputError: As for `write`.
    """
    if kind not in WRITABLE:
        raise unknown(kind="format to write", given=kind, allowed=WRITABLE)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"{folder} is not an empty folder: nothing is overwritten, give a new one"
        raise InputError(message)


def _rows(split_table: pd.DataFrame, slides: pd.DataFrame | None) -> pd.DataFrame:
    """``slide_id, patient_id, site_id, label, group_id, fold, part``, sorted by fold and slide."""
    lacking = sorted({"slide_id", "part"} - set(split_table.columns))
    if lacking or split_table.empty:
        message = f"a split to write needs rows with slide_id, fold and part; missing: {lacking}"
        raise InputError(message)
    names = ("slide_id", "patient_id", "site_id", "label", "group_id", "part")
    rows = pd.DataFrame({name: text(split_table, name) for name in names})
    rows["fold"] = split_table["fold"].astype("int64") if "fold" in split_table.columns else 0
    strange = sorted(set(rows["part"].fillna("")) - set(PARTS))
    if strange:
        raise unknown(kind="part", given=strange[0], allowed=PARTS)
    if rows["slide_id"].isna().any():
        message = f"{int(rows['slide_id'].isna().sum())} row(s) of the split name no slide"
        raise InputError(message)
    twice = rows.duplicated(["slide_id", "fold"])
    if twice.any():
        first = rows[twice].iloc[0]
        message = (
            f"slide {first['slide_id']!r} stands twice in fold {first['fold']}: a split to write "
            "has every slide in one part of a fold"
        )
        raise InputError(message)
    if slides is not None:
        known = slide_rows(slides).set_index("slide_id")
        for name in ("patient_id", "site_id", "label"):
            if name in known.columns:
                rows[name] = rows["slide_id"].map(known[name]).astype("string").fillna(rows[name])
    return rows.sort_values(["fold", "slide_id"], kind="stable").reset_index(drop=True)


def _unheld(rows: pd.DataFrame, keeps: tuple[str, ...]) -> list[str]:
    """What is known of the slides and has no place in the format."""
    words = {
        "patient_id": "patients: which slides are of one patient",
        "site_id": "sites: which slides are of one site",
        "label": "labels of the slides",
        "group_id": "groups: which slides were kept together",
    }
    lost = [said for name, said in words.items() if name not in keeps and rows[name].notna().any()]
    folds = sorted(rows["fold"].unique())
    if "fold" not in keeps and folds != [0] and folds != list(range(len(folds))):
        lost.append(f"the numbers of the folds: {', '.join(map(str, folds))} are counted from 0")
    return lost


def _ragged(rows: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Columns ``<part>`` filled from the top: format name of the column -> ours, for each part."""
    filled = {
        pattern.format(part): rows.loc[rows["part"] == part, ours].reset_index(drop=True)
        for part in PARTS
        for pattern, ours in columns.items()
    }
    return pd.DataFrame(filled)


def _coded(rows: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """Class numbers, for tools that compute with them; whole numbers stay as they are."""
    classes = sorted(rows["label"].unique())
    if all(name.isdecimal() for name in classes):
        return rows["label"], []
    codes = {name: str(code) for code, name in enumerate(classes)}
    said = ", ".join(f"{code} = {name}" for name, code in codes.items())
    return rows["label"].map(codes), [f"names of the classes, which are written as numbers: {said}"]


def _clam(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    files = []
    for fold, members in rows.groupby("fold"):
        file = folder / f"splits_{fold}.csv"
        with atomic(file) as temporary:
            _ragged(members, {"{}": "slide_id"}).to_csv(temporary)
        files.append(file)
    return files, []


def _patho_bench(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    labels, lost = _coded(rows)
    known = rows.assign(label=labels).drop_duplicates("slide_id").sort_values("slide_id")
    parts = rows.pivot(index="slide_id", columns="fold", values="part").add_prefix("fold_")
    table = known[["patient_id", "slide_id", "label"]].merge(parts, on="slide_id")
    file = folder / "k=all.tsv"
    with atomic(file) as temporary:
        table.rename(columns={"patient_id": "case_id"}).to_csv(temporary, sep="\t", index=False)
    return [file], lost


def _stamp(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    pairs = rows[["fold", "patient_id", "part"]].drop_duplicates()
    both = pairs[pairs.duplicated(["fold", "patient_id"])]
    if len(both):
        message = (
            f"STAMP holds patients, not slides: patient {both['patient_id'].iloc[0]!r} has slides "
            f"in several parts of fold {both['fold'].iloc[0]} ({len(both)} such)"
        )
        raise InputError(message)
    splits = []
    for _, members in pairs.groupby("fold"):
        patients = {
            f"{part}_patients": sorted(members.loc[members["part"] == part, "patient_id"])
            for part in PARTS
        }
        splits.append({key: ids for key, ids in patients.items() if ids or key[:3] != "val"})
    file = folder / "splits.json"
    with atomic(file) as temporary:
        document = json.dumps({"splits": splits}, indent=4, ensure_ascii=False)
        temporary.write_text(document + "\n", encoding="utf-8")
    lost = ["slides: STAMP holds patients, its slide table says which slides are theirs"]
    if (pairs["part"] == "val").any():
        lost.append(
            "the validation part: val_patients is written, but STAMP does not read it and draws "
            "its own from train_patients; the patients of val take part in nothing"
        )
    return [file], lost


def _torchmil(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    files = each_fold(rows, folder, "splits.csv")
    for file, members in files:
        table = members[["slide_id", "part"]]
        write_csv(file, table.set_axis(["bag_name", "split"], axis=1))
    lost = [
        "the validation part: val is written, but the data sets of torchmil read train and test"
    ]
    return [file for file, _ in files], lost if (rows["part"] == "val").any() else []


def _slideflow(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    files = each_fold(rows, folder, "annotations.csv")
    names = {"patient_id": "patient", "slide_id": "slide", "site_id": "site", "label": "label"}
    for file, members in files:
        table = members[[*names, "part"]].rename(columns={**names, "part": "dataset"})
        write_csv(file, table.dropna(axis=1, how="all"))
    lost = ["what the parts are for: slideflow reads what filters={'dataset': ['train']} selects"]
    return [file for file, _ in files], lost


def _mil_baseline(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    labels, lost = _coded(rows)
    files = []
    for fold, members in rows.assign(label=labels).groupby("fold"):
        file = folder / f"split_{fold}fold.csv"
        write_csv(file, _ragged(members, {"{}_slide_path": "slide_id", "{}_label": "label"}))
        files.append(file)
    return files, [*lost, "where the features lie: MIL_BASELINE opens slide_path, put paths there"]


def _eva(rows: pd.DataFrame, folder: Path) -> tuple[list[Path], list[str]]:
    labels, lost = _coded(rows)
    files = each_fold(rows.assign(label=labels), folder, "manifest.csv")
    for file, members in files:
        slide = members["slide_id"]
        columns = {
            "origin": slide,
            "embeddings": slide + ".pt",
            "target": members["label"],
            "split": members["part"],
            "wsi_id": slide,
        }
        write_csv(file, pd.DataFrame(columns))
    lost.append("where the features lie: embeddings names <slide_id>.pt in the root of the set")
    return [file for file, _ in files], lost


_KINDS: Final = {
    "clam": _Kind(_clam, (), ("fold",)),
    "patho-bench": _Kind(_patho_bench, ("patient_id", "label"), ("patient_id", "label", "fold")),
    "stamp": _Kind(_stamp, ("patient_id",), ("patient_id",)),
    "torchmil": _Kind(_torchmil, (), ("fold",)),
    "slideflow": _Kind(_slideflow, ("patient_id",), ("patient_id", "site_id", "label", "fold")),
    "mil-baseline": _Kind(_mil_baseline, ("label",), ("label", "fold")),
    "eva": _Kind(_eva, ("label",), ("label", "fold")),
}
WRITABLE: Final = (*_KINDS, "folders")
