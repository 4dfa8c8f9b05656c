"""Slides that the vote and a trained method call differently, and what each of the two rests on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from mil.predictions import counted, ends

__all__ = ["flat", "flips", "summary", "votes"]

_N_ENDS: Final = 5
_FLIPS: Final = [
    *("slide_id", "patient_id", "fold", "label", "n_tiles", "vote", "vote_p", "vote_margin"),
    *("predicted", "p", "right", "effective_tiles", "top_tenth_share", "measure"),
]


def votes(tile_rows: pd.DataFrame) -> pd.DataFrame:
    """How the tiles of each slide voted, one tile one vote.

    Args:
        tile_rows: Test rows of tile predictions.

    Returns:
        ``n_tiles, vote_margin, second`` by ``slide_id``: the share of tiles of the first class
        minus that of the second, and the second (None where all tiles agree).
    """
    counts = pd.crosstab(
        tile_rows["slide_id"].astype(object), tile_rows["predicted"].astype(object)
    )
    matrix = counts.to_numpy(dtype=np.float64)
    order = np.argsort(-matrix, axis=1, kind="stable")
    sizes = matrix.sum(axis=1)
    first = np.take_along_axis(matrix, order[:, :1], axis=1)[:, 0]
    second, names = np.zeros(len(matrix)), np.full(len(matrix), None, dtype=object)
    if matrix.shape[1] > 1:
        second = np.take_along_axis(matrix, order[:, 1:2], axis=1)[:, 0]
        names[second > 0] = counts.columns.to_numpy(dtype=object)[order[second > 0, 1]]
    return pd.DataFrame(
        {
            "n_tiles": sizes.astype(np.int64),
            "vote_margin": (first - second) / sizes,
            "second": pd.Series(names, counts.index, dtype=object),
        },
        index=counts.index,
    )


def flips(
    predictions: pd.DataFrame,
    tile_rows: pd.DataFrame | None,
    attention: pd.DataFrame | None,
    scores: pd.DataFrame | None,
    patients: pd.Series,
    method: str,
) -> list[dict[str, Any]]:
    """The slides that the vote and a method call differently, with what each rests on.

    Returns:
        A record a slide, sorted by ``slide_id``: ``vote_margin`` as of :func:`votes`,
        ``effective_tiles`` the exponential of the entropy of the attention (the number of tiles
        that would have it if it were even; Hill 1973), ``top_tenth_share`` the attention on the
        highest tenth of the tiles, ``top`` and ``bottom`` the tiles at both ends of what
        :func:`mil.predictions.extremes` goes by. What is not known is None.
    """
    columns = ["slide_id", "fold", "label", "predicted"]
    shares = [name for name in predictions.columns if str(name).startswith("p_")]
    sides = []
    for name in ("vote", method):
        rows = predictions[predictions["method"] == name].reset_index(drop=True)
        place = pd.Index([share[2:] for share in shares]).get_indexer(rows["predicted"])
        p = rows[shares].to_numpy(dtype=np.float64)[np.arange(len(rows)), place]
        sides.append(rows[columns].assign(p=p))
    both = sides[1].merge(
        sides[0][["slide_id", "predicted", "p"]].rename(
            columns={"predicted": "vote", "p": "vote_p"}
        ),
        on="slide_id",
        validate="one_to_one",
    )
    both = both[both["vote"] != both["predicted"]].sort_values("slide_id")
    margins = None if tile_rows is None else votes(tile_rows)
    weighed = None
    if attention is not None:
        slides = set(both["slide_id"])
        attention = attention[(attention["method"] == method) & attention["slide_id"].isin(slides)]
        weighed = counted(method, predictions, attention, scores)
    return [_flip(row, margins, attention, weighed, patients) for row in both.to_dict("records")]


def _flip(
    row: Mapping[str, Any],
    margins: pd.DataFrame | None,
    attention: pd.DataFrame | None,
    weighed: pd.DataFrame | None,
    patients: pd.Series,
) -> dict[str, Any]:
    slide = row["slide_id"]
    right = {row["vote"]: "vote", row["predicted"]: "method"}.get(row["label"], "neither")
    record = {**dict.fromkeys(_FLIPS), **row, "right": right, "patient_id": patients[slide]}
    if margins is not None:
        record["n_tiles"] = int(margins.loc[slide, "n_tiles"])
        record["vote_margin"] = float(margins.loc[slide, "vote_margin"])
    if attention is not None:
        weights = attention.loc[attention["slide_id"] == slide, "attention"].to_numpy(np.float64)
        if len(weights):
            record["effective_tiles"] = float(np.exp(_entropy(weights)))
            tenth = int(np.ceil(len(weights) / 10))
            record["top_tenth_share"] = float(np.sort(weights)[-tenth:].sum())
    both: dict[str, list[dict[str, Any]]] = {"top": [], "bottom": []}
    bag = None if weighed is None else weighed[weighed["slide_id"] == slide]
    if bag is not None and len(bag):
        record["measure"] = bag["measure"].iloc[0]
        for tile in ends(bag, "score", _N_ENDS).itertuples():
            both[tile.end].append({"tile_id": tile.tile_id, "score": float(tile.score)})
    return {**{name: record[name] for name in _FLIPS}, **both}


def _entropy(weights: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    share = weights[weights > 0] / weights.sum()
    return float(-(share * np.log(share)).sum())


def summary(listed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many flips there are, who was right, and the records of :func:`flips`."""
    right = [record["right"] for record in listed]
    counts = {
        f"n_{kind}": right.count(who)
        for kind, who in (
            ("vote_right", "vote"),
            ("method_right", "method"),
            ("neither", "neither"),
        )
    }
    return {"n": len(listed), **counts, "slides": list(listed)}


def flat(listed: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a slide for ``flips.csv``; tile ids may hold any character, so they are JSON lists."""
    rows = [
        {
            **{name: record[name] for name in _FLIPS},
            **{
                f"{end}_tiles": json.dumps([t["tile_id"] for t in record[end]], ensure_ascii=False)
                for end in ("top", "bottom")
            },
        }
        for record in listed
    ]
    return pd.DataFrame(rows, columns=[*_FLIPS, "top_tiles", "bottom_tiles"])
