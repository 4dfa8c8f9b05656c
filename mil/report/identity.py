"""The page that shows how slide identity was put together: ``identity.html``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from mil import prepare
from mil.config import Config
from mil.report import tables
from mil.report.identity_doubts import conflicts, doubts
from mil.report.identity_pictures import KIND_WORDS, MAX_TILES, mosaics
from mil.report.pictures import ReadTile
from mil.report.templates import inline, write_page
from splits.artifacts import read_json, read_table
from splits.content.links import KINDS
from splits.errors import InputError

__all__ = ["build", "identify_run"]

_LISTED: Final = 50
_MEANING: Final = {
    "A": "A manifest or the names say which slide each tile comes from, and nothing that was "
    "found speaks against it.",
    "B": "The pixels tie nearly every tile to others of its slide; declared ids alone would "
    "not do.",
    "C": "The evidence is weak or contradicts itself: these groups are the best guess, not a "
    "record.",
    "D": "Nothing that was found suffices to say which slide a tile comes from.",
}
_SPLIT: Final = {
    "A": "A split on these groups may be called {unit}-level.",
    "B": "A split on these groups may be called slide-level, reconstructed from pixels; "
    "patient-level only as far as declared ids go. Two slides of one patient share no pixels, "
    "nor do regions of one slide that lie apart.",
    "C": "Call a split on these groups what it is, a split on reconstructed groups of grade C, "
    "with the estimated leakage beside every score; never plainly slide-level.",
    "D": "Slidewise refuses to split on it: that would be a tile-level split under another "
    "name, or leak nearly like one.",
}
_FACTS: Final = {
    "n": "joined components",
    "n_several": "components of several tiles",
    "largest": "tiles in the largest component",
    "lone_tiles": "tiles joined to no other",
    "blank_tiles": "blank tiles",
}
_LEFT: Final = {
    "unidentified": "no id by the accepted rule, so that they left the tile table",
    "blank": "no tissue that could tie them to a slide, so that they left the tile table",
}
_KIND_MEANS: Final = {
    "identical": "The same pixels, stored more than once",
    "turned": "The same tile by quarter turns or mirror images, or saved again",
    "duplicate": "The same tissue after a rotation by any angle, a crop or a flip",
    "overlap": "Two tiles that share a part of their area",
    "seam": "The edge of one tile goes on in the edge of another",
}
_SCORES: Final = {
    "rl_any": "Test tiles whose slide is in train too",
    "rl_any_patient": "Test tiles whose patient is in train too",
    "rl_mass": "Share of a test tile's slide that is in train",
    "n_eff": "Effective number of groups",
    "n_eff_truth": "Effective number of true patients",
    "largest_share": "Share of the largest group",
    "balance_floor": "Imbalance of classes that no split of these groups avoids",
    "pair_precision": "Pairs of one group that are of one patient",
    "pair_recall": "Pairs of one patient that are of one group",
    "bcubed": "B-cubed F1",
    "ari": "Adjusted Rand index",
    "n_tiles": "Tiles scored",
    "n_without_truth": "Tiles that the truth does not name",
}


def identify_run(
    run: Path,
    config: Config,
    truth: Path | None = None,
    progress: prepare.Progress | None = None,
) -> dict[str, Any]:
    """Identity of every tile (:func:`mil.prepare.identify`) and the page that shows it."""
    if config.identity.embedding == "encoder":
        from mil import encode  # the only part that needs torch

        encode.embed_scanned(run, config, progress)
    found = prepare.identify(run, config, truth, progress)
    if config.data.features is not None:
        return found  # declared by a table: nothing was put together that could be looked at
    page, made_from = run / "identity.html", run / "identity.json"
    if not page.exists() or page.stat().st_mtime_ns < made_from.stat().st_mtime_ns:
        build(run, read_tile=prepare.tile_reader(run, config))
    return found


def build(run: Path, *, read_tile: ReadTile | None) -> Path:
    """Write ``run/identity.html``: one file, no network, from the tables of the run.

    At most 1,500 tiles are read, whatever the size of the run. What a run lacks becomes a sentence
    on the page.

    Args:
        run: The run folder, with ``identity.json``, ``tiles.parquet`` and, where pixels were
            compared, ``layout.parquet`` and ``links.parquet``.
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id; None leaves the pictures out.

    Returns:
        The path of the page.

    Raises:
        InputError: ``identity.json`` or ``tiles.parquet`` is missing, or a file is damaged.
    """
    for name in ("identity.json", "tiles.parquet"):
        if not (run / name).exists():
            message = f"{run / name} does not exist: run `slidewise identify {run}` first"
            raise InputError(message)
    report = read_json(run / "identity.json")
    tiles = read_table(run / "tiles.parquet")
    layout, links = (_optional(run / f"{name}.parquet") for name in ("layout", "links"))
    context = dict(
        name=run.resolve().name,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        style=inline("style.css", "identity.css"),
        has_reader=read_tile is not None,
        max_tiles=MAX_TILES,
        **_verdict(report),
        **conflicts(report, links, read_tile),
        **doubts(report, links),
        mosaics=mosaics(tiles, layout, links, read_tile),
        **_sizes(report, tiles, layout),
        **_evidence(report),
        **_names(report),
    )
    return write_page(run / "identity.html", "identity.html.j2", context)


def _optional(path: Path) -> pd.DataFrame | None:
    return read_table(path) if path.exists() else None


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    grade = str(report["grade"])
    counts, found = report.get("n") or {}, report.get("components") or {}
    facts = {name: n for name, n in counts.items() if n}
    facts |= {words: found[name] for name, words in _FACTS.items() if found.get(name)}
    return {
        "grade": grade,
        "believed": grade in {"A", "B"},
        "meaning": _MEANING.get(grade, ""),
        "reason": str(report.get("reason", "")).rstrip("."),
        "allowed": _SPLIT.get(grade, "").format(unit=report.get("unit", "slide")),
        "facts": {words: f"{n:,}" for words, n in facts.items()},
        "notes": [str(note) for note in report.get("notes") or []],
    }


def _sizes(
    report: Mapping[str, Any], tiles: pd.DataFrame, layout: pd.DataFrame | None
) -> dict[str, Any]:
    """Sizes in bins that double, and how even the groups are."""
    groups = tiles["group_id"].value_counts()
    counts = groups if layout is None else layout["component"].value_counts()
    sizes = counts.to_numpy(dtype=np.int64)
    bins: list[dict[str, Any]] = []
    exponents = np.ceil(np.log2(sizes)).astype(int) if len(sizes) else sizes
    for exponent in range(int(exponents.max(initial=-1)) + 1):
        inside = sizes[exponents == exponent]
        low, high = 2**exponent // 2 + 1, 2**exponent
        name = f"{low:,}" if low >= high else f"{low:,} to {high:,}"
        share = float(inside.sum() / sizes.sum())
        bins.append({"name": name, "n": len(inside), "tiles": int(inside.sum()), "share": share})
    shares = (groups / max(int(groups.sum()), 1)).to_numpy(dtype=np.float64)
    leakage = report.get("leakage")
    return {
        "bins": bins,
        "percent": _percent,
        "widest": max((entry["share"] for entry in bins), default=1.0),
        "by_pixels": layout is not None,
        "n_groups": len(groups),
        "n_eff": 1 / float((shares**2).sum()) if len(shares) else None,
        "largest_share": _percent(float(shares.max(initial=0))),
        "leakage": leakage,
        "leaked": None if leakage is None else _of_100(float(leakage["predicted"])),
        "target": None if leakage is None else f"{100 * float(leakage['target']):.3g}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _of_100(share: float) -> str:
    """A share as a count of 100: "none", "fewer than 1", "12"."""
    n = 100 * share
    return "none" if n == 0 else "fewer than 1" if n < 1 else f"{n:.0f}"


def _evidence(report: Mapping[str, Any]) -> dict[str, Any]:
    """One row a kind of evidence, and the control: copies planted to be found again."""
    found, twins = report.get("evidence") or {}, report.get("twins") or {}
    rows = []
    for kind in KINDS:
        if kind in found or kind in twins:
            links, planted = found.get(kind) or {}, twins.get(kind) or {}
            n_planted, n_found = planted.get("planted", 0), planted.get("found", 0)
            rows.append(
                {
                    "": KIND_WORDS[kind][1],
                    "what it says": _KIND_MEANS[kind],
                    **{name: links.get(name) for name in ("links", "used", "held", "cut")},
                    "planted twins found": (
                        f"{n_found:,} of {n_planted:,} ({_percent(n_found / n_planted)})"
                        if n_planted
                        else "none planted"
                    ),
                }
            )
    return {"evidence": tables.grid(rows), "planted": bool(twins)}


def _names(report: Mapping[str, Any]) -> dict[str, Any]:
    """How names were judged, where ids come from, what has none, and scores against a truth."""
    rule, coverage = report.get("rule"), float(report.get("coverage") or 0)
    candidates = [
        {
            "rule": row["rule"],
            "coverage": _percent(float(row["coverage"])),
            "verdict": f"{row['verdict']}, taken" if row["rule"] == rule else row["verdict"],
            "reason": row["reason"] or "passed every test",
        }
        for row in report.get("candidates") or []
    ]
    sources = {name: n for name, n in (report.get("sources") or {}).items() if n}
    scores = report.get("scores") or {}
    left = {name: [str(tile) for tile in report.get(name) or []] for name in _LEFT}
    return {
        "rule": None if rule is None else str(rule),
        "coverage": _percent(coverage),
        "candidates": tables.grid(candidates),
        "sources": tables.grid([{"source": key, "tiles": n} for key, n in sources.items()]),
        "manifest": tables.grid(report.get("manifest")),
        "scores": tables.grid(
            [
                {
                    "": _SCORES.get(name, name),
                    "value": value if name in {"n_tiles", "n_without_truth"} else float(value),
                    "name": name,
                }
                for name, value in scores.items()
            ]
        ),
        "left": [
            {"n": len(found), "why": _LEFT[name], "tiles": found[:_LISTED]}
            for name, found in left.items()
            if found
        ],
    }
