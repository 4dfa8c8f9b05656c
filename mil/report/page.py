"""The report page: reads the tables of a run and writes ``report.html``."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mil.report import figures, inputs, pictures, stain, tables, tissue
from mil.report.inputs import Inputs
from mil.report.pictures import ReadTile
from mil.report.templates import inline, write_page
from mil.report.verdict import heading, verdict

__all__ = ["build"]


def build(run: Path, *, read_tile: ReadTile | None) -> Path:
    """Write ``run/report.html``: one file, no network, from tables only.

    Optional inputs that are missing become a sentence on the page.

    Args:
        run: The run folder.
        read_tile: Gives the pixels (H, W, 3) uint8 of a tile id; None where there are none.

    Returns:
        The path of the page.

    Raises:
        InputError: ``metrics.json`` or ``predictions.parquet`` is missing, or a file is damaged.
    """
    found = inputs.read(run)
    return write_page(run / "report.html", "template.html.j2", _context(found, read_tile))


def _context(found: Inputs, read_tile: ReadTile | None) -> dict[str, Any]:
    forest = [figures.forest(found, name) for name in ("accuracy", "balanced_accuracy")]
    curves = [
        ("Encoder" if name == "encoder" else heading(name), figures.curves(name, log))
        for name, log in found.logs.items()
    ]
    agreement = None if found.focus is None else figures.agreement(found, found.focus)
    charts = [chart for chart in [*forest, agreement] if chart is not None]
    charts += [chart for _, group in curves for chart in group]
    return {
        "name": found.run.resolve().name,
        "metrics": found.metrics,
        "verdict": verdict(found),
        "focus": found.focus,
        "scores": tables.scores(found),
        "paired": tables.paired(found),
        "forest": [chart for chart in forest if chart is not None],
        "confusions": _confusions(found),
        "curves": curves,
        "encoder_log": "encoder" in found.logs,
        "encoder_card": found.encoder_card,
        "agreement": agreement,
        "attention": found.attention is not None,
        "attended": pictures.attended(found, found.focus, read_tile) if found.focus else [],
        "gallery": pictures.gallery(found, read_tile),
        "stain": found.stain is not None,
        "doubtful": stain.section(found, read_tile),
        "has_tiles": found.tiles is not None,
        "has_reader": read_tile is not None,
        "features": found.features,
        "max_sites": pictures.MAX_SITES,
        "split": found.split,
        "tissue": tissue.section(found, read_tile),
        "audit": found.audit,
        "audit_rows": [
            {name: value for name, value in finding.items() if name != "pairs"}
            for finding in (found.audit or {}).get("findings") or []
        ],
        "identity": found.identity,
        "localisation": found.localisation,
        "skipped": tables.skipped(found.skipped),
        "config": found.config,
        "digests": found.metrics.get("digests") or {},
        "versions": tables.versions(),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "grid": tables.grid,
        "text": tables.text,
        "charts": _embedded(charts),
        "style": inline("style.css"),
        "script": inline("charts.js"),
        "plotly": Markup(get_plotlyjs()) if charts else "",
    }


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


def _embedded(charts: list[figures.Chart]) -> Markup:
    """Figures as JSON that cannot end the script element it stands in, whatever labels say."""
    body = ",".join(f'"{chart.id}":{chart.json}' for chart in charts)
    for sign in "<>&\u2028\u2029":
        body = body.replace(sign, f"\\u{ord(sign):04x}")
    return Markup("{" + body + "}")
