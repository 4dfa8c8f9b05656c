"""Every row of a split with the identity that is known of it, and a word on where it came from."""

from __future__ import annotations

from typing import Final

import pandas as pd

from splits.errors import InputError, unknown
from splits.groups import PARTS, text
from splits.identity.grammar import STRONG, parse

__all__ = ["place", "split_rows"]

_IDS: Final = ("tile_id", "slide_id", "patient_id", "site_id", "group_id", "label")


def place(
    rows: pd.DataFrame, slides: pd.DataFrame | None, tiles: pd.DataFrame | None
) -> tuple[pd.DataFrame, list[str]]:
    """Join a split with the slide table, the tile table and, for what is left, with names.

    Args:
        rows: As `split_rows` gives them.
        slides: The slide table; its ids and labels go before those of the split.
        tiles: The tile table; says the slide of each tile of a split of tiles.

    Returns:
        ``tile_id, slide_id, patient_id, site_id, group_id, label, fold, part`` (null where
        unknown), and what identity was had from where, in words.
    """
    had = [f"{name} from the split" for name in _IDS if rows[name].notna().any()]
    if tiles is not None and rows["slide_id"].isna().any() and rows["tile_id"].notna().any():
        of_tile = text(tiles.drop_duplicates("tile_id").set_index("tile_id"), "slide_id")
        if of_tile.notna().any():
            values = rows["slide_id"].fillna(rows["tile_id"].map(of_tile))
            rows = rows.assign(slide_id=values)
            had.append("slide_id from the tile table")
    if slides is not None:
        if rows["slide_id"].isna().all():  # a split of patients, such as STAMP's
            named = slides.dropna(subset="patient_id")[["patient_id", "slide_id"]]
            rows = rows.drop(columns="slide_id").merge(named, on="patient_id", how="left")
        table = slides.set_index("slide_id")
        for name in ("patient_id", "site_id", "group_id", "label"):
            values = rows["slide_id"].map(text(table, name)).astype("string")
            if values.notna().any():
                rows = rows.assign(**{name: values.fillna(rows[name])})
                had.append(f"{name} from the slide table")
    return _from_names(rows, had)


def split_rows(table: pd.DataFrame) -> pd.DataFrame:
    """A split as text ids, ``fold`` (0 where absent) and ``part``.

    Raises:
        InputError: The split names no part or no ids, or a part is unknown.
    """
    if "part" not in table.columns or not any(
        name in table.columns for name in ("slide_id", "patient_id", "tile_id")
    ):
        message = (
            "a split needs part and one of slide_id, patient_id, tile_id; "
            f"got {', '.join(map(str, table.columns))}"
        )
        raise InputError(message)
    strange = sorted(set(table["part"].astype(str)) - set(PARTS))
    if strange:
        raise unknown(kind="part", given=strange[0], allowed=PARTS)
    ids = {name: text(table, name) for name in _IDS}
    fold = table["fold"].astype("int64") if "fold" in table.columns else 0
    return pd.DataFrame({**ids, "fold": fold, "part": table["part"].astype("string")})


def _from_names(rows: pd.DataFrame, had: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Derive patients and sites from slide names (or slides from tile names) where unknown."""
    for source, target in (
        ("tile_id", "slide_id"),
        ("slide_id", "patient_id"),
        ("slide_id", "site_id"),
    ):
        absent = rows[source].notna() & rows[target].isna()
        names = rows.loc[absent, source].unique()
        # A weak grammar is believed for a whole folder that passes a test, never for one name.
        said = {
            name: getattr(found, target.removesuffix("_id"))
            for name, found in zip(names, map(parse, names), strict=True)
            if found is not None and found.confidence >= STRONG
        }
        said = {name: value for name, value in said.items() if value}
        if said:
            values = rows[source].map(said).astype("string")
            rows = rows.assign(**{target: rows[target].fillna(values)})
            had.append(f"{target} from the names of {len(said)} of {len(names)} {source}s")
    for target in ("patient_id", "site_id"):
        n_unknown = rows.loc[rows[target].isna(), "slide_id"].nunique()
        if n_unknown:
            had.append(f"no {target} for {n_unknown} slide(s): these were not checked for it")
    return rows, had
