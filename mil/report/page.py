"""The report: reads the tables of a run and writes ``report.html``, ``report.md``, ``tables/``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mil.report import (
    certainty,
    choice,
    explorer,
    export,
    figures,
    flips,
    inputs,
    pictures,
    stain,
    tables,
    tissue,
    trust,
)
from mil.report.figures import Chart
from mil.report.inputs import Inputs
from mil.report.names import heading, title
from mil.report.pictures import ReadTile
from mil.report.scripts import as_data, packed_plotly, policy
from mil.report.templates import inline, write_page
from mil.report.verdict import verdict

__all__ = ["build"]

_SCRIPTS = ("tables.js", "slide_map.js", "explorer.js", "print.js", "charts.js")


def build(run: Path, *, read_tile: ReadTile | None) -> Path:
    """Write ``run/report.html``: one file, no network, from tables only.

    Beside it go ``report.md`` and ``tables/*.csv`` with the same numbers. Optional inputs that are
    missing become a sentence on the page.

    Args:
        run: The run folder.
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id; None where there are none.

    Returns:
        The path of the page.

    Raises:
        InputError: ``metrics.json`` or ``predictions.parquet`` is missing, or a file is damaged.
    """
    found = inputs.read(run)
    context = _context(found, read_tile)
    export.write(found, context)
    return write_page(run / "report.html", "report.html.j2", context)


def _context(found: Inputs, read_tile: ReadTile | None) -> dict[str, Any]:
    slides = explorer.explore(found, read_tile)
    sections = {
        "verdict": verdict(found),
        "scores": tables.scores(found),
        "per_class": tables.per_class(found),
        "paired": tables.paired(found),
        "explorer": slides,
        "flips": flips.section(found, slides, read_tile),
        "certainty": certainty.section(found),
        "trust": trust.section(found),
        "confusions": _confusions(found),
        "selection": choice.selection(found),
        "seal": choice.seal(found),
        "attended": pictures.attended(found, found.focus, read_tile) if found.focus else [],
        "gallery": pictures.gallery(found, read_tile),
        "doubtful": stain.section(found, read_tile),
        "tissue": tissue.section(found, read_tile),
        "skipped": tables.skipped(found.skipped),
    }
    drawn = _drawn(found)
    charts = list(_all_charts([sections, drawn]))
    script = inline(*_SCRIPTS)
    plotly = packed_plotly() if charts else None
    return {
        **sections,
        **drawn,
        **_tables_of(found),
        "name": found.run.resolve().name,
        "focus": found.focus,
        "attention": found.attention is not None,
        "stain": found.stain is not None,
        "has_tiles": found.tiles is not None,
        "has_reader": read_tile is not None,
        "max_sites": pictures.MAX_SITES,
        "n_tiles_shown": explorer.N_TILES,
        "versions": tables.versions(),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "grid": tables.grid,
        "text": tables.text,
        "title": title,
        "heading": heading,
        "slide_data": "" if slides is None else as_data(
            {"classes": found.classes, "method": heading(slides.method), "slides": slides.data}
        ),
        "charts": as_data({chart.id: chart.figure for chart in charts}),
        "style": inline("style.css", "report.css"),
        "script": script,
        "plotly": "" if plotly is None else plotly.packed,
        "policy": policy(str(script), *([] if plotly is None else [plotly.code])),
    }  # fmt: skip


def _tables_of(found: Inputs) -> dict[str, Any]:
    """What the template shows as it was read."""
    return {
        "metrics": found.metrics,
        "features": found.features,
        "split": found.split,
        "audit": found.audit,
        "audit_rows": [
            {name: value for name, value in finding.items() if name != "pairs"}
            for finding in (found.audit or {}).get("findings") or []
        ],
        "identity": found.identity,
        "localisation": found.localisation,
        "config": found.config,
        "digests": found.metrics.get("digests") or {},
        "encoder_log": "encoder" in found.logs,
        "encoder_card": found.encoder_card,
    }


def _drawn(found: Inputs) -> dict[str, Any]:
    forest = [figures.forest(found, name) for name in ("accuracy", "balanced_accuracy")]
    return {
        "forest": [chart for chart in forest if chart is not None],
        "agreement": None if found.focus is None else figures.agreement(found, found.focus),
        "curves": [
            ("Encoder" if name == "encoder" else heading(name), figures.curves(name, log))
            for name, log in found.logs.items()
        ],
    }


def _all_charts(value: object) -> Iterable[Chart]:
    """Every chart of the sections, in the order in which they stand there."""
    if isinstance(value, Chart):
        yield value
    elif isinstance(value, dict):
        yield from _all_charts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _all_charts(one)


def _confusions(found: Inputs) -> list[tables.Table]:
    matrices = []
    if found.tile_predictions is not None:
        matrices.append(
            tables.confusion(found.tile_predictions, found.classes, heading("tile"), "tiles")
        )
    for method in ("vote", found.focus):
        if method in found.methods:
            rows = found.slides_of(method).reset_index()
            matrices.append(tables.confusion(rows, found.classes, heading(method), "slides"))
    return matrices
