"""Labels of slides: what is a class, and what counts where slides of one patient differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from splits.errors import InputError, unknown
from splits.groups import text

__all__ = ["POLICIES", "apply", "require_classes"]

POLICIES: Final = ("slide", "majority", "max", "reject")
_SHOWN: Final = 3


def apply(
    slides: pd.DataFrame, policy: str, order: Sequence[str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Settle the labels of patients whose slides differ.

    Args:
        slides: ``slide_id, patient_id, label``; a slide without patient is a patient of its own.
        policy: ``slide``: every slide keeps its label. ``majority``: a patient's slides get the
            commonest of their labels, of equally common ones the highest. ``max``: they get the
            highest. ``reject``: no patient may have two.
        order: Classes from lowest to highest, needed by ``max`` and by ties of ``majority``;
            labels that are numbers have an order of their own.

    Returns:
        The table with the labels that count, and the new label of each slide that changed.

    Raises:
        InputError: Unknown policy; a patient with several labels under ``reject``; an order that
            is needed and not known, or lacks a label.
    """
    if policy not in POLICIES:
        raise unknown(kind="label policy", given=policy, allowed=POLICIES)
    label = text(slides, "label")
    patient = text(slides, "patient_id").fillna(text(slides, "slide_id"))
    mixed = label.groupby(patient).transform("nunique") > 1
    if policy == "slide" or not mixed.any():
        return slides, {}
    cases = {name: values.tolist() for name, values in label[mixed].groupby(patient[mixed])}
    if policy == "reject":
        message = (
            f"{len(cases)} patient(s) have slides of several labels ({_examples(cases)}): correct "
            "the table, or choose another label policy (slide, majority, max)"
        )
        raise InputError(message)
    rank = _ranks(label.dropna().unique().tolist(), order)
    settled = {}
    for name, values in cases.items():
        candidates = sorted(set(values))
        if policy == "majority":
            most = max(values.count(value) for value in candidates)
            candidates = [value for value in candidates if values.count(value) == most]
        if len(candidates) > 1 and rank is None:
            message = (
                f"label policy {policy!r} needs to know which class is higher, as for "
                f"{_examples({name: values})}: give the classes from lowest to highest "
                "(label_order), or choose slide or reject"
            )
            raise InputError(message)
        settled[name] = max(candidates, key=lambda value: rank[value] if rank else 0)
    new = label.mask(mixed, patient.map(settled).astype("string"))
    changed = mixed & (new != label)
    ids = text(slides, "slide_id")[changed]
    return slides.assign(label=new), dict(zip(ids, new[changed], strict=True))


def _ranks(labels: list[str], order: Sequence[str] | None) -> dict[str, float] | None:
    if order is not None:
        for label in labels:
            if label not in order:
                raise unknown(kind="label (not in label_order)", given=label, allowed=order)
        return {label: float(order.index(label)) for label in labels}
    numbers = pd.to_numeric(pd.Series(labels), errors="coerce")
    return None if numbers.isna().any() else dict(zip(labels, numbers, strict=True))


def _examples(cases: dict[str, list[str]]) -> str:
    shown = [f"{name}: {', '.join(sorted(set(cases[name])))}" for name in sorted(cases)[:_SHOWN]]
    return "; ".join([*shown, *(["…"] if len(cases) > _SHOWN else [])])


def require_classes(slides: pd.DataFrame) -> None:
    """Refuse slides without a label, measurements in the place of classes, and a single class.

    Args:
        slides: The slide table, with ``slide_id`` and ``label``.

    Raises:
        InputError: It names the first slide or value.
    """
    missing = slides.loc[slides["label"].isna(), "slide_id"]
    if len(missing):
        message = (
            f"{len(missing)} of {len(slides)} slides have no label, the first is "
            f"{missing.iloc[0]!r}: give data.label or a manifest with a column label"
        )
        raise InputError(message)
    numbers = pd.to_numeric(slides["label"], errors="coerce")
    if numbers.notna().all() and (numbers % 1 != 0).any():
        message = (
            f"labels are measurements ({slides['label'].nunique()} values, the first is "
            f"{slides['label'].iloc[0]!r}), not classes: group them into classes first"
        )
        raise InputError(message)
    classes = slides["label"].unique()
    if len(classes) < 2:
        message = f"one class only ({classes[0]!r}): at least two are needed to tell slides apart"
        raise InputError(message)
