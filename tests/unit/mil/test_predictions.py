"""Scores of tiles: the table, its extremes, and patients that are one bag of several slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil.aggregators.voting import Votes
from mil.cohort import Fold
from mil.data.bags import Bags
from mil.models import Said, ensemble
from mil.predict import _Tables
from mil.predictions import extremes, read_attention, read_scores
from splits.artifacts import write_table
from splits.errors import InputError

SLIDE_OF = np.array(["a"] * 5 + ["b"] * 2 + ["c"] * 3, dtype=object)
PATIENT_OF = {"a": "p", "b": "p", "c": "q"}
LABELS = {"a": 0, "b": 0, "c": 1}


@pytest.fixture
def fold() -> Fold:
    return Fold(
        number=0,
        classes=["x", "y"],
        slides={"train": [], "val": [], "test": ["a", "b", "c"]},
        labels=LABELS,
        group_of=PATIENT_OF,
        patient_of=PATIENT_OF,
        rows_by_slide={slide: np.flatnonzero(slide == SLIDE_OF) for slide in LABELS},
        tile_ids=np.array([f"t{i}" for i in range(10)], dtype=object),
        slide_of=SLIDE_OF,
        identity="",
        split="",
    )


def written(run: Path, fold: Fold) -> dict[str, pd.DataFrame]:
    """Tables of two methods on patients: one with attention, one with all there is."""
    packed = fold.of_patients()
    bags = Bags(np.zeros((10, 2), dtype=np.float32), packed.rows_by_slide, packed.labels)
    batch = bags.batch(["p", "q"])
    rng = np.random.default_rng(0)
    attention = np.r_[rng.dirichlet(np.ones(7)), 0.0, 0.25, 0.75]
    votes = Votes(np.array([0, 1]), np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([False, True]))
    contributions = np.stack([np.arange(10.0), -np.arange(10.0)], axis=1)
    said = {
        "abmil": Said(votes, attention),
        "full": Said(votes, attention, np.stack([attention, attention], 1), contributions),
    }
    even = np.full((10, 2), 0.5)
    tables = _Tables(pd.Series({"a": "x", "b": "x", "c": "y"}))
    tables.add(fold, "test", batch, Votes(even.argmax(1), even), said)
    with pytest.warns(UserWarning, match=r"every tile of 1 slide.*the first is 'c'") as said_so:
        tables.warn()
    assert [str(warning.message).split(":")[0] for warning in said_so] == ["abmil", "full"]
    made = dict(tables.concatenated())
    for name, table in made.items():
        write_table(run / f"{name}.parquet", table, {})
    return made


def test_every_slide_of_a_patient_has_its_prediction_and_attention_of_its_own(
    tmp_path: Path, fold: Fold
) -> None:
    made = written(tmp_path, fold)
    slides = made["predictions"].query("method == 'abmil'")
    assert slides["slide_id"].tolist() == ["a", "b", "c"]
    assert slides["p_x"].tolist() == [0.7, 0.7, 0.4]
    assert slides["label"].tolist() == ["x", "x", "y"]
    attention = read_attention(tmp_path / "attention.parquet").query("method == 'abmil'")
    assert np.allclose(attention.groupby("slide_id")["attention"].sum(), 1)
    given = np.random.default_rng(0).dirichlet(np.ones(7))
    of_a = attention.query("slide_id == 'a'")["attention"].to_numpy()
    np.testing.assert_allclose(of_a, given[:5] / given[:5].sum())
    scores = read_scores(tmp_path / "tile_scores.parquet")
    assert set(scores["method"]) == {"full"}
    assert len(scores) == 20
    assert np.allclose(scores.groupby(["slide_id", "class"])["attention"].sum(), 1)


def test_a_slide_without_attention_in_its_patient_gets_even_weights(fold: Fold) -> None:
    packed = fold.of_patients()
    bags = Bags(np.zeros((10, 2), dtype=np.float32), packed.rows_by_slide, packed.labels)
    only_a = np.array([0.5, 0.5, 0, 0, 0, 0, 0])
    one = Votes(np.array([0]), np.array([[0.7, 0.3]]))
    tables = _Tables(pd.Series({"a": "x", "b": "x", "c": "y"}))
    even = np.full((7, 2), 0.5)
    tables.add(
        fold, "test", bags.batch(["p"]), Votes(even.argmax(1), even), {"m": Said(one, only_a)}
    )
    weights = dict(tables.concatenated())["attention"]
    assert weights["attention"].tolist() == [0.5, 0.5, 0, 0, 0, 0.5, 0.5]


def test_extremes_are_the_highest_and_the_lowest_tiles(tmp_path: Path, fold: Fold) -> None:
    written(tmp_path, fold)
    ends = extremes(tmp_path, "full", n=2).set_index(["slide_id", "end"])
    # Contributions to the predicted class rise with the row for x and fall for y.
    assert ends.loc[("a", "top"), "tile_id"].tolist() == ["t4", "t3"]
    assert ends.loc[("a", "bottom"), "tile_id"].tolist() == ["t0", "t1"]
    assert ends.loc[("c", "top"), "tile_id"].tolist() == ["t7", "t8"]
    assert ends.loc[[("c", "bottom")], "tile_id"].tolist() == ["t9"], "no tile twice"
    assert ("b", "bottom") not in ends.index
    assert set(ends["measure"]) == {"contribution"}
    by_attention = extremes(tmp_path, "abmil", n=1)
    assert set(by_attention["measure"]) == {"attention"}
    of_c = by_attention[by_attention["slide_id"] == "c"].set_index("end")
    assert of_c.loc["top", "tile_id"] == "t9"
    assert of_c.loc["bottom", "tile_id"] == "t7"
    with pytest.raises(InputError, match="unknown method that weighs tiles 'vote'"):
        extremes(tmp_path, "vote")


def test_an_ensemble_is_the_mean_of_all_that_its_members_say() -> None:
    rng = np.random.default_rng(1)

    def member() -> Said:
        share = rng.dirichlet(np.ones(3), size=2)
        of_class = np.concatenate([rng.dirichlet(np.ones(4), size=3).T for _ in range(2)])
        return Said(
            Votes(share.argmax(1), share), of_class[:, 0], of_class, rng.normal(size=(8, 3))
        )

    members = [member() for _ in range(3)]
    mean = ensemble(members)
    for one, of_each in zip(mean[1:], zip(*(m[1:] for m in members), strict=True), strict=True):
        np.testing.assert_allclose(one, sum(of_each) / 3)
    share = sum(m.votes.probabilities for m in members) / 3
    np.testing.assert_allclose(mean.votes.probabilities, share)
    np.testing.assert_array_equal(mean.votes.predicted, share.argmax(1))
    assert ensemble([Said(members[0].votes)]).attention is None
