"""The tables of the page as csv, and its verdict and tables as Markdown.

What a spreadsheet would take for a formula is shown as text: a cell of text that begins with
``= + - @`` or a control sign gets an apostrophe in front, as the OWASP advice on CSV injection has
it. Numbers are numbers and stay as they are. Whoever needs the ids to the letter reads the parquet
files of the run. In Markdown every sign that could be markup is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from mil.report.inputs import Inputs
from mil.report.names import METRICS, PER_CLASS, heading
from splits.artifacts import atomic, write_csv

__all__ = ["FOLDER", "cell_text", "markdown", "write"]

FOLDER: Final = "tables"
_ENDS: Final = ("value", "ci_low", "ci_high")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKUP: Final = re.compile(r"[\\`*_\[\]#!|~$>]|^[-+]|:(?=//)|(?<=^\d)[.)]")


def write(inputs: Inputs, context: Mapping[str, Any]) -> None:
    """Write ``tables/*.csv`` and ``report.md`` of the run; tables without rows are not kept.

    Args:
        inputs: The tables of the run.
        context: What the page shows.
    """
    found = _tables(inputs, context)
    for name, rows in found.items():
        path = inputs.run / FOLDER / f"{name}.csv"
        if not rows:
            path.unlink(missing_ok=True)  # never that of an earlier run
            continue
        table = pd.DataFrame(rows)
        text = table.select_dtypes(exclude="number").columns
        table[text] = table[text].map(cell_text)
        write_csv(path, table)
    with atomic(inputs.run / "report.md") as temporary:
        temporary.write_text(_report(inputs, context, found), encoding="utf-8")


def cell_text(value: object) -> object:
    """A cell as a spreadsheet may have it: text that would be a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def markdown(value: object) -> str:
    """Text that no Markdown reader takes for markup, on one line."""
    text = " ".join(str(value).split())
    text = _MARKUP.sub(r"\\\g<0>", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _tables(inputs: Inputs, context: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    metrics, calibration = inputs.metrics, inputs.calibration or {}
    levels = [("tile", "tile", metrics["tile"])]
    levels += [("slide", method, score) for method, score in metrics["slide"].items()]
    per_class = metrics.get("per_class") or {}
    by_class = [("tile", "tile", per_class.get("tile") or {})]
    by_class += [("slide", name, score) for name, score in (per_class.get("slide") or {}).items()]
    explorer = context["explorer"]
    return {
        "scores": [
            {"level": level, "method": method, "metric": metric, **_ends(entry)}
            for level, method, score in levels
            for metric, entry in score.items()
        ],
        "per_class": [
            {
                "level": level,
                "method": method,
                "class": name,
                "n": score.get("n"),
                "metric": metric,
                **_ends(score[metric]),
            }
            for level, method, classes in by_class
            for name, score in classes.items()
            for metric in PER_CLASS
            if metric in score
        ],
        "paired": [dict(row) for row in metrics.get("paired") or []],
        "slides": [_slide(explorer.method, row) for row in explorer.data] if explorer else [],
        "answers": [
            {
                "slide_id": str(row.slide_id),
                "method": row.method,
                "label": row.label,
                "predicted": row.predicted,
            }
            for row in inputs.predictions.itertuples()
        ],
        "flips": [
            {key: value for key, value in flip.items() if not isinstance(value, list)}
            for flip in ((inputs.beside or {}).get("flips") or {}).get("slides") or []
        ],
        "tiles_seen": [
            {
                "method": method,
                "m": "all" if point["m"] is None else str(point["m"]),
                **_ends(point.get("accuracy")),
                "n_whole": point.get("n_whole"),
            }
            for method, points in (
                ((inputs.beside or {}).get("tiles_seen") or {}).get("methods") or {}
            ).items()
            for point in points
        ],
        "risk_coverage": [
            {"method": method, **point}
            for method, points in (calibration.get("risk_coverage") or {}).items()
            for point in points or []
        ],
        "reliability": [
            {"method": method, "temperature": words, **one}
            for method, entry in (calibration.get("methods") or {}).items()
            for words, key in (("before", "reliability"), ("after", "reliability_after"))
            for one in entry.get(key) or []
        ],
    }  # fmt: skip


def _ends(entry: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {name: (entry or {}).get(name) for name in _ENDS}


def _slide(method: str, row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("slide_id", "patient", "site", "fold", "label", "predicted", "right", "p_true")
    found = {name: row[name] for name in kept}
    found |= {"method": method, "vote": row["vote"], "vote_margin": row["vote_share"]}
    marks = {f"is_{mark.replace(' ', '_')}": mark in row["marks"]
             for mark in ("flip", "heterogeneous", "not sure")}  # fmt: skip
    return {**found, "n_tiles": row["n_tiles"], **marks,
            "set": None if row["set"] is None else " | ".join(row["set"])}  # fmt: skip


def _report(
    inputs: Inputs,
    context: Mapping[str, Any],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    verdict = context["verdict"]
    lines = [f"# {markdown(context['name'])}", "", f"**{markdown(verdict['headline'])}**", ""]
    lines += [f"- {markdown(point)}" for point in verdict["points"]]
    if verdict["cautions"]:
        lines += ["", "Before believing it:", ""]
        lines += [f"- {markdown(caution)}" for caution in verdict["cautions"]]
    scores = context["scores"]
    heads = ["Method", *(column["text"] for column in scores["columns"])]
    rows = [[row["name"], *map(_one_line, row["cells"])] for row in scores["rows"]]
    lines += _section("Tile beside slide", heads, rows)
    for part in context["per_class"]:
        rows = [[row["name"], row["n"], *map(_one_line, row["cells"])] for row in part["rows"]]
        lines += _section(f"Class by class: {part['name']}", ["Class", "n", *part["columns"]], rows)
    for pairs, words in (("vote", "Against the vote"), ("others", "Other pairs")):
        table = context["paired"][pairs]
        lines += _section(
            words,
            ["Comparison", *(table["columns"] if table else [])],
            [[row["name"], *map(_one_line, row["cells"])] for row in (table or {}).get("rows", [])],
        )
    lines += _grid("Slides that change their answer", context["flips"]["table"])
    if context["certainty"]:
        lines += _grid("Temperatures", context["certainty"]["temperatures"])
        lines += _grid("Sets of classes", context["certainty"]["sets"])
    lines += _grid("Attention put to the test", context["trust"]["table"])
    wrong = [row for row in found["slides"] if not row["right"]]
    heads = ["Slide", "True class", "Answer", "P(true)"]
    lines += _section(
        "Slides answered wrongly" + (f" by {heading(context['explorer'].method)}" if wrong else ""),
        heads,
        [
            [row["slide_id"], row["label"], row["predicted"],
             "" if row["p_true"] is None else f"{row['p_true']:.2f}"]
            for row in wrong
        ],
    )  # fmt: skip
    metrics = ", ".join(METRICS.values())
    lines += [
        "",
        f"Intervals are at 95 % over patients. How each number was made ({metrics}) stands in "
        "`report.html`; the tables are in `tables/` as csv.",
        "",
        f"Slidewise {markdown(context['versions']['slidewise'])}, made {context['made']}. "
        "Research use: not a medical device.",
    ]
    return "\n".join(lines) + "\n"


def _one_line(cell: Mapping[str, Any]) -> str:
    text = f"{cell['value']} ({cell['interval']})" if cell["interval"] else str(cell["value"])
    return "; ".join([text, *cell.get("tests", [])])


def _grid(name: str, table: Mapping[str, Any] | None) -> list[str]:
    if table is None:
        return []
    heads = [head["text"] for head in table["columns"]]
    return _section(name, heads, [[cell["text"] for cell in row] for row in table["rows"]])


def _section(name: str, heads: Sequence[object], rows: Sequence[Iterable[object]]) -> list[str]:
    """A table under a heading; nothing where it has no rows."""
    if not rows:
        return []
    head, *body = ["| " + " | ".join(map(markdown, row)) + " |" for row in (heads, *rows)]
    rule = "|" + "---|" * len(heads)
    return ["", f"## {markdown(name)}", "", head, rule, *body]
