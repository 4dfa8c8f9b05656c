"""Test labels are out of reach of training by construction, and every look at them is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil.cohort import Fold
from mil.seal import open_test_labels
from splits import tiles
from splits.artifacts import read_json, write_table
from splits.errors import InputError

SLIDES = ["a", "b", "c", "d"]
SLIDE_OF = np.repeat(np.array(SLIDES, dtype=object), 2)
LABELS = {"a": 0, "b": 1, "c": 1, "d": 0}


@pytest.fixture
def fold() -> Fold:
    return Fold(
        number=3,
        classes=["x", "y"],
        slides={"train": ["a", "b"], "val": ["c"], "test": ["d"]},
        labels=LABELS,
        group_of={name: name for name in SLIDES},
        patient_of={"a": "p", "b": "q", "c": "r", "d": "s"},
        rows_by_slide={name: np.flatnonzero(name == SLIDE_OF) for name in SLIDES},
        tile_ids=np.array([f"t{i}" for i in range(8)], dtype=object),
        slide_of=SLIDE_OF,
        identity="",
        split="",
    )


def test_a_fold_holds_no_label_of_a_test_slide(fold: Fold) -> None:
    assert dict(fold.labels) == {"a": 0, "b": 1, "c": 1}
    assert LABELS["d"] == 0, "what was given is left alone"
    np.testing.assert_array_equal(fold.targets(fold.rows("train", "val")), [0, 0, 1, 1, 1, 1])
    with pytest.raises(InputError, match="label of slide 'd' is sealed"):
        fold.labels["d"]
    with pytest.raises(InputError, match="label of slide 'd' is sealed"):
        fold.targets(fold.rows("test"))
    with pytest.raises(InputError, match="label of slide 's' is sealed"):
        fold.of_patients().labels["s"]


def test_a_slide_that_becomes_a_test_slide_loses_its_label_for_good(fold: Fold) -> None:
    inner = replace(fold, slides={"train": ["a"], "val": ["c"], "test": ["b"]})
    with pytest.raises(InputError, match="'b' is sealed"):
        inner.targets(inner.rows("test"))
    back = replace(inner, slides=fold.slides)
    with pytest.raises(InputError, match="'b' is sealed"):
        back.targets(back.rows("train"))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_slide_in_two_parts_is_refused(fold: Fold, part: str) -> None:
    with pytest.raises(InputError, match=r"fold 3: 1 slide.*'d': what is tested may neither"):
        replace(fold, slides={**fold.slides, part: [*fold.slides[part], "d"]})


def run_of(path: Path) -> pd.DataFrame:
    """A run folder with a tile table; predictions of two of its three slides."""
    table = pd.DataFrame(
        {
            "tile_id": ["a.png", "b.png", "c.png"],
            "slide_id": ["a", "b", "c"],
            "patient_id": ["a", "b", "c"],
            "group_id": ["a", "b", "c"],
            "site_id": None,
            "slide_label": ["x", "y", "x"],
            "tile_label": None,
        }
    )
    write_table(path / "tiles.parquet", tiles.check(table), {})
    rows = {"slide_id": ["a", "b"], "part": "test", "method": "vote", "label": ["x", "y"]}
    return pd.DataFrame(rows).assign(fold=0, predicted="x", p_x=[0.6, 0.7], p_y=[0.4, 0.3])


def test_every_look_counts_and_the_log_tells_repeats_from_new_predictions(tmp_path: Path) -> None:
    predictions = run_of(tmp_path)
    assert open_test_labels(tmp_path, predictions, "evaluate").to_dict() == {"a": "x", "b": "y"}
    open_test_labels(tmp_path, predictions.assign(p_x=0.5, p_y=0.5), "evaluate")
    open_test_labels(tmp_path, predictions.iloc[::-1], "a second pair of eyes")
    seal = read_json(tmp_path / "seal.json")
    assert seal["looks"] == 3
    assert [(e["look"], e["stage"], e["same_predictions_as_look"]) for e in seal["log"]] == [
        (1, "evaluate", None),
        (2, "evaluate", None),
        (3, "a second pair of eyes", 1),
    ]
    assert all(entry["when"].endswith("+00:00") for entry in seal["log"])


def test_a_refused_look_shows_nothing_and_counts_nothing(tmp_path: Path) -> None:
    predictions = run_of(tmp_path)
    with pytest.raises(InputError, match="without a label"):
        open_test_labels(tmp_path, predictions.replace({"slide_id": {"b": "z"}}), "evaluate")
    assert not (tmp_path / "seal.json").exists()


def test_a_log_that_was_cut_is_not_counted_on_from(tmp_path: Path) -> None:
    predictions = run_of(tmp_path)
    for _ in range(2):
        open_test_labels(tmp_path, predictions, "evaluate")
    path = tmp_path / "seal.json"
    path.write_text(path.read_text().replace('"looks": 2', '"looks": 1'))
    with pytest.raises(InputError, match="looks is 1, and its log has 2"):
        open_test_labels(tmp_path, predictions, "evaluate")
