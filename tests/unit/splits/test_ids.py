from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest

from splits.ids import hygiene, reconcile

LISTS = Path(__file__).resolve().parents[3] / "../shared/data/slide_lists"
UUID = "381c8f82-61a0-4e9d-982d-1ad0af7bead9"


@pytest.mark.parametrize(
    ("given", "known", "words"),
    [
        ("s1 ", "s1", "white space"),
        ("s1.svs", "s1", "extension"),
        ("s1.h5", "s1.ome.tiff", "extension"),
        ("/data/slides/s1.pt", "s1", "folder"),
        ("C:\\slides\\p1\\s1.svs", "p1/s1", "folder"),
        (f"TCGA-83-5908-01Z-00-DX1.{UUID}", "TCGA-83-5908-01Z-00-DX1", "UUID"),
        ("TCGA-83-5908-01Z-00-DX1", f"TCGA-83-5908-01Z-00-DX1.{UUID.upper()}.svs", "UUID"),
        ("123.0", "123", "float"),
        ("S1", "s1", "upper and lower case"),
        ("7", "007", "leading zeros"),
        ("7.0", "007", "leading zeros"),
        ("/x/SLIDE_7.SVS", "slide_7", "upper and lower case"),
    ],
)
def test_an_id_is_found_where_its_text_differs(given: str, known: str, words: str) -> None:
    for one, other in ((given, known), (known, given)):
        found = reconcile([one, "elsewhere"], [other, "another"])
        assert found.mapping == {one: other}
        (finding,) = found.findings
        assert words in finding["message"]
        assert finding["ids"] == [one]
        assert finding["kind"] == "id_hygiene"
        doubtful = "float" in words or "zeros" in words
        assert finding["severity"] == ("warning" if doubtful else "note")


@pytest.mark.parametrize(
    ("given", "known", "mapping"),
    [
        # Two spellings of one slide in the split: which of them is it?
        (["s1.svs", "s1.h5"], ["s1"], {}),
        (["s1", "s1.h5"], ["s1"], {"s1": "s1"}),
        (["7"], ["007", "07"], {}),
        (["007", "7"], ["007"], {"007": "007"}),
        (["S1"], ["s1", "s1.svs"], {}),
        (["a/1.png", "b/1.png"], ["x/1.png"], {}),
        (["a/1.png", "b/1.png"], ["x/a/1.png", "x/b/1.png"],
         {"a/1.png": "x/a/1.png", "b/1.png": "x/b/1.png"}),
    ],
)  # fmt: skip
def test_what_could_mean_two_stays_unmatched_and_is_said(
    given: list[str], known: list[str], mapping: dict[str, str]
) -> None:
    found = reconcile(given, known)
    assert found.mapping == mapping
    if len(mapping) < len(given):
        finding = found.findings[-1]
        assert finding["severity"] == "warning"
        assert finding["ids"] == sorted(set(given) - set(mapping))
        assert "could be" in finding["evidence"][0]


def test_equal_ids_need_no_words_and_unknown_ones_stay_out() -> None:
    found = reconcile(["a", "b", "NA", "05"], ["a", "NA", "5x"])
    assert found.mapping == {"a": "a", "NA": "NA"}
    assert found.findings == ()
    assert reconcile([], []).mapping == {}


def test_a_match_is_one_to_one_and_does_not_depend_on_order() -> None:
    generator = random.Random(0)
    given = [
        f"{folder}{zeros}{n}{suffix}"
        for n in range(30)
        for folder in ("", "x/", "x/y/")
        for zeros in ("", "0")
        for suffix in ("", ".svs", ".0")
        if generator.random() < 0.3
    ]
    known = [f"{n:03}{suffix}" for n in range(30) for suffix in ("", ".h5")]
    known = [name for name in known if generator.random() < 0.7]
    first = reconcile(given, known)
    assert len(set(first.mapping.values())) == len(first.mapping) > 0
    generator.shuffle(given)
    generator.shuffle(known)
    assert reconcile(given, known) == first


@pytest.mark.parametrize(
    ("ids", "severity", "words", "doubtful"),
    [
        (["NA", "s1", "-", ""], "warning", "TCGA site", ["", "-", "NA"]),
        (["12.0", "13.0", "x1"], "warning", "floats", ["12.0", "13.0"]),
        (["1.2E+11", "3E", "05"], "warning", "spreadsheet", ["1.2E+11"]),
        (["3-Mar", "s1"], "warning", "spreadsheet", ["3-Mar"]),
        (["s1 ", "s2"], "warning", "white space", ["s1 "]),
        (["007", "12", "7"], "warning", "leading zeros that others have", ["12", "7"]),
        (["7", "12"], "note", "may be lost", ["7"]),
        (["a.svs", "b.svs", "c.h5", "d"], "note", "none 1", ["c.h5", "d"]),
        (["S1", "s1", "s2"], "warning", "are they one", ["S1", "s1"]),
        (["s1.svs", "s1"], "warning", "are they one", ["s1", "s1.svs"]),
        (["a", f"a.{UUID}", "b"], "warning", "are they one", ["a", f"a.{UUID}"]),
    ],
)
def test_doubtful_ids_are_found(
    ids: list[str], severity: str, words: str, doubtful: list[str]
) -> None:
    found = [finding for finding in hygiene(ids) if words in finding["message"]]
    assert [(finding["severity"], finding["ids"]) for finding in found] == [(severity, doubtful)]
    assert len(found[0]["evidence"]) == len(doubtful)


def test_tiles_of_one_name_in_two_folders_are_no_twins() -> None:
    assert hygiene(["train/a/1.png", "train/b/1.png", "test/a/1.png"], level="tile") == []


def test_a_uuid_may_be_all_that_tells_slides_apart() -> None:
    names = [f"scan_{UUID}", f"scan_{UUID[:-1]}e", UUID]
    assert hygiene(names) == []
    assert reconcile(names, names).mapping == {name: name for name in names}


def test_published_lists_are_clean() -> None:
    files = [*LISTS.glob("slideflow/*.csv"), *LISTS.glob("preserved_site_cv/annotation_files/*")]
    if not files:
        pytest.skip("../shared/data is not here")
    for file in files:
        slides = pd.read_csv(file, dtype=str, keep_default_na=False)["slide"]
        assert hygiene(slides) == [], file
        written = [name.split(".")[0].lower() + ".svs" for name in slides]
        unique = pd.Series(written).duplicated(keep=False).sum() == 0
        found = reconcile(written, slides)
        assert not unique or found.mapping == dict(zip(written, slides, strict=True)), file
