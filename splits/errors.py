"""The exceptions that every layer raises and that the command line turns into exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "NegativeVerdictError", "SlidewiseError", "unknown"]


class SlidewiseError(Exception):
    """Base of all errors that a user can cause; its text is one line and says what to do."""

    exit_code = 2


class InputError(SlidewiseError, ValueError):
    """The input or the call is wrong (exit code 2).

    A ``ValueError`` too, as callers from Python and scikit-learn expect of bad values.
    """


class NegativeVerdictError(SlidewiseError):
    """The work was done and the verdict is negative: a leak, or a grade of D (exit code 1)."""

    exit_code = 1


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """Build the error for a name that does not exist: what was given, the nearest, what is allowed.

    Args:
        kind: What is being named, such as ``"aggregator"``.
        given: The name that was not found.
        allowed: All names that exist.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {given!r}{hint} (allowed: {', '.join(names)})")
