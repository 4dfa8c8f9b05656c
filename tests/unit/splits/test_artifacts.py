"""Files of a run: whole or absent, versioned, and refused where stale."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from splits import ledger
from splits.artifacts import (
    atomic,
    digests_of,
    is_current,
    read_csv,
    read_json,
    read_table,
    require_digests,
    write_json,
    write_table,
)
from splits.errors import InputError
from splits.tiles import check, identity_digest, pixels_digest, slides


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_tables_and_json_carry_digests(tmp_path: Path) -> None:
    frame = pd.DataFrame({"slide_id": ["NA", "05"], "n": [1, 2]})
    for path, write, value in (
        (tmp_path / "t.parquet", write_table, frame),
        (tmp_path / "t.json", write_json, {"a": 1}),
    ):
        write(path, value, {"pixels": "1"})
        assert digests_of(path) == {"pixels": "1"}
        assert is_current(path, {"pixels": "1"})
        assert not is_current(path, {"pixels": "2"})
        require_digests(path, {"pixels": "1"}, "slidewise scan")
        with pytest.raises(InputError, match="slidewise scan"):
            require_digests(path, {"pixels": "2"}, "slidewise scan")
    assert read_table(tmp_path / "t.parquet")["slide_id"].tolist() == ["NA", "05"]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        read_json(path)


def test_damaged_files_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "a.csv").write_text("")
    for read, name in ((read_json, "a.json"), (read_table, "a.parquet"), (read_csv, "a.csv")):
        with pytest.raises(InputError):
            read(tmp_path / name)
        with pytest.raises(InputError, match="does not exist"):
            read(tmp_path / f"no_{name}")


def test_csv_ids_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffsite,slide\nNA,00123\n3E,1e5\n", encoding="utf-8")
    table = read_csv(tmp_path / "a.csv")
    assert table["site"].tolist() == ["NA", "3E"]
    assert table["slide"].tolist() == ["00123", "1e5"]


def test_the_ledger_keeps_other_stages(tmp_path: Path) -> None:
    ledger.record(tmp_path, "scan", [("tile", "a", "x")])
    ledger.record(tmp_path, "identify", [("slide", "b", "y")])
    ledger.record(tmp_path, "scan", [("tile", "c", "z")])
    assert set(ledger.read(tmp_path)["id"]) == {"b", "c"}


def table() -> pd.DataFrame:
    return check(
        pd.DataFrame(
            {
                "tile_id": ["b", "a", "c"],
                "sha256": ["2", "1", "3"],
                "slide_id": ["s", "s", "t"],
                "patient_id": ["p", "p", "q"],
                "group_id": ["p", "p", "q"],
                "slide_label": ["x", "x", "y"],
            }
        )
    )


def test_digests_ignore_row_order_and_see_every_identity_column() -> None:
    shuffled = table().sample(frac=1, random_state=0)
    assert pixels_digest(shuffled) == pixels_digest(table())
    assert identity_digest(shuffled) == identity_digest(table())
    for column in ("slide_id", "patient_id", "site_id", "group_id", "slide_label"):
        changed = table()
        changed.loc[0, column] = "other"
        assert identity_digest(changed) != identity_digest(table()), column
        assert pixels_digest(changed) == pixels_digest(table())


def test_slide_view_and_its_refusals() -> None:
    view = slides(table())
    assert view["n_tiles"].tolist() == [2, 1]
    torn = table()
    torn.loc[0, "slide_label"] = "y"
    with pytest.raises(InputError, match="slide_label"):
        slides(torn)
    with pytest.raises(InputError, match="unique"):
        check(pd.DataFrame({"tile_id": ["a", "a"]}))
    with pytest.raises(InputError, match="unknown columns"):
        check(pd.DataFrame({"tile_id": ["a"], "slide": ["b"]}))
