"""The split search as a scikit-learn splitter, for `cross_val_score` and its relatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from splits.balance import assign
from splits.errors import InputError

__all__ = ["BalancedGroupKFold"]


class BalancedGroupKFold:
    """K-fold over whole groups with samples and classes balanced together.

    Unlike scikit-learn's ``GroupKFold`` it looks at the classes, and unlike
    ``StratifiedGroupKFold`` at the size of the folds too. It has no validation parts and no sites:
    those are in `splits.folds`. The folds depend on the groups' names and content and the seed, not
    on the order of the samples.

    Args:
        n_splits: Number of folds, at least 2.
        seed: Seed of the search.
    """

    def __init__(self, n_splits: int = 5, *, seed: int = 0) -> None:
        if n_splits < 2:
            message = f"n_splits={n_splits}: at least 2 folds are needed"
            raise InputError(message)
        self.n_splits = n_splits
        self.seed = seed

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: N803
        """The number of folds."""
        return self.n_splits

    def split(
        self,
        X: Any,  # noqa: N803
        y: Any = None,
        groups: Any = None,
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Indices of the training and the test samples of each fold.

        Args:
            X: Samples; only their number counts.
            y: ``(n_samples,)`` classes to balance; None balances the number of samples alone.
            groups: ``(n_samples,)`` ids of what is never cut: patients, slides. Required.

        Raises:
            InputError: No groups, an id or a class that is missing, lengths that differ, or fewer
                groups than folds.
        """
        if groups is None:
            message = "groups are needed: without them a patient lands on both sides of a split"
            raise InputError(message)
        n_samples = X.shape[0] if hasattr(X, "shape") else len(X)
        group = _codes("groups", groups, n_samples)
        n_groups = int(group.max(initial=-1)) + 1
        counts = np.bincount(group, minlength=n_groups)[:, None].astype(np.float64)
        classes = None
        if y is not None:
            label = _codes("y", y, n_samples)
            classes = np.zeros((n_groups, int(label.max(initial=-1)) + 1))
            np.add.at(classes, (group, label), 1)
            counts = np.hstack([counts, classes])
        fold = assign(counts, np.ones(self.n_splits), seed=self.seed, classes=classes)[group]
        for number in range(self.n_splits):
            yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)

    def __repr__(self) -> str:
        return f"BalancedGroupKFold(n_splits={self.n_splits}, seed={self.seed})"


def _codes(what: str, values: Any, n_samples: int) -> npt.NDArray[np.int64]:
    """Numbers of the sorted distinct values, as text: 7 and "7" are one id."""
    column = pd.Series(np.asarray(values).ravel())
    if len(column) != n_samples:
        message = f"{what}: {len(column)} values for {n_samples} samples"
        raise InputError(message)
    if column.isna().any():
        message = f"{what}: {int(column.isna().sum())} of {n_samples} are missing"
        raise InputError(message)
    return np.asarray(pd.factorize(column.astype(str), sort=True)[0], np.int64)
