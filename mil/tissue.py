"""Tissue types without annotation, and stain strength: amounts a slide that a split can balance.

A type is a cluster of tiles that look alike *after* stain separation: every concentration is in
99th percentiles of its slide, so that clusters say tissue and not staining. Nothing here sees a
label, a patient or a part. The tiles of later test slides take part in the clustering; what comes
of it balances the split and is shown, and no model ever meets it.

The shares of bright, stained and nuclear pixels at several scales are granulometries (G. Matheron,
"Random Sets and Integral Geometry", 1975); the alignment of fibres is the coherence of the
structure tensor (J. Bigun and G. Granlund, ICCV 1987).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from mil.config import Config
from mil.data.images import decode, in_threads
from mil.prepare import Progress, data_root, identify, read_tiles
from mil.seeds import derive, generator
from mil.stain.density import is_tissue, optical_density
from mil.stain.fit import EXCHANGED, TOO_LITTLE, StainFit, from_table
from mil.stain.slides import stain_digests, stain_table
from splits.artifacts import digest, digests_of, is_current, read_table, write_table

__all__ = [
    "BACKGROUND",
    "FEATURES",
    "Types",
    "amounts",
    "fit_types",
    "measure",
    "measure_all",
    "quality",
    "quality_asked",
    "stain_bins",
    "tissue_types",
]

BACKGROUND: Final = "background"
FEATURES: Final = (
    "tissue_share", "hematoxylin", "eosin", "nuclei", "nuclei_5px", "nuclei_9px", "gaps_small",
    "gaps_large", "eosin_alone", "alignment",
)  # fmt: skip
"""What :func:`measure` says of a tile, in its order."""

_SIZE_PX: Final = 128  # of a tile as it is measured, whatever the encoder sees
_FORM: Final = 1  # part of the digest: changed features must not pass for the old ones
_MIN_TISSUE: Final = 0.05  # share of a tile below which it is background
_NUCLEAR: Final = 0.45  # hematoxylin of a nucleus, in 99th percentiles of its slide
_EOSIN_ALONE: Final = (0.15, 0.6)  # hematoxylin at most, eosin at least: fibres, muscle, blood
_DENSITY: Final = 0.15  # mean optical density below which a pixel is a gap
_TENSOR_PX: Final = 6.0
_QUARTILES: Final = 1.349  # between the quartiles of a normal distribution of deviation 1
_MAX_DEVIATIONS: Final = 4.0
_FIT_TILES: Final = 50_000
_FIT_TILES_SLIDE: Final = (20, 200)
_STARTS: Final = 10
_BINS: Final = ("low", "middle", "high")
_SAME: Final = 1e-6

Floats = npt.NDArray[np.float64]
Advance = Callable[[int], object]


def measure(rgb: npt.NDArray[np.uint8], stain: StainFit) -> Floats:
    """What a tile looks like apart from its staining.

    Args:
        rgb: uint8 ``(height, width, 3)``; sizes in px below are meant for a side of 128.
        stain: The stain of its slide.

    Returns:
        ``(10,)`` float64, in the order of ``FEATURES``: the share of tissue; mean hematoxylin and
        eosin; the share of nuclei, and what an opening by 5 and 9 px leaves of it (large nuclei,
        clumps); the share of gaps that an opening by 3 px leaves and one by 15 px does not, and of
        those that both leave (lumina, fat, glass); the share of strong eosin without hematoxylin;
        the coherence of the eosin's structure tensor, 0 (no direction) to 1 (parallel fibres).
    """
    density = optical_density(rgb, stain.white).astype(np.float32)
    unmix = np.linalg.pinv(stain.vectors) / stain.p99
    amount = np.maximum(density @ unmix.astype(np.float32), 0)
    smooth_h, smooth_e = (cv2.GaussianBlur(amount[..., i], (0, 0), 1) for i in range(2))
    nuclei = (smooth_h > _NUCLEAR).astype(np.uint8)
    gaps = (cv2.GaussianBlur(density.mean(axis=-1), (0, 0), 1) < _DENSITY).astype(np.uint8)
    most_h, least_e = _EOSIN_ALONE
    large = _opened(gaps, 15)
    return np.array(
        [
            is_tissue(density).mean(),
            amount[..., 0].mean(),
            amount[..., 1].mean(),
            nuclei.mean(),
            _opened(nuclei, 5),
            _opened(nuclei, 9),
            _opened(gaps, 3) - large,
            large,
            ((smooth_h < most_h) & (smooth_e > least_e)).mean(),
            _alignment(smooth_e),
        ]
    )


@dataclass(frozen=True, eq=False)
class Types:
    """Clusters of tiles, in robust deviations of their features.

    Attributes:
        middle: ``(10,)`` median of each of the ``FEATURES``.
        spread: ``(10,)`` its robust standard deviation; infinite where it never changes.
        centres: ``(n_types, 10)``, sorted by their share of nuclei; none if all is background.
    """

    middle: Floats
    spread: Floats
    centres: Floats

    def of(self, features: pd.DataFrame) -> pd.DataFrame:
        """Type of each tile.

        Args:
            features: ``FEATURES`` of each tile, indexed by ``tile_id``.

        Returns:
            ``tissue`` and ``distance``, indexed and sorted by ``tile_id``. Tiles with less than 5 %
            tissue are ``background``, without a distance; the others are of the type ``T1`` to
            ``T<n>`` whose centre is nearest, at this distance in robust deviations.
        """
        table = features[list(FEATURES)].sort_index()
        result = pd.DataFrame({"tissue": BACKGROUND, "distance": np.nan}, index=table.index)
        stained = _stained(table)
        if len(stained) and len(self.centres):
            away = cdist(self._deviations(stained), self.centres)
            width = len(str(len(self.centres)))
            names = [f"T{place + 1:0{width}d}" for place in range(len(self.centres))]
            result.loc[stained.index, "tissue"] = [names[i] for i in away.argmin(axis=1)]
            result.loc[stained.index, "distance"] = away.min(axis=1)
        return result

    def _deviations(self, stained: pd.DataFrame) -> Floats:
        deviations = (stained.to_numpy(dtype=np.float64) - self.middle) / self.spread
        return np.asarray(deviations.clip(-_MAX_DEVIATIONS, _MAX_DEVIATIONS))


def fit_types(features: pd.DataFrame, slide_ids: pd.Series, n_types: int, seed: int) -> Types:
    """Cluster the tiles that are not background by k-means.

    Up to 200 tiles a slide are fitted (fewer where there are so many slides that it would be more
    than 50,000), so that no large slide has its own types.

    Args:
        features: ``FEATURES`` of each tile, indexed by ``tile_id``, in any order.
        slide_ids: Slide of each tile, with the same index.
        n_types: Number of types; there are fewer where fewer tiles differ.
        seed: Of the sample and of the starts.
    """
    table = _stained(features[list(FEATURES)].sort_index())
    n_features = len(FEATURES)
    if table.empty:
        return Types(np.zeros(n_features), np.ones(n_features), np.empty((0, n_features)))
    sample = table.iloc[_sample(slide_ids.loc[table.index], seed)]
    low, middle, high = np.percentile(sample.to_numpy(), [25, 50, 75], axis=0)
    # Quartiles agree where most tiles are alike; there the plain deviation stands in.
    spread = (high - low) / _QUARTILES
    spread = np.where(spread > _SAME, spread, sample.to_numpy().std(axis=0))
    scale = Types(middle, np.where(spread > _SAME, spread, np.inf), np.empty((0, n_features)))
    x = scale._deviations(sample)
    n = min(n_types, len(np.unique(x, axis=0)))
    model = KMeans(n, n_init=_STARTS, random_state=derive(seed, "tissue types") % 2**32).fit(x)
    order = np.argsort(model.cluster_centers_[:, FEATURES.index("nuclei")], kind="stable")
    return replace(scale, centres=np.asarray(model.cluster_centers_[order], dtype=np.float64))


def measure_all(
    root: Path,
    tiles: pd.DataFrame,
    stains: pd.DataFrame,
    threads: int | None = None,
    advance: Advance | None = None,
) -> pd.DataFrame:
    """``FEATURES`` of each tile of a tile table, indexed by ``tile_id`` in the order given."""
    rows = zip(tiles["tile_id"].tolist(), tiles["slide_id"].tolist(), strict=True)
    read = partial(_measured, root, from_table(stains), advance)
    values = list(in_threads(read, rows, threads))
    return pd.DataFrame(values, index=tiles["tile_id"], columns=list(FEATURES))


def quality(features: pd.DataFrame) -> Floats:
    """0 for a blank tile, with less than 5 % tissue, and 1 for all others, ``(n_tiles,)``.

    Not the share itself: lumina and fat are gaps, too, and say as much as solid tissue does. What
    the stain fit flags is a matter of whole slides and would not tell their tiles apart.
    """
    share = features["tissue_share"].to_numpy(dtype=np.float64)
    return np.where(share >= _MIN_TISSUE, 1.0, 0.0)


def tissue_types(run: Path, config: Config, progress: Progress | None = None) -> pd.DataFrame:
    """``tissue.parquet`` of an identified run, made unless it is current.

    Columns ``tile_id, tissue, distance`` and the ``FEATURES``, sorted by ``tile_id``. Another
    number of types does not read the pixels again.
    """
    path = run / "tissue.parquet"
    measured = {**stain_digests(run, config), "features": digest([_FORM, _SIZE_PX])}
    digests = {**measured, "types": digest([config.split.tissue_types, config.seed])}
    if is_current(path, digests):
        return read_table(path)
    tiles = read_tiles(run)
    if measured.items() <= digests_of(path).items():
        features = read_table(path).set_index("tile_id")[list(FEATURES)]
    else:
        stains = stain_table(run, config, progress)
        advance = progress("tissue", len(tiles)) if progress else None
        threads = config.compute.threads
        features = measure_all(data_root(run, config), tiles, stains, threads, advance)
    slide_ids = tiles.set_index("tile_id")["slide_id"]
    types = fit_types(features, slide_ids, config.split.tissue_types, config.seed)
    write_table(path, types.of(features).join(features).reset_index(), digests)
    return read_table(path)


def quality_asked(run: Path, config: Config) -> Floats | None:
    """The :func:`quality` of each tile of a run; None where no vote asks for it."""
    if not config.needs_quality:
        return None
    # Both tables are sorted by tile.
    return quality(tissue_types(run, config))


def stain_bins(stains: pd.DataFrame) -> pd.DataFrame:
    """Which third of the slides each slide lies in, by the strength and the angle of its stains.

    Strength is the 99th percentile of a concentration over the slide's tissue; the mean would say
    as much about the tissue as about the stain. The angle is the one between the two vectors.
    Slides whose vectors or values are the reference's have no measured strength and form a bin of
    their own; so do, in addition to their thirds, slides with red and blue exchanged.

    Args:
        stains: Stain table (:func:`mil.stain.fit.to_table`).

    Returns:
        ``slide_id`` and columns ``stain:<name>`` of 0 and 1, sorted by slide. Equal values share a
        bin, empty bins have no column, and nor has a statistic that is the same in every slide.
    """
    fits = dict(sorted(from_table(stains).items()))
    known = np.array(
        [f.source != "reference" and not f.note.startswith(TOO_LITTLE)
         for f in fits.values()], dtype=bool
    )  # fmt: skip
    angles = [np.degrees(np.arccos(np.clip(f.vectors[0] @ f.vectors[1], -1, 1)))
              for f in fits.values()]  # fmt: skip
    p99 = np.array([f.p99 for f in fits.values()]).reshape(-1, 2)
    columns: dict[str, npt.NDArray[np.bool_]] = {}
    for name, values in (("H", p99[:, 0]), ("E", p99[:, 1]), ("angle", np.array(angles))):
        measured = values[known]
        if not len(measured) or np.ptp(measured) < _SAME:
            continue
        bins = np.searchsorted(np.quantile(measured, [1 / 3, 2 / 3]), values)
        columns |= {f"{name} {word}": known & (bins == i) for i, word in enumerate(_BINS)}
    columns["reference values"] = ~known
    columns["red and blue exchanged"] = np.array([EXCHANGED in f.note for f in fits.values()])
    held = {f"stain:{name}": held.astype(np.int64) for name, held in columns.items() if held.any()}
    return pd.DataFrame({"slide_id": list(fits), **held})


def amounts(run: Path, config: Config, progress: Progress | None = None) -> pd.DataFrame:
    """What ``split.balance`` asks for beside the slide table: tissue, stain, both or neither.

    Written to ``amounts.parquet`` (no such file where neither is asked for), from which the report
    tells how each part of the split compares with the whole.

    Returns:
        One row a slide, sorted: ``slide_id``; ``tissue:<type>``, the slide's number of tiles of
        the type, with the slide's number of tiles as their sum; ``stain:<bin>``, 0 or 1.
    """
    identify(run, config, progress=progress)
    tiles = read_tiles(run)
    asked, path = config.split.balance, run / "amounts.parquet"
    result = pd.DataFrame({"slide_id": sorted(tiles["slide_id"].unique())})
    made_from = {}
    if "tissue" in asked:
        types = tissue_types(run, config, progress).set_index("tile_id")["tissue"]
        counts = pd.crosstab(tiles["slide_id"], tiles["tile_id"].map(types)).astype(np.int64)
        counts.columns = [f"tissue:{name}" for name in counts.columns]
        result = result.merge(counts[sorted(counts.columns)].reset_index(), on="slide_id")
        made_from["tissue"] = digest(digests_of(run / "tissue.parquet"))
    if "stain" in asked:
        bins = stain_bins(stain_table(run, config, progress))
        result = result.merge(bins, on="slide_id")
        made_from["stain"] = digest(stain_digests(run, config))
    if made_from:
        made_from["identity"] = digests_of(run / "tiles.parquet")["identity"]
        if not is_current(path, made_from):
            write_table(path, result, made_from)
    else:
        path.unlink(missing_ok=True)
    return result


def _measured(
    root: Path,
    stains: dict[str, StainFit],
    advance: Advance | None,
    tile: tuple[str, str],
) -> Floats:
    tile_id, slide_id = tile
    values = measure(decode(root, tile_id, _SIZE_PX), stains[slide_id])
    if advance is not None:
        advance(1)
    return values


def _opened(mask: npt.NDArray[np.uint8], side_px: int) -> float:
    """Share of a mask that a disc of this diameter fits into."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px))
    return float(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc).mean())


def _alignment(amount: npt.NDArray[np.float32]) -> float:
    x, y = (cv2.Sobel(amount, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    xx, yy, xy = (cv2.GaussianBlur(v, (0, 0), _TENSOR_PX) for v in (x * x, y * y, x * y))
    energy = float((xx + yy).sum())
    return float(np.hypot(xx - yy, 2 * xy).sum()) / energy if energy > 0 else 0.0


def _stained(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["tissue_share"] >= _MIN_TISSUE]


def _sample(slide_ids: pd.Series, seed: int) -> npt.NDArray[np.intp]:
    """Rows to fit, ascending: some of each slide, drawn by a generator of the slide's own."""
    rows_of = slide_ids.reset_index(drop=True).groupby(slide_ids.to_numpy()).indices
    least, most = _FIT_TILES_SLIDE
    n = min(most, max(least, _FIT_TILES // len(rows_of)))
    drawn = [
        generator(seed, "tissue", slide).permutation(rows)[:n] for slide, rows in rows_of.items()
    ]
    return np.sort(np.concatenate(drawn))
