"""Can attention be believed? Experiments of ``evidence.json`` and ``localisation.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mil.report import curves, tables
from mil.report.figures import Chart
from mil.report.inputs import Inputs
from mil.report.names import heading

__all__ = ["section"]

Entry = Mapping[str, Any]


def section(inputs: Inputs) -> dict[str, Any]:
    """Tables and charts; ``known`` is False without ``evidence.json``."""
    found = inputs.evidence or {}
    methods: Entry = found.get("methods") or {}
    rows, notes = [], []
    for method, entry in methods.items():
        for measure, result in (entry.get("measures") or {}).items():
            rows.append(_row(method, measure, result))
            notes += _notes(method, result)
    return {
        "known": inputs.evidence is not None,
        "rule": found.get("rule"),
        "table": tables.grid(_measured(rows)),
        "notes": list(dict.fromkeys(notes)),
        "charts": _charts(inputs, methods),
        "localisation": _localisation(inputs.localisation),
    }


def _row(method: str, measure: str, result: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"Method": heading(method), "By": measure}
    for kind in ("deletion", "insertion"):
        entry = result.get(kind) or {}
        words = kind.capitalize()
        row[f"{words}, against random"] = tables.scored(entry.get("difference") or {})
        row[f"{words} shown"] = entry.get("verdict")
    agreement = result.get("agreement") or {}
    row["Agreement of seeds"] = tables.scored(agreement)
    row["On the top tenth"] = tables.scored(agreement.get("top_tenth") or {})
    shuffled = result.get("shuffled") or {}
    row["Agreement with shuffled labels"] = tables.scored(shuffled.get("agreement") or {})
    control = (shuffled.get("deletion") or {}).get("difference") or {}
    row["Deletion, shuffled labels"] = tables.scored(control)
    return row


def _measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the columns that hold nothing: the notes say what was not measured."""
    empty = {None, tables.text(None)}
    kept = [
        name for name in (rows[0] if rows else {}) if any(row[name] not in empty for row in rows)
    ]
    return [{name: row[name] for name in kept} for row in rows]


def _notes(method: str, result: Entry) -> list[str]:
    found = [(result.get(key) or {}).get("note") for key in ("agreement", "shuffled")]
    return [f"{heading(method)}: {note}" for note in found if note]


def _charts(inputs: Inputs, methods: Entry) -> list[Chart]:
    """Of the focus, or else of the first method that was tested."""
    name = inputs.focus if inputs.focus in methods else next(iter(methods), None)
    if name is None:
        return []
    drawn = [
        curves.perturbation(name, measure, kind, result.get(kind) or {})
        for measure, result in (methods[name].get("measures") or {}).items()
        for kind in ("deletion", "insertion")
    ]
    return [chart for chart in drawn if chart is not None]


def _localisation(found: Entry | None) -> tables.Table | None:
    if found is None:
        return None
    return tables.grid(
        [
            {
                "Method": heading(method),
                "AUROC, mean of slides": tables.scored({**entry, "value": entry["auroc_mean"]}),
                "AUROC, tiles pooled": tables.number(entry.get("auroc_pooled")),
                "Slides": entry.get("n_slides"),
            }
            for method, entry in (found.get("methods") or {}).items()
        ]
    )
