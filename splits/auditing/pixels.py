"""Tissue on both sides: identical images, copies, overlaps and seams, and shared coordinates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from splits.auditing.findings import Finding, Pair, finding, places
from splits.content.evidence import Evidence
from splits.content.links import KINDS
from splits.groups import text
from splits.images import image_of

__all__ = ["Pixels", "coordinates", "identical", "linked"]

_COPIES: Final = 2  # slides that may share one image before it is taken for a blank tile
_WORDS: Final = {
    "turned": "turned or saved again: one is a copy of the other",
    "duplicate": "rotated, cropped or saved again: one is a copy of the other",
    "overlap": "that share a part of their area",
    "seam": "whose edges continue each other",
}


@dataclass(frozen=True)
class Pixels:
    """What the pixels of a set of tiles say; rows are its tiles.

    Attributes:
        tile_ids: Their ids.
        links: ``tile_a, tile_b, kind, score, state``, as in ``links.parquet``.
        component: ``(n_tiles,)`` which tiles are tied together.
        blank: ``(n_tiles,)`` bool: shows no tissue.
        vectors: ``(n_tiles, d)`` colour, stain, sharpness and noise of each tile.
        twins: By kind, how many planted twins were ``planted`` and ``found``.
    """

    tile_ids: Sequence[str]
    links: pd.DataFrame
    component: npt.NDArray[np.int64]
    blank: npt.NDArray[np.bool_]
    vectors: npt.NDArray[np.floating]
    twins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, evidence: Evidence, tile_ids: Sequence[str]) -> Pixels:
        """What `splits.content.evidence.gather` found."""
        return cls(
            tile_ids,
            evidence.links_table(tile_ids),
            evidence.assembly.component,
            evidence.blank,
            evidence.vectors,
            evidence.twins,
        )

    def told(self) -> str:
        """The control in words: what share of planted twins the searches found on these tiles."""
        planted = sum(count["planted"] for count in self.twins.values())
        found = sum(count["found"] for count in self.twins.values())
        if not planted:
            return "pixels: no twin could be planted, so the recall is unknown"
        return f"pixels: {found} of {planted} planted twins found"


def identical(placed: pd.DataFrame, blank: Collection[str] | None) -> Iterator[Finding]:
    """Different tiles with the same decoded pixels in different parts of a fold.

    Args:
        placed: As `tile_places` gives it, with ``sha256`` where known.
        blank: ``sha256`` of tiles without tissue. None where that is not known: an image that more
            than two slides share then counts as blank.
    """
    if "sha256" not in placed.columns:
        return
    images = placed[["tile_id", "slide_id", "fold", "part"]].assign(sha256=text(placed, "sha256"))
    images = images[images["sha256"].notna() & ~images["sha256"].isin(set(blank or ()))]
    n_slides = images.groupby("sha256")["slide_id"].nunique()
    for fold, table in images.groupby("fold"):
        # One tile that is itself on both sides is a shared tile or slide, which is said elsewhere.
        counts = table.groupby("sha256")[["part", "tile_id"]].nunique()
        across = counts.index[(counts > 1).all(axis=1)]
        doubted = blank is None and n_slides.reindex(across) > _COPIES
        doubted = np.broadcast_to(np.asarray(doubted), len(across))
        for severity, hashes, what in (
            ("leak", across[~doubted], "in more than one part"),
            ("warning", across[doubted], "in many slides of several parts: blank tiles?"),
        ):
            if len(hashes):
                inside = table[table["sha256"].isin(hashes)]
                yield finding(
                    "identical_pixels",
                    severity,
                    "image",
                    places(inside, "sha256"),
                    parts=inside["part"].unique(),
                    fold=int(fold),
                    what=what,
                    pairs=[_across(copies) for _, copies in inside.groupby("sha256")],
                )


def _across(copies: pd.DataFrame) -> Pair:
    """Two tiles of one image, in different parts."""
    tiles = copies.sort_values(["tile_id", "part"])
    first = tiles.iloc[0]
    others = tiles[tiles["tile_id"] != first["tile_id"]]
    away = others[others["part"] != first["part"]]
    other = (others if away.empty else away).iloc[0]
    return (first["tile_id"], first["part"]), (other["tile_id"], other["part"])


def linked(placed: pd.DataFrame, links: pd.DataFrame) -> Iterator[Finding]:
    """Pairs of tiles in different parts of a fold that the pixels tie together.

    A link that was used is a leak. One that was held back (nothing else supports it) or cut (it
    contradicts others) is a warning.

    Args:
        placed: As `tile_places` gives it.
        links: ``links.parquet``; identical pixels are found by their hash.
    """
    known = placed[["tile_id", "fold", "part"]].drop_duplicates()
    sides = [known.rename(columns={"tile_id": f"tile_{x}", "part": f"part_{x}"}) for x in "ab"]
    ties = links.astype({"tile_a": "string", "tile_b": "string", "kind": str, "state": str})
    across = ties.merge(sides[0], on="tile_a").merge(sides[1], on=["tile_b", "fold"])
    across = across[(across["part_a"] != across["part_b"]) & (across["tile_a"] != across["tile_b"])]
    across = across.assign(severity=np.where(across["state"] == "used", "leak", "warning"))
    for kind in KINDS[1:]:
        of_kind = across[across["kind"] == kind]
        for (fold, severity), table in of_kind.groupby(["fold", "severity"]):
            table = table.sort_values("score", ascending=False, kind="stable")
            tied = {*table["tile_a"], *table["tile_b"]}
            tests = known.loc[(known["fold"] == fold) & (known["part"] == "test"), "tile_id"]
            share = f" ({tests.isin(tied).sum()} of {len(tests)} test tiles are in such a pair)"
            doubt = "" if severity == "leak" else ", as one cue alone says or others contradict"
            yield finding(
                kind,
                str(severity),
                "tile",
                [
                    f"{row.tile_a} ({row.part_a}) and {row.tile_b} ({row.part_b}): "
                    f"{kind}, score {row.score:.2f}, {row.state}"
                    for row in table.itertuples()
                ],
                what=f"in different parts {_WORDS[kind]}{doubt}{share}",
                ids=tied,
                parts={*table["part_a"], *table["part_b"]},
                fold=int(fold),
                pairs=[
                    ((row.tile_a, row.part_a), (row.tile_b, row.part_b))
                    for row in table.itertuples()
                ],
            )


def coordinates(placed: pd.DataFrame) -> Iterator[Finding]:
    """Tiles of one slide and region whose areas overlap, in different parts of a fold.

    Where no slide is known, tiles that were cut out of one image file are of one slide.
    """
    needed = ["x_px", "y_px", "width_px", "height_px"]
    if not {*needed, "tile_id"} <= set(placed.columns):
        return
    known = placed[placed[needed].notna().all(axis=1)]
    known = known[(known["width_px"] > 0) & (known["height_px"] > 0)]
    source = known["slide_id"].fillna(known["tile_id"].map(image_of))
    region = text(known, "region").fillna("")
    known = known.assign(source=source, region=region)
    cut = known.groupby(["fold", "source", "region"])["part"].transform("nunique") > 1
    for fold, table in known[cut].groupby("fold"):
        lines: list[str] = []
        pairs: list[Pair] = []
        for (slide, _), tiles in table.groupby(["source", "region"]):
            tiles = tiles.sort_values("tile_id")
            for i, j, share in _overlaps(tiles[needed].to_numpy(np.float64)):
                one, other = tiles.iloc[i], tiles.iloc[j]
                if one["part"] != other["part"] and one["tile_id"] != other["tile_id"]:
                    sides = [(tile["tile_id"], tile["part"]) for tile in (one, other)]
                    pairs.append((sides[0], sides[1]))
                    lines.append(
                        f"{one['tile_id']} ({one['part']}) and {other['tile_id']} "
                        f"({other['part']}): {100 * share:.0f} % of the area, slide {slide}"
                    )
        if pairs:
            yield finding(
                "overlapping_coordinates",
                "leak",
                "tile",
                lines,
                what="of one slide in different parts, whose coordinates overlap",
                ids={name for pair in pairs for name, _ in pair},
                parts={part for pair in pairs for _, part in pair},
                fold=int(fold),
                pairs=pairs,
            )


def _overlaps(boxes: npt.NDArray[np.float64]) -> Iterator[tuple[int, int, float]]:
    """Pairs of boxes ``(x, y, width, height)`` that overlap, and the share of the smaller area."""
    reach = boxes[:, 2:].max()
    for i, j in sorted(cKDTree(boxes[:, :2]).query_pairs(reach, p=np.inf)):
        low = np.maximum(boxes[i, :2], boxes[j, :2])
        high = np.minimum(boxes[i, :2] + boxes[i, 2:], boxes[j, :2] + boxes[j, 2:])
        area = float(np.prod(np.maximum(high - low, 0)))
        if area > 0:
            yield i, j, area / float(min(boxes[i, 2:].prod(), boxes[j, 2:].prod()))
