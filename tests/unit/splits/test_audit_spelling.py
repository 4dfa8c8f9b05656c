from __future__ import annotations

import pandas as pd
import pytest

from splits.audit import audit


def split(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["slide_id", "part"])


def of_kind(result: dict, kind: str) -> list[dict]:
    return [finding for finding in result["findings"] if finding["kind"] == kind]


SLIDES = pd.DataFrame(
    {"slide_id": ["S1", "S2", "S3"], "patient_id": ["p1", "p1", "p3"], "label": ["a", "b", "a"]}
)


@pytest.mark.parametrize("name", ["S2.svs", " S2", "data/S2.svs", "s2"])
def test_ids_are_compared_after_they_are_reconciled(name: str) -> None:
    result = audit(split(("S1", "train"), (name, "test"), ("S3", "train")), SLIDES)
    # Only the table knows that S1 and S2 are of one patient.
    assert of_kind(result, "shared_patient")[0]["ids"] == ["p1"]
    assert not of_kind(result, "not_in_table")
    assert [f["ids"] for f in of_kind(result, "id_hygiene") if "found in" in f["message"]] == [
        [name]
    ]


def test_tiles_are_found_whatever_their_extension() -> None:
    tiles = pd.DataFrame({"tile_id": ["a/1.png", "a/2.png"], "slide_id": ["a", "a"]})
    table = pd.DataFrame({"tile_id": ["a/1", "a/2"], "part": ["train", "test"]})
    assert of_kind(audit(table, None, tiles), "shared_slide")[0]["ids"] == ["a"]


@pytest.mark.parametrize(
    ("one", "other", "severity"),
    [
        ("S1", "S1.svs", "leak"),
        ("S1.tiff", "S1.svs", "leak"),
        ("S 1", " S  1", "leak"),
        ("slide-a", "SLIDE-A", "warning"),
        ("north/1.svs", "south/1.svs", None),
        ("S1", "S10", None),
    ],
)
def test_one_slide_in_two_spellings(one: str, other: str, severity: str | None) -> None:
    result = audit(split((one, "train"), (other, "test"), ("S3", "val")))
    found = of_kind(result, "spelled_twice")
    assert [finding["severity"] for finding in found] == ([severity] if severity else [])
    if severity:
        assert found[0]["ids"] == sorted([one, other])
        assert found[0]["parts"] == ["train", "test"]
    together = audit(split((one, "test"), (other, "test"), ("S3", "val")))
    assert not of_kind(together, "spelled_twice")


def test_the_table_can_say_that_two_spellings_are_two_slides() -> None:
    two = pd.DataFrame({"slide_id": ["S1", "s1", "S3"], "label": ["a", "b", "a"]})
    result = audit(split(("S1", "train"), ("s1", "test"), ("S3", "val")), two)
    assert not of_kind(result, "spelled_twice")


def test_a_site_is_taken_from_the_name_where_the_split_gives_patients() -> None:
    names = ["TCGA-33-4547-01Z-00-DX1", "TCGA-33-4583-01Z-00-DX1"]
    table = split((names[0], "train"), (names[1], "test")).assign(patient_id=["p1", "p2"])
    assert audit(table, unit="site")["verdict"] == "leak"
    (finding,) = of_kind(audit(table), "shared_site")
    assert (finding["ids"], finding["severity"]) == (["33"], "note")
    silent = audit(table.assign(slide_id=["a", "b"]), unit="site")
    assert any("no site_id for 2 slide(s)" in line for line in silent["had"])
