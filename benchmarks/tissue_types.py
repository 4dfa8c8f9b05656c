"""Do tissue types say tissue, or staining?

    python benchmarks/tissue_types.py [RUN] [--slides 48]

Without RUN, a phantom is drawn in a temporary folder: its tissues are known, and its stain differs
from slide to slide. RUN is an identified run folder (with ``config.yaml``).

The first table compares clusters of the same number from three descriptions of a tile: colour
percentiles (raw RGB), the measures of ``mil.tissue`` with one stain for all slides, and with each
slide's own. Background is the same in all. Its columns: the adjusted mutual information with the
true tissue (where tiles have one); the normalised one with the slide; the adjusted one with the
slide among tiles of the same true tissue (mean over tiles), which can only be staining; slides that
hold a type; the largest share of a type that one slide holds; the standard deviation over slides of
a type's share, in points (mean over types).

The second table is about the number of types: ``agreement`` is the adjusted Rand index of two
fits, each on half of the slides, over all tiles (mean of 6 halvings). The last line is the time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from sklearn.preprocessing import RobustScaler

from mil import prepare, settings
from mil.config import Config, Data, Identity, Split
from mil.data.images import decode
from mil.phantom import Phantom
from mil.stain.fit import StainFit
from mil.stain.vectors import REFERENCE, REFERENCE_P99
from mil.tissue import BACKGROUND, FEATURES, fit_types, measure, tissue_types

SIDE_PX, HALVINGS = 128, 6


def colours(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Percentiles and deviation of each channel, ``(18,)``."""
    levels = rgb.reshape(-1, 3).astype(np.float64)
    percentiles = np.percentile(levels, [5, 25, 50, 75, 95], axis=0)
    return np.concatenate([percentiles.ravel(), levels.std(axis=0)])


def descriptions(run: Path, config: Config, n_types: int) -> dict[str, pd.Series]:
    """Types of every tile, by description."""
    tiles, root = prepare.read_tiles(run), prepare.data_root(run, config)
    own = tissue_types(run, config).set_index("tile_id")
    one = StainFit("macenko", "reference", "", 0, np.full(3, 245.0), REFERENCE, REFERENCE_P99)
    images = [decode(root, name, SIDE_PX) for name in tiles["tile_id"]]
    raw = np.array([colours(image) for image in images])
    common = pd.DataFrame(
        [measure(image, one) for image in images], index=own.index, columns=list(FEATURES)
    )
    blank = (own["tissue"] == BACKGROUND).to_numpy()
    scaled = RobustScaler().fit_transform(raw[~blank])
    of_raw = pd.Series(BACKGROUND, index=own.index)
    of_raw[~blank] = KMeans(n_types, n_init=10, random_state=0).fit_predict(scaled).astype(str)
    slide_ids = tiles.set_index("tile_id")["slide_id"]
    of_one = fit_types(common, slide_ids, n_types, config.seed).of(common)["tissue"]
    of_one[blank] = BACKGROUND
    return {"raw RGB": of_raw, "one stain for all": of_one, "each slide's stain": own["tissue"]}


def compare(tiles: pd.DataFrame, found: dict[str, pd.Series]) -> None:
    """Print the first table."""
    heads = ["clusters of", "AMI tissue", "NMI slide", "AMI slide, same tissue"]
    heads += ["slides a type", "in one slide", "spread"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    truth, slide = tiles["tile_label"], tiles["slide_id"]
    for name, types in found.items():
        known = within = ""
        if not truth.isna().any():
            known = f"{adjusted_mutual_info_score(truth, types):.3f}"
            within = f"{same_tissue(truth, slide, types):.3f}"
        counts = pd.crosstab(types.to_numpy(), slide.to_numpy())
        counts = counts.drop(index=BACKGROUND, errors="ignore")
        reach = sorted((counts > 0).sum(axis=1))
        largest = (counts.max(axis=1) / counts.sum(axis=1)).max()
        spread = 100 * (counts / counts.sum(axis=0)).std(axis=1).mean()
        cells = [name, known, f"{normalized_mutual_info_score(slide, types):.3f}", within]
        cells += [f"{', '.join(map(str, reach))} of {slide.nunique()}", f"{largest:.2f}"]
        print(f"| {' | '.join(cells)} | {spread:.1f} |")
    if not truth.isna().any():
        print(f"\nNMI of the true tissue with the slide: "
              f"{normalized_mutual_info_score(slide, truth):.3f}")  # fmt: skip


def same_tissue(truth: pd.Series, slide: pd.Series, types: pd.Series) -> float:
    """What types say of the slide among tiles of the same tissue."""
    rows = pd.DataFrame({"slide": slide.to_numpy(), "type": types.to_numpy()})
    each = rows.groupby(truth.to_numpy())
    score = each.apply(lambda r: adjusted_mutual_info_score(r["slide"], r["type"]))
    return float(np.average(score, weights=each.size()))


def number_of_types(tiles: pd.DataFrame, features: pd.DataFrame, seed: int) -> None:
    """Print the second table."""
    print("\n| types | agreement | AMI tissue | fewest slides |\n|---|---|---|---|")
    slide_ids = tiles.set_index("tile_id")["slide_id"]
    truth, names = tiles["tile_label"], np.unique(slide_ids)
    for n_types in range(3, 10):
        agreements = []
        for halving in range(HALVINGS):
            chosen = np.random.default_rng(halving).permutation(names)[: len(names) // 2]
            inside = slide_ids.isin(chosen)
            a, b = (
                fit_types(features[rows], slide_ids[rows], n_types, seed).of(features)["tissue"]
                for rows in (inside, ~inside)
            )
            agreements.append(adjusted_rand_score(a, b))
        types = fit_types(features, slide_ids, n_types, seed).of(features)["tissue"]
        known = "" if truth.isna().any() else f"{adjusted_mutual_info_score(truth, types):.3f}"
        fewest = slide_ids.groupby(types).nunique().drop(BACKGROUND, errors="ignore").min()
        print(f"| {n_types} | {np.mean(agreements):.2f} | {known} | {fewest} |", flush=True)


def report(run: Path, config: Config) -> None:
    """Print everything about one run."""
    tiles = prepare.read_tiles(run)
    (run / "tissue.parquet").unlink(missing_ok=True)
    start = time.perf_counter()
    own = tissue_types(run, config).set_index("tile_id")
    seconds = time.perf_counter() - start
    compare(tiles, descriptions(run, config, config.split.tissue_types))
    number_of_types(tiles, own[list(FEATURES)], config.seed)
    image = decode(prepare.data_root(run, config), tiles["tile_id"].iloc[0], SIDE_PX)
    stain = StainFit("macenko", "reference", "", 0, np.full(3, 245.0), REFERENCE, REFERENCE_P99)
    start = time.perf_counter()
    for _ in range(200):
        measure(image, stain)
    each = (time.perf_counter() - start) / 200
    print(f"\n{1000 * each:.1f} ms to measure a tile; {seconds:.1f} s for {len(tiles)} tiles "
          "with decoding, clustering and the stain where it was not there yet")  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--slides", type=int, default=48)
    given = parser.parse_args()
    if given.run is not None:
        report(given.run, settings.load(given.run / "config.yaml"))
        return
    phantom = Phantom(slides=given.slides, n_blank=given.slides // 2)
    config = Config(
        data=Data(phantom=phantom), identity=Identity(content=False), split=Split(folds=3)
    )
    with tempfile.TemporaryDirectory() as folder:
        prepare.scan(Path(folder), config)
        prepare.identify(Path(folder), config)
        report(Path(folder), config)


if __name__ == "__main__":
    main()
