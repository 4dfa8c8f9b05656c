"""Hard links between tiles by their pixels, and the components that they form.

Two tiles with identical decoded pixels show the same tissue, whatever their names say. Blank glass
is the exception: it looks the same on every slide and links nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["BLANK_STD", "HardLinks", "components", "identical_pixels", "is_blank"]

BLANK_STD: Final = 2.0
"""Standard deviation of the grey levels (0 to 255) below which a tile shows no tissue."""
Read = Callable[[str], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class HardLinks:
    """Pairs of tiles of one slide.

    Attributes:
        pairs: ``(n_links, 2)`` row numbers; tiles with one hash form a star around the first.
        n_blank: Tiles whose hash is shared and was taken for blank glass.
    """

    pairs: npt.NDArray[np.int64]
    n_blank: int


def is_blank(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether an image of shape ``(height, width, 3)`` or ``(height, width)`` shows no tissue."""
    grey = pixels.astype(np.float64)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    return bool(grey.std() < BLANK_STD)


def identical_pixels(
    tile_ids: Sequence[str],
    sha256: Sequence[str | None],
    groups: Sequence[str],
    read: Read | None = None,
) -> HardLinks:
    """Link the tiles whose decoded pixels are the same.

    Args:
        tile_ids: One id a tile; the tile with the smallest id stands for its hash.
        sha256: Hash of the decoded pixels; null links nothing.
        groups: Declared group of each tile.
        read: Gives the pixels of a tile, to tell blank glass from tissue. Without it a hash that
            more than two declared groups share is taken for blank: a true copy rarely is so
            widespread, and one false link would merge them all.
    """
    frame = pd.DataFrame({"tile": list(tile_ids), "hash": list(sha256), "group": list(groups)})
    frame = frame.dropna(subset=["hash"])
    frame = frame[frame["hash"].duplicated(keep=False)].sort_values(["hash", "tile"])
    pairs: list[tuple[int, int]] = []
    n_blank = 0
    for _, copies in frame.groupby("hash", sort=True):
        if read is not None:
            blank = is_blank(read(str(copies["tile"].iloc[0])))
        else:
            blank = copies["group"].nunique() > 2
        if blank:
            n_blank += len(copies)
            continue
        first, *others = (int(row) for row in copies.index)
        pairs += [(first, other) for other in others]
    return HardLinks(np.array(pairs, dtype=np.int64).reshape(-1, 2), n_blank)


def components(n_nodes: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number the connected components: ``(n_nodes,)`` from ``(n_links, 2)``."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(n_nodes, n_nodes))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, dtype=np.int64)
