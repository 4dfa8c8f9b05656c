"""A finished run as an entry of MLflow: settings, learning curves, scores, report.

One entry a run folder, made when all is done and made anew when the scores change. ``mlflow.json``
names it, so that a second look at the same scores enters nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mil.config import Config
from splits.artifacts import digest, digests_of, is_current, read_json, write_json
from splits.errors import InputError

__all__ = ["EXPERIMENT", "track"]

EXPERIMENT: Final = "slidewise"
_FILES: Final = ("report.html", "metrics.json", "config.yaml")
_AT_ONCE: Final = {"params": 100, "metrics": 1000}  # that MLflow takes in one call
_LONGEST: Final = 6000  # text that MLflow takes as a value
Point = tuple[str, float, int]


def track(run: Path, config: Config, store: str) -> str:
    """Enter a finished run in MLflow, unless it is there.

    Args:
        run: Run folder with ``metrics.json`` and ``report.html``.
        config: Its configuration: every value becomes a parameter, named by its key.
        store: A folder, which gets ``mlflow.db`` and ``artifacts/``, or the URI of a tracking
            server or data base.

    Returns:
        MLflow's id of the entry.

    Raises:
        InputError: The store cannot be reached or written; the run itself is complete.
    """
    # An extra: `pip install 'slidewise[mlflow]'`.
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    digests = {"metrics": digest(digests_of(run / "metrics.json")), "store": store}
    note = run / "mlflow.json"
    if is_current(note, digests):
        return str(read_json(note)["run_id"])
    now = int(time.time() * 1000)
    of = [Param(name, value) for name, value in _flat(config.model_dump(mode="json"))]
    points = [Metric(_allowed(name), value, now, step) for name, value, step in _points(run)]
    try:
        uri, artifacts = _place(store)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = (
            client.create_experiment(EXPERIMENT, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        entry = client.create_run(experiment, run_name=run.resolve().name).info.run_id
        for kind, values in (("params", iter(of)), ("metrics", iter(points))):
            while part := list(islice(values, _AT_ONCE[kind])):
                client.log_batch(entry, **{kind: part})
        for name in _FILES:
            if (run / name).exists():
                client.log_artifact(entry, str(run / name))
        client.set_terminated(entry)
    except (MlflowException, OSError) as error:
        message = (
            f"MLflow at {store} did not take the run ({' '.join(str(error).split())}); {run} is "
            "complete: correct train.mlflow and run again"
        )
        raise InputError(message) from error
    write_json(note, {"run_id": entry, "experiment": EXPERIMENT}, digests)
    return str(entry)


def _place(store: str) -> tuple[str, str | None]:
    """URI of the tracking store, and of its files where they are ours to place."""
    if "://" in store:
        return store, None
    folder = Path(store).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(folder / 'mlflow.db').as_posix()}", (folder / "artifacts").as_uri()


def _points(run: Path) -> Iterator[Point]:
    """Every number of the logs by epoch, then the scores."""
    for path in sorted(run.glob("encoder/fold*/log.csv")):
        yield from _curve(path, f"encoder/{path.parent.name}")
    for path in sorted(run.glob("aggregators/*/fold*/log.csv")):
        yield from _curve(path, f"{path.parents[1].name}/{path.parent.name}")
    metrics = read_json(run / "metrics.json")
    levels = {"tile": metrics["tile"] or {}}
    levels |= {f"slide/{name}": scores for name, scores in metrics["slide"].items()}
    for level, scores in levels.items():
        for metric, score in scores.items():
            for kind, value in score.items():
                if value is not None:
                    name = f"{level}/{metric}" if kind == "value" else f"{level}/{metric}_{kind}"
                    yield name, float(value), 0


def _curve(path: Path, name: str) -> Iterator[Point]:
    log = pd.read_csv(path)
    for column in log.columns.drop(["epoch", "best"]):
        for epoch, value in zip(log["epoch"], log[column], strict=True):
            yield f"{name}/{column}", float(value), int(epoch)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``section.key`` and value as text."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield _allowed(prefix + key), str(value)[:_LONGEST]


def _allowed(name: str) -> str:
    """A name with the characters that MLflow takes; a method may be called anything."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)
