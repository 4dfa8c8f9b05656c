"""Tile beside slide, on tables whose answers are planted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mil.beside import MARGIN, mixed, tiles_seen, write
from mil.flips import flips, votes
from splits.artifacts import read_json, write_table
from splits.errors import InputError

DRAWS = {"n_draws": 200, "seed": 0}
STRANGE = 'x/<b>"1, 2".png'


def tile_rows(counts):
    """Slide -> how many tiles vote for each class."""
    return pd.DataFrame(
        [
            {"tile_id": f"{slide}/{name}{i}", "slide_id": slide, "predicted": name}
            for slide, of_slide in counts.items()
            for name, n in of_slide.items()
            for i in range(n)
        ]
    )


def slide_rows(said, labels):
    """Method -> slide -> predicted class, with probability 0.8."""
    return pd.DataFrame(
        [
            {
                "slide_id": slide,
                "fold": 0,
                "part": "test",
                "method": method,
                "label": labels[slide],
                "predicted": name,
                **{f"p_{c}": 0.8 if c == name else 0.1 for c in "abc"},
            }
            for method, of_slide in said.items()
            for slide, name in of_slide.items()
        ]
    )


LABELS = pd.Series({"s0": "a", "s1": "a", "s2": "b", "s3": "b", "s4": "c"})
PATIENTS = pd.Series({"s0": "p0", "s1": "p1", "s2": "p2", "s3": "p3", "s4": "p4"})
SAID = {
    "vote": {"s0": "a", "s1": "b", "s2": "b", "s3": "a", "s4": "a"},
    "abmil": {"s0": "a", "s1": "a", "s2": "c", "s3": "b", "s4": "b"},
}
COUNTS = {
    "s0": {"a": 10},
    "s1": {"a": 4, "b": 6},  # margin 0.2, and no less
    "s2": {"b": 11, "a": 9},
    "s3": {"a": 5, "b": 5},
    "s4": {"a": 8, "c": 2},
}


def test_vote_margins_are_shares_of_tiles():
    found = votes(tile_rows(COUNTS))
    assert found["vote_margin"].to_list() == pytest.approx([1, 0.2, 0.1, 0, 0.6])
    assert found["n_tiles"].to_list() == [10, 10, 20, 10, 10]
    assert found["second"].to_list()[1:] == ["a", "a", "b", "c"]
    assert found.loc["s0", "second"] is None


def test_flips_say_who_was_right_and_what_it_rests_on():
    attention = pd.DataFrame(
        {
            "tile_id": [*(f"s1/{i}" for i in range(19)), STRANGE],
            "slide_id": "s1",
            "method": "abmil",
            "attention": [*[0.5 / 19] * 19, 0.5],
        }
    )
    listed = flips(slide_rows(SAID, LABELS), tile_rows(COUNTS), attention, None, PATIENTS, "abmil")
    assert {r["slide_id"]: r["right"] for r in listed} == {
        "s1": "method", "s2": "vote", "s3": "method", "s4": "neither",
    }  # fmt: skip
    first = listed[0]
    assert (first["vote"], first["predicted"], first["n_tiles"]) == ("b", "a", 10)
    assert first["vote_margin"] == pytest.approx(0.2)
    assert (first["p"], first["vote_p"]) == (0.8, 0.8)
    entropy = -0.5 * np.log(0.5) - 0.5 * np.log(0.5 / 19)
    assert first["effective_tiles"] == pytest.approx(np.exp(entropy))
    assert first["top_tenth_share"] == pytest.approx(0.5 + 0.5 / 19)
    assert first["top"][0] == {"tile_id": STRANGE, "score": 0.5}
    assert len(first["top"]) == len(first["bottom"]) == 5
    assert listed[1]["top"] == []
    assert listed[1]["effective_tiles"] is None


def test_even_attention_has_as_many_effective_tiles_as_there_are():
    attention = pd.DataFrame(
        {"tile_id": list("wxyz"), "slide_id": "s1", "method": "abmil", "attention": 0.25}
    )
    listed = flips(slide_rows(SAID, LABELS), None, attention, None, PATIENTS, "abmil")
    assert listed[0]["effective_tiles"] == pytest.approx(4)
    assert listed[0]["vote_margin"] is None


def test_heterogeneous_slides_are_counted_apart():
    of_tiles = votes(tile_rows(COUNTS))
    found = mixed(slide_rows(SAID, LABELS), of_tiles, LABELS, PATIENTS, PATIENTS, **DRAWS)
    assert MARGIN == found["margin_below"] == 0.2
    assert [slide["slide_id"] for slide in found["slides"]] == ["s2", "s3"]
    vote, abmil = found["accuracy"]["vote"], found["accuracy"]["abmil"]
    assert (vote["heterogeneous"]["value"], vote["heterogeneous"]["n"]) == (0.5, 2)
    assert vote["homogeneous"]["value"] == pytest.approx(1 / 3)
    assert abmil["homogeneous"]["value"] == pytest.approx(2 / 3)
    assert abmil["difference"]["value"] == pytest.approx(0.5 - 2 / 3)


def test_no_heterogeneous_slide_is_null_and_no_number():
    calm = {slide: {"a": 9, "b": 1} for slide in LABELS.index}
    found = mixed(
        slide_rows(SAID, LABELS), votes(tile_rows(calm)), LABELS, PATIENTS, PATIENTS, **DRAWS
    )
    assert found["accuracy"]["vote"]["heterogeneous"] == {
        "value": None, "ci_low": None, "ci_high": None, "n": 0,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


def seen_rows():
    """s0 to s3 have 4 tiles and are right from two of them on, s4 has one and is wrong."""
    rows = []
    for slide, label in LABELS.items():
        n_tiles = 1 if slide == "s4" else 4
        for m, repeats in ((1, 2), (2, 2), (4, 1)):
            if m > n_tiles or (m == 1 and n_tiles == 4 and slide == "s3"):
                continue
            for repeat in range(1 if m == n_tiles else repeats):
                right = m > 1 or (repeat == 0 and n_tiles > 1)
                rows.append(
                    {
                        "slide_id": slide,
                        "method": "vote",
                        "n_tiles": n_tiles,
                        "m": m,
                        "repeat": repeat,
                        "predicted": label if right else "z",
                    }
                )
    table = pd.DataFrame(rows)
    lacking = table[(table["slide_id"] == "s2") & (table["m"] == 1)].assign(slide_id="s3")
    return pd.concat([table, lacking.assign(predicted="z")], ignore_index=True)


def test_accuracy_by_tiles_averages_repeats_and_small_slides_keep_all():
    found = tiles_seen(seen_rows(), LABELS, PATIENTS, **DRAWS)
    steps = found["methods"]["vote"]
    assert [step["m"] for step in steps] == [1, 2, None]
    assert [step["n_whole"] for step in steps] == [1, 1, 5]
    assert [step["accuracy"]["value"] for step in steps] == pytest.approx([1.5 / 5, 0.8, 0.8])
    assert steps[0]["to_all"]["value"] == pytest.approx(1.5 / 5 - 0.8)
    assert steps[1]["to_all"] == {"value": 0.0, "ci_low": None, "ci_high": None}
    assert (found["n_slides"], found["n_slides_of"], found["repeats"]) == (5, 5, 2)


def test_files_of_an_earlier_run_do_not_stay_and_stale_answers_are_refused(tmp_path):
    given = {
        "predictions": slide_rows(SAID, LABELS),
        "labels": LABELS,
        "patients": PATIENTS,
        "clusters": PATIENTS,
        "attention": None,
        "digests": {},
        **DRAWS,
    }
    write(tmp_path, **given, tile_rows=tile_rows(COUNTS), rival="abmil")
    assert read_json(tmp_path / "beside.json")["flips"]["n"] == 4
    listed = pd.read_csv(tmp_path / "flips.csv", dtype=str)
    assert listed["slide_id"].to_list() == ["s1", "s2", "s3", "s4"]
    (tmp_path / "evidence.json").write_text("{}")
    write(tmp_path, **given, tile_rows=None, rival=None)
    found = read_json(tmp_path / "beside.json")
    assert found["flips"] is found["heterogeneous"] is found["tiles_seen"] is None
    assert not (tmp_path / "flips.csv").exists()
    assert not (tmp_path / "evidence.json").exists()
    write_table(tmp_path / "tiles_seen.parquet", seen_rows(), {"predictions": "others"})
    with pytest.raises(InputError, match="slidewise train"):
        write(tmp_path, **given, tile_rows=None, rival=None)
