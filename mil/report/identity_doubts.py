"""What a person should look at on the identity page: conflicts, contradictions, held-back links."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from mil.report import tables
from mil.report.identity_pictures import KIND_WORDS, MAX_SUSPECTS, suspects
from mil.report.pictures import ReadTile

__all__ = ["conflicts", "doubts"]

_SHOWN: Final = 20
_LISTED: Final = 50


def conflicts(
    report: Mapping[str, Any], links: pd.DataFrame | None, read_tile: ReadTile | None
) -> dict[str, Any]:
    """Suspected errors in the ids, one entry a pair of ids, those of most links first."""
    by_ids: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in report.get("conflicts") or []:
        by_ids[(str(row["level"]), *sorted(map(str, row["ids"])))].append(row)
    entries: list[dict[str, Any]] = [
        {
            "level": key[0],
            "rows": rows,
            "n_links": sum(int(row.get("n_links", 1)) for row in rows),
            "evidence": tables.text(list(dict.fromkeys(str(row["evidence"]) for row in rows))),
        }
        for key, rows in by_ids.items()
    ]
    entries.sort(key=lambda entry: -entry["n_links"])
    shown, rest = entries[:MAX_SUSPECTS], entries[MAX_SUSPECTS:]
    # A tile of a pair of ids is of one id only, so that the id of a drawn tile can be looked up.
    pairs = [[(str(r["tiles"][0]), str(r["tiles"][1])) for r in e["rows"]] for e in shown]
    for entry, picture in zip(shown, suspects(pairs, links, read_tile), strict=True):
        entry["picture"] = picture
        row = next(r for r in entry["rows"] if tuple(map(str, r["tiles"])) == picture.tiles)
        entry["ids"] = [str(name) for name in row["ids"]]
    merges = report.get("merges") or []
    return {
        "declared": bool(report.get("coverage")),
        "conflicts": shown,
        "n_conflicts": len(entries),
        "more_conflicts": tables.grid(
            [
                {
                    "level": entry["level"],
                    "one id": entry["rows"][0]["ids"][0],
                    "other id": entry["rows"][0]["ids"][1],
                    "links": entry["n_links"],
                    "evidence": entry["evidence"],
                    "tiles": " and ".join(map(str, entry["rows"][0]["tiles"])),
                }
                for entry in rest[:_LISTED]
            ]
        ),
        "n_unlisted": max(0, len(rest) - _LISTED),
        "n_merges": len(merges),
        "merges": tables.grid(
            [{"group": m["group_id"], "holds": list(m["members"])} for m in merges[:_LISTED]]
        ),
    }


def doubts(report: Mapping[str, Any], links: pd.DataFrame | None) -> dict[str, Any]:
    """Links that contradict others, and links that one cue alone speaks for."""
    against = report.get("contradictions") or []
    held = None if links is None else links[links["state"].astype(str) == "held"]
    best = [] if held is None else held.nlargest(_SHOWN, "score").to_dict("records")
    return {
        "n_against": len(against),
        "against": tables.grid(
            [
                {
                    "one tile": row["tiles"][0],
                    "other tile": row["tiles"][1],
                    "evidence": _kind(row["kind"]),
                    "why it was cut": row["why"],
                }
                for row in against[:_SHOWN]
            ]
        ),
        "n_held": 0 if held is None else len(held),
        "held": tables.grid(
            [
                {
                    "one tile": row["tile_a"],
                    "other tile": row["tile_b"],
                    "evidence": _kind(row["kind"]),
                    "score": float(row["score"]),
                }
                for row in best
            ]
        ),
    }


def _kind(kind: object) -> str:
    return KIND_WORDS[str(kind)][0] if str(kind) in KIND_WORDS else str(kind)
