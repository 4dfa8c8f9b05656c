"""The ways to deal tiles that the leakage gap compares, and labels that say nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil.config import Split
from mil.experiments.schemes import SCHEMES, deal, shuffled, unlike
from splits import split as splitting
from splits import tiles
from splits.errors import InputError, NegativeVerdictError
from splits.groups import PARTS, regroup

FOLDS = 4


def cohort(*, slides_of: int = 2, n_patients: int = 18, n_tiles: int = 9) -> pd.DataFrame:
    """Patients of two classes and six sites; one slide is called like a piece of another."""
    rows = []
    for p in range(n_patients):
        for s in range(slides_of):
            slide = "p00s0 (test)" if (p, s) == (1, 0) else f"p{p:02d}s{s}"
            ids = {"slide_id": slide, "patient_id": f"p{p:02d}", "group_id": f"p{p:02d}"}
            ids |= {"site_id": f"site{(p // 2) % 6}", "slide_label": "ab"[p % 2]}
            names = [f"{slide}/{t}.png" for t in range(n_tiles + p % 3)]
            rows += [{**ids, "tile_id": name, "sha256": name} for name in names]
    return tiles.check(pd.DataFrame(rows))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tile_is_tested_once_and_the_same_share_validates(scheme: str) -> None:
    table = cohort()
    part = deal(scheme, table, Split(folds=FOLDS, val_share=0.25), seed=3).part
    assert part.shape == (FOLDS, len(table))
    assert set(np.unique(part.astype(str))) == set(PARTS)
    assert ((part == "test").sum(axis=0) == 1).all()
    for fold in part:
        rest = fold != "test"
        assert abs((fold[rest] == "val").mean() - 0.25) < 0.08, scheme


@pytest.mark.parametrize(("scheme", "kept"), [("slide", 0), ("patient", 1), ("site", 2)])
def test_a_scheme_keeps_its_unit_whole_and_cuts_what_is_larger(scheme: str, kept: int) -> None:
    table, units = cohort(), ("slide_id", "patient_id", "site_id")
    part = deal(scheme, table, Split(folds=FOLDS), seed=0).part
    for place, unit in enumerate(units):
        n = [table.assign(part=p).groupby(unit)["part"].nunique().max() for p in part]
        assert (max(n) == 1) == (place <= kept), (scheme, unit)


def test_random_tiles_know_classes_and_no_slides() -> None:
    table = cohort(n_tiles=20)
    part = deal("tile", table, Split(folds=FOLDS), seed=0).part
    for label in "ab":
        of_class = part[:, table["slide_label"] == label]
        n = (of_class == "test").sum(axis=1)
        assert n.max() - n.min() <= 1
    in_train = table.assign(train=part[0] == "train").groupby("slide_id")["train"].mean()
    # Chance alone decides how many tiles of a slide train: a share of 0.6, binomial.
    spread = in_train.std() / np.sqrt(0.6 * 0.4 / 20)
    assert 0.7 < spread < 1.4
    again = deal("tile", table, Split(folds=FOLDS), seed=0).part
    other = deal("tile", table, Split(folds=FOLDS), seed=1).part
    assert (again == part).all()
    assert not (other == part).all()


def test_a_fold_of_tiles_is_made_of_pieces_that_an_audit_would_refuse() -> None:
    table = cohort()
    dealt = deal("tile", table, Split(folds=FOLDS), seed=0)
    made, split = dealt.fold(table, 1)
    assert made["tile_id"].tolist() == table["tile_id"].tolist()
    named = made["slide_id"].astype(str)
    truth = [f"{s} ({p})" for s, p in zip(table["slide_id"], dealt.part[1], strict=True)]
    assert named.tolist() == truth
    assert len(set(truth)) == len(set(zip(table["slide_id"], dealt.part[1], strict=True)))
    assert splitting.parts(split, 1)["test"] == sorted({n for n in truth if n.endswith("(test)")})
    assert split.meta["scheme"] == "tile"
    assert "on purpose" in split.meta["warnings"][0]
    with pytest.raises(NegativeVerdictError, match="leak"):
        splitting.check(split, regroup(tiles.slides(made), "patient"))


def test_a_fold_of_patients_is_the_cohort_as_it_was() -> None:
    table = cohort()
    made, split = deal("patient", table, Split(folds=FOLDS), seed=0).fold(table, 0)
    assert tiles.identity_digest(made) == tiles.identity_digest(table)
    assert "warnings" not in split.meta
    splitting.check(split, tiles.slides(made))


def test_schemes_that_come_to_the_same_are_known() -> None:
    assert not unlike(cohort(slides_of=1), "slide", "patient")
    assert unlike(cohort(slides_of=2), "slide", "patient")
    assert unlike(cohort(slides_of=1), "site", "patient")
    with pytest.raises(InputError, match="site_id"):
        unlike(cohort().assign(site_id=pd.NA), "site", "patient")


def test_shuffled_labels_belong_to_groups_and_keep_their_number() -> None:
    table = cohort(n_patients=40)
    new = shuffled(table, 5)
    before, after = (tiles.slides(t).drop_duplicates("group_id") for t in (table, new))
    assert before["label"].value_counts().to_dict() == after["label"].value_counts().to_dict()
    assert new.groupby("group_id")["slide_label"].nunique().max() == 1
    same = (before["label"].to_numpy() == after["label"].to_numpy()).mean()
    assert 0.25 < same < 0.75
    assert tiles.identity_digest(new) == tiles.identity_digest(shuffled(table, 5))
    assert tiles.identity_digest(new) != tiles.identity_digest(shuffled(table, 6))


def test_a_class_that_no_group_has_for_its_own_cannot_be_shuffled() -> None:
    table = cohort(slides_of=3)
    odd = table["slide_id"] == "p04s1"
    table = table.assign(slide_label=table["slide_label"].mask(odd, "rare"))
    with pytest.raises(InputError, match="'rare' is not the commonest of any group"):
        shuffled(table, 0)


def test_too_few_tiles_of_a_class_are_refused() -> None:
    table = cohort(n_patients=2, slides_of=1, n_tiles=3)
    with pytest.raises(InputError, match=r"class 'a' has 3 tiles.*split\.folds"):
        deal("tile", table, Split(folds=FOLDS), seed=0)
