from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from mil.report import build
from mil.report.export import cell_text, markdown
from mil.report.inputs import read
from mil.report.verdict import verdict
from splits.artifacts import write_table
from tests.report_run import add_results, make_run


def test_csv_tables_hold_the_numbers_and_no_formula(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_slides=9)
    for name in ("predictions", "tile_predictions", "attention", "tiles"):
        table = pd.read_parquet(run / f"{name}.parquet")
        table["slide_id"] = "=HYPERLINK(1)" + table["slide_id"].astype(str)
        write_table(run / f"{name}.parquet", table, {})
    add_results(run)
    build(run, read_tile=None)
    tables = {path.stem: pd.read_csv(path) for path in (run / "tables").glob("*.csv")}
    expected = {"scores", "per_class", "paired", "slides", "flips", "tiles_seen", "reliability"}
    assert expected | {"risk_coverage", "answers"} == set(tables)
    for table in tables.values():
        for name in table.select_dtypes(exclude="number"):
            assert not table[name].astype(str).str.match(r"[=+\-@\t\r]").any()
    assert tables["slides"]["slide_id"].str.startswith("'=HYPERLINK(1)TCGA").all()
    metrics = json.loads((run / "metrics.json").read_text())
    scores = tables["scores"].set_index(["method", "metric"])["value"]
    assert scores["abmil", "auroc"] == pytest.approx(metrics["slide"]["abmil"]["auroc"]["value"])
    assert (tables["paired"]["difference"] == 0.0417).all()  # negative numbers stay numbers
    assert tables["paired"]["ci_low"].dtype == float
    (run / "beside.json").unlink()
    build(run, read_tile=None)
    assert not (run / "tables" / "flips.csv").exists()


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_begins_like_a_formula_is_text(sign: str) -> None:
    assert cell_text(f"{sign}1+1") == f"'{sign}1+1"
    assert cell_text(-1.5) == -1.5
    assert cell_text("a=b") == "a=b"


def test_markdown_has_the_verdict_and_escapes_names(tmp_path: Path) -> None:
    hostile = "[x](javascript:alert(1))|<img src=x onerror=alert(1)>`*"
    run = add_results(make_run(tmp_path, n_slides=9, hostile=hostile))
    build(run, read_tile=None)
    text = (run / "report.md").read_text()
    found = verdict(read(run))
    assert markdown(found["headline"]) in text
    assert "<img" not in text
    assert "&lt;img src=x" in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert not re.search(r"(?<!\\)`(?!report|tables|`)[*]", text)
    table = text.split("## Tile beside slide")[1].split("##")[0].strip().splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 7
    assert len(widths) == 1
