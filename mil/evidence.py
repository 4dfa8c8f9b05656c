"""Does attention name the tiles that an answer hangs on? Tables of answers in, areas out.

Deletion and insertion go back to Petsiuk, Das & Saenko, "RISE: randomized input sampling for
explanation of black-box models", BMVC 2018, section 3.2; for bags of tiles to Hense et al., "xMIL",
NeurIPS 2024. ``docs/attention.md`` says what each number means and what it does not.

Intervals draw whole patients (:mod:`mil.statistics`); a slide is one value, whatever its tiles.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.integrate import trapezoid
from sklearn.metrics import roc_auc_score

from mil import statistics
from mil.statistics import Described, Estimate

__all__ = ["RULE", "evidence", "localisation", "means"]

RULE: Final = (
    "Tiles leave a slide in the order of what the method says of them, or at random; p is the "
    "probability of the class that was predicted from all tiles. An area is the mean p over the "
    "shares of tiles. The order is believed where the interval of its difference from random, "
    "patients drawn, excludes 0."
)

Floats = npt.NDArray[np.float64]
Summary = dict[str, Any]
Point = dict[str, float | None]


def means(
    values: pd.DataFrame,
    labels: pd.Series,
    clusters: pd.Series,
    *,
    n_draws: int,
    seed: int,
    shares: bool = False,
) -> list[Estimate]:
    """Mean of each column over slides, all with the same draws of whole patients.

    :func:`mil.statistics.means` on tables: a value that is NaN does not count, and a mean over no
    slide is undefined.

    Args:
        values: A row a slide, indexed by it.
        labels: Slide -> label, for the strata.
        clusters: Slide -> patient, or site.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
        shares: The means are shares or areas, which have an exact bound at 0 and 1.
    """
    values = values.sort_index()
    classes = np.unique(labels[values.index].to_numpy(dtype=object), return_inverse=True)[1]
    drawn = clusters[values.index].to_numpy(dtype=object)
    return statistics.means(
        values.to_numpy(dtype=np.float64),
        classes,
        drawn,
        n_draws=n_draws,
        seed=seed,
        shares=shares,
    )


def evidence(
    perturbation: pd.DataFrame,
    agreement: pd.DataFrame,
    labels: pd.Series,
    clusters: pd.Series,
    *,
    n_draws: int,
    seed: int,
    shuffled_found: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """What ``evidence.json`` says of every method that weighs tiles.

    Args:
        perturbation: Answers of :func:`mil.perturb.perturb_run`.
        agreement: Its rank correlations.
        labels: Label of each test slide; only strata of the bootstrap depend on it.
        clusters: Patient of each slide, or site.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
        shuffled_found: :func:`localisation` of the models that learned shuffled labels.

    Returns:
        ``docs/attention.md`` lists the keys; ``None`` where no method weighs tiles.
    """
    if perturbation.empty:
        return None
    methods: dict[str, Any] = {}
    controlled = bool((perturbation["labels"] == "shuffled").any())
    given = _Given(labels, clusters, n_draws, seed, controlled)
    for method, rows in perturbation.groupby("method"):
        pairs = agreement[agreement["method"] == method]
        methods[str(method)] = {
            "measures": {
                measure: _of_measure(rows, pairs, measure, given, shuffled_found)
                for measure in sorted(set(rows["order"]) - {"random"})
            }
        }
    return {
        "rule": RULE,
        "shares": sorted(perturbation["share"].unique().tolist()),
        "n_slides": int(perturbation["slide_id"].nunique()),
        "n_slides_of": len(labels),
        "repeats": int(perturbation["repeat"].max()) + 1,
        "methods": methods,
    }


class _Given(NamedTuple):
    labels: pd.Series
    clusters: pd.Series
    n_draws: int
    seed: int
    controlled: bool

    def means(self, values: pd.DataFrame) -> list[Described]:
        found = means(values, self.labels, self.clusters, n_draws=self.n_draws, seed=self.seed)
        return [estimate.describe() for estimate in found]


def _of_measure(
    rows: pd.DataFrame,
    pairs: pd.DataFrame,
    measure: str,
    given: _Given,
    shuffled_found: dict[str, Any] | None,
) -> dict[str, Any]:
    pairs = pairs[pairs["measure"] == measure]
    controls = pairs["b"] == "shuffled"
    found = _curves(rows[rows["labels"] == "true"], measure, given)
    members = _agreement(pairs[~controls], given)
    if members is None:
        found["agreement"] = {"note": "not measured: one model a fold, set mil.seeds=2"}
    else:
        n_members = 1 + pairs.loc[~controls, "b"].astype(int).max()
        found["agreement"] = {**members, "n_members": int(n_members)}
    control = rows[rows["labels"] == "shuffled"]
    if control.empty:
        found["shuffled"] = {"note": "no control was trained: set evidence.shuffled_control=true"}
        if given.controlled:
            found["shuffled"]["note"] = "no control of its own: see the method that was selected"
        return found
    method = str(rows["method"].iloc[0])
    located = None
    if measure == "attention" and shuffled_found is not None:
        located = shuffled_found["methods"].get(method)
    found["shuffled"] = {
        **_curves(control, measure, given),
        "agreement": _agreement(pairs[controls], given),
        "localisation": located,
    }
    return found


def _curves(rows: pd.DataFrame, measure: str, given: _Given) -> dict[str, Any]:
    """Deletion and insertion of one measure against random orders of the same slides."""
    ordered, random = rows[rows["order"] == measure], rows[rows["order"] == "random"]
    random = random[random["slide_id"].isin(ordered["slide_id"])]
    aside = _by_share(random)
    found = {}
    for name, end, sign in (("deletion", "top", 1), ("insertion", "bottom", -1)):
        curve, other = _by_share(ordered[ordered["end"] == end]), aside
        if name == "insertion":  # what is left when the bottom goes is what the top puts in
            curve, other = _kept(curve), _kept(aside)
        shares = curve.columns.to_numpy(dtype=np.float64)
        areas = pd.DataFrame({"random": _areas(other), "ordered": _areas(curve)})
        difference = given.means(sign * (areas["random"] - areas["ordered"]).to_frame())[0]
        mean_areas = areas.mean()
        found[name] = {
            "curve": _points(given.means(curve), shares),
            "random": _points(given.means(other), shares),
            "area": float(mean_areas["ordered"]),
            "area_random": float(mean_areas["random"]),
            "difference": difference,
            "verdict": _verdict(difference),
        }
    return found


def _by_share(rows: pd.DataFrame) -> pd.DataFrame:
    """p, a row a slide and a column a share that was removed; the mean over random orders."""
    return rows.pivot_table(index="slide_id", columns="share", values="p", aggfunc="mean")


def _kept(removed: pd.DataFrame) -> pd.DataFrame:
    """The same answers by the share of tiles that is there, from the fewest on."""
    kept = removed.set_axis([round(1 - share, 6) for share in removed.columns], axis=1)
    return kept[sorted(kept.columns)]


def _areas(curve: pd.DataFrame) -> pd.Series:
    """Mean p of each slide over the shares, by the trapezoidal rule."""
    shares = curve.columns.to_numpy(dtype=np.float64)
    area = trapezoid(curve.to_numpy(dtype=np.float64), shares, axis=1)
    return pd.Series(area / (shares[-1] - shares[0]), index=curve.index)


def _points(found: list[Described], shares: Floats) -> list[Point]:
    return [
        {"share": float(share), "p": at["value"], "ci_low": at["ci_low"], "ci_high": at["ci_high"]}
        for at, share in zip(found, shares, strict=True)
    ]


def _verdict(difference: Described) -> str:
    if difference["ci_low"] is not None and difference["ci_low"] > 0:
        return "yes"
    if difference["ci_high"] is not None and difference["ci_high"] < 0:
        return "no"
    return "cannot be shown"


def _agreement(pairs: pd.DataFrame, given: _Given) -> Summary | None:
    """How alike two models weigh the tiles of a slide, a mean over pairs; None without pairs.

    The rank correlation counts all tiles alike, the overlap only the highest tenth; slides of fewer
    than three tiles count for neither, and those of equal weights not for the first.
    """
    pairs = pairs[pairs["n_tiles"] >= 3]
    if pairs.empty:
        return None
    highest = np.ceil(pairs["n_tiles"] / 10) / pairs["n_tiles"]
    columns = ["spearman", "overlap", "chance"]
    by_slide = pairs.assign(chance=highest).groupby("slide_id")[columns].mean()
    spearman, overlap, _ = given.means(by_slide)
    return {
        **spearman,
        "n_slides": int(by_slide["spearman"].count()),
        "top_tenth": {**overlap, "chance": float(by_slide["chance"].mean())},
    }


def localisation(
    table: pd.DataFrame,
    attention: pd.DataFrame,
    labels: pd.Series,
    clusters: pd.Series,
    *,
    n_draws: int,
    seed: int,
) -> dict[str, Any] | None:
    """How well attention finds the tiles that bear the label of their slide.

    A tile bears the label where ``tile_label == slide_label``; tiles without a label of their own
    are left out. A slide counts only where it has both kinds, so slides whose label is never a
    tile label, or is that of all their tiles, do not count. ``auroc_mean`` averages the area over
    slides; ``auroc_pooled`` ranks tiles within their slide first (attention sums to 1 a slide, so
    raw weights of slides of different size cannot be compared) and takes one area over all.

    Args:
        table: The tile table.
        attention: Attention table; only rows of the test part are used.
        labels: Label of each test slide.
        clusters: Patient of each slide, or site.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{"n_test_slides", "methods": {METHOD: {"auroc_mean", "ci_low", "ci_high", "auroc_pooled",
        "n_slides"}}}``, the interval that of ``auroc_mean``; ``None`` where no slide counts.
    """
    annotated = table[["tile_id", "tile_label", "slide_label"]].dropna()
    bearing = annotated["tile_label"].astype(object) == annotated["slide_label"].astype(object)
    kinds = pd.Series(bearing.to_numpy(dtype=bool), index=annotated["tile_id"].to_numpy(object))
    test = attention[(attention["part"] == "test") & attention["slide_id"].isin(labels.index)]
    test = test[test["tile_id"].isin(kinds.index)].sort_values(["method", "slide_id", "tile_id"])
    test = test.assign(bearing=kinds[test["tile_id"].to_numpy(object)].to_numpy())
    methods = {}
    for method, rows in test.groupby("method"):
        by_slide = rows.groupby("slide_id")
        mixed = rows[by_slide["bearing"].transform("nunique") == 2]
        if mixed.empty:
            continue
        rank = mixed.groupby("slide_id")["attention"].rank()
        by_slide = mixed.assign(rank=rank, bearing_rank=rank * mixed["bearing"]).groupby("slide_id")
        n_tiles, n_bearing = by_slide["bearing"].transform("size"), by_slide["bearing"].sum()
        # Mann-Whitney: the area from the ranks of the bearing tiles, for all slides at once.
        excess = by_slide["bearing_rank"].sum() - n_bearing * (n_bearing + 1) / 2
        areas = (excess / (n_bearing * (by_slide.size() - n_bearing))).to_frame("area")
        mean = means(areas, labels, clusters, n_draws=n_draws, seed=seed, shares=True)[0].describe()
        methods[str(method)] = {
            "auroc_mean": mean["value"],
            "ci_low": mean["ci_low"],
            "ci_high": mean["ci_high"],
            "auroc_pooled": float(roc_auc_score(mixed["bearing"], (rank - 0.5) / n_tiles)),
            "n_slides": len(areas),
        }
    return {"n_test_slides": len(labels), "methods": methods} if methods else None
