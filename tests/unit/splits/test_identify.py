from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from splits import tiles as tile_table
from splits.content.evidence import Evidence, identical
from splits.content.links import Links, join
from splits.content.mosaic import assemble
from splits.errors import InputError
from splits.identity import identify

BARCODE = "TCGA-{site}-{patient:04d}-01Z-00-DX{slide}"


def _table(ids: list[str], **columns: object) -> pd.DataFrame:
    base: dict[str, object] = {
        "tile_id": ids,
        "slide_label": [name.split("/")[0] for name in ids],
        "sha256": [f"hash of {name}" for name in ids],
        "width_px": 250,
        "height_px": 250,
    }
    return tile_table.check(pd.DataFrame(base | columns))


def _tcga(n_patients: int = 6, n_slides: int = 2, n_tiles: int = 4) -> list[str]:
    return [
        f"c{p % 2}/{BARCODE.format(site=f'S{p % 3}', patient=p, slide=s + 1)}_x{t * 250}_y0.jpg"
        for p in range(n_patients)
        for s in range(n_slides)
        for t in range(n_tiles)
    ]


def _anonymous(n: int = 40) -> list[str]:
    return [f"c{i % 2}/{i * 7919 % 65536:04x}{i:06x}.jpg" for i in range(n)]


FOUND = {"turned": {"planted": 100, "found": 100}}
MISSED = {"turned": {"planted": 100, "found": 90}}


def _pixels(
    table: pd.DataFrame,
    *more: Links,
    blank: list[int] | None = None,
    twins: dict[str, dict[str, int]] = FOUND,
    gaps: float = 0.0,
) -> Evidence:
    """Evidence as a search would give it: identical pixels by hash, and further links."""
    table = tile_table.check(table)
    is_blank = np.zeros(len(table), bool)
    is_blank[blank or []] = True
    links = join([identical(table["sha256"].tolist(), is_blank), *more])
    vectors = np.zeros((len(table), 3), np.float32)
    return Evidence(links, assemble(len(table), links), is_blank, vectors, twins, gaps)


def _csv(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


def test_names_fill_every_column() -> None:
    found, report = identify(_table(_tcga()))
    assert report["grade"] == "A"
    assert report["rule"] == "tcga"
    assert report["n"] == {"tiles": 48, "slides": 12, "patients": 6, "sites": 3, "groups": 6}
    row = found.iloc[1]
    assert (row["slide_id"], row["patient_id"]) == ("TCGA-S0-0000-01Z-00-DX1", "TCGA-S0-0000")
    assert (row["site_id"], row["group_id"], row["x_px"]) == ("S0", "TCGA-S0-0000", 250)
    assert (row["id_source"], row["id_confidence"]) == ("name", np.float32(0.99))
    assert len(tile_table.slides(found)) == 12
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(("unit", "n_groups"), [("slide", 12), ("patient", 6), ("site", 3)])
def test_units(unit: str, n_groups: int) -> None:
    found, report = identify(_table(_tcga()), unit=unit)
    assert report["n"]["groups"] == found["group_id"].nunique() == n_groups
    assert set(found["group_id"]) == set(found[f"{unit}_id"])


def test_a_wrong_unit_and_a_missing_site() -> None:
    with pytest.raises(InputError, match="did you mean 'patient'"):
        identify(_table(_tcga()), unit="patients")
    with pytest.raises(InputError, match="neither the manifest nor the names give a site"):
        identify(_table(_anonymous()), unit="site")


def test_nothing_says_anything() -> None:
    found, report = identify(_table(_anonymous()))
    assert report["grade"] == "D"
    assert "tile-level split" in report["reason"]
    assert set(found["id_source"]) == {"none"}
    assert found["group_id"].tolist() == found["tile_id"].tolist()


def test_tiles_of_one_file_stay_together_and_are_still_no_slide() -> None:
    ids = [f"{name}#xywh={x},0,9,9" for name in _anonymous() for x in (0, 9, 18)]
    found, report = identify(_table(ids))
    assert report["grade"] == "D"
    assert found["group_id"].nunique() == 40


def test_anonymous_course_is_grade_d() -> None:
    data = Path(__file__).resolve().parents[3] / "../shared/data"
    if not data.exists():
        pytest.skip("../shared/data is not here")
    root = data / "anonymous_course"
    ids = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    _, report = identify(_table(ids), truth=data / "anonymous_course_truth.csv")
    assert report["grade"] == "D"
    assert report["scores"]["n_tiles"] == len(ids) == 646
    assert report["scores"]["rl_any"] > 0.95


def test_ucsb_images_cut_into_tiles_and_their_batch() -> None:
    data = Path(__file__).resolve().parents[3] / "../shared/data/ucsb_breast"
    if not data.exists():
        pytest.skip("../shared/data is not here")
    names = sorted(path.name for path in data.glob("*.tif"))
    ids = [f"{name}#xywh={x},0,256,256" for name in names for x in (0, 256)]
    labels = ["benign" if "benign" in name else "malignant" for name in sorted(ids)]
    found, report = identify(_table(sorted(ids), slide_label=labels))
    assert (report["grade"], report["rule"]) == ("A", "ucsb")
    assert report["n"]["slides"] == report["n"]["groups"] == 58
    # Ten arrays, some of them scanned on several dates: the batch is array and date.
    assert set(found["site_id"]) == {"_".join(name.split("_")[:2]) for name in names}


def test_tiles_without_identity_are_listed_and_leave() -> None:
    ids = [*_tcga(n_tiles=20), "c0/odd.jpg", "c1/odder.jpg"]
    found, report = identify(_table(ids))
    assert report["unidentified"] == ["c0/odd.jpg", "c1/odder.jpg"]
    assert len(found) == 240
    assert report["grade"] == "A"
    more = [f"c0/odd{i}.jpg" for i in range(6)]
    assert identify(_table([*ids, *more]))[1]["grade"] == "C"


def test_weak_names_give_grade_c() -> None:
    ids = [f"c{s % 2}/{s:02d}_{i}.png" for s in range(8) for i in range(5)]
    found, report = identify(_table(ids))
    assert (report["grade"], report["rule"]) == ("C", "weak")
    assert set(found["slide_id"]) == {f"{s:02d}" for s in range(8)}


def test_a_label_as_rule_is_refused() -> None:
    with pytest.raises(InputError, match="label is no identity"):
        identify(_table(_anonymous()), rule=r"^(?P<slide>[^/]+)/")


def test_a_regex_rule() -> None:
    ids = [f"c{s % 2}/scan{s}-tile{i}.png" for s in range(8) for i in range(5)]
    found, report = identify(_table(ids), rule=r"(?P<slide>scan\d+)")
    assert report["grade"] == "A"
    assert set(found["slide_id"]) == {f"scan{s}" for s in range(8)}


def test_a_slide_with_two_labels_is_refused() -> None:
    ids = [name.replace("c0/", "c1/") if "x0_" in name else name for name in _tcga()]
    with pytest.raises(
        InputError, match=r"6 slide\(s\) with more than one slide_label: .*: c0 and c1"
    ):
        identify(_table(ids))


def test_copies_across_patients_merge_and_are_a_conflict() -> None:
    table = _table(_tcga())
    first, second = 0, 44
    assert table["slide_label"][first] != table["slide_label"][second]
    table.loc[second, "sha256"] = table.loc[first, "sha256"]
    found, report = identify(table, evidence=_pixels(table))
    assert report["grade"] == "C"
    assert report["conflicts"] == [
        {
            "level": "patient",
            "ids": ["TCGA-S0-0000", "TCGA-S2-0005"],
            "tiles": [table.loc[first, "tile_id"], table.loc[second, "tile_id"]],
            "evidence": "identical pixels (1)",
            "n_links": 1,
        }
    ]
    assert report["merges"] == [
        {"group_id": "TCGA-S0-0000", "members": ["TCGA-S0-0000", "TCGA-S2-0005"]}
    ]
    assert found["group_id"].nunique() == 5
    assert found["patient_id"].nunique() == 6  # content merges groups, it rewrites no id
    untouched, without = identify(table)
    assert (untouched["group_id"].nunique(), without["grade"]) == (6, "A")


def test_two_seams_merge_two_patients_and_one_does_not() -> None:
    table = _table(_tcga())
    # Tiles 0 to 3 and 8 to 11 are of two patients; each stands in one column of its component.
    own = [(first, first + 1) for start in (0, 8) for first in range(start, start + 3)]
    column = Links.make("seam", own, [0.9] * 6, [0] * 6, [(0, 1)] * 6)

    def beside(*rows: int) -> Links:
        pairs = [(row, row + 8) for row in rows]
        return Links.make("seam", pairs, [0.8] * len(rows), [0] * len(rows), [(1, 0)] * len(rows))

    found, report = identify(table, evidence=_pixels(table, column, beside(1)))
    assert (found["group_id"].nunique(), report["grade"], report["conflicts"]) == (6, "A", [])
    assert report["evidence"]["seam"] == {"links": 7, "used": 6, "held": 1, "cut": 0}
    found, report = identify(table, evidence=_pixels(table, column, beside(1, 2)))
    assert found["group_id"].nunique() == 5
    (conflict,) = report["conflicts"]
    assert (conflict["n_links"], conflict["level"]) == (2, "patient")
    assert conflict["evidence"] == "edges that continue each other (2)"
    assert report["merges"][0]["members"] == conflict["ids"]


def test_copies_within_a_patient_change_nothing() -> None:
    table = _table(_tcga())
    table.loc[1, "sha256"] = table.loc[0, "sha256"]
    _, report = identify(table, evidence=_pixels(table))
    assert (report["grade"], report["merges"], report["conflicts"]) == ("A", [], [])


def test_blank_tiles_link_nothing() -> None:
    table = _table(_tcga())
    table.loc[[0, 44], "sha256"] = "same"
    assert identify(table, evidence=_pixels(table, blank=[0, 44]))[1]["grade"] == "A"
    assert identify(table, evidence=_pixels(table))[1]["grade"] == "C"


def test_links_and_found_twins_reach_grade_b() -> None:
    ids = _anonymous()
    hashes = [f"h{i // 4}" for i in range(len(ids))]
    table = _table(sorted(ids), sha256=hashes, slide_label=["c"] * len(ids))
    found, report = identify(table, evidence=_pixels(table))
    assert (report["grade"], report["linked"], report["leakage"]) == ("B", 1.0, None)
    assert set(found["id_source"]) == {"content"}
    assert found["slide_id"].nunique() == found["group_id"].nunique() == 10
    # A search that misses its own twins may have missed neighbours too.
    assert identify(table, evidence=_pixels(table, twins=MISSED))[1]["grade"] == "D"
    # Nor do right links say much where tiles are missing between the components.
    assert identify(table, evidence=_pixels(table, gaps=0.2))[1]["grade"] == "D"
    few = table.assign(sha256=[f"h{max(i, 3)}" for i in range(len(ids))])
    found, report = identify(few, evidence=_pixels(few))
    assert report["grade"] == "D"
    assert not report["leakage"]["satisfied"]
    assert report["sources"] == {"manifest": 0, "name": 0, "content": 4, "none": 36}


def test_blank_tiles_leave_where_content_is_the_only_evidence() -> None:
    ids = sorted(_anonymous())
    table = _table(ids, sha256=[f"h{i // 4}" for i in range(len(ids))], slide_label=["c"] * 40)
    found, report = identify(table, evidence=_pixels(table, blank=[4, 5, 6, 7]))
    assert report["blank"] == ids[4:8]
    assert (len(found), report["grade"], report["n"]["slides"]) == (36, "B", 9)
    everything, report = identify(table, evidence=_pixels(table, blank=list(range(40))))
    assert (len(everything), report["grade"], report["blank"]) == (40, "D", [])


def test_other_classes_leave_and_what_pixels_tie_stays_tied() -> None:
    table = _table(_tcga())
    # Patients 0 and 2 of class c0 are tied through a tile of patient 1, of class c1.
    table.loc[[0, 16], "sha256"] = ["one", "two"]
    middle = table.index[table["patient_id"].isna() & (table["slide_label"] == "c1")][0]
    links = Links.make("duplicate", [(0, middle), (middle, 8)], [0.9, 0.9])
    everything, report = identify(table, evidence=_pixels(table, links))
    assert (report["grade"], report["other_classes"]) == ("C", [])
    found, report = identify(table, evidence=_pixels(table, links), classes=["c0"])
    assert set(found["slide_label"]) == {"c0"}
    assert len(found) + len(report["other_classes"]) == len(everything)
    assert {label for _, label in report["other_classes"]} == {"c1"}
    assert found["group_id"].nunique() == 2
    # No link between two kept ids is left that could contradict them.
    assert (report["grade"], report["conflicts"]) == ("A", [])
    with pytest.raises(InputError, match="c0"):
        identify(table, classes=["c3"])


def test_row_order_does_not_matter() -> None:
    table = _table([*_tcga(), "c0/odd.jpg"])
    table.loc[47, "sha256"] = table.loc[2, "sha256"]
    shuffled = table.sample(frac=1, random_state=5)
    (left, left_report), (right, right_report) = (
        identify(rows, evidence=_pixels(rows)) for rows in (table, shuffled)
    )
    pd.testing.assert_frame_equal(left, right)
    assert left_report == right_report


# ---- manifests ----


def test_a_manifest_of_tiles(tmp_path: Path) -> None:
    ids = sorted(_anonymous())
    slides = [f"{i // 4:02d}" for i in range(len(ids))]
    rows = pd.DataFrame(
        {
            "path": ids,
            "slide": slides,
            "case": [f"NA{int(name) // 2}" for name in slides],
            "site": ["3E" if int(name) < 4 else "05" for name in slides],
            "label": ["x" if int(name) % 2 else "y" for name in slides],
            "tissue": "stroma",
        }
    )
    found, report = identify(_table(ids), manifest=_csv(tmp_path / "m.csv", rows))
    assert report["grade"] == "A"
    assert report["manifest"]["by_path"] == 40
    assert set(found["id_source"]) == {"manifest"}
    assert set(found["id_confidence"]) == {1.0}
    assert set(found["site_id"]) == {"3E", "05"}
    assert set(found["slide_label"]) == {"x", "y"}
    assert report["n"]["groups"] == 5
    with pytest.raises(InputError, match="matches 39 of 40 tiles"):
        identify(_table(ids), manifest=_csv(tmp_path / "short.csv", rows.iloc[1:]))
    rows.loc[0, "case"] = "NA9"
    with pytest.raises(InputError, match="more than one patient_id: 00: NA0 and NA9"):
        identify(_table(ids), manifest=_csv(tmp_path / "bad.csv", rows))


def test_a_manifest_wins_over_names_and_keeps_their_patients(tmp_path: Path) -> None:
    ids = sorted(_tcga())
    own = [name.split("/")[1].split("_x")[0].lower() for name in ids]
    manifest = _csv(tmp_path / "m.csv", pd.DataFrame({"path": ids, "slide_id": own}))
    found, report = identify(_table(ids), manifest=manifest)
    assert set(found["slide_id"]) == set(own)
    assert found["patient_id"].nunique() == report["n"]["groups"] == 6
    assert found["x_px"].notna().all()


def test_a_manifest_of_tissue_labels_leaves_identity_to_the_names(tmp_path: Path) -> None:
    ids = sorted(_tcga())
    rows = pd.DataFrame({"tile_id": ids[:10], "tile_label": "tumour"})
    found, report = identify(_table(ids), manifest=_csv(tmp_path / "m.csv", rows))
    assert report["rule"] == "tcga"
    assert found["tile_label"].notna().sum() == 10
    assert report["manifest"]["unmatched"] == 38


def test_a_manifest_of_slides(tmp_path: Path) -> None:
    ids = sorted(_tcga())
    slides = sorted({name.split("/")[1].split("_x")[0] for name in ids})
    rows = pd.DataFrame(
        {"slide_id": slides, "site": "Site-28", "label": [f"l{i % 2}" for i in range(len(slides))]}
    )
    found, report = identify(_table(ids), manifest=_csv(tmp_path / "m.csv", rows))
    assert report["grade"] == "A"
    assert set(found["site_id"]) == {"Site-28"}
    expected = dict(zip(slides, rows["label"], strict=True))
    assert found["slide_label"].tolist() == found["slide_id"].map(expected).tolist()
    with pytest.raises(InputError, match="no row for 1 of 12 slides"):
        identify(_table(ids), manifest=_csv(tmp_path / "m.csv", rows.iloc[1:]))
    with pytest.raises(InputError, match="one row a slide"):
        identify(_table(_anonymous()), manifest=_csv(tmp_path / "m.csv", rows))
