"""What the terminal shows: progress with the time left, and small tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from splits.split import Split

__all__ = [
    "Screen",
    "print_json",
    "print_table",
    "screen",
    "show_identity",
    "show_metrics",
    "show_split",
]

_STDERR = Console(stderr=True)
_STDOUT = Console()


class Screen:
    """Progress and messages of one command, on stderr."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def say(self, line: str) -> None:
        """One line, shown as it is (no markup)."""
        _STDERR.print(Text(line))

    def progress(self, name: str, total: int) -> Callable[[int], object]:
        """A bar; call the result with the number of finished steps."""
        task = self._bars.add_task(name, total=total)
        return lambda n: self._bars.advance(task, n)


@contextmanager
def screen() -> Iterator[Screen]:
    """Bars on stderr while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_STDERR, transient=True) as bars:
        yield Screen(bars)


def print_json(document: Any) -> None:
    """JSON on stdout, and nothing else."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; cells are shown as they are (no markup)."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _STDOUT.print(table)


def show_identity(report: dict[str, Any], page: Path) -> None:
    """The grade, the counts, what needs a look, and the scores where a truth was given."""
    _STDOUT.print(Text(f"grade {report['grade']}: {report['reason']}"))
    counts = ", ".join(
        f"{report['n'][name]} {name}" for name in ("tiles", "slides", "patients", "sites", "groups")
    )
    _STDOUT.print(Text(counts))
    for name in ("conflicts", "contradictions", "unidentified", "blank"):
        if report.get(name):
            _STDOUT.print(Text(f"{len(report[name])} {name}: see {page}"))
    scores = report.get("scores") or {}
    if scores:
        shown = [(name, f"{v:.3f}" if isinstance(v, float) else v) for name, v in scores.items()]
        print_table("Against the truth", ("score", "value"), shown)


def show_split(result: Split, path: Path) -> None:
    """Slides of every fold and part, and what the split could not do."""
    counts = result.table.groupby(["fold", "part"], sort=False)["slide_id"].nunique()
    _STDOUT.print(f"{result.table['slide_id'].nunique()} slides -> {path}")
    rows = [(fold, part, n) for (fold, part), n in counts.items()]
    print_table("Slides", ("fold", "part", "slides"), rows)
    for warning in result.meta.get("warnings", []):
        _STDERR.print(Text(f"warning: {warning}"))


def show_metrics(metrics: dict[str, Any]) -> None:
    """Tile beside slide: the main metrics of ``metrics.json`` with their intervals."""

    def cell(score: dict[str, Any]) -> str:
        if score["value"] is None:
            return "not defined"
        if score["ci_low"] is None:
            return f"{score['value']:.3f}"
        return f"{score['value']:.3f} ({score['ci_low']:.3f} to {score['ci_high']:.3f})"

    shown = ("accuracy", "balanced_accuracy", "auroc")
    rows = [("tile", *(cell(metrics["tile"][m]) for m in shown))]
    rows += [
        (f"slide: {method}", *(cell(scores[m]) for m in shown))
        for method, scores in metrics["slide"].items()
    ]
    n = metrics["n"]
    title = (
        f"Out-of-fold, {n['tiles']} tiles, {n['slides']} slides, {n['patients']} patients (95 %)"
    )
    print_table(title, ("", *shown), rows)
