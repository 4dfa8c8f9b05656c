"""The scikit-learn face: scikit-learn's own checks, and bags with a planted signal."""

from __future__ import annotations

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from mil.classifier import SlideClassifier


@parametrize_with_checks([SlideClassifier()])
def test_the_checks_of_scikit_learn(estimator: SlideClassifier, check: Any) -> None:
    check(estimator)
