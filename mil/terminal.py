"""What the terminal shows: progress with the time left, and small tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

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

from splits.audit import summarise
from splits.groups import PARTS
from splits.split import EVERY_SLIDE_TESTED, Split

__all__ = [
    "Screen",
    "print_json",
    "print_table",
    "say_warning",
    "screen",
    "show_audit",
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

    def progress(self, name: str, total: int) -> Callable[[float], object]:
        """A bar; call the result with the number of finished steps, or a share of one."""
        task = self._bars.add_task(name, total=total)
        return lambda n: self._bars.advance(task, n)


@contextmanager
def screen() -> Iterator[Screen]:
    """Bars on stderr while the block runs; nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Rich would write an empty line into a pipe or a log at the end.
    quiet = not _STDERR.is_interactive
    with Progress(*columns, console=_STDERR, transient=True, disable=quiet) as bars:
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


def say_warning(message: str, kind: str = "warning") -> None:
    """One line on stderr, shown as it is (no markup)."""
    _STDERR.print(Text(f"{kind}: {message}"))


def show_split(result: Split, path: Path) -> None:
    """What every fold and part holds, how even that is, and what no split can avoid."""
    meta = result.meta
    _STDOUT.print(Text(f"{result.table['slide_id'].nunique()} slides -> {path}"))
    counts = ("fold", "part", "n_groups", "n_slides", "n_tiles")
    rows = [tuple(record[name] for name in counts) for record in meta["balance"]]
    title = f"Parts, whole {meta['unit']}s"
    print_table(title, ("fold", "part", "groups", "slides", "tiles"), rows)
    off = [name for name, kind in _OFF.items() if kind in ("class", "slides", *meta["balanced"])]
    rows = [
        (
            *(record[name] for name in ("fold", "part")),
            *(f"{record[name]:{'+' if 'percent' in name else ''}.1f}" for name in off),
        )
        for record in meta["balance"]
        if meta["method"] == "holdout" or record["part"] == "test"
    ]
    columns = [f"{_OFF[name]}, {'%' if 'percent' in name else 'points'}" for name in off]
    print_table("Off by", ("fold", "part", *columns), rows)
    if meta["method"] != "leave-one-site-out":
        print_table("Classes", ("class", "slides", "off by", "of it, unavoidable"), _classes(meta))
    best = meta.get("optimum")
    if best is not None:
        _STDOUT.print(Text(_how_good(best)))
    for warning in meta.get("warnings", []):
        say_warning(warning)


_OFF: Final = {
    "class_deviation_points": "class",
    "slides_deviation_percent": "slides",
    "tiles_deviation_percent": "tiles",
    "site_deviation_points": "site",
    "tissue_deviation_points": "tissue",
    "stain_deviation_points": "stain",
}


def _classes(meta: dict[str, Any]) -> list[tuple[object, ...]]:
    """Each class: its slides, how far a part is off at most, and how far one has to be."""
    n_parts = meta["folds"] if meta["method"] in EVERY_SLIDE_TESTED else None
    shares = [1 / n_parts] * 3 if n_parts else meta["ratios"]
    records = [r for r in meta["balance"] if not n_parts or r["part"] == "test"]
    rows: list[tuple[object, ...]] = []
    for name, floor in meta["floor"].items():
        total = sum(r["classes"][name] for r in meta["balance"] if r["fold"] == 0)
        off = max(abs(r["classes"][name] / total - shares[PARTS.index(r["part"])]) for r in records)
        rows.append((name, total, f"{100 * off:.2f} points", f"{floor:.2f} points"))
    return rows


def _how_good(best: dict[str, Any]) -> str:
    if best["proved"]:
        return "The test parts are as even as can be (proved: at most 1 % from the optimum)."
    said, gap = (
        "No more even test parts were found; that there are none is not proved",
        best["gap_percent"],
    )
    if gap is None or gap > _WIDE:
        return f"{said}."
    return f"{said} (their squared error is at most {gap:.1f} % above what can be)."


_WIDE: Final = 100  # a gap of more percent says nothing


def show_audit(result: dict[str, Any], page: Path | None) -> None:
    """The verdict, what it rests on, every finding and every test."""
    _STDOUT.print(Text(summarise(result)))
    for line in result["had"]:
        _STDOUT.print(Text(f"had: {line}"))
    rows = [
        (
            f["severity"],
            f["kind"],
            ": ".join(filter(None, [f.get("split"), f["message"]])),
            ", ".join(map(str, f["ids"][:_SHOWN])) + (" …" if len(f["ids"]) > _SHOWN else ""),
        )
        for f in result["findings"]
    ]
    if rows:
        print_table("Findings", ("severity", "kind", "what", f"ids (first {_SHOWN})"), rows)
    tests = [
        (t["severity"] or "", t["name"], _number(t["value"]), _number(t["chance"]), _number(t["p"]))
        for t in result["battery"]
        if t["value"] is not None
    ]
    if tests:
        print_table("Tests", ("severity", "test", "value", "by chance", "p"), tests)
    if page is not None:
        _STDOUT.print(Text(f"page: {page}"))


_SHOWN: Final = 5


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def show_metrics(metrics: dict[str, Any]) -> None:
    """Tile beside slide: the main metrics of ``metrics.json`` with their intervals."""

    def cell(score: dict[str, Any]) -> str:
        if score["value"] is None:
            return "not defined"
        if score["ci_low"] is None:
            return f"{score['value']:.3f} (no interval)"
        return f"{score['value']:.3f} ({score['ci_low']:.3f} to {score['ci_high']:.3f})"

    shown = ["accuracy", "balanced_accuracy", "auroc"]
    levels = {f"slide: {method}": scores for method, scores in metrics["slide"].items()}
    if metrics["tile"] is not None:
        levels = {"tile": metrics["tile"], **levels}
    if any("kappa_quadratic" in scores for scores in levels.values()):
        shown.append("kappa_quadratic")
    rows = [(name, *(cell(scores[m]) for m in shown)) for name, scores in levels.items()]
    n, interval = metrics["n"], metrics["interval"]
    counts = ", ".join(f"{n[unit]} {unit}" for unit in ("tiles", "slides", "patients") if n[unit])
    title = f"Out-of-fold, {counts} ({interval['level']:.0%}, {interval['cluster']}s drawn)"
    print_table(title, ("", *(name.replace("_", " ") for name in shown)), rows)
