"""How far the stain of a slide can be trusted: measures, the limits of each, and words.

Limits stand just outside what 118 real slides show (60 of TCGA in eight organs, 58 breast images of
UCSB), so a flag says "look at this slide", not "this slide is wrong".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from mil.stain.density import INK_SHARE, Floats
from mil.stain.vectors import REFERENCE_P99, degrees, from_reference

__all__ = ["MIN_P99", "Quality", "judge", "residual", "summary"]

MIN_P99: Final[Floats] = REFERENCE_P99 / 4
"""A 99th percentile below this is raised to it, so that noise is not stretched to full scale."""

_TISSUE_SHARE: Final = 0.05  # at least; real slides 0.25 to 1.00
_TISSUE_PX: Final = 300  # at least: as many as the prior counts for, see mil.stain.fit
_ANGLE: Final = (12.0, 50.0)  # degrees between the vectors; 15 to 44
_REFERENCE: Final = 30.0  # degrees at most from the reference; 24 at most, Ruifrok's are 29
_RESIDUAL: Final = 0.10  # at most; 0.07 at most
_DARK_SHARE: Final = 0.02  # of all pixels, at most; 0.01 at most
_MAX_P99: Final = (4.0, 3.0)  # at most; 3.6 and 2.5 at most
_SHARPNESS: Final = 0.06  # at least; 0.07 at least for tiles of 32 to 224 px
_REJECTED: Final = 2.0


@dataclass(frozen=True)
class Quality:
    """Measures of one slide; all but the last two need tissue and are NaN without.

    Attributes:
        angle: Degrees between the two vectors.
        reference: Degrees to the reference, the larger of the two.
        residual: Share of tissue OD that the two stains do not explain; see :func:`residual`.
        tissue_share: Tissue among the pooled pixels.
        ink_share: Pixels of a colour that H&E cannot mix, among those that are not glass.
        dark_share: Pixels too dark to tell a colour (over-stained, black ink, padding), of all.
        sharpness: Detail of 1 to 2 px relative to all contrast, median over tiles; NaN if unknown.
        severity: How near the nearest limit; above 1 it is flagged.
        flag: What is unusual, in words; empty if all is well.
    """

    angle: float = np.nan
    reference: float = np.nan
    residual: float = np.nan
    tissue_share: float = np.nan
    ink_share: float = np.nan
    dark_share: float = np.nan
    sharpness: float = np.nan
    severity: float = np.nan
    flag: str = ""


def residual(tissue: Floats, vectors: Floats) -> float:
    """``|X - C V| / |X|`` of tissue OD ``X (n, 3)``, with least-squares ``C``, negatives set to 0.

    A mean over pixels weighted by their OD; NaN without tissue.
    """
    total = float(np.square(tissue).sum())
    if not total:
        return float("nan")
    amount = np.maximum(tissue @ np.linalg.pinv(vectors), 0.0)
    return float(np.sqrt(np.square(tissue - amount @ vectors).sum() / total))


def judge(
    tissue: Floats,
    vectors: Floats,
    p99: Floats,
    *,
    exchanged: bool,
    n_pixels: int,
    ink_share: float,
    dark_share: float,
    sharpness: float,
    rejected: str,
) -> Quality:
    """Measure a fit and say what lies beyond the limits.

    Args:
        tissue: Tissue OD ``(n, 3)``.
        vectors: ``(2, 3)`` those used.
        p99: ``(2,)`` 99th percentiles as measured.
        exchanged: Whether red and blue are, so that the reference is too.
        n_pixels: Pooled pixels.
        ink_share: See :class:`Quality`.
        dark_share: See :class:`Quality`.
        sharpness: See :class:`Quality`.
        rejected: Why the vectors of the slide itself were not used; empty if they were.
    """
    share = len(tissue) / n_pixels if n_pixels else 0.0
    angle = degrees(vectors[0], vectors[1])
    reference = max(from_reference(vectors, exchanged=exchanged))
    left = residual(tissue, vectors)
    # Each: how near its limit (above 1 is beyond), and what to say.
    limits = [
        (_TISSUE_SHARE / max(share, 1e-6), f"{share:.1%} tissue"),
        (_TISSUE_PX / max(len(tissue), 1), f"{len(tissue)} tissue pixels"),
        (_REJECTED if rejected else 0.0, rejected),
        (_ANGLE[0] / max(angle, 1e-6), f"vectors only {angle:.0f} degrees apart"),
        (angle / _ANGLE[1], f"vectors {angle:.0f} degrees apart"),
        (reference / _REFERENCE, f"vectors {reference:.0f} degrees from the reference"),
        (left / _RESIDUAL, f"{left:.0%} of the colour is neither stain"),
        (ink_share / INK_SHARE, f"{ink_share:.0%} of a colour that H&E cannot mix, such as ink"),
        (dark_share / _DARK_SHARE, f"{dark_share:.0%} too dark to tell: over-stained or black"),
        (_SHARPNESS / max(sharpness, 1e-6), "out of focus"),
    ]
    if len(tissue):
        for name, value, least, most in zip(
            ("hematoxylin", "eosin"), p99, MIN_P99, _MAX_P99, strict=True
        ):
            limits.append((least / max(value, 1e-6), f"hardly any {name}"))
            limits.append((value / most, f"over-stained: {name} reaches {value:.1f}"))
    beyond = [words for near, words in limits if near > 1]
    return Quality(
        angle=angle,
        reference=reference,
        residual=left,
        tissue_share=share,
        ink_share=ink_share,
        dark_share=dark_share,
        sharpness=sharpness,
        severity=float(np.nanmax([near for near, _ in limits])),
        flag="; ".join(dict.fromkeys(beyond)),
    )


def summary(table: pd.DataFrame) -> str:
    """One sentence on the flags of a stain table, worst slide first; empty if there are none."""
    flagged = table[table["flag"].fillna("") != ""].sort_values("severity", ascending=False)
    if flagged.empty:
        return ""
    worst = flagged.iloc[0]
    return (
        f"{len(flagged)} of {len(table)} slides have an unusual stain, "
        f"worst {worst['slide_id']}: {worst['flag']}"
    )
