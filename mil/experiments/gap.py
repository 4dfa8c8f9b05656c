"""The leakage gap: one experiment, run under splits of tiles, slides, patients and sites.

What differs between the schemes is which tiles train together with which, and nothing else: data,
stains, model, budget, number of folds, share of validation and seeds are the same, and every tile
is tested once. How folds are dealt stands in :mod:`mil.experiments.schemes`, how they are run in
:mod:`mil.experiments.gap_folds`, how they are compared in :mod:`mil.experiments.gap_scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from mil import auditing, devices, prepare, settings, statistics, tissue, train
from mil.cohort import class_order
from mil.config import Config
from mil.experiments import gap_page, gap_scores, schemes
from mil.experiments.gap_folds import DONE, Job, Start
from mil.experiments.gap_scores import Answers
from mil.experiments.schemes import SCHEMES, Deal
from mil.report.identity import identify_run
from mil.seal import open_test_labels
from splits import audit as audits
from splits import tiles
from splits.artifacts import digest, digests_of, is_current, read_json, write_json
from splits.errors import InputError, NegativeVerdictError

__all__ = ["measure"]

_FORM: Final = 1
_NULL: Final = ("tile", "patient")
"""Schemes that are also run with shuffled labels."""
_HONEST: Final = ("patient", "site")
_SAME: Final = {
    "slide": "each patient has one slide, so that to keep slides whole is to keep patients whole",
    "site": "each site has one patient, so that to keep sites whole is to keep patients whole",
}
_FEW_SEEDS: Final = 5

Say = Callable[[str], object]


@dataclass(frozen=True)
class Series:
    """A scheme with its true or shuffled labels: all folds of every seed.

    Attributes:
        scheme: One of ``SCHEMES``.
        tables: The tile table of each seed, with the labels to learn.
        deals: Of each seed.
        jobs: The folds of each seed.
    """

    scheme: str
    tables: list[pd.DataFrame]
    deals: list[Deal]
    jobs: list[list[Job]]


@dataclass(frozen=True)
class Plan:
    """All that is to be run.

    Attributes:
        true: Schemes with true labels, from the one that leaks most to the strictest.
        null: Schemes with shuffled labels.
        left: Schemes that are not run -> ``same_as`` (a scheme or null) and ``reason``.
        no_null: Why there are no shuffled labels; None where there are.
    """

    true: list[Series]
    null: list[Series]
    left: dict[str, dict[str, Any]]
    no_null: str | None

    @property
    def jobs(self) -> list[Job]:
        """Every fold, seed after seed, so that an interrupted experiment has whole seeds."""
        series = [*self.true, *self.null]
        n_seeds = len(self.true[0].jobs)
        return [job for seed in range(n_seeds) for one in series for job in one.jobs[seed]]


def measure(
    out: Path,
    config: Config,
    *,
    n_seeds: int = 3,
    null: bool = True,
    say: Say,
    progress: prepare.Progress | None = None,
) -> dict[str, Any] | None:
    """Run an experiment under every scheme and compare the scores.

    Finished folds are kept, an interrupted one resumes. Writes ``gap.json``, ``gap.csv`` and
    ``gap.html`` into ``out``, which up to its tiles is a run folder.

    Args:
        out: Folder of the experiment.
        config: Of the experiment; k-fold, bags of slides. ``split.unit`` does not matter.
        n_seeds: Seeds: ``seed`` and ``split.seed`` of the config, and the numbers that follow.
        null: Also run random tiles and patients with labels that are shuffled over patients.
        say: Called with one line a finished step.
        progress: Shows the folds, and the stages before them.

    Returns:
        The content of ``gap.json``; None in all but the first of several processes.

    Raises:
        InputError: The config or the cohort cannot be dealt to k folds of patients.
        NegativeVerdictError: No slide-level split exists, or the split of patients leaks.
    """
    config = _checked(out, config)
    fabric = devices.fabric(config.compute)
    devices.first(fabric, lambda: _prepare(out, config, say, progress))
    with devices.said_once(fabric):
        plan = _plan(out, config, n_seeds, null=null)
    found = devices.first(fabric, lambda: _audited(out, config, plan, say))
    start = Start(out, config, fabric, say, progress)
    jobs = plan.jobs
    advance = progress("folds", len(jobs)) if progress and fabric.is_global_zero else None
    for job in jobs:
        start.run(job)
        if advance is not None:
            advance(1)
    return devices.first(fabric, lambda: _judged(out, config, plan, found or {}))


def _checked(out: Path, config: Config) -> Config:
    """The config with patients as groups, which all schemes begin with.

    Raises:
        InputError: It cannot be run under every scheme.
    """
    split = config.split
    message = None
    if split.method != "kfold":
        message = (
            f"split.method={split.method}: the gap compares schemes on the same tiles, each tested "
            "once, which is what split.method=kfold does"
        )
    elif split.inner is not None or config.select is not None:
        what = "select" if config.select is not None else "split.inner"
        message = f"{what}: the gap trains one model a fold and has no inner folds: leave it out"
    elif config.mil.bags != "slide":
        message = (
            f"mil.bags={config.mil.bags}: under a split of slides or tiles a patient is in several "
            "parts and cannot be one bag: set mil.bags=slide"
        )
    for name in ("split.json", "predictions.parquet"):
        if (out / name).exists():
            message = f"{out} is the folder of a run (it holds {name}): give the gap its own, --out"
    if message is not None:
        raise InputError(message)
    train.check(config)
    return settings.changed(config, split={"unit": "patient"})


def _prepare(out: Path, config: Config, say: Say, progress: prepare.Progress | None) -> None:
    settings.save(config, out / "config.yaml")
    prepare.scan(out, config, progress)
    identity = identify_run(out, config, progress=progress)
    say(f"identity: grade {identity['grade']} ({identity['reason']})")
    prepare.slides_to_split(prepare.read_tiles(out), identity)
    tissue.amounts(out, config, progress)


def _plan(out: Path, config: Config, n_seeds: int, *, null: bool) -> Plan:
    """Deal every scheme for every seed.

    Raises:
        InputError: Tiles, slides or patients cannot be dealt to the folds.
    """
    table = prepare.read_tiles(out)
    series = partial(_series, out, config, tissue.amounts(out, config))
    left = {scheme: why for scheme in _SAME if (why := _needless(table, scheme)) is not None}
    true = {
        scheme: series(scheme, [table] * n_seeds, scheme)
        for scheme in SCHEMES
        if scheme != "site" and scheme not in left
    }
    if "site" not in left:
        try:
            true["site"] = series("site", [table] * n_seeds, "site")
        except InputError as error:
            left["site"] = {"same_as": None, "reason": str(error)}
    run = list(true.values())
    if not null:
        return Plan(run, [], left, "not asked for")
    try:
        tables = [schemes.shuffled(table, config.seed + seed) for seed in range(n_seeds)]
        return Plan(run, [series(s, tables, f"{s}-null") for s in _NULL], left, None)
    except InputError as error:
        return Plan(run, [], left, str(error))


def _needless(table: pd.DataFrame, scheme: str) -> dict[str, Any] | None:
    """Why a scheme is not run beside that of patients, as far as ids say it."""
    try:
        different = schemes.unlike(table, scheme, "patient")
    except InputError as error:
        return {"same_as": None, "reason": str(error)}
    return None if different else {"same_as": "patient", "reason": _SAME[scheme]}


def _series(
    out: Path,
    config: Config,
    amounts: pd.DataFrame | None,
    scheme: str,
    tables: list[pd.DataFrame],
    name: str,
) -> Series:
    deals, jobs = [], []
    for number, table in enumerate(tables):
        split = config.split.model_copy(update={"seed": config.split.seed + number})
        own = config.model_copy(update={"seed": config.seed + number, "split": split})
        dealt = schemes.deal(scheme, table, split, seed=split.seed, amounts=amounts)
        folder = out / "deals" / name / f"seed{number}"
        deals.append(dealt)
        jobs.append([Job(dealt, n, table, own, folder / f"fold{n}") for n in range(dealt.n_folds)])
    return Series(scheme, tables, deals, jobs)


def _audited(out: Path, config: Config, plan: Plan, say: Say) -> dict[str, dict[str, str]]:
    """What the audit says of the first deal of each scheme: ``verdict`` and ``summary``.

    Raises:
        NegativeVerdictError: A split of patients or sites leaks.
    """
    found = {}
    for series in plan.true:
        dealt, path = series.deals[0], out / "deals" / series.scheme / "audit.json"
        digests = {
            "identity": tiles.identity_digest(series.tables[0]),
            "split": dealt.digest,
            "audit": digest([_FORM, digests_of(out / "links.parquet")]),
        }
        if not is_current(path, digests):
            unit = "site" if series.scheme == "site" else "patient"
            of = dealt.split_table(series.tables[0])
            write_json(path, auditing.look(out, config, of, unit=unit, claims="kfold"), digests)
        result = read_json(path)
        said = audits.summarise(result)
        say(f"audit of the {series.scheme} split: {said}")
        if series.scheme in _HONEST and result["verdict"] == "leak":
            message = f"the split of {series.scheme}s: {said} (see {path})"
            raise NegativeVerdictError(message)
        found[series.scheme] = {"verdict": result["verdict"], "summary": said}
    return found


def _judged(
    out: Path, config: Config, plan: Plan, audit: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """``gap.json`` and what is made from it; where it is current, no label is looked at again."""
    draws = {"n_draws": config.evaluate.bootstrap, "seed": config.seed}
    votes = [vote.model_dump(mode="json") for vote in config.mil.votes]
    digests = {
        "folds": digest([digests_of(job.folder / DONE) for job in plan.jobs]),
        "gap": digest([_FORM, gap_scores.FORM, draws, votes, plan.left, plan.no_null, audit]),
    }
    path = out / "gap.json"
    if not is_current(path, digests):
        write_json(path, _scored(out, config, plan, audit, draws), digests)
    gap_page.write(out)
    return read_json(path)


def _scored(
    out: Path,
    config: Config,
    plan: Plan,
    audit: Mapping[str, Mapping[str, str]],
    draws: Mapping[str, int],
) -> dict[str, Any]:
    table = prepare.read_tiles(out)
    classes = class_order(config, table)
    quality = tissue.quality_asked(out, config)

    def answers(series: Series) -> list[Answers]:
        folders = [[job.folder for job in folds] for folds in series.jobs]
        return [gap_scores.pooled(of, table, classes, config.mil.votes, quality) for of in folders]

    said = {series.scheme: answers(series) for series in plan.true}
    predictions = gap_scores.as_predictions(said, table, classes)
    labels = _indices(open_test_labels(out, predictions, "gap"), classes)
    n_seeds = len(plan.true[0].jobs)
    scores = {
        scheme: gap_scores.scores(of, [labels] * n_seeds, table, **draws)
        for scheme, of in said.items()
    }
    null = {}
    for series in plan.null:
        dealt = [_indices(_labels(of), classes) for of in series.tables]
        found = gap_scores.scores(answers(series), dealt, table, **draws)
        null[series.scheme] = gap_scores.summary(found)
    slides = tiles.slides(table)
    listed: list[dict[str, Any]] = []
    for scheme in SCHEMES:
        if scheme in plan.left:
            listed.append({"scheme": scheme, "run": False, **plan.left[scheme]})
            continue
        of = next(series for series in plan.true if series.scheme == scheme)
        n_groups = len(np.unique(of.deals[0].group.astype(str)))
        about = {"scheme": scheme, "run": True, "n_groups": n_groups, "audit": audit[scheme]}
        listed.append({**about, **gap_scores.summary(scores[scheme])})
    clusters = slides["patient_id"].to_numpy(dtype=object).astype(str)
    index = labels[slides["slide_id"].astype(str)].to_numpy(dtype=np.int64)
    return {
        "n": {
            "tiles": len(table),
            **{f"{n}s": int(slides[f"{n}_id"].nunique()) for n in ("slide", "patient", "site")},
        },
        "classes": classes,
        "chance": float(np.bincount(index).max() / len(index)),
        "trained": [choice.name for choice in config.mil.aggregators],
        "folds": config.split.folds,
        "val_share": config.split.val_share,
        "seeds": [config.seed + k for k in range(n_seeds)],
        "model": _model(config),
        "schemes": listed,
        "gaps": gap_scores.gaps(scores),
        "null": {"reason": plan.no_null, "schemes": null},
        "interval": {"level": 0.95, "cluster": "patient", **draws},
        "cautions": [*statistics.caveats(index, clusters, classes), *_cautions(n_seeds)],
    }


def _cautions(n_seeds: int) -> list[str]:
    if n_seeds == 1:
        return ["one seed: the intervals do not hold how folds and weights fell"]
    if n_seeds < _FEW_SEEDS:
        return [
            f"{n_seeds} seeds say little of how folds and weights fell: intervals are too narrow"
        ]
    return []


def _model(config: Config) -> str:
    if config.data.features is not None:
        return "features from files"
    encoder = config.encoder
    state = "frozen" if encoder.frozen else f"trained for {config.train.epochs} epochs"
    return f"{encoder.name}, {state}, {encoder.channels}, {encoder.image_px} px"


def _labels(table: pd.DataFrame) -> pd.Series:
    slides = tiles.slides(table).astype({"slide_id": object, "label": object})
    return slides.set_index("slide_id")["label"]


def _indices(labels: pd.Series, classes: Sequence[str]) -> pd.Series:
    return labels.astype(str).map({name: i for i, name in enumerate(classes)})
