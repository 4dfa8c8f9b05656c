"""A Deep Zoom level with its names hidden: does the slide come back, each tile in its place?

    python benchmarks/identity_shuffled.py LEVEL

LEVEL is the folder of one level (``<slide>_files/13``), with tiles ``<column>_<row>.jpeg``. They
are read in random order and searched without their names. A tissue tile is one whose channels
differ by more than 12 grey levels on average. Printed: tiles, tissue tiles, components and frames
that hold tissue tiles, and the share of tissue tiles in the largest frame whose column and row are
exact, up to one turn and one shift of the whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from splits.content.evidence import gather
from splits.content.frames import turned_each
from splits.content.signatures import sign
from splits.images import read_image

SATURATED = 12


def main(level: Path) -> None:
    """Print what came back."""
    paths = sorted(level.iterdir())
    paths = [paths[row] for row in np.random.default_rng(0).permutation(len(paths))]
    tiles = [read_image(path) for path in paths]
    evidence = gather([None] * len(tiles), tiles.__getitem__, sign(tiles.__getitem__, len(tiles)))
    found = evidence.assembly
    tissue = np.array([np.ptp(t.astype(int), axis=2).mean() > SATURATED for t in tiles])
    frames, sizes = np.unique(found.frame[tissue], return_counts=True)
    inside = tissue & (found.frame == frames[sizes.argmax()])
    true = np.array([path.stem.split("_") for path in paths], np.float64)[inside]
    exact = []
    for turn in range(8):
        whole = np.full(inside.sum(), turn, np.int8)
        miss = turned_each(found.place[inside].astype(np.float64), whole) - true
        exact.append((np.abs(miss - np.median(miss, axis=0)) < 0.1).all(axis=1).sum())
    print(f"{len(tiles)} tiles, {tissue.sum()} with tissue")
    print(
        f"components with tissue: {len(np.unique(found.component[tissue]))}, frames {len(frames)}"
    )
    print(f"tissue tiles at their exact place: {max(exact)} of {tissue.sum()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
