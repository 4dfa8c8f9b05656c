"""The scikit-learn face: scikit-learn's own checks, and bags with a planted signal."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from mil.classifier import SlideClassifier
from splits.errors import InputError


@parametrize_with_checks([SlideClassifier()])
def test_the_checks_of_scikit_learn(estimator: SlideClassifier, check: Any) -> None:
    check(estimator)
