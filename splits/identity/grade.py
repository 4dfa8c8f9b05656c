"""The grade of an identity: how far a split on it may be called slide-level."""

from __future__ import annotations

from typing import Final

from splits.identity.grammar import WEAK

__all__ = ["grade"]

_FULL: Final = 0.99
_LINKED: Final = 0.95


def grade(
    *, declared: bool, coverage: float, confidence: float, n_across: int, linked: float
) -> tuple[str, str]:
    """Grade an identity and say why.

    Args:
        declared: Whether a manifest or an accepted naming rule gave ids.
        coverage: Share of all tiles with such an id.
        confidence: How far the ids are believed.
        n_across: Hard links between tiles of different declared groups.
        linked: Share of tiles with a hard link to another file.

    Returns:
        ``A`` declared and complete, ``B`` hard-linked by content, ``C`` weak evidence, ``D`` none.
    """
    if declared and n_across:
        return "C", (
            f"{n_across} hard link(s) join declared groups: the groups were merged, and an id or a "
            "tile is wrong (see conflicts)"
        )
    if declared and confidence <= WEAK:
        return "C", "the names are weak evidence (see notes and candidates)"
    if declared and coverage < _FULL:
        return "C", f"ids for {coverage:.1%} of the tiles, below {_FULL:.0%}"
    if declared:
        return "A", f"ids for {coverage:.1%} of the tiles and no hard link across groups"
    if linked >= _LINKED:
        return "B", f"no declared id, but {linked:.1%} of the tiles are hard-linked by content"
    return "D", (
        "neither a manifest nor the names say which slide a tile comes from, and content links "
        f"{linked:.1%} of the tiles: a group a file would be a tile-level split; give a manifest "
        "or a rule"
    )
