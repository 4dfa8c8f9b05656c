"""The classes of a foreign file under the names of the label table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import pandas as pd

from mil.foreign.answers import Answers, Remarks, few
from splits.errors import InputError, unknown

__all__ = ["named", "of_files"]

# Of two such classes it is plain which one a single score is of.
_POSITIVE: Final = {
    "0": "1",
    "false": "true",
    "no": "yes",
    "neg": "pos",
    "negative": "positive",
    "-": "+",
}


def named(answers: Answers, truth: Mapping[str, str], remarks: Remarks) -> Answers:
    """A file with its classes named as the labels are.

    Names that differ in case, spaces and punctuation alone are the same. Numbers stand for names
    where the file has labels of its own that match those of the same slides one to one.

    Args:
        answers: A file; its ids are those of ``truth`` already.
        truth: Label of each slide, from the label table or from another file.
        remarks: Gets what was renamed.

    Returns:
        The file, a single score with the name of its class.

    Raises:
        InputError: A class fits no label, labels contradict those of the slides, or it is open
            which class a single score is of.
    """
    allowed = sorted(set(truth.values()))
    own = [name for name in answers.classes if name]
    given = set(own) | (set(answers.rows["label"]) | set(answers.rows["predicted"])) - {""}
    renamed = _same_but_for_spelling(given, allowed, own)
    if renamed:
        pairs = ", ".join(f"{ours!r} is taken for {theirs!r}" for ours, theirs in renamed.items())
        remarks.notes.append(f"{answers.path}: {pairs}, as in the labels")
    open_ = sorted(given - set(renamed) - set(allowed))
    if open_ and not set(own) & set(allowed):
        by_slides = _by_slides(answers, truth, set(open_))
        if by_slides:
            pairs = ", ".join(
                f"{ours!r} is {theirs!r}" for ours, theirs in sorted(by_slides.items())
            )
            remarks.notes.append(f"{answers.path}: by the labels of the same slides, class {pairs}")
        renamed |= by_slides
    rows = answers.rows.assign(
        **{name: answers.rows[name].replace(renamed) for name in ("label", "predicted")}
    )
    classes = tuple(renamed.get(name, name) for name in answers.classes)
    if classes == ("",):
        classes = (_positive(answers, allowed),)
    result = replace(answers, rows=rows, classes=classes)
    if len(set(classes)) < len(classes):
        message = f"{answers.path}: two columns of probabilities are of one class ({few(classes)})"
        raise InputError(message)
    _agree(result, truth)
    return result


def of_files(files: Sequence[Answers], truth: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that all files answer, in the order of the first.

    Raises:
        InputError: Two files differ in classes, a label or an answer is not among them, or one
            class alone is known.
    """
    classes: tuple[str, ...] = ()
    labels = set(truth.values())
    for answers in files:
        own = answers.classes
        if len(own) == 1:
            other = sorted(labels - set(own))
            if own[0] in labels and not other and own[0] in {"0", "1"}:
                other = [str(1 - int(own[0]))]
            if len(other) != 1:
                message = (
                    f"{answers.path} has the probability of one class, {own[0]!r}, and the labels "
                    f"have {len(labels)} ({few(labels)}): with one column there are exactly two "
                    "classes; give a column p_CLASS for each"
                )
                raise InputError(message)
            own = (other[0], own[0])
        if not classes:
            classes, first = own, answers.path
        elif set(own) != set(classes):
            message = (
                f"{answers.path} has the classes {', '.join(sorted(own))} and {first} "
                f"{', '.join(sorted(classes))}: methods are compared over the same classes"
            )
            raise InputError(message)
        for column in ("label", "predicted"):
            for name in sorted(set(answers.rows[column]) - {"", *own}):
                kind = f"{column} in {answers.path}"
                raise unknown(kind, name, own)
    for name in sorted(labels - set(classes)):
        raise _not_a_class(name, classes)
    return classes


def _not_a_class(name: str, classes: Sequence[str]) -> InputError:
    error = unknown("label (no column of probabilities)", name, classes)
    if all(re.fullmatch(r"\d+", other) for other in classes):
        maps = ",".join(f"p_CLASS=p_{other}" for other in classes[:2])
        message = f"{error}: say which number is which class with --columns {maps}"
        return InputError(message)
    return error


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _same_but_for_spelling(
    given: set[str], allowed: Sequence[str], own: Sequence[str]
) -> dict[str, str]:
    """Names of the file that only differ in spelling from one label -> that label."""
    by_key: dict[str, list[str]] = {}
    for name in allowed:
        by_key.setdefault(_key(name), []).append(name)
    renamed = {}
    for name in sorted(given - set(allowed)):
        fitting = by_key.get(_key(name), []) if _key(name) else []
        if len(fitting) == 1 and fitting[0] not in own:
            renamed[name] = fitting[0]
    return renamed


def _by_slides(answers: Answers, truth: Mapping[str, str], names: set[str]) -> dict[str, str]:
    """Classes of the file -> labels, where both stand for each other in all slides."""
    rows = answers.rows[answers.rows["label"].isin(names)]
    pairs = pd.DataFrame({"own": rows["label"], "truth": rows["slide_id"].map(truth)})
    pairs = pairs.dropna().drop_duplicates()
    one_to_one = not (pairs["own"].duplicated().any() or pairs["truth"].duplicated().any())
    return dict(zip(pairs["own"], pairs["truth"], strict=True)) if one_to_one else {}


def _positive(answers: Answers, allowed: Sequence[str]) -> str:
    keys = {name.casefold(): name for name in allowed}
    for negative, positive in _POSITIVE.items():
        if set(keys) == {negative, positive}:
            return keys[positive]
        if len(keys) == 1 and {negative, positive} & set(keys) == set(keys) and positive == "1":
            return "1"
    column = next(iter(answers.shape.scores.values()))
    message = (
        f"{answers.path}: of which class is the column {column!r} the probability? The labels are "
        f"{', '.join(allowed[:6])}: say so with --columns p_{allowed[-1]}={column}"
    )
    raise InputError(message)


def _agree(answers: Answers, truth: Mapping[str, str]) -> None:
    """Refuse a file whose labels are not those of its slides."""
    rows = answers.rows[answers.rows["label"] != ""]
    allowed = set(truth.values())
    strange = sorted(name for name in set(rows["label"]) - allowed if not name.isdecimal())
    if strange:
        kind = f"label in {answers.path}"
        raise unknown(kind, strange[0], allowed)
    known = rows["slide_id"].map(truth)
    differ = known.notna() & (known != rows["label"])
    if differ.any():
        first = rows[differ].iloc[0]
        message = (
            f"{answers.path}: {int(differ.sum())} slide(s) have another label than in the label "
            f"table or the files before it; {first['slide_id']!r} is {first['label']!r} here and "
            f"{truth[first['slide_id']]!r} there"
        )
        raise InputError(message)
