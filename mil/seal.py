"""The seal on the test labels: one call gives them, and every call is counted and logged.

A number that was picked after many looks is not an estimate of anything; ``seal.json`` lets a
reader see how many there were.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from mil.predictions import check_labels, content_digest, slide_cohort
from splits.artifacts import read_json, write_json
from splits.errors import InputError

__all__ = ["open_test_labels"]


def open_test_labels(run: Path, predictions: pd.DataFrame, stage: str) -> pd.Series:
    """Break the seal: give the labels of the predicted test slides, and count one look.

    Every call is a look, also one at the same predictions: whether the eyes were the same cannot
    be known, and a counter that forgives is no counter. The entry in ``seal.json`` has the
    time, the stage and the digest of the predictions, so that repeats can be told from new ones.

    Args:
        run: The run folder, with ``tiles.parquet`` or, of another tool, ``slides.parquet``.
        predictions: Slide predictions; only rows of the test part are used.
        stage: Who looks: ``"evaluate"``.

    Returns:
        Label by slide, sorted by ``slide_id``.

    Raises:
        InputError: A slide is not in the tile table, has no label, or has another one there.
    """
    test = predictions[predictions["part"] == "test"]
    known = slide_cohort(run).dropna(subset=["label"]).set_index("slide_id")["label"]
    strangers = sorted(set(test["slide_id"]) - set(known.index))
    if strangers:
        message = (
            f"{len(strangers)} slide(s) of predictions.parquet without a label in the tile table, "
            f"the first is {strangers[0]!r}: run `slidewise train` again"
        )
        raise InputError(message)
    labels = known[sorted(set(test["slide_id"]))]
    check_labels(test, labels, "predictions.parquet")
    path = run / "seal.json"
    log = read_json(path)["log"] if path.exists() else []
    entry = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stage": stage,
        "digest": content_digest(predictions),
    }
    digests = {"predictions": entry["digest"]}
    write_json(path, {"looks": len(log) + 1, "log": [*log, entry]}, digests)
    return labels
