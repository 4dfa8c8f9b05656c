"""What was chosen, by what, and who looked: ``selection.json`` and ``seal.json``."""

from __future__ import annotations

from typing import Any

from mil.report import tables
from mil.report.inputs import Inputs
from mil.report.names import METRICS

__all__ = ["seal", "selection"]


def selection(inputs: Inputs) -> dict[str, Any] | None:
    """Tables of nested selection; None where the run selected nothing."""
    found = inputs.selection
    if found is None:
        return None
    criterion = str(found.get("criterion"))
    folds = [
        {
            "Fold": fold.get("fold"),
            "Chosen": fold.get("chosen"),
            "Inner score": tables.number(fold.get("inner")),
            "Best inner score": tables.number(fold.get("inner_best")),
            "Score on its test slides": tables.number(fold.get("outer")),
            "Test slides": fold.get("n_test"),
        }
        for fold in found.get("folds") or []
    ]
    candidates = [
        {
            "Fold": fold.get("fold"),
            "Candidate": one.get("name"),
            "Inner scores": [tables.number(score) for score in one.get("scores") or []],
            "Mean": tables.number(one.get("mean")),
            "Within one standard error": one.get("within_one_se"),
        }
        for fold in found.get("folds") or []
        for one in fold.get("candidates") or []
    ]
    chosen = [
        {"Candidate": one.get("name"), "Chosen in folds": one.get("n_chosen")}
        | {"Settings": one.get("candidate")}
        for one in found.get("candidates") or []
    ]
    return {
        "rule": found.get("rule") or "",
        "criterion": METRICS.get(criterion, criterion).lower(),
        "inner_folds": found.get("inner_folds"),
        "inner": tables.number(found.get("inner")),
        "outer": tables.number(found.get("outer")),
        "optimism": found.get("optimism"),
        "folds": tables.grid(folds),
        "chosen": tables.grid(chosen),
        "candidates": tables.grid(candidates),
    }


def seal(inputs: Inputs) -> dict[str, Any] | None:
    """The looks at the test labels; None without ``seal.json``."""
    if inputs.seal is None:
        return None
    log = inputs.seal.get("log") or []
    rows = [
        {
            "Look": place,
            "When": str(look.get("when", "")).replace("T", " ").replace("+00:00", " UTC"),
            "Stage": look.get("stage"),
            "Predictions": look.get("digest"),
        }
        for place, look in enumerate(log, start=1)
    ]
    return {
        "looks": inputs.seal.get("looks", len(log)),
        "n_predictions": len({look.get("digest") for look in log}),
        "table": tables.grid(rows),
    }
