"""The shortcut probe: can slide, site and preparation be read off the embeddings of tiles?

A classifier that can tell slides apart gains from a split that cuts them, and one that can tell
sites apart may learn the site in place of the disease (Howard et al., *Nature Communications* 12,
2021, doi:10.1038/s41467-021-24698-1). The probe is linear: ridge regression on indicators of the
names, on at most 128 principal components of standardised embeddings (fitted without names), with
a penalty of one a tile. Nothing is tuned. A score is divided by the number of training tiles of
its name, so that large sites have no start.

What is held out follows from the question. **Slide**: one random half of each slide's tiles, and
then the other. **Site** and **preparation**: whole patients, one at a time up to 50 of them, and in
50 random folds beyond; the answer for a slide is the mean over its tiles. Every value is balanced
accuracy: each slide counts the same, and each site.

Sites go along with classes, so a probe that finds the class finds the site. The reference is
therefore not blind chance: names change places between tiles (slide) or patients (site) *of one
class*, and the probe runs anew. That leaves the table of sites and classes as it is: the mean over
permutations is what the class alone gives, and p is the share of them that reach the value.

An embedding counts only where its encoder did not train on the slide. With a frozen encoder all
slides are one pool; with a trained one the test slides of each fold are a pool of their own, which
is probed for itself, and the pools are averaged. Validation slides chose the epoch and stay out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil import encode, statistics
from mil.cohort import folds_of
from mil.config import Config
from mil.experiments.probe_design import (
    Floats,
    Ints,
    Left,
    Part,
    components,
    of_patients,
    of_slides,
)
from mil.features.cohort import UNKNOWN
from mil.prepare import read_tiles
from mil.seeds import generator
from splits import tiles
from splits.artifacts import (
    digest,
    is_current,
    read_csv,
    read_json,
    write_csv,
    write_json,
)
from splits.auditing.confounds import preparation
from splits.errors import InputError

__all__ = ["KINDS", "N_PERMUTATIONS", "Pool", "Probed", "difference", "draw_tiles", "probe"]
__all__ += ["probe_run", "table_of", "units_of"]

N_PERMUTATIONS: Final = 499
KINDS: Final = ("slide", "site", "preparation")
_TILES_A_SLIDE: Final = 32
_TILES: Final = 4_000
_SLIDES: Final = 400
_FORM: Final = 1  # part of the digest: a changed probe must not pass for the old one


@dataclass(frozen=True)
class Pool:
    """Tiles embedded by one encoder that trained on none of their slides.

    Attributes:
        x: Embeddings, ``(n_tiles, dim)``.
        slide: Slide of each tile, ``(n_tiles,)``.
    """

    x: npt.NDArray[np.floating]
    slide: npt.NDArray[np.object_]


@dataclass(frozen=True)
class Probed:
    """What the probe found.

    Attributes:
        values: Each of ``KINDS`` -> ``{"value", "ci_low", "ci_high", "chance", "class_alone", "p",
            "n_names", "n_units", "n_pools", "left_out"}``, or ``{"note", "left_out"}`` where it
            could not be measured. ``chance`` is the mean over permutations among all classes.
        units: ``kind, pool, unit, name, patient_id, hit``, a row a slide (kind ``slide``) or a
            patient: the share of its tiles, or slides, that were given their name. The value is the
            mean over names (of each pool) of their mean ``hit``.
    """

    values: dict[str, dict[str, Any]]
    units: pd.DataFrame


def probe_run(run: Path, config: Config) -> dict[str, Any]:
    """Probe the features of a finished run: ``probe.json`` and ``probe.csv``.

    Returns:
        The content of ``probe.json``: ``values`` as in :class:`Probed`, ``encoder`` (``frozen`` or
        ``trained``), ``n`` and ``notes`` (sentences).

    Raises:
        InputError: The run has no features yet.
    """
    folds = list(folds_of(run, config))
    entries = [encode.fold_meta(run, str(fold.number)) for fold in folds]
    n_draws, seed = config.evaluate.bootstrap, config.seed
    digests = {
        "identity": folds[0].identity,
        "features": digest([entry["digests"] for entry in entries]),
        "split": folds[0].split,
        "probe": digest([_FORM, n_draws, seed]),
    }
    path = run / "probe.json"
    if is_current(path, digests):
        return read_json(path)
    trained = any(entry["slides_seen"] for entry in entries)
    table = read_tiles(run)
    slide_of = table["slide_id"].to_numpy(object)
    chosen = draw_tiles(slide_of, seed)
    pools = []
    for fold in folds if trained else folds[:1]:
        of_encoder = encode.read_features(run, str(fold.number), unseen=fold.unseen)
        rows = np.intersect1d(chosen, fold.rows("test")) if trained else chosen
        pools.append(Pool(np.asarray(of_encoder[rows]), slide_of[rows]))
    slides = tiles.slides(table).astype({"slide_id": str}).set_index("slide_id", drop=False)
    slides = slides.rename(columns={"site_id": "site"})
    slides["preparation"] = slides["slide_id"].map(preparation)
    found = probe(pools, slides, n_draws=n_draws, seed=seed)
    result = {
        "encoder": "trained" if trained else "frozen",
        "n": {
            "tiles": sum(len(pool.slide) for pool in pools),
            "tiles_of": len(table),
            "slides": len({name for pool in pools for name in pool.slide}),
            "slides_of": len(slides),
        },
        "values": found.values,
        "notes": _notes(entries, len(pools), trained=trained),
    }
    # The table first: with the JSON, both are there.
    write_csv(run / "probe.csv", found.units)
    write_json(path, result, digests)
    return read_json(path)


def table_of(result: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows for the terminal, of the content of ``probe.json``."""
    rows = []
    for kind, found in result["values"].items():
        if "note" in found:
            rows.append([kind, found["note"], "", "", "", ""])
            continue
        value = f"{found['value']:.3f}"
        if found["ci_low"] is not None:
            value += f" ({found['ci_low']:.3f} to {found['ci_high']:.3f})"
        numbers = [f"{found[name]:.3f}" for name in ("class_alone", "p", "chance")]
        units = "slides" if kind == "slide" else "patients"
        of = f"{found['n_names']} of {found['n_units']} {units}"
        rows.append([kind, value, *numbers, of])
    n = result["n"]
    title = (
        f"Read off the embeddings of {n['tiles']} tiles, {n['slides']} slides "
        f"({result['encoder']} encoder): balanced accuracy (95 %)"
    )
    return title, ["", "found", "class alone", "p", "chance", "names"], rows


def units_of(run: Path) -> pd.DataFrame:
    """What each slide and patient added to the probe of a run, as in :class:`Probed`."""
    return read_csv(run / "probe.csv").astype({"pool": np.int64, "hit": np.float64})


def _notes(entries: Sequence[dict[str, Any]], n_pools: int, *, trained: bool) -> list[str]:
    notes = []
    if trained:
        notes.append(
            f"the encoder was trained: the test slides of each of {n_pools} fold(s) are probed "
            "among themselves, so values do not compare with those of a frozen encoder"
        )
    if any(entry.get("encoder_saw") == UNKNOWN for entry in entries):
        notes.append("features of others: which slides their encoder saw is not known")
    return notes


def draw_tiles(slide: npt.NDArray[np.object_], seed: int) -> Ints:
    """Rows of the tiles that are probed, ascending: as many of each slide, at most 32.

    At most 4,000 in all and 400 slides, drawn by seed and name of the slide, so that all encoders
    on one tile table are probed on the same tiles.

    Args:
        slide: Slide of each tile, ``(n_tiles,)``.
        seed: Of the draw.
    """
    rows = pd.Series(slide).groupby(slide).indices
    names = np.array(sorted(map(str, rows)), dtype=object)
    if len(names) > _SLIDES:
        names = generator(seed, "probe", "slides").permutation(names)[:_SLIDES]
    most = min(_TILES_A_SLIDE, _TILES // len(names))
    parts = [generator(seed, "probe", "tiles", n).permutation(rows[n])[:most] for n in names]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def probe(pools: Sequence[Pool], slides: pd.DataFrame, *, n_draws: int, seed: int) -> Probed:
    """Probe embeddings for slide, site and preparation.

    Args:
        pools: Tiles by encoder; a slide lies in one pool.
        slides: ``patient_id, label, site, preparation``, the index being the slide; null where a
            site or preparation is not known.
        n_draws: Bootstrap draws over patients.
        seed: Of halves, folds, permutations and draws.

    Raises:
        InputError: A slide of a pool has no row in the table.
    """
    missing = sorted({str(name) for pool in pools for name in pool.slide} - set(slides.index))
    if missing:
        message = f"{len(missing)} slide(s) without a row, the first is {missing[0]!r}"
        raise InputError(message)
    slides = slides.astype({"patient_id": str, "label": str})
    reduced = [(components(pool.x, seed), pool.slide.astype(str)) for pool in pools]
    values, units = {}, []
    for kind in KINDS:
        parts: list[Part] = []
        left_out: Left = []
        for number, (z, slide) in enumerate(reduced):
            random = generator(seed, "probe", kind, number)
            part, out = (
                of_slides(z, slide, slides, random)
                if kind == "slide"
                else of_patients(z, slide, slides, kind, random)
            )
            parts += [] if part is None else [part]
            left_out += out
        values[kind], found = _measure(kind, parts, left_out, n_draws=n_draws, seed=seed)
        units.append(found)
    return Probed(values, pd.concat(units, ignore_index=True))


def difference(
    a: pd.DataFrame, b: pd.DataFrame, kind: str, *, n_draws: int, seed: int
) -> dict[str, Any] | None:
    """How much more the embeddings ``a`` say than ``b``, of the same tiles; a minus b.

    Args:
        a: ``Probed.units`` of the first,
        b: and of the second encoder.
        kind: One of ``KINDS``.
        n_draws: Bootstrap draws over patients.
        seed: Of the draws.

    Returns:
        ``{"value", "ci_low", "ci_high"}``; None where it was not measured.

    Raises:
        InputError: They were not measured on the same slides or patients.
    """
    one, other = (table[table["kind"] == kind].set_index("unit").sort_index() for table in (a, b))
    if list(one.index) != list(other.index):
        message = f"the {kind} probes were not made on the same slides: they cannot be compared"
        raise InputError(message)
    if one.empty:
        return None
    return _interval(one, other, n_draws=n_draws, seed=seed)


def _measure(
    kind: str, parts: Sequence[Part], left_out: Left, *, n_draws: int, seed: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    columns = ["kind", "pool", "unit", "name", "patient_id", "hit"]
    if not parts:
        needs = "two slides of two tiles" if kind == "slide" else f"two {kind}s of two patients"
        note = f"not measured: it takes {needs}"
        return {"note": note, "left_out": left_out}, pd.DataFrame(columns=columns)
    units = pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": kind,
                    "pool": i,
                    "unit": part.unit,
                    "name": part.name or part.unit,
                    "patient_id": part.patient,
                    "hit": part.hits(part.code),
                }
            )
            for i, part in enumerate(parts)
        ],
        ignore_index=True,
    )
    value = _interval(units, n_draws=n_draws, seed=seed)
    n_names = np.array([int(part.code.max()) + 1 for part in parts])

    def null(*, within_class: bool) -> Floats:
        random = generator(seed, "probe", kind, "permutations", within_class)
        dealt = _permuted(parts, random, within_class=within_class)
        means = [[part.macro(n) for part, n in zip(parts, names, strict=True)] for names in dealt]
        return np.asarray(np.array(means) @ n_names / n_names.sum())

    alone = null(within_class=True)
    result = {
        **value,
        "chance": float(null(within_class=False).mean()),
        "class_alone": float(alone.mean()),
        # Equal values count against the finding; rounding must not decide which they are.
        "p": (1 + int((alone >= value["value"] - 1e-9).sum())) / (1 + len(alone)),
        "n_names": int(n_names.sum()),
        "n_units": len(units),
        "n_pools": len(parts),
        "left_out": left_out,
    }
    return result, units


def _permuted(
    parts: Sequence[Part], random: np.random.Generator, *, within_class: bool
) -> Iterator[list[Ints]]:
    """Names that changed places among units of one class, or of all."""
    for _ in range(N_PERMUTATIONS):
        names = []
        for part in parts:
            keys = (part.stratum, part.kept) if within_class else (part.kept,)
            code = np.empty_like(part.code)
            code[np.lexsort(keys)] = part.code[np.lexsort((random.random(len(code)), *keys))]
            names.append(code)
        yield names


def _interval(
    units: pd.DataFrame, other: pd.DataFrame | None = None, *, n_draws: int, seed: int
) -> dict[str, Any]:
    """Mean over names of the mean hit of their units (minus that of ``other``), with an interval.

    Patients are drawn whole and from one stratum: strata of sites would hold two patients each, and
    a bootstrap of two misses half their variance. A draw without any patient of a site averages
    over the others.
    """
    patients, member = np.unique(units["patient_id"].astype(str), return_inverse=True)
    # The same site in two pools is two names: each pool has a probe of its own.
    name = units.groupby(["pool", "name"]).ngroup().to_numpy()
    hit = units["hit"].to_numpy(np.float64)
    if other is not None:
        hit = hit - other["hit"].to_numpy(np.float64)
    sums, counts = np.zeros((2, len(patients), int(name.max()) + 1))
    np.add.at(sums, (member, name), hit)
    np.add.at(counts, (member, name), 1.0)
    one, of_rows = np.zeros(len(units), dtype=np.int64), patients[member]
    draws = []
    for drawn in statistics.draw_clusters(one, of_rows, n_draws=n_draws, seed=seed):
        n = drawn @ counts
        means = np.divide(drawn @ sums, n, out=np.zeros_like(n), where=n > 0)
        draws.append(means.sum(axis=1) / (n > 0).sum(axis=1))
    estimate = statistics.Estimate(
        value=float((sums.sum(axis=0) / counts.sum(axis=0)).mean()),
        draws=np.concatenate(draws),
        acceleration=0.0,
        df=statistics.degrees(one, of_rows, 1 / counts.sum(axis=0)[name]),
        n_effective=len(patients) if other is None else None,
    )
    return estimate.describe("percentile")
