"""What the pixels of a set of tiles say: all searches in their order, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.content.copies import find_turned
from splits.content.edges import EDGES, edge_lines, show_tissue
from splits.content.gaps import gap_share
from splits.content.keypoints import find_duplicates
from splits.content.links import KINDS, Links, components, join
from splits.content.mosaic import Assembly, assemble
from splits.content.seams import find_seams, probe
from splits.content.signatures import Signatures, sign
from splits.content.twins import plant_copies, plant_seams

__all__ = ["Evidence", "gather", "identical"]

Read = Callable[[int], npt.NDArray[np.uint8]]
_N_SAMPLED: Final = 20_000
_AGREE: Final = 0.05
"""Two tiles agree in colour if this share of random pairs is as close as they are, or closer."""


_MET: Final = 0.02
"""Share of the edges with contrast that seams must tie for one of them to be believed alone."""
_OF_TILES: Final = ("component", "frame", "turn", "place")
_OF_LINKS: Final = ("used", "held", "cut")


@dataclass(frozen=True)
class Evidence:
    """Links between the tiles of a set, and the components that they form.

    Attributes:
        links: All links that a search found.
        assembly: Which of them hold, the components, and the place of each tile.
        blank: ``(n_tiles,)`` tiles that show no tissue, or a speck that nothing ties to any.
        vectors: ``(n_tiles, dim)``, the soft evidence.
        twins: By kind, how many twins were ``planted`` and ``found``.
        gaps: Share of the edges inside the components that miss their neighbour.
    """

    links: Links
    assembly: Assembly
    blank: npt.NDArray[np.bool_]
    vectors: npt.NDArray[np.floating]
    twins: dict[str, dict[str, int]]
    gaps: float

    @property
    def twins_found(self) -> float:
        """Share of the planted twins that were found; 0 where none could be planted."""
        planted = sum(count["planted"] for count in self.twins.values())
        return sum(count["found"] for count in self.twins.values()) / planted if planted else 0.0

    def of(self, keep: npt.NDArray[np.bool_]) -> Evidence:
        """Without some tiles and their links, numbered anew; contradictions are not carried on."""
        row = np.cumsum(keep) - 1
        inside = np.asarray(keep[self.links.pairs].all(axis=1))
        links = self.links[inside]
        whole = self.assembly
        return replace(
            self,
            links=replace(links, pairs=row[links.pairs]),
            assembly=replace(
                whole,
                **{name: getattr(whole, name)[keep] for name in _OF_TILES},
                **{name: getattr(whole, name)[inside] for name in _OF_LINKS},
                contradictions=[],
            ),
            blank=self.blank[keep],
            vectors=self.vectors[keep],
        )

    def summary(self, tile_ids: Sequence[str]) -> dict[str, Any]:
        """Counts by kind, components, contradictions and twins, as ``identity.json`` has them."""
        sizes = np.bincount(self.assembly.component[~self.blank])
        sizes = sizes[sizes > 0]
        states = {"used": self.assembly.used, "held": self.assembly.held, "cut": self.assembly.cut}
        return {
            "n_hard_links": int(self.assembly.used.sum()),
            "evidence": {
                kind: {
                    "links": int((self.links.kind == code).sum()),
                    **{
                        name: int((state & (self.links.kind == code)).sum())
                        for name, state in states.items()
                    },
                }
                for code, kind in enumerate(KINDS)
            },
            "components": {
                "n": len(sizes),
                "n_several": int((sizes > 1).sum()),
                "largest": int(sizes.max(initial=0)),
                "lone_tiles": int((sizes == 1).sum()),
                "blank_tiles": int(self.blank.sum()),
            },
            "contradictions": [
                {
                    "tiles": [tile_ids[row] for row in found.tiles],
                    "kind": KINDS[self.links.kind[found.link]],
                    "why": found.reason,
                }
                for found in self.assembly.contradictions
            ],
            "twins": self.twins,
            "gaps": self.gaps,
        }

    def links_table(self, tile_ids: Sequence[str]) -> pd.DataFrame:
        """One row a link: tiles, kind, score, geometry, and whether it was used, held or cut."""
        names = np.array(tile_ids, dtype=object)
        state = np.select([self.assembly.used, self.assembly.held], ["used", "held"], "cut")
        return pd.DataFrame(
            {
                "tile_a": names[self.links.pairs[:, 0]],
                "tile_b": names[self.links.pairs[:, 1]],
                "kind": np.array(KINDS, dtype=object)[self.links.kind],
                "score": self.links.score,
                "turn": self.links.turn,
                "dx": self.links.offset[:, 0],
                "dy": self.links.offset[:, 1],
                "state": state,
            }
        )

    def layout_table(self, tile_ids: Sequence[str]) -> pd.DataFrame:
        """One row a tile: its component, rigid frame, place on the lattice and turn."""
        return pd.DataFrame(
            {
                "tile_id": list(tile_ids),
                "component": self.assembly.component,
                "frame": self.assembly.frame,
                "col": self.assembly.place[:, 0],
                "row": self.assembly.place[:, 1],
                "turn": self.assembly.turn,
            }
        )


def gather(
    sha256: Sequence[str | None],
    read: Read,
    signatures: Signatures,
    *,
    seed: int = 0,
) -> Evidence:
    """Search a set of tiles for everything that ties them together.

    Planted twins run through the same searches and leave before the components are built.

    Args:
        sha256: Hash of the decoded pixels of each tile; null is like no other.
        read: Gives the pixels of a tile, ``(height, width, 3)`` uint8 RGB, by its row number.
        signatures: Of the same tiles, from `splits.content.signatures.sign`.
        seed: Seed of the planted twins and of the sample that says what agrees in colour.
    """
    n_tiles = len(signatures)
    tissue = np.flatnonzero(~(signatures.blank | signatures.faint))
    twins = plant_copies(tissue, n_tiles, read, seed)
    everything = signatures
    if twins.pixels:
        everything = signatures.joined(sign(twins.pixels.__getitem__, len(twins.pixels)))

    def read_any(row: int) -> npt.NDArray[np.uint8]:
        return read(row) if row < n_tiles else twins.pixels[row - n_tiles]

    turned = find_turned(everything.coefficients, read_any)
    copies = join([identical(sha256, signatures.blank), turned])
    altered = find_duplicates(everything.landmarks, read_any, copies.pairs)
    # Copies have equal edges, which the search for seams must know.
    lines, same = everything.lines, components(len(everything), copies.pairs)
    lie = probe(lines, same=same)
    halves = plant_seams(tissue, len(lines), read, apart_px=lie.apart_px, seed=seed)
    if halves.pixels:
        lines = np.concatenate([lines, np.stack([edge_lines(image) for image in halves.pixels])])
        same = np.concatenate([same, np.arange(len(same), len(lines))])
    links = join([copies, altered, find_seams(lines, same=same, lie=lie)])

    counts = twins.found(links) | halves.found(links)
    links = links[np.asarray((links.pairs < n_tiles).all(axis=1))]
    agree = _agree(signatures.vectors, links.pairs, np.random.default_rng(seed))
    contrast = show_tissue(signatures.lines[:, : len(EDGES)])
    # Where hardly any edge meets another, the few that seem to are not to be believed alone.
    n_met = 2 * int((links.kind == KINDS.index("seam")).sum())
    assembly = assemble(n_tiles, links, agree=agree, lone=n_met >= _MET * contrast.sum())
    gaps = gap_share(assembly, contrast)
    blank = signatures.blank | _specks(assembly.component, signatures.faint)
    return Evidence(links, assembly, blank, signatures.vectors, counts, gaps)


def _specks(
    component: npt.NDArray[np.int64], faint: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Faint tiles that no other ties to tissue: dust on glass has no slide."""
    has_tissue = np.bincount(component, weights=~faint) > 0
    return np.asarray(~has_tissue[component])


def identical(sha256: Sequence[str | None], blank: npt.NDArray[np.bool_]) -> Links:
    """Link the tiles whose decoded pixels are the same to the first of them; blank ones are not."""
    codes, _ = pd.factorize(pd.Series(list(sha256), dtype=object))
    rows = np.flatnonzero((codes >= 0) & ~blank)
    _, first, back = np.unique(codes[rows], return_index=True, return_inverse=True)
    star = np.stack([rows[first][back], rows], axis=1)
    star = star[star[:, 0] != star[:, 1]]
    return Links.make(
        "identical", star, np.ones(len(star)), np.zeros(len(star)), np.zeros((len(star), 2))
    )


def _agree(
    vectors: npt.NDArray[np.floating], pairs: npt.NDArray[np.int64], random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Whether the two tiles of each pair look as much alike as few random pairs do."""
    scale = vectors.std(axis=0, dtype=np.float64).astype(np.float32)
    scale[scale == 0] = 1
    sample = random.integers(0, len(vectors), (_N_SAMPLED, 2))
    sample = sample[sample[:, 0] != sample[:, 1]]
    if len(sample) == 0:
        return np.zeros(len(pairs), bool)

    def distance(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        result = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), _N_SAMPLED):
            one, other = (vectors[side].astype("f4") for side in rows[at : at + _N_SAMPLED].T)
            result[at : at + _N_SAMPLED] = np.linalg.norm((one - other) / scale, axis=1)
        return result

    return np.asarray(distance(pairs) <= np.quantile(distance(sample), _AGREE))
