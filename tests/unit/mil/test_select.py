"""Selection within folds: the rule, the folds, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from mil import select, selection, settings
from mil.aggregators.voting import Votes
from mil.cohort import Fold
from mil.config import Candidate, Mil
from mil.models import Said, ensemble
from splits import folds
from splits import split as splitting
from splits.errors import InputError, NegativeVerdictError

TWO = [{"vote": {"name": "mean_probability"}}, {"aggregator": {"name": "abmil"}, "lr": 0.001}]


def parse(candidates: list[dict[str, Any]], **more: Any) -> Any:
    document = {
        "data": {"features": "f"},
        "split": {"inner": 3},
        "select": {"candidates": candidates},
    }
    for name, section in more.items():
        document[name] = {**document.get(name, {}), **section}
    return settings.parse(document, "test")


# --- the rule --------------------------------------------------------------------------------


def test_the_first_as_good_as_the_best_wins() -> None:
    losses = np.array(
        [
            [0.9, 0.9, 0.9, 0.9],  # clearly worse
            [0.52, 0.41, 0.49, 0.62],  # 0.01 behind on average, but not on every fold
            [0.50, 0.42, 0.50, 0.58],
        ]
    )
    winner, as_good = selection.decide(losses, "log_loss")
    assert winner == 1
    assert as_good.tolist() == [False, True, True]
    # The same numbers as something to be large: the order turns round.
    assert selection.decide(losses, "auroc")[0] == 0
    # A difference that is the same on every fold has no error: it is no tie, however small.
    assert selection.decide(losses[2] + np.array([[0.001], [0.0]]), "log_loss")[0] == 1


def test_the_error_is_that_of_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, size=8)  # what is hard for one is hard for all
    scores = np.stack([hard + 1 + rng.normal(0, 0.1, 8), hard])
    winner, as_good = selection.decide(scores, "log_loss")
    assert (winner, as_good.tolist()) == (1, [False, True])


@pytest.mark.parametrize("criterion", ["log_loss", "auroc", "balanced_accuracy"])
def test_the_order_of_candidates_matters_for_ties_alone(criterion: selection.Criterion) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scores = rng.random((5, 4))
        order = rng.permutation(5)
        _, as_good = selection.decide(scores, criterion)
        winner, turned = selection.decide(scores[order], criterion)
        assert np.array_equal(turned, as_good[order])
        assert as_good[order[winner]]
        best = scores.mean(1).argmin() if criterion == "log_loss" else scores.mean(1).argmax()
        assert as_good[best]


def test_the_best_of_useless_candidates_is_at_chance_outside_alone() -> None:
    """Six candidates that guess: the best inside and the best on test both look good."""
    rng = np.random.default_rng(2)
    inside, outside, naive = [], [], []
    for _ in range(400):
        shares = rng.random((6, 5, 10))  # candidates, four inner folds and the test, slides
        # The first five slides are of one class: the area counts the pairs in the right order.
        areas = (shares[..., 5:, None] > shares[..., None, :5]).mean(axis=(-2, -1))
        winner, _ = selection.decide(areas[:, :4], "auroc")
        inside.append(areas[:, :4].mean(axis=1).max())
        outside.append(areas[winner, 4])
        naive.append(areas[:, 4].max())
    assert np.mean(inside) > 0.58
    assert np.mean(naive) > 0.65
    assert abs(np.mean(outside) - 0.5) < 0.05


# --- the folds within ------------------------------------------------------------------------


def cohort(run: Path, seed: int) -> list[Fold]:
    """A random cohort of patients with up to four slides each, split with inner folds."""
    rng = np.random.default_rng(seed)
    n_patients = int(rng.integers(24, 40))
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    slides = [f"s{i:03d}" for i in rng.permutation(len(patients))]
    classes = ["a", "b", "c"][: int(rng.integers(2, 4))]
    label = [classes[i % len(classes)] for i in patients]
    table = pd.DataFrame(
        {"slide_id": slides, "group_id": [f"p{i}" for i in patients], "label": label}
    )
    split = folds.kfold(table, folds=3, inner=int(rng.integers(3, 6)), seed=seed)
    splitting.save(split, run / "split.csv", {"identity": "x"})
    group = dict(zip(slides, table["group_id"], strict=True))
    rows = {slide: np.array([i]) for i, slide in enumerate(slides)}
    labels = {s: classes.index(c) for s, c in zip(slides, label, strict=True)}
    return [
        Fold(
            number=number,
            classes=classes,
            slides=splitting.parts(split, number),
            labels=labels,
            group_of=group,
            patient_of=group,
            rows_by_slide=rows,
            tile_ids=np.array(slides, dtype=object),
            slide_of=np.array(slides, dtype=object),
            identity="",
            split="",
        )
        for number in range(3)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_inner_folds_cut_no_group_and_hold_out_every_slide_once(tmp_path: Path, seed: int) -> None:
    for fold in cohort(tmp_path, seed):
        inside = sorted(fold.slides["train"] + fold.slides["val"])
        parts = select.folds_within(tmp_path, fold)
        assert sorted(s for part in parts for s in part.slides["test"]) == inside
        assert sorted(s for part in parts for s in part.slides["val"]) == inside
        for part in parts:
            assert sorted(s for names in part.slides.values() for s in names) == inside
            groups = [{fold.group_of[s] for s in names} for names in part.slides.values()]
            assert len(set.union(*groups)) == sum(map(len, groups)), "a group is cut"
            taught = {fold.labels[slide] for slide in part.slides["train"]}
            assert taught == set(range(len(fold.classes)))


def test_test_slides_are_not_in_a_fold_within(tmp_path: Path) -> None:
    fold = cohort(tmp_path, 3)[1]
    for part in select.folds_within(tmp_path, fold):
        for outside in fold.slides["test"]:
            assert outside not in part.rows_by_slide
            assert outside not in part.labels
            with pytest.raises(InputError, match="sealed"):
                part.targets(fold.rows_by_slide[outside])
        assert part.key == f"1-inner{part.inner}"
        assert part.split != fold.split


def test_an_edited_inner_split_is_noticed(tmp_path: Path) -> None:
    fold = cohort(tmp_path, 5)[0]
    path = tmp_path / "split_inner.csv"
    good = pd.read_csv(path, dtype=str)
    before = [part.split for part in select.folds_within(tmp_path, fold)]
    held = (good["fold"] == "0") & (good["part"] == "val")
    several = good[held & good.duplicated(["group_id", "fold", "inner_fold", "part"], keep=False)]
    victim, home = several.iloc[0]["slide_id"], several.iloc[0]["inner_fold"]
    other = next(n for n in good.loc[held, "inner_fold"].unique() if n != home)

    mine = (good["fold"] == "0") & (good["slide_id"] == victim)
    moved = good.copy()
    moved.loc[mine & (good["inner_fold"] == home), "part"] = "train"
    moved.loc[mine & (good["inner_fold"] == other), "part"] = "val"
    moved.to_csv(path, index=False)
    with pytest.raises(NegativeVerdictError, match="cuts group"):
        select.folds_within(tmp_path, fold)

    whole = good["group_id"] == several.iloc[0]["group_id"]
    moved = good.copy()
    inside = whole & (good["fold"] == "0")
    moved.loc[inside & (good["inner_fold"] == home), "part"] = "train"
    moved.loc[inside & (good["inner_fold"] == other), "part"] = "val"
    moved.to_csv(path, index=False)
    after = [part.split for part in select.folds_within(tmp_path, fold)]
    assert before != after, "models of the old folds would pass for those of the new"

    good[~mine].to_csv(path, index=False)
    with pytest.raises(InputError, match="once: run `slidewise split"):
        select.folds_within(tmp_path, fold)
    path.unlink()
    with pytest.raises(InputError, match="no 3 folds within fold 0"):
        select.folds_within(tmp_path, fold)


def test_a_class_that_nobody_could_learn_is_named(tmp_path: Path) -> None:
    fold = cohort(tmp_path, 4)[2]
    rare = fold.slides["train"][0]
    labels = {slide: int(slide == rare) for slide in fold.labels}
    changed = Fold(**{**vars(fold), "labels": labels, "classes": ["common", "rare"]})
    with pytest.raises(InputError, match="class 'rare' has no slide to learn from in inner fold"):
        select.folds_within(tmp_path, changed)


# --- what the config may say -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "more", "said"),
    [
        (TWO[:1], {}, "select.candidates: .*at least 2"),
        ([{"aggregator": {"name": "abmil"}, "lrr": 1}, TWO[0]], {}, r"candidates\.0\.lr"),
        ([{"lr": 0.1}, TWO[0]], {}, "either an aggregator or a vote"),
        ([{**TWO[0], **TWO[1]}, TWO[1]], {}, "either an aggregator or a vote"),
        ([{**TWO[0], "lr": 0.1}, TWO[1]], {}, "lr has no effect on a vote"),
        (TWO, {"split": {"inner": 2}}, "set split.inner to 3 or more, not 2"),
        (TWO, {"split": {"inner": None}}, "set split.inner to 3 or more, not None"),
        (TWO, {"train": {"crossfit": 2}}, "no use for train.crossfit"),
        ([{"vote": {"name": "quality_vote"}}, TWO[1]], {}, "quality_vote .* needs pixels"),
        (TWO, {"select": {"criterion": "accuracy", "candidates": TWO}}, "criterion"),
    ],
)
def test_what_makes_no_sense_is_refused(
    candidates: list[dict[str, Any]], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        parse(candidates, **more)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ({"aggregator": {"name": "abmill"}}, "abmil"),
        ({"aggregator": {"name": "abmil", "args": {"hiden": 3}}}, "hidden"),
        ({"aggregator": {"name": "mean", "instance_loss": None}}, "no instance loss"),
        ({"vote": {"name": "top_k_mean", "args": {"k": 0}}}, "k is 0"),
        ({"vote": {"name": "votes"}}, "vote"),
        (TWO[0], "'mean_probability' and 'mean_probability' are the same"),
        # Spelled out or left to mil: one candidate.
        ({"aggregator": {"name": "abmil"}, "lr": 0.001, "epochs": 100}, "are the same"),
    ],
)
def test_names_and_arguments_are_bound_before_any_work(
    candidate: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        select.check(parse([*TWO, candidate]))


def test_a_config_survives_being_written_and_says_what_it_costs(tmp_path: Path) -> None:
    three = [*TWO, {"aggregator": {"name": "clam_sb", "instance_loss": None}, "balance": False}]
    config = parse(three, mil={"balance": True, "seeds": 2})
    select.check(config)
    settings.save(config, tmp_path / "config.yaml")
    assert settings.load(tmp_path / "config.yaml") == config
    assert select.told(config, 5) == (
        "select: 3 candidates on 3 inner folds of 5 folds: 60 trainings inside"
    )
    titles = [each.title for each in config.select.candidates]
    assert titles == ["mean_probability", "abmil, lr=0.001", "clam_sb(instance_loss=None), "
                      "balance=False"]  # fmt: skip
    for each in config.select.candidates:
        assert Candidate.model_validate(each.spec) == each


def test_a_candidate_changes_what_it_says_and_nothing_else() -> None:
    mil = Mil(epochs=7, balance=True, patience=None)
    settled = Candidate.model_validate({"aggregator": {"name": "max"}, "bag_dropout": 0.2})
    alone = settled.within(mil)
    assert [choice.name for choice in alone.aggregators] == ["max"]
    assert (alone.epochs, alone.balance, alone.bag_dropout, alone.patience) == (7, True, 0.2, None)


# --- what comes of it ------------------------------------------------------------------------


def test_the_summary_sets_the_score_inside_beside_the_one_outside() -> None:
    rng = np.random.default_rng(0)
    share = rng.random(20)
    truth = np.array(["x", "y"])[(rng.random(20) < share).astype(int)]
    rows = pd.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(20)],
            "fold": np.repeat([0, 1], 10),
            "predicted": np.where(share > 0.5, "y", "x"),
            "p_x": 1 - share,
            "p_y": share,
        }
    )
    labels = pd.Series(truth, index=rows["slide_id"])
    candidates = [
        {"name": name, "candidate": {}, "scores": scores, "mean": float(np.mean(scores)),
         "within_one_se": True}
        for name, scores in (("simple", [0.3, 0.5]), ("large", [0.2, 0.4]))
    ]  # fmt: skip
    record = {"criterion": "log_loss", "winner": 0, "candidates": candidates}
    found = selection.summary({0: record, 1: record}, rows, labels, ["x", "y"])
    outer = [log_loss(truth[k], share[k], labels=["x", "y"]) for k in (slice(10), slice(10, 20))]
    assert [fold["outer"] for fold in found["folds"]] == pytest.approx(outer)
    assert found["inner"] == pytest.approx(0.4)
    assert found["folds"][0]["inner_best"] == pytest.approx(0.3)
    assert found["optimism"] == pytest.approx(np.mean(outer) - 0.4)
    assert [each["n_chosen"] for each in found["candidates"]] == [2, 0]


def test_a_class_without_held_out_slides_leaves_an_area_undefined() -> None:
    probabilities = np.full((3, 2), 0.5)
    one_class = np.zeros(3, dtype=np.int64)
    assert selection.score("log_loss", one_class, one_class, probabilities) > 0
    with pytest.raises(InputError, match=r"select\.criterion=auroc needs slides of every class"):
        selection.score("auroc", one_class, one_class, probabilities)


def test_folds_that_chose_a_vote_take_their_attention_out_of_the_mean() -> None:
    votes = Votes(np.zeros(1, dtype=np.int64), np.array([[0.8, 0.2]]))
    attends = Said(votes, attention=np.array([0.25, 0.75]))
    assert ensemble([attends, attends]).attention is not None
    for members in ([attends, Said(votes)], [Said(votes), attends]):
        assert ensemble(members).attention is None
