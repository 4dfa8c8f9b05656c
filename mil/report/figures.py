"""Plotly figures as JSON; the page colours their text by the reader's light or dark scheme.

Backgrounds are transparent and traces use mid-tones that keep a contrast above 3 on white and on
near-black. Plotly reads labels as HTML of its own kind, so every label is escaped here.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mil.report.inputs import Inputs, true_probability
from mil.report.names import METRICS, heading, title

__all__ = [
    "CYCLE",
    "GREY",
    "GRID",
    "Chart",
    "agreement",
    "chart",
    "curves",
    "forest",
    "label",
    "slug",
]

HEMATOXYLIN = "#7d5fb2"
EOSIN = "#d6558f"
TEAL = "#2a9d8f"
GREY = "#8b8794"
CYCLE = (HEMATOXYLIN, EOSIN, TEAL, "#c4841d", "#4a86c9", GREY)
GRID = "rgba(139,135,148,0.22)"


@dataclass(frozen=True)
class Chart:
    """One figure: its id on the page, what a screen reader hears, its caption and the figure."""

    id: str
    spoken: str
    caption: str
    figure: dict[str, Any]
    height_px: int


def label(value: object) -> str:
    """Text for a plotly label: markup in a slide or class name is shown, not obeyed."""
    return html.escape(str(value), quote=False)


def forest(inputs: Inputs, metric: str) -> Chart | None:
    """Values and 95 % intervals of one metric for tiles and every slide method."""
    rows = [("tile", inputs.metrics["tile"].get(metric))] if inputs.metrics["tile"] else []
    rows += [(method, score.get(metric)) for method, score in inputs.metrics["slide"].items()]
    rows = [(name, entry) for name, entry in rows if entry and entry.get("value") is not None]
    if not rows:
        return None
    names = [label(heading(method)) for method, _ in rows]
    is_tile = [method == "tile" for method, _ in rows]
    value = np.array([entry["value"] for _, entry in rows], dtype=float)
    low = _bound(rows, "ci_low", value)
    high = _bound(rows, "ci_high", value)
    colours = [GREY if tile else HEMATOXYLIN for tile in is_tile]
    figure = go.Figure()
    for place, colour in enumerate(colours):
        figure.add_scatter(
            x=[low[place], high[place]], y=[place, place], mode="lines", hoverinfo="skip",
            line={"color": colour, "width": 2},
        )  # fmt: skip
    figure.add_scatter(
        x=value, y=np.arange(len(rows)), mode="markers",
        marker={
            "size": 11, "color": colours,
            "symbol": ["square" if tile else "circle" for tile in is_tile],
        },
        customdata=[[names[i], f"{low[i]:.3f} to {high[i]:.3f}"] for i in range(len(rows))],
        hovertemplate="%{customdata[0]}: %{x:.3f}<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip
    chance, words = _chance(inputs, metric)
    if chance is not None:
        figure.add_vline(x=chance, line={"color": EOSIN, "width": 1.5, "dash": "dot"})
    height = 96 + 38 * len(rows)
    figure.update_xaxes(range=[-0.01, 1.01], title_text=METRICS.get(metric, metric))
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=names, range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )  # fmt: skip
    caption = f"{METRICS.get(metric, metric)}: value and 95 % interval.{words}"
    return chart(figure, f"forest-{metric}", caption, height)


def _bound(
    rows: list[tuple[str, Mapping[str, Any]]], key: str, value: np.typing.NDArray[np.float64]
) -> np.typing.NDArray[np.float64]:
    """Interval ends; a value without an interval is drawn as a bare dot."""
    found = [entry.get(key) for _, entry in rows]
    return np.array([v if f is None else f for f, v in zip(found, value, strict=True)], dtype=float)


def _chance(inputs: Inputs, metric: str) -> tuple[float | None, str]:
    if metric == "balanced_accuracy":
        return 1 / len(inputs.classes), " Dotted: chance, one over the number of classes."
    labels = inputs.predictions.drop_duplicates("slide_id")["label"]
    if metric != "accuracy" or labels.empty:
        return None, ""
    share = float(labels.value_counts(normalize=True).max())
    return share, " Dotted: the commonest class answered for every slide."


def curves(name: str, log: pd.DataFrame) -> list[Chart]:
    """Loss and validation accuracy by epoch, one colour a fold; a star marks the chosen epoch."""
    what = "the encoder" if name == "encoder" else title(name)
    charts = []
    lines = {"train_loss": ("Training loss", "dot"), "val_loss": ("Validation loss", "solid")}
    accuracy = {"val_accuracy": ("Validation accuracy", "solid")}
    for key, columns in (("loss", lines), ("accuracy", accuracy)):
        present = {c: v for c, v in columns.items() if c in log and log[c].notna().any()}
        if not present:
            continue
        figure = go.Figure()
        for place, (fold, rows) in enumerate(log.groupby("fold", sort=True)):
            _add_fold(figure, rows, str(fold), CYCLE[place % len(CYCLE)], present)
        figure.update_xaxes(title_text="Epoch", rangemode="tozero")
        figure.update_yaxes(title_text="Loss" if key == "loss" else "Validation accuracy")
        if key == "accuracy":
            figure.update_yaxes(range=[-0.02, 1.02])
        figure.update_layout(showlegend=True)
        words = (
            f"Loss of {what}: validation solid, training dotted."
            if key == "loss"
            else f"Validation accuracy of {what}."
        )
        caption = f"{words} One colour a fold; a star marks the epoch that was kept."
        charts.append(chart(figure, f"curve-{slug(name)}-{key}", caption, 300))
    return charts


def _add_fold(
    figure: go.Figure, rows: pd.DataFrame, fold: str, colour: str,
    columns: Mapping[str, tuple[str, str]],
) -> None:  # fmt: skip
    rows = rows.sort_values("epoch")
    last = list(columns)[-1]
    for column, (words, dash) in columns.items():
        # "best" marks every epoch that was the best so far; the last of them was kept.
        best = rows.loc[rows["best"].astype(bool), "epoch"].max()
        kept = (rows["epoch"] == best).to_numpy()
        star = column == last
        figure.add_scatter(
            x=rows["epoch"], y=rows[column], name=f"fold {label(fold)}",
            legendgroup=fold, showlegend=star,
            # One epoch makes no line: its values stay visible as marks.
            mode="lines+markers" if star or len(rows) == 1 else "lines",
            line={"color": colour, "width": 2 if star else 1.2, "dash": dash},
            marker={
                "symbol": np.where(kept, "star", "circle"),
                "size": np.where(kept & star, 11, 0 if len(rows) > 1 else 6),
                "line": {"width": 0},
            },
            hovertemplate=f"{words}, fold {label(fold)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip


def agreement(inputs: Inputs, method: str) -> Chart | None:
    """Vote share against a method's probability of the true class, one dot a slide.

    The custom data of a mark are its words and the place of its slide among those of the method.
    """
    if "vote" not in inputs.methods:
        return None
    vote, other = inputs.slides_of("vote"), inputs.slides_of(method)
    shared = vote.index.intersection(other.index).sort_values()
    if shared.empty:
        return None
    places = other.index.get_indexer(shared)
    vote, other = vote.loc[shared], other.loc[shared]
    right_vote = (vote["predicted"] == vote["label"]).to_numpy()
    right_other = (other["predicted"] == other["label"]).to_numpy()
    x, y = true_probability(vote, inputs.classes), true_probability(other, inputs.classes)
    name = title(method)
    groups = (
        ("both right", right_vote & right_other, HEMATOXYLIN, "circle"),
        ("both wrong", ~right_vote & ~right_other, GREY, "x"),
        (f"only {label(name)} right", ~right_vote & right_other, TEAL, "triangle-up"),
        ("only the vote right", right_vote & ~right_other, EOSIN, "triangle-down"),
    )
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", showlegend=False, hoverinfo="skip",
        line={"color": GREY, "width": 1, "dash": "dot"},
    )  # fmt: skip
    text = [
        f"{label(slide)}<br>is {label(row.label)}; vote {label(row.predicted)}, "
        f"{label(name)} {label(answer)}"
        for slide, row, answer in zip(
            shared, vote.itertuples(), other["predicted"].tolist(), strict=True
        )
    ]
    for words, chosen, colour, symbol in groups:
        if not chosen.any():
            continue
        figure.add_scatter(
            x=x[chosen], y=y[chosen], mode="markers", name=f"{words} ({int(chosen.sum())})",
            marker={"color": colour, "symbol": symbol, "size": 10, "opacity": 0.85,
                    "line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"}},
            customdata=[[text[i], int(places[i])] for i in np.flatnonzero(chosen)],
            hovertemplate="%{customdata[0]}<br>vote %{x:.2f}, " + label(name)
            + " %{y:.2f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="Share of the tiles' vote for the true class", range=_UNIT)
    figure.update_yaxes(title_text=f"Probability by {label(name)}", range=_UNIT)
    figure.update_layout(showlegend=True)
    caption = (
        f"One mark a slide: the share of its tiles that vote for its true class against the "
        f"probability that {name} gives to it. Triangles are flips: one of the two is right."
    )
    return chart(figure, "agreement", caption, 460)


_UNIT = [-0.03, 1.03]


def chart(figure: go.Figure, name: str, caption: str, height_px: int) -> Chart:
    """A figure in the style of the page: bare axes, no background, the legend above."""
    axis = {
        "gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True,
        "fixedrange": True, "title": {"standoff": 10, "font": {"size": 13}},
    }  # fmt: skip
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    if figure.layout.showlegend is None:
        figure.update_layout(showlegend=False)
    figure.update_layout(
        template=go.layout.Template(), height=height_px, dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 12, "t": 12, "b": 8}, font={"size": 13},
        legend={"orientation": "h", "y": 1.05, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hoverlabel={"align": "left"},
    )  # fmt: skip
    return Chart(name, caption, caption, json.loads(str(figure.to_json())), height_px)


def slug(name: str) -> str:
    """The name as a part of an id; what an id may not hold becomes a dash."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
