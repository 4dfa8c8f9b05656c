"""How sure the answers are: calibration, sets of classes, abstention. From ``calibration.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mil.report import curves, tables
from mil.report.figures import Chart
from mil.report.inputs import Inputs
from mil.report.names import METRICS, heading

__all__ = ["section"]

_SCORED = ("log_loss", "brier", "ece")


def section(inputs: Inputs) -> dict[str, Any] | None:
    """Tables and charts of the section; None without the file."""
    found = inputs.calibration
    if found is None:
        return None
    methods: Mapping[str, Any] = found.get("methods") or {}
    shown = [name for name in (inputs.focus, "vote") if name is not None and name in methods]
    drawn = [curves.reliability(name, methods[name]) for name in shown]
    charts: list[Chart] = [chart for chart in drawn if chart is not None]
    risk = curves.risk(
        {name: points for name, points in (found.get("risk_coverage") or {}).items() if points}
    )
    return {
        "temperatures": _temperatures(methods),
        "sets": _sets(found.get("conformal") or {}),
        "folds": _folds(found.get("conformal") or {}),
        "areas": _areas(found.get("aurc") or {}),
        "thresholds": _thresholds(found.get("thresholds") or {}),
        "validated": found.get("validation", True),
        "charts": charts,
        "risk": risk,
    }


def _temperatures(methods: Mapping[str, Any]) -> tables.Table | None:
    """A row a method: its temperatures, and what they do to the scores of probabilities."""
    rows = []
    for name, entry in methods.items():
        values = [one.get("value") for one in entry.get("temperature") or []]
        row = {"Method": heading(name), "Temperatures": [tables.text(value) for value in values]}
        for metric in _SCORED:
            before = (entry.get("before") or {}).get(metric) or {}
            after = (entry.get("after") or {}).get(metric) or {}
            words = METRICS[metric]
            row[words] = tables.scored(before)
            row[f"{words}, after"] = tables.scored(after)
        rows.append(row)
    return tables.grid(rows)


def _sets(conformal: Mapping[str, Any]) -> tables.Table | None:
    rows = []
    for name, entry in conformal.items():
        rows.append(
            {
                "Method": heading(name),
                "Aimed at": tables.text(entry.get("level")),
                "Coverage": tables.scored(entry.get("coverage") or {}),
                "Classes a set": tables.text(entry.get("mean_set_size")),
                "Not sure": entry.get("n_not_sure"),
                "No class fits": entry.get("n_empty"),
                "Accuracy when sure": tables.scored(entry.get("accuracy_when_sure") or {}),
            }
        )
    return tables.grid(rows)


def _folds(conformal: Mapping[str, Any]) -> tables.Table | None:
    rows = [
        {
            "Method": heading(name),
            "Fold": fold.get("fold"),
            "Calibration patients": fold.get("n_calibration_patients"),
            "Threshold": tables.text(fold.get("threshold")),
            "Note": fold.get("note") or "",
        }
        for name, entry in conformal.items()
        for fold in entry.get("folds") or []
    ]
    return tables.grid(rows)


def _areas(areas: Mapping[str, Any]) -> tables.Table | None:
    return tables.grid(
        [
            {
                "Method": heading(name),
                "Area under risk by coverage": tables.number(entry.get("value")),
                "With the best order of these answers": tables.number(entry.get("best")),
            }
            for name, entry in areas.items()
        ]
    )


def _thresholds(found: Mapping[str, Any]) -> dict[str, Any]:
    """Thresholds on the probability of two classes, chosen on validation."""
    rows = [
        {
            "Method": heading(name),
            "Thresholds": [fold.get("value") for fold in entry.get("folds") or []],
            "Balanced accuracy": tables.number(entry.get("balanced_accuracy")),
            "Without threshold": tables.number(entry.get("argmax")),
        }
        for name, entry in (found.get("methods") or {}).items()
    ]
    return {"table": tables.grid(rows), "note": found.get("note")}
