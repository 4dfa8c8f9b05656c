"""The result in sentences that claim no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mil import statistics
from mil.evaluate import flipped
from mil.report.inputs import Inputs

__all__ = ["Verdict", "heading", "interval", "percent", "title", "verdict"]

_TITLES = {
    "tile": "single tiles",
    "vote": "plurality vote",
    "mean_probability": "mean probability",
    "weighted_vote": "vote weighted by confidence",
    "quality_vote": "vote without blank tiles",
    "top_k_mean": "mean of the surest tiles",
    "max_probability": "surest tile",
    "noisy_or": "noisy-or",
}
_MINUS = "\u2212"

Verdict = dict[str, Any]


def title(method: str) -> str:
    """How a method is called in the text; a trained aggregator keeps its own name."""
    return _TITLES.get(method, method)


def heading(method: str) -> str:
    """The title at the start of a line; a trained aggregator is a name and stays as it is."""
    name = title(method)
    return name[:1].upper() + name[1:] if method in _TITLES else name


def percent(share: float | None) -> str:
    """A share as per cent without decimals: a few dozen slides carry no more."""
    return "undefined" if share is None else f"{100 * share:.0f}\u00a0%"


def interval(score: Mapping[str, Any]) -> str:
    """The 95 % interval of a share in per cent, or that there is none."""
    low, high = score.get("ci_low"), score.get("ci_high")
    if low is None or high is None:
        return "no interval"
    return f"95\u00a0% CI {100 * low:.0f} to {100 * high:.0f}"


def verdict(inputs: Inputs) -> Verdict:
    """The verdict: ``headline`` (text), ``points`` and ``cautions`` (lists of sentences)."""
    points = [_compare(inputs), _flips(inputs), _baseline(inputs), _others(inputs)]
    return {
        "headline": _headline(inputs),
        "points": [point for point in points if point],
        "cautions": _cautions(inputs),
    }


def _accuracy(inputs: Inputs, method: str) -> dict[str, Any]:
    score = inputs.metrics["slide"].get(method, {}).get("accuracy")
    return dict(score) if score else {"value": None}


def _headline(inputs: Inputs) -> str:
    count = inputs.metrics["n"]
    over = f"Over {_n(count.get('slides'), 'held-out slide')}"
    if count.get("patients"):
        over += f" of {_n(count['patients'], 'patient')}"
    parts = []
    if inputs.focus is not None:
        score = _accuracy(inputs, inputs.focus)
        parts.append(
            f"the trained aggregator {inputs.focus} gets {percent(score['value'])} of slides right "
            f"({interval(score)})"
        )
    if "vote" in inputs.methods:
        score = _accuracy(inputs, "vote")
        words = "" if parts else " of slides right"
        gets = "" if parts else "gets "
        parts.append(
            f"the plurality vote of tiles {gets}{percent(score['value'])}{words} "
            f"({interval(score)})"
        )
    tile = (inputs.metrics["tile"] or {}).get("accuracy")
    if tile:
        gets = "" if parts else "get "
        parts.append(f"single tiles {gets}{percent(tile['value'])} ({interval(tile)})")
    if not parts:
        return f"{over}, no method was scored."
    return f"{over}, {_listed(parts)}."


def _compare(inputs: Inputs) -> str | None:
    focus = inputs.focus
    if focus is None or "vote" not in inputs.methods:
        return None
    for row in inputs.metrics.get("paired") or []:
        if row.get("metric") != "accuracy" or {row.get("a"), row.get("b")} != {focus, "vote"}:
            continue
        # `difference` is a minus b; the sentence is always about the trained aggregator.
        values = [row.get("difference"), row.get("ci_low"), row.get("ci_high")]
        if row["a"] == "vote":
            values = [None if v is None else -v for v in (values[0], values[2], values[1])]
        difference, low, high = values
        if difference is None:
            break
        text = f"{focus} against the plurality vote: {_signed(difference)} points of accuracy"
        if low is None or high is None:
            return f"{text}; there are too few slides for an interval."
        return f"{text} (95\u00a0% CI {_signed(low)} to {_signed(high)}{_p(row.get('p'))}): " + (
            "no difference that this many slides can show."
            if low <= 0 <= high
            else f"{focus} is {'better' if low > 0 else 'worse'} on these slides, and resampling "
            "them does not undo it."
        )
    return f"{focus} and the plurality vote were not compared slide by slide."


def _flips(inputs: Inputs) -> str | None:
    focus = inputs.focus
    if focus is None or "vote" not in inputs.methods:
        return None
    changed = flipped(inputs.predictions, "vote", focus)
    if changed.empty:
        return f"{focus} and the vote give the same answer on every slide."
    gained = int((changed["predicted_b"] == changed["label"]).sum())
    lost = int((changed["predicted_a"] == changed["label"]).sum())
    return (
        f"They answer differently on {_n(len(changed), 'slide')}: {focus} alone is right on "
        f"{gained}, the vote alone on {lost}, neither on {len(changed) - gained - lost}."
    )


def _baseline(inputs: Inputs) -> str | None:
    labels = inputs.predictions.drop_duplicates("slide_id")["label"].astype(str)
    if labels.empty:
        return None
    counts = labels.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    share = counts.iloc[0] / len(labels)
    text = (
        f"Answering {counts.index[0]!r}, the commonest class, every time would get "
        f"{percent(share)} of these slides right"
    )
    reference = "vote" if "vote" in inputs.methods else inputs.focus
    low = _accuracy(inputs, reference).get("ci_low") if reference else None
    if reference is None or low is None:
        return f"{text}."
    above = low > share
    return f"{text}; the interval of the {title(reference)} " + (
        "lies above that." if above else "does not lie above that, so nothing learned is shown."
    )


def _others(inputs: Inputs) -> str | None:
    others = [name for name in inputs.methods if name not in {inputs.focus, "vote"}]
    if not others:
        return None
    return (
        f"Also scored, in the table below: {', '.join(title(name) for name in others)}. No "
        "method was chosen by its test result."
    )


def _cautions(inputs: Inputs) -> list[str]:
    cautions = [f"{text[:1].upper()}{text[1:]}." for text in _caveats(inputs)]
    if inputs.audit is None:
        cautions.append("The split of this run was not audited: held-out is a claim, not a check.")
    elif inputs.audit.get("verdict") != "clean":
        cautions.append(
            f"The audit of the split says {inputs.audit.get('verdict')!r}: the numbers here are "
            "not those of held-out slides."
        )
    if inputs.identity is not None and str(inputs.identity.get("grade")) in {"C", "D"}:
        cautions.append(
            f"Slide identity is of grade {inputs.identity['grade']}: which tiles belong to one "
            "slide is partly a guess, and so is the separation of the parts."
        )
    looks = inputs.metrics.get("looks")
    if isinstance(looks, int) and looks > 1:
        cautions.append(
            f"The test labels of this run have been looked at {looks} times: choices made in "
            "between make the result look better than it is."
        )
    return cautions


def _caveats(inputs: Inputs) -> list[str]:
    """What the number of patients and classes does to the intervals, if patients are known."""
    if inputs.tiles is None:
        return []
    patients = inputs.tiles.drop_duplicates("slide_id").set_index("slide_id")["patient_id"]
    tested = inputs.predictions.drop_duplicates("slide_id")
    tested = tested[tested["slide_id"].isin(patients.index)]
    labels = pd.Index(inputs.classes).get_indexer(tested["label"].astype(str))
    known = labels >= 0
    if not known.any():
        return []
    clusters = patients[tested["slide_id"]].to_numpy(dtype=object)
    return statistics.caveats(labels[known], clusters[known], inputs.classes)


def _n(count: int | None, noun: str) -> str:
    if count is None:
        return f"an unknown number of {noun}s"
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _signed(share: float) -> str:
    points = round(100 * share)
    return "0" if points == 0 else f"{'+' if points > 0 else _MINUS}{abs(points)}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return ", p < 0.001" if value < 0.001 else f", p = {value:.2g}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
