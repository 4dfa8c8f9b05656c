"""The MIL assumption, on the smallest of Raff & Holt's tests: who keeps it, and who is caught."""

from __future__ import annotations

import pytest

from benchmarks.mil_assumption import Scores, score, verdict


def test_the_highest_tile_score_keeps_the_assumption() -> None:
    found = score("max_instance", "single", n_epochs=15, seed=0)
    assert verdict([found]) == "respects"


@pytest.mark.parametrize("name", ["mean", "gated_abmil"])
def test_a_method_that_can_learn_absence_is_caught(name: str) -> None:
    found = score(name, "single", n_epochs=5, seed=0)
    assert verdict([found]) == "violates"


def test_a_verdict_needs_every_seed() -> None:
    good = Scores(train=0.99, test=0.95)
    assert verdict([good, good]) == "respects"
    assert verdict([good, Scores(train=0.89, test=0.95)]) == "not learned"
    assert verdict([good, Scores(train=0.99, test=0.7)]) == "unclear"
    assert verdict([good, Scores(train=0.99, test=0.01)]) == "violates"
