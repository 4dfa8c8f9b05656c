"""Rows for the tables of the page; everything is text that the template escapes."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mil.predictions import UNTRAINED
from mil.report.inputs import Inputs
from mil.report.names import METRICS, PER_CLASS, TESTS, heading, title
from mil.report.verdict import p_value

__all__ = [
    "Table",
    "cell",
    "confusion",
    "grid",
    "number",
    "paired",
    "per_class",
    "scored",
    "scores",
    "skipped",
    "text",
    "versions",
]

Table = dict[str, Any]

_DASH = "\u2013"
_SHOWN = 12


def number(value: object) -> str:
    """A metric with three decimals; a dash where it is not defined."""
    return _DASH if value is None else f"{float(str(value)):.3f}"


def scores(inputs: Inputs) -> Table:
    """Tile against slide: one row a method, one cell a metric with its interval."""
    found = {
        name for score in [inputs.metrics["tile"] or {}, *inputs.metrics["slide"].values()]
        for name in score
    }  # fmt: skip
    metrics = [*(m for m in METRICS if m in found), *sorted(found - METRICS.keys())]
    of_tiles = inputs.metrics["tile"]
    rows = [_score_row(heading("tile"), "tile", of_tiles, metrics)] if of_tiles else []
    for method, score in inputs.metrics["slide"].items():
        level = "slide" if method in UNTRAINED else "slide, trained"
        rows.append(_score_row(heading(method), level, score, metrics))
    columns = [{"text": METRICS.get(m, m), "metric": m if m in METRICS else None} for m in metrics]
    return {"columns": columns, "rows": rows}


def _score_row(
    name: str, level: str, score: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    cells = [cell(score.get(metric)) for metric in metrics]
    return {"name": name, "level": level, "cells": cells}


def cell(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """A value and its interval, either of which may be undefined, as text."""
    entry = entry or {}
    low, high = entry.get("ci_low"), entry.get("ci_high")
    bounds = None if low is None or high is None else f"{number(low)} to {number(high)}"
    return {"value": number(entry.get("value")), "interval": bounds}


def scored(entry: Mapping[str, Any] | None) -> str:
    """A value and its interval in one line."""
    found = cell(entry)
    return str(found["value"]) + (f" ({found['interval']})" if found["interval"] else "")


def per_class(inputs: Inputs) -> list[Table]:
    """One table a method, the focus and the vote first: a row a class, a cell a metric."""
    found = inputs.metrics.get("per_class") or {}
    by_method = {"tile": found.get("tile") or {}, **(found.get("slide") or {})}
    first = [name for name in (inputs.focus, "vote", "tile") if name in by_method]
    order = [*first, *(name for name in by_method if name not in first)]
    result = []
    for method in order:
        classes = by_method[method]
        metrics = [m for m in PER_CLASS if any(m in score for score in classes.values())]
        rows = [
            {"name": name, "n": score.get("n"), "cells": [cell(score.get(m)) for m in metrics]}
            for name, score in classes.items()
        ]
        if rows:
            columns = [PER_CLASS[metric] for metric in metrics]
            result.append({"name": heading(method), "columns": columns, "rows": rows})
    return result


def paired(inputs: Inputs) -> dict[str, Table | None]:
    """Differences on the same slides: of every method to the vote, and of the other pairs.

    A row a pair, ``a`` minus ``b``; a cell a metric, with the interval and what each test says.
    """
    rows = inputs.metrics.get("paired") or []
    vote = [row for row in rows if "vote" in (row["a"], row["b"])]
    others = [row for row in rows if "vote" not in (row["a"], row["b"])]
    return {"vote": _pairs(vote), "others": _pairs(others)}


def _pairs(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    by_pair: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        pair = by_pair.setdefault((str(row["a"]), str(row["b"])), {})
        pair.setdefault(str(row["metric"]), []).append(row)
    metrics = list(dict.fromkeys(metric for pair in by_pair.values() for metric in pair))
    lines = [
        {
            "name": f"{heading(a)} minus {title(b)}",
            "cells": [_difference(found.get(metric, [])) for metric in metrics],
        }
        for (a, b), found in by_pair.items()
    ]
    return {"columns": [METRICS.get(m, m) for m in metrics], "rows": lines} if lines else None


def _difference(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The difference with the interval of the bootstrap, and the p of every test."""
    ordered = sorted(rows, key=lambda row: row.get("test", "bootstrap") != "bootstrap")
    tests = []
    for row in ordered:
        if row.get("p") is not None:
            words = (
                f"{TESTS.get(row.get('test', 'bootstrap'), row.get('test'))} {p_value(row['p'])}"
            )
            adjusted = row.get("p_holm")
            tests.append(words if adjusted is None else f"{words}, Holm {_bare(adjusted)}")
    first = ordered[0] if ordered else {}
    return {**cell({**first, "value": first.get("difference")}), "tests": tests}


def _bare(p: float) -> str:
    return p_value(p).removeprefix("p = ").removeprefix("p ")


def confusion(rows: pd.DataFrame, classes: list[str], name: str, unit: str) -> Table:
    """Counts by true (rows) and predicted (columns) class, with the share of each row.

    Args:
        rows: A table with ``label`` and ``predicted``.
        classes: Order of rows and columns; further values found are appended.
        name: Whose answers these are.
        unit: What is counted, ``"tiles"`` or ``"slides"``.
    """
    label, predicted = rows["label"].astype(str), rows["predicted"].astype(str)
    order = [*classes, *sorted((set(label) | set(predicted)) - set(classes))]
    counts = pd.crosstab(label, predicted).reindex(index=order, columns=order, fill_value=0)
    lines = []
    for true in order:
        total = int(counts.loc[true].sum())
        cells = [
            {"n": int(n), "share": round(int(n) / total, 4) if total else 0.0, "hit": true == other}
            for other, n in counts.loc[true].items()
        ]
        lines.append({"label": true, "total": total, "cells": cells})
    return {"name": name, "unit": unit, "classes": order, "rows": lines, "n": len(rows)}


def skipped(ledger: pd.DataFrame, limit: int = 50) -> Table:
    """The ledger by cause with counts, and its first ``limit`` rows."""
    counts = (
        ledger.groupby(["stage", "level", "cause"], sort=True)
        .size()
        .rename("n")
        .reset_index()
        .sort_values("n", ascending=False, kind="stable")
    )
    return {
        "n": len(ledger),
        "causes": grid(counts.to_dict("records")),
        "first": grid(ledger.head(limit).to_dict("records")),
        "shown": min(limit, len(ledger)),
    }


def versions() -> dict[str, str]:
    """Versions of what made this page and of the libraries around it, without importing them."""
    found = {"python": platform.python_version()}
    names = ("slidewise", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pandas")
    for name in (*names, "scikit-learn", "scikit-image", "scipy", "pillow", "plotly"):
        found[name] = _version(name)
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def grid(value: object) -> Table | None:
    """Any JSON value as columns and rows of text; ``None`` where there is nothing to show.

    A list of objects becomes one row each, an object of objects one row a key, a flat object one
    row an entry. Deeper objects become columns named by their path (``classes lung``).
    """
    records: list[dict[str, Any]]
    if isinstance(value, Mapping):
        if value and all(isinstance(entry, Mapping) for entry in value.values()):
            records = [{"": key, **_flat(entry)} for key, entry in value.items()]
        else:
            records = [{"": key, "value": entry} for key, entry in _flat(value).items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        records = [_flat(e) if isinstance(e, Mapping) else {"value": e} for e in value]
    else:
        records = [] if value is None else [{"value": value}]
    if not records:
        return None
    columns = list(dict.fromkeys(name for record in records for name in record))
    rows = []
    for record in records:
        cells = [record.get(name) for name in columns]
        rows.append([{"text": text(c), "numeric": _is_number(c)} for c in cells])
    heads = [
        {"text": name.replace("_", " "), "numeric": all(row[place]["numeric"] for row in rows)}
        for place, name in enumerate(columns)
    ]
    return {"columns": heads, "rows": rows, "headed": columns[0] == ""}


def text(value: object) -> str:
    """A scalar or a list as text; floats keep three significant digits, long lists are cut."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return _DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(text(entry) for entry in value[:_SHOWN])
        rest = len(value) - _SHOWN
        return (f"{shown} and {rest} more" if rest > 0 else shown) or "none"
    return str(value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            flat |= _flat(entry, f"{prefix}{key} ")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
