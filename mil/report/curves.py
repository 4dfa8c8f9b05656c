"""Curves of the evaluation: reliability, risk by coverage, tiles seen, tiles taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from mil.report.figures import CYCLE, GREY, Chart, chart, label, slug
from mil.report.names import heading, title

__all__ = ["perturbation", "reliability", "risk", "tiles_seen"]

_UNIT = [-0.03, 1.03]
Points = Sequence[Mapping[str, Any]]


def reliability(method: str, entry: Mapping[str, Any]) -> Chart | None:
    """How often a method is right by how sure it is, before and after the temperature."""
    lines = (
        ("as given", "reliability", CYCLE[0]),
        ("after temperature", "reliability_after", CYCLE[2]),
    )
    figure = _diagonal()
    drawn = 0
    for words, key, colour in lines:
        bins = [one for one in entry.get(key) or [] if one.get("n") and _known(one, "accuracy")]
        if not bins:
            continue
        drawn += 1
        figure.add_scatter(
            x=[one["confidence"] for one in bins], y=[one["accuracy"] for one in bins],
            mode="lines+markers", name=words, line={"color": colour, "width": 2},
            marker={"size": [5 + 2 * min(one["n"], 50) ** 0.5 for one in bins]},
            customdata=[one["n"] for one in bins],
            hovertemplate=f"{words}: sure %{{x:.2f}}, right %{{y:.2f}}, "
            "%{customdata} slides<extra></extra>",
        )  # fmt: skip
    if not drawn:
        return None
    figure.update_xaxes(title_text="Probability of the answer", range=_UNIT)
    figure.update_yaxes(title_text="Share that is right", range=_UNIT)
    figure.update_layout(showlegend=True)
    caption = (
        f"Reliability of {title(method)}: on the dotted line a method is right as often as it is "
        "sure. Larger marks are more slides."
    )
    return chart(figure, f"reliability-{slug(method)}", caption, 340)


def risk(by_method: Mapping[str, Points]) -> Chart | None:
    """Share of wrong answers among the slides that a method is surest of."""
    figure = go.Figure()
    for place, (method, points) in enumerate(by_method.items()):
        known = [point for point in points if _known(point, "risk")]
        if not known:
            continue
        name = label(heading(method))
        figure.add_scatter(
            x=[point["coverage"] for point in known], y=[point["risk"] for point in known],
            mode="lines", name=name, line={"color": CYCLE[place % len(CYCLE)], "width": 2},
            hovertemplate=f"{name}: %{{x:.0%}} answered, %{{y:.1%}} wrong<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title_text="Share of slides that are answered", range=_UNIT)
    figure.update_yaxes(title_text="Share of the answers that is wrong", rangemode="tozero")
    figure.update_layout(showlegend=True)
    caption = (
        "Risk by coverage: where only the slides that a method is surest of are answered, how many "
        "of the answers are wrong. Where a curve does not rise to the right, confidence ranks "
        "nothing."
    )
    return chart(figure, "risk", caption, 360)


def tiles_seen(by_method: Mapping[str, Points]) -> Chart | None:
    """Accuracy by the number of tiles that are drawn from each slide."""
    figure = go.Figure()
    sizes = sorted({p["m"] for points in by_method.values() for p in points if p["m"] is not None})
    ticks = [str(size) for size in sizes] + ["all"]
    for place, (method, points) in enumerate(by_method.items()):
        known = [p for p in points if _known(p.get("accuracy") or {}, "value")]
        if not known:
            continue
        colour, name = CYCLE[place % len(CYCLE)], label(heading(method))
        x = [len(sizes) if p["m"] is None else sizes.index(p["m"]) for p in known]
        y = [p["accuracy"]["value"] for p in known]
        ends = [(p["accuracy"].get("ci_low"), p["accuracy"].get("ci_high")) for p in known]
        up = [0 if end[1] is None else end[1] - v for end, v in zip(ends, y, strict=True)]
        down = [0 if end[0] is None else v - end[0] for end, v in zip(ends, y, strict=True)]
        shift = 0.05 * (place - (len(by_method) - 1) / 2)
        figure.add_scatter(
            x=[at + shift for at in x], y=y, mode="lines+markers", name=name,
            line={"color": colour, "width": 2},
            error_y={"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 0},
            customdata=[[ticks[at]] for at in x],
            hovertemplate=f"{name}, %{{customdata[0]}} tiles: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(
        title_text="Tiles seen of each slide", tickvals=list(range(len(ticks))), ticktext=ticks
    )
    figure.update_yaxes(title_text="Accuracy", range=_UNIT)
    figure.update_layout(showlegend=True)
    caption = (
        "Accuracy on whole slides when only so many tiles of each are seen, drawn at random. Bars "
        "are 95 % intervals over patients."
    )
    return chart(figure, "tiles-seen", caption, 380)


def perturbation(method: str, measure: str, kind: str, entry: Mapping[str, Any]) -> Chart | None:
    """Probability of the first answer as tiles are removed (or shown), by score and at random."""
    figure = go.Figure()
    words = "most attended first" if measure == "attention" else "largest contribution first"
    lines = ((words, "curve", CYCLE[0]), ("at random", "random", GREY))
    for name, key, colour in lines:
        points = [point for point in entry.get(key) or [] if _known(point, "p")]
        if not points:
            continue
        x = [point["share"] for point in points]
        if all(_known(point, "ci_low") and _known(point, "ci_high") for point in points):
            figure.add_scatter(
                x=[*x, *x[::-1]],
                y=[*(p["ci_high"] for p in points), *(p["ci_low"] for p in points[::-1])],
                fill="toself", fillcolor=_faint(colour), line={"width": 0}, hoverinfo="skip",
                showlegend=False, mode="lines",
            )  # fmt: skip
        figure.add_scatter(
            x=x, y=[point["p"] for point in points], mode="lines+markers", name=name,
            line={"color": colour, "width": 2, "dash": "solid" if key == "curve" else "dot"},
            marker={"size": 5},
            hovertemplate=f"{name}: %{{x:.0%}}, p %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return None
    what = "removed" if kind == "deletion" else "shown"
    figure.update_xaxes(title_text=f"Share of tiles {what}", range=_UNIT)
    figure.update_yaxes(title_text="Probability of the full answer", range=_UNIT)
    figure.update_layout(showlegend=True)
    meaning = (
        "a curve below random says that these tiles carried the answer"
        if kind == "deletion"
        else "a curve above random says that these tiles give the answer"
    )
    caption = (
        f"{kind.capitalize()}, {title(method)}, by {measure}: {meaning}. Bands are 95 % intervals "
        "over patients."
    )
    return chart(figure, f"{kind}-{slug(method)}-{measure}", caption, 320)


def _diagonal() -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", showlegend=False, hoverinfo="skip",
        line={"color": GREY, "width": 1, "dash": "dot"},
    )  # fmt: skip
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _known(entry: Mapping[str, Any], key: str) -> bool:
    return entry.get(key) is not None
