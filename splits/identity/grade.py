"""The grade of an identity: how far a split on it may be called slide-level."""

from __future__ import annotations

from typing import Final

from splits.content.soft import Coarse
from splits.identity.grammar import WEAK

__all__ = ["grade", "is_hard_linked"]

_FULL: Final = 0.99
_LINKED: Final = 0.95
_TWINS: Final = 0.99
_GAPS: Final = 0.05


def is_hard_linked(linked: float, twins: float, gaps: float) -> bool:
    """Whether hard links alone carry an identity.

    Links may be many and right, and still leave the parts of a slide apart where tiles are missing
    in between: so the components must have no gaps.

    Args:
        linked: Share of the tiles with tissue that have a hard link to another file.
        twins: Share of the planted twins that were found.
        gaps: Share of the edges inside components that miss their neighbour.
    """
    return linked >= _LINKED and twins >= _TWINS and gaps <= _GAPS


def grade(
    *,
    declared: bool,
    coverage: float,
    confidence: float,
    n_across: int,
    linked: float,
    twins: float,
    gaps: float,
    coarse: Coarse | None,
) -> tuple[str, str]:
    """Grade an identity and say why.

    Args:
        declared: Whether a manifest or an accepted naming rule gave ids.
        coverage: Share of all tiles with such an id.
        confidence: How far the ids are believed.
        n_across: Hard links between tiles of different declared groups.
        linked: See `is_hard_linked`.
        twins: See `is_hard_linked`.
        gaps: See `is_hard_linked`.
        coarse: What soft evidence made of the hard-linked components, where it was asked.

    Returns:
        ``A`` declared and complete, ``B`` hard-linked by content, ``C`` weak or soft evidence,
        ``D`` none that a split could rest on.
    """
    if declared and n_across:
        return "B" if is_hard_linked(linked, twins, gaps) else "C", (
            f"{n_across} hard link(s) join declared groups: the groups were merged, and an id or a "
            "tile is wrong (see conflicts)"
        )
    if declared and confidence <= WEAK:
        return "C", "the names are weak evidence (see notes and candidates)"
    if declared and coverage < _FULL:
        return "C", f"ids for {coverage:.1%} of the tiles, below {_FULL:.0%}"
    if declared:
        return "A", f"ids for {coverage:.1%} of the tiles and no hard link across groups"
    shares = (
        f"content links {linked:.1%} of the tiles, finds {twins:.1%} of the planted twins and "
        f"misses the neighbour at {gaps:.1%} of the inner edges"
    )
    if is_hard_linked(linked, twins, gaps):
        return "B", f"no declared id, but {shares}; regions that lie apart stay apart"
    lacking = f"neither a manifest nor the names say which slide a tile comes from; {shares}"
    if coarse is None:
        advice = "a group a file would be a tile-level split; give a manifest or a rule"
        return "D", f"{lacking}: {advice}"
    if not coarse.satisfied:
        return "D", f"{lacking}, and soft evidence does not suffice: {coarse.reason}"
    return "C", (
        f"{lacking}; soft evidence merged the rest until an estimated "
        f"{coarse.predicted_leakage:.1%} of the test tiles have a tile of their slide in train"
    )
