"""A user's own rule: a regular expression whose named groups are the identity."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from splits.errors import InputError, unknown
from splits.identity.grammar import STRONG, Name

__all__ = ["compile_rule", "reader"]

_FIELDS: Final = ("slide", "patient", "site", "region", "x", "y")


def compile_rule(rule: str) -> re.Pattern[str]:
    """The pattern of a rule.

    Raises:
        InputError: It is no regular expression, has no group ``slide`` or an unknown group.
    """
    try:
        pattern = re.compile(rule)
    except re.error as error:
        message = f"rule {rule!r} is not a regular expression: {error}"
        raise InputError(message) from error
    if "slide" not in pattern.groupindex:
        message = f"rule {rule!r} has no named group slide: write it as (?P<slide>...)"
        raise InputError(message)
    for group in pattern.groupindex:
        if group not in _FIELDS:
            kind = "named group in the rule"
            raise unknown(kind, group, _FIELDS)
    return pattern


def reader(pattern: re.Pattern[str]) -> Callable[[str], Name | None]:
    """The function from a path to what the rule finds in it.

    It raises `InputError` where a group ``x`` or ``y`` holds no whole number.
    """

    def read(path: str) -> Name | None:
        match = pattern.search(path)
        found = match.groupdict() if match else {}
        if not found.get("slide"):
            return None
        numbers = {}
        for axis in ("x", "y"):
            text = found.get(axis)
            if text is not None and not re.fullmatch(r"\d{1,9}", text, re.ASCII):
                message = f"the rule reads {axis} = {text!r} in {path!r}: a whole number is needed"
                raise InputError(message)
            numbers[axis] = int(text) if text else None
        slide = found["slide"]
        return Name(
            "regex", found.get("site") or None, found.get("patient") or slide, slide,
            found.get("region") or None, numbers["x"], numbers["y"], confidence=STRONG,
        )  # fmt: skip

    return read
