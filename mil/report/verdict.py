"""The result in sentences that claim no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mil.evaluate import flipped
from mil.report.inputs import Inputs
from mil.report.names import TESTS, heading, title

__all__ = ["Verdict", "interval", "p_value", "percent", "verdict"]

_MINUS = "\u2212"
_LEVEL = 0.05

Verdict = dict[str, Any]


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
    points = [
        _compare(inputs),
        _flips(inputs),
        _baseline(inputs),
        _sure(inputs),
        _split(inputs),
        _looks(inputs),
        _others(inputs),
    ]
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
            f"the trained aggregator, {title(inputs.focus)}, gets {percent(score['value'])} of "
            f"slides right ({interval(score)})"
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
        first = inputs.methods[0] if inputs.methods else None
        if first is None:
            return f"{over}, no method was scored."
        score = _accuracy(inputs, first)
        parts.append(f"{title(first)} gets {percent(score['value'])} right ({interval(score)})")
    return f"{over}, {_listed(parts)}."


def _compare(inputs: Inputs) -> str | None:
    focus = inputs.focus
    if focus is None or "vote" not in inputs.methods:
        return None
    tests = {row.get("test", "bootstrap"): row for row in _pair(inputs, focus, "vote", "accuracy")}
    row = tests.get("bootstrap")
    if row is None or row.get("difference") is None:
        return f"{heading(focus)} and the plurality vote were not compared slide by slide."
    difference, low, high = row["difference"], row.get("ci_low"), row.get("ci_high")
    text = f"{heading(focus)} against the plurality vote: {_signed(difference)} points of accuracy"
    if low is None or high is None:
        return f"{text}; there are too few slides for an interval."
    text += f" (95\u00a0% CI {_signed(low)} to {_signed(high)}; {_tested(tests)}): "
    adjusted = row.get("p_holm")
    if low <= 0 <= high:
        return f"{text}no difference that this many slides can show."
    if adjusted is not None and adjusted > _LEVEL:
        return (
            f"{text}the interval alone excludes zero, but not once all comparisons between "
            "methods are counted: no difference is shown."
        )
    return (
        f"{text}{title(focus)} is {'better' if low > 0 else 'worse'} on these slides, and "
        "resampling the patients does not undo it."
    )


def _pair(inputs: Inputs, a: str, b: str, metric: str) -> list[dict[str, Any]]:
    """Rows of the comparison, turned so that ``difference`` is ``a`` minus ``b``."""
    found = []
    for row in inputs.metrics.get("paired") or []:
        if row.get("metric") != metric or {row.get("a"), row.get("b")} != {a, b}:
            continue
        if row["a"] == a:
            found.append(dict(row))
        else:
            ends = (row.get("difference"), row.get("ci_high"), row.get("ci_low"))
            turned = [None if end is None else -end for end in ends]
            names = ("difference", "ci_low", "ci_high")
            found.append({**row, "a": a, "b": b, **dict(zip(names, turned, strict=True))})
    return found


def _tested(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """The tests by name, each with its p, adjusted for all comparisons where that was done."""
    parts = []
    for name, row in tests.items():
        if row.get("p") is None:
            continue
        words = f"{TESTS.get(name, name)} {p_value(row['p'])}"
        if row.get("p_holm") is not None:
            words += f", {p_value(row['p_holm'])} after Holm"
        parts.append(words)
    return "; ".join(parts) or "no test"


def _flips(inputs: Inputs) -> str | None:
    focus = inputs.focus
    if focus is None or "vote" not in inputs.methods:
        return None
    changed = flipped(inputs.predictions, "vote", focus)
    if changed.empty:
        return f"{heading(focus)} and the vote give the same answer on every slide."
    gained = int((changed["predicted_b"] == changed["label"]).sum())
    lost = int((changed["predicted_a"] == changed["label"]).sum())
    return (
        f"They answer differently on {_n(len(changed), 'slide')}: {title(focus)} alone is right on "
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


def _sure(inputs: Inputs) -> str | None:
    """Calibration and abstention of the focus in one sentence."""
    found, method = inputs.calibration or {}, inputs.focus or "vote"
    sets = (found.get("conformal") or {}).get(method)
    if not sets or (sets.get("coverage") or {}).get("value") is None:
        return None
    level, covered = percent(sets.get("level")), sets["coverage"]
    text = (
        f"Asked to name every class that it cannot rule out at {level}, {title(method)} names the "
        f"true one for {percent(covered['value'])} of slides ({interval(covered)})"
    )
    n, doubts = inputs.metrics["n"].get("slides"), sets.get("n_not_sure")
    folds = sets.get("folds") or []
    if folds and all(fold.get("threshold") is None for fold in folds):
        return (
            f"No fold has validation patients enough to say when {title(method)} can be sure at "
            f"{level}, so no slide gets a sure answer."
        )
    if doubts is None:
        return f"{text}."
    text += f" and is not sure on {doubts} of {n}"
    sure = sets.get("accuracy_when_sure") or {}
    if sure.get("value") is None:
        return f"{text}."
    return f"{text}; where it is sure, {percent(sure['value'])} are right ({interval(sure)})."


def _split(inputs: Inputs) -> str | None:
    """What the audit found, where it is no caution."""
    if inputs.audit is None or inputs.audit.get("verdict") != "clean":
        return None
    findings = inputs.audit.get("findings") or []
    notes = _n(len(findings), "remark") if findings else "no remark"
    return f"The audit of the split found no leak in what it could look at, and makes {notes}."


def _looks(inputs: Inputs) -> str | None:
    looks = inputs.metrics.get("looks")
    if not isinstance(looks, int) or looks != 1:
        return None  # more than one is a caution
    return "The test labels were looked at once, for these numbers."


def _others(inputs: Inputs) -> str | None:
    others = [name for name in inputs.methods if name not in {inputs.focus, "vote"}]
    if not others:
        return None
    return (
        f"Also scored, in the table below: {', '.join(title(name) for name in others)}. No "
        "method was chosen by its test result."
    )


def _cautions(inputs: Inputs) -> list[str]:
    found = [str(text) for text in inputs.metrics.get("cautions") or []]
    cautions = [f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in found]
    if inputs.audit is None:
        cautions.append("The split was not audited: held-out is a claim, not a check.")
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


def _n(count: int | None, noun: str) -> str:
    if count is None:
        return f"an unknown number of {noun}s"
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _signed(share: float) -> str:
    points = round(100 * share)
    return "0" if points == 0 else f"{'+' if points > 0 else _MINUS}{abs(points)}"


def p_value(value: float) -> str:
    """``p < 0.001``, or two digits of it."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
