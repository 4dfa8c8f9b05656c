"""The picture of the leakage gap, as SVG: in the page, and by itself for a paper or a README.

Colours are those of the page where it stands in one, so that it follows light and dark, and fixed
ones elsewhere. Every mark says its numbers when pointed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from markupsafe import Markup, escape

from mil.report.names import title

__all__ = ["NAMES", "picture", "points", "shown_methods"]

NAMES: Final = {
    "tile": "random tiles",
    "slide": "slides whole",
    "patient": "patients whole",
    "site": "sites whole",
}
_WIDTH: Final = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 60, 102
_HEIGHT: Final = 452
_STEP: Final = 0.2
_OFFSET: Final = 20  # px between the marks of one scheme
_INK: Final = "var(--ink, #221d2b)"
_SOFT: Final = "var(--soft, #645d70)"
_RULE: Final = "var(--rule, #e6e1ec)"
_PAGE: Final = "var(--surface, #ffffff)"
_COLOURS: Final = (_SOFT, "var(--hematoxylin, #6a4c9c)", "var(--eosin, #c23d78)")
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def shown_methods(result: Mapping[str, Any]) -> list[str]:
    """What the picture draws: single tiles, their vote, and one trained method."""
    first = next(scheme for scheme in result["schemes"] if scheme["run"])
    trained = [name for name in result["trained"] if name in first["slide"]]
    chosen = "abmil" if "abmil" in trained else next(iter(trained), None)
    return ["tile", "vote", *([chosen] if chosen else [])]


def picture(result: Mapping[str, Any], metric: str = "accuracy") -> Markup:
    """Draw a metric of every scheme that was run, with shuffled labels beside it.

    Args:
        result: The content of ``gap.json``.
        metric: One that is defined in every scheme.
    """
    schemes = [scheme for scheme in result["schemes"] if scheme["run"]]
    names = shown_methods(result)
    columns = {
        scheme["scheme"]: _LEFT + (_WIDTH - _LEFT - _RIGHT) * (place + 0.5) / len(schemes)
        for place, scheme in enumerate(schemes)
    }
    body = [
        *_frame(metric, result["chance"]),
        *_legend(names, null=bool(result["null"]["schemes"])),
    ]
    for place, name in enumerate(names):
        shift = _OFFSET * (place - (len(names) - 1) / 2)
        colour = _COLOURS[place]
        entries = {s["scheme"]: _of(s, name)[metric] for s in schemes}
        body += _line(entries, columns, shift, colour)
        for scheme, entry in entries.items():
            says = f"{_called(name)}, {NAMES[scheme]}: {_said(entry)}"
            body += _mark(columns[scheme] + shift, entry, colour, says, square=name == "tile")
    for scheme, scores in result["null"]["schemes"].items():
        entry = scores["tile"].get(metric)
        if entry is not None:
            x = columns[scheme] + _OFFSET * (len(names) + 1) / 2
            says = f"shuffled labels, single tiles, {NAMES[scheme]}: {_said(entry)}"
            body += _mark(x, entry, _SOFT, says, square=True, hollow=True)
    body += _below(schemes, columns, result["gaps"], metric)
    spoken = escape(f"{metric} by scheme: " + "; ".join(_spoken(schemes, names, metric)))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{spoken}" font-family="{_FONT}" font-size="13" style="fill: {_INK}">'
    )
    return Markup("\n".join([head, *body, "</svg>"]))


def _frame(metric: str, chance: float) -> list[str]:
    lines = []
    for step in range(6):
        y = _y(step * _STEP)
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'style="stroke: {_RULE}"/>'
        )
        lines.append(_text(_LEFT - 10, y + 4, f"{step * _STEP:.1f}", _SOFT, anchor="end"))
    y = _y(chance)
    lines.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke-dasharray="2 4" style="stroke: {_SOFT}"/>'
    )
    lines.append(_text(_LEFT + 4, y - 5, "commonest class", _SOFT, size=11))
    lines.append(_text(16, _TOP - 14, metric.replace("_", " "), _SOFT))
    return lines


def _legend(names: Sequence[str], *, null: bool) -> list[str]:
    lines, x = [], float(_LEFT)
    entries = [(_called(name), _COLOURS[i], name == "tile", False) for i, name in enumerate(names)]
    if null:
        entries.append(("single tiles, shuffled labels", _SOFT, True, True))
    for words, colour, square, hollow in entries:
        lines.append(_shape(x + 6, 20, colour, square=square, hollow=hollow))
        lines.append(_text(x + 18, 24.5, words, _INK))
        x += 34 + 7.2 * len(words)
    return lines


def _line(
    entries: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, float],
    shift: float,
    colour: str,
) -> list[str]:
    points = " ".join(f"{columns[s] + shift:.1f},{_y(e['value']):.1f}" for s, e in entries.items())
    return [
        f'<polyline points="{points}" fill="none" stroke-width="1.5" stroke-opacity="0.45" '
        f'style="stroke: {colour}"/>'
    ]


def _mark(
    x: float,
    entry: Mapping[str, Any],
    colour: str,
    says: str,
    *,
    square: bool,
    hollow: bool = False,
) -> list[str]:
    low, high = entry["ci_low"], entry["ci_high"]
    lines = [f"<g><title>{escape(says)}</title>"]
    if low is not None:
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(low):.1f}" y2="{_y(high):.1f}" '
            f'stroke-width="2" style="stroke: {colour}"/>'
        )
    lines.append(_shape(x, _y(entry["value"]), colour, square=square, hollow=hollow))
    seeds = entry["by_seed"] if len(entry["by_seed"]) > 1 else []
    lines += [
        f'<circle cx="{x + 8:.1f}" cy="{_y(value):.1f}" r="1.7" style="fill: {colour}"/>'
        for value in seeds
    ]
    return [*lines, "</g>"]


def _shape(x: float, y: float, colour: str, *, square: bool, hollow: bool) -> str:
    style = f"fill: {_PAGE if hollow else colour}; stroke: {colour}"
    if square:
        return (
            f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" stroke-width="2" '
            f'style="{style}"/>'
        )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" stroke-width="1.5" style="{style}"/>'


def _below(
    schemes: Sequence[Mapping[str, Any]],
    columns: Mapping[str, float],
    gaps: Sequence[Mapping[str, Any]],
    metric: str,
) -> list[str]:
    """Names of the schemes, what the audit says, and between them the gap of single tiles."""
    lines, base = [], _HEIGHT - _BOTTOM
    for scheme in schemes:
        x, leaks = columns[scheme["scheme"]], scheme["audit"]["verdict"] == "leak"
        lines.append(_text(x, base + 22, NAMES[scheme["scheme"]], _INK, anchor="middle", bold=True))
        colour = _COLOURS[2] if leaks else _SOFT
        lines.append(
            _text(x, base + 39, f"audit: {scheme['audit']['verdict']}", colour, anchor="middle")
        )
    words = "gap in accuracy of single tiles, points (95 %)"
    lines.append(_text(_WIDTH / 2, base + 94, words, _SOFT, anchor="middle", size=11))
    for a, b in pairwise(columns):
        gap = next(
            g
            for g in gaps
            if (g["from"], g["to"], g["level"], g["metric"]) == (a, b, "tile", metric)
        )
        y = base + 58
        lines.append(
            f'<line x1="{columns[a] + 12:.1f}" x2="{columns[b] - 12:.1f}" y1="{y}" y2="{y}" '
            f'style="stroke: {_SOFT}"/>'
        )
        low, high = points(gap["ci_low"]), points(gap["ci_high"])
        words = f"{points(gap['difference'])} ({low} to {high})"
        middle = (columns[a] + columns[b]) / 2
        lines.append(_text(middle, y + 16, words, _INK, anchor="middle", size=12))
    return lines


def points(value: float) -> str:
    """A difference in percentage points, with a true minus sign."""
    text = f"{100 * value:.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _spoken(schemes: Sequence[Mapping[str, Any]], names: Sequence[str], metric: str) -> list[str]:
    return [
        f"{NAMES[s['scheme']]}: "
        + ", ".join(f"{_called(name)} {_of(s, name)[metric]['value']:.2f}" for name in names)
        for s in schemes
    ]


def _said(entry: Mapping[str, Any]) -> str:
    if entry["ci_low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['ci_low']:.3f} to {entry['ci_high']:.3f})"


def _of(scheme: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = scheme["tile"] if name == "tile" else scheme["slide"][name]
    return found


def _called(name: str) -> str:
    return {"tile": "single tiles", "vote": "slides, by vote"}.get(name, f"slides, {title(name)}")


def _y(value: float) -> float:
    return _TOP + (1 - value) * (_HEIGHT - _TOP - _BOTTOM)


def _text(
    x: float,
    y: float,
    words: str,
    colour: str,
    *,
    anchor: str = "start",
    size: int = 13,
    bold: bool = False,
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight} '
        f'style="fill: {colour}">{escape(words)}</text>'
    )
