"""The page of an audit, ``audit.html``: the verdict, what it rests on, and tiles to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mil import auditing
from mil.auditing import Material
from mil.config import Config
from mil.prepare import read_tiles, tile_reader
from mil.report import tables
from mil.report.audit_words import BATTERY, KINDS, TWINS
from mil.report.identity_pictures import suspects
from mil.report.pictures import ReadTile
from mil.report.templates import inline, write_page
from splits.artifacts import read_table, write_json
from splits.auditing.findings import SEVERITIES
from splits.groups import PARTS
from splits.images import read_tile as read_from_disk

__all__ = ["audit_run", "build", "write"]

MAX_PAIRS: Final = 12
"""Pairs of tiles that are drawn of one finding."""
_LISTED: Final = 50
_SHOWN: Final = ("slide_id", "patient_id", "slide_label")


def audit_run(run: Path, config: Config, *, encoders: bool = True) -> dict[str, Any]:
    """Findings on the run's split (:func:`mil.auditing.audit_run`), and the page that shows them.

    Args:
        run: The run folder, split.
        config: Its configuration.
        encoders: Compare the slides that the encoder of each fold saw with its test slides.
    """
    result = auditing.audit_run(run, config, encoders=encoders)
    page, made_from = run / "audit.html", run / "audit.json"
    if not page.exists() or page.stat().st_mtime_ns < made_from.stat().st_mtime_ns:
        links = run / "links.parquet"
        build(
            page,
            result,
            name=run.resolve().name,
            tiles=read_tiles(run),
            links=read_table(links) if links.exists() else None,
            read_tile=tile_reader(run, config),
        )
    return result


def write(out: Path, name: str, result: Mapping[str, Any], material: Material) -> Path:
    """``audit.json`` and ``audit.html`` of a foreign split in the folder ``out``.

    Args:
        out: The folder.
        name: Of the split.
        result: What :func:`mil.auditing.audit_files` found,
        material: and what it was made from.
    """
    write_json(out / "audit.json", result, {})
    return build(
        out / "audit.html",
        result,
        name=name,
        tiles=material.tiles,
        links=None if material.pixels is None else material.pixels.links,
        read_tile=None if material.root is None else partial(read_from_disk, material.root),
    )


def build(
    path: Path,
    result: Mapping[str, Any],
    *,
    name: str,
    tiles: pd.DataFrame | None = None,
    links: pd.DataFrame | None = None,
    read_tile: ReadTile | None = None,
) -> Path:
    """Write the page: one file, no network.

    Args:
        path: Where to.
        result: What `splits.audit.audit` gave.
        name: Of the run or the split.
        tiles: ``tile_id, slide_id, patient_id`` of the tiles in it.
        links: ``links.parquet``, which says how two tiles lie to each other.
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id; None leaves the pictures out.

    Returns:
        The path of the page.
    """
    groups = _grouped(result["findings"])
    battery = [_tested(entry) for entry in result.get("battery") or []]
    context = {
        "name": name,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "style": inline("style.css", "identity.css", "audit.css"),
        "verdict": result["verdict"],
        "leaks": [group for group in groups if group["severity"] == "leak"],
        "groups": groups,
        "counts": {
            severity: sum(one["severity"] == severity for one in [*groups, *battery])
            for severity in SEVERITIES
        },
        "had": _joined([line for line in result["had"] if not _is_lack(line)]),
        "lacked": [line for line in result["had"] if _is_lack(line)],
        "to_see": [
            group | {"pictures": _pictures(group["pairs"], tiles, links, read_tile)}
            for group in groups
            if group["pairs"]
        ],
        "has_reader": read_tile is not None,
        "max_pairs": MAX_PAIRS,
        "listed": _LISTED,
        "battery": battery,
        "twins": _twins(result.get("twins") or {}),
    }
    return write_page(path, "audit.html.j2", context)


def _joined(lines: Sequence[str]) -> list[str]:
    """Ids of one source on one line."""
    by_source: dict[str, list[str]] = {}
    for line in lines:
        name, link, source = line.partition(" from the ")
        by_source.setdefault(f"{link}{source}" if link else line, []).append(name)
    return [
        f"{', '.join(names)}{source}" if source.startswith(" from the ") else source
        for source, names in by_source.items()
    ]


def _is_lack(line: str) -> bool:
    return line.startswith("no ") or "were not looked for" in line


def _grouped(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings of one kind and severity as one entry, whatever the number of folds."""
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for one in findings:
        key = (one["severity"], one["kind"], one["level"], str(one.get("split", "")))
        groups.setdefault(key, []).append(one)
    several = len({one["fold"] for one in findings} - {None}) > 1
    entries = []
    for (severity, kind, level, split), members in groups.items():
        title, meaning = KINDS.get(kind, (kind.replace("_", " "), ""))
        pairs = _pairs(members)
        folds = sorted({one["fold"] for one in members if one["fold"] is not None})
        entries.append(
            {
                "severity": severity,
                "kind": kind,
                "level": level,
                "split": split,
                "title": title,
                "meaning": meaning,
                "messages": [_sentence(one, several=several) for one in members],
                "folds": tables.text(folds) if folds else "all",
                "parts": [part for part in PARTS
                          if any(part in one["parts"] for one in members)],
                "n_ids": len({name for one in members for name in one["ids"]}),
                "n_lines": sum(len(one["evidence"]) for one in members),
                "lines": [str(line) for one in members for line in one["evidence"]][:_LISTED],
                "pairs": pairs,
            }
        )  # fmt: skip
    return sorted(entries, key=lambda entry: SEVERITIES.index(entry["severity"]))


def _sentence(found: Mapping[str, Any], *, several: bool) -> str:
    """Its message; the number of the fold goes where there is only one."""
    message = str(found["message"])
    message = message if several else message.removeprefix(f"fold {found['fold']}: ")
    return message[:1].upper() + message[1:]


def _pairs(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of tiles, each once whatever the number of folds, those with a test tile first."""
    pairs: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in members:
        found = one.get("pairs") or []
        for pair, line in zip(found, one["evidence"] if found else [], strict=True):
            # A line is "this tile and that tile: evidence", or "image: its tiles".
            evidence = "equal pixels" if one["level"] == "image" else line.rpartition("): ")[2]
            pairs.setdefault(tuple(pair["tiles"]), pair | {"evidence": evidence})
    return sorted(pairs.values(), key=lambda pair: "test" not in pair["parts"])


def _pictures(
    pairs: Sequence[Mapping[str, Any]],
    tiles: pd.DataFrame | None,
    links: pd.DataFrame | None,
    read_tile: ReadTile | None,
) -> list[dict[str, Any]]:
    """The first pairs side by side, with part, slide and patient of both tiles."""
    shown = pairs[:MAX_PAIRS]
    drawn = suspects([[tuple(pair["tiles"])] for pair in shown], links, read_tile)
    of_tile: dict[str, dict[str, Any]] = {}
    if tiles is not None:
        names = {name for pair in shown for name in pair["tiles"]}
        columns = [name for name in _SHOWN if name in tiles.columns]
        rows = tiles[tiles["tile_id"].isin(names)].set_index("tile_id")[columns].astype(object)
        of_tile = {str(row): rows.loc[row].dropna().to_dict() for row in rows.index}
    return [
        {
            "picture": picture,
            "evidence": pair["evidence"],
            "sides": [
                {"tile": tile, "part": part, **dict.fromkeys(_SHOWN), **of_tile.get(tile, {})}
                for tile, part in zip(pair["tiles"], pair["parts"], strict=True)
            ],
        }
        for pair, picture in zip(shown, drawn, strict=True)
    ]


def _tested(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the battery in the words of the page."""
    run = entry["p"] is not None
    return {
        "title": BATTERY.get(entry["name"], entry["name"]),
        "split": entry.get("split", ""),
        "run": run,
        "value": f"{entry['value']:.2f}" if run else "\u2013",
        "chance": f"{entry['chance']:.2f}" if run else "\u2013",
        "p": f"{entry['p']:.3f}" if run else "\u2013",
        "meaning": entry["meaning"],
        "severity": entry["severity"],
    }


def _twins(twins: Mapping[str, Mapping[str, int]]) -> tables.Table | None:
    return tables.grid(
        [
            {
                "": TWINS.get(kind, kind),
                "planted": count["planted"],
                "found": count["found"],
                "recall": float(count["found"] / count["planted"]) if count["planted"] else None,
            }
            for kind, count in twins.items()
        ]
    )
