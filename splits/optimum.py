"""How good a deal of few groups can be at all: a proved bound on the cost of `splits.balance`.

The squared errors are convex in the assignment, so tangents bound them from below and a mixed-
integer linear program over the tangents bounds the cost of every assignment (outer approximation;
Duran and Grossmann 1986). Its solution adds tangents where it lies, until bound and best assignment
meet. scipy's HiGHS solves the programs; the budget counts nodes of its tree, not seconds.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from splits.balance import assign, cost, scale

__all__ = ["CLOSE", "MAX_GROUPS", "NEGLIGIBLE", "ROUNDS", "Optimum", "best"]

MAX_GROUPS: Final = 60
"""Groups up to which a proof is worth a second or two."""
CLOSE: Final = 0.01
"""Share of the bound by which a cost may exceed it and count as proved to be the least."""
NEGLIGIBLE: Final = 1e-5
"""Cost that is never worth reducing: parts that differ from their share by a tenth of a point."""
_ALIKE: Final = 0.0025
"""Share of the least known cost by which another assignment may exceed it and be as good."""
ROUNDS: Final = 3
"""Programs at the most that a bound is worth."""
_NODES: Final = 20
_LARGE: Final = 80_000  # tangents of an assignment times groups
_WORTH: Final = 0.1  # share of the gap that a program has to close for another one to be tried

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Optimum:
    """The best assignment that is known, and what no assignment can beat.

    Attributes:
        part: ``(n_groups,)`` part of each group.
        cost: Its cost.
        bound: No assignment with every class in every part costs less.
    """

    part: npt.NDArray[np.int64]
    cost: float
    bound: float

    @property
    def enough(self) -> float:
        """Cost up to which another assignment is as good."""
        return max((1 + _ALIKE) * self.cost, NEGLIGIBLE)

    @property
    def proved(self) -> bool:
        """Whether no assignment is better by more than is worth having."""
        return self.cost <= max((1 + CLOSE) * self.bound, NEGLIGIBLE)


def best(
    features: npt.NDArray[np.floating],
    shares: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
    rounds: int = ROUNDS,
    nodes: int = _NODES,
) -> Optimum:
    """Search for the least cost of :func:`splits.balance.assign`, and bound it.

    Args:
        features: ``(n_groups, d)`` amounts, as for `assign`; so are the others.
        shares: ``(n_parts,)``.
        weights: ``(d,)``.
        classes: ``(n_groups, n_classes)``.
        rounds: Programs at the most; with 0 the bound stays 0.
        nodes: Budget of a program, in nodes of its search tree.
    """
    share = np.asarray(shares, dtype=np.float64)
    share = share / share.sum()
    part = assign(features, share, seed=0, weights=weights, classes=classes)
    known = Optimum(part, cost(features, share, part, weights), 0.0)
    if rounds == 0 or known.proved:
        return known
    # In units of the error to be beaten, which the solver's tolerances are made for.
    unit = float(np.sqrt(known.cost))
    values = scale(np.asarray(features, dtype=np.float64), weights) / unit
    program = _Program(values[:, values.any(axis=0)], share, classes, part)
    program.touch(part)
    for _ in range(rounds):
        before = known
        found, bound = program.solve(nodes)
        part, least = known.part, known.cost
        if found is not None:
            program.touch(found)
            other = cost(features, share, found, weights)
            if other < least:
                part, least = found, other
        known = Optimum(part, least, min(max(known.bound, bound * unit**2), least))
        closed = known.bound - before.bound
        if known.proved or found is None or closed < _WORTH * (before.cost - before.bound):
            break
    return known


class _Program:
    """Which group goes where, ``(n_groups * n_parts,)``, and a bound on each squared error."""

    def __init__(
        self,
        values: Floats,
        share: Floats,
        classes: npt.ArrayLike | None,
        start: npt.NDArray[np.int64],
    ) -> None:
        self.values, self.share = values, share
        self.target = np.outer(share, values.sum(axis=0)).ravel()
        n_groups, n_parts = len(values), len(share)
        self.n_choices = n_groups * n_parts
        # Row (part, column) of the errors: the column's amounts of the groups in that part.
        self.sums = sparse.vstack(
            [sparse.kron(values.T, np.eye(n_parts)[[part]]) for part in range(n_parts)]
        ).tocsr()
        self.ones = sparse.eye(len(self.target))
        self.rows = [self._padded(sparse.kron(sparse.eye(n_groups), np.ones((1, n_parts))))]
        self.low, self.high = [np.ones(n_groups)], [np.ones(n_groups)]
        held = np.ones((n_groups, 1))
        if classes is not None:
            held = np.hstack([np.asarray(classes) > 0, held]).astype(np.float64)
        # A class that the search brought to every part has to be in every part.
        everywhere = [
            column for column in range(held.shape[1])
            if len(np.unique(start[held[:, column] > 0])) == n_parts
        ]  # fmt: skip
        if everywhere:
            self._add(sparse.kron(held[:, everywhere].T, np.eye(n_parts)), 1.0)
        self.upper = np.ones(self.n_choices)
        if np.ptp(share) == 0:
            # Parts of one size are interchangeable: the largest groups open them in their order.
            for number, row in enumerate(np.argsort(-(values**2).sum(axis=1), kind="stable")):
                self.upper[row * n_parts + number + 1 : (row + 1) * n_parts] = 0

    def touch(self, part: npt.NDArray[np.int64]) -> None:
        """Bound each squared error by tangents where an assignment has its errors.

        A tangent at ``a`` says ``t >= 2 a e - a^2``. Parts are alike, so each gets the
        errors of all parts, and zero; in a large program the least and the largest of them, since
        every tangent costs time. Tangents elsewhere would bound little.
        """
        chosen = np.eye(len(self.share))[part].ravel()
        errors = (self.sums @ chosen - self.target).reshape(len(self.share), -1)
        touched = errors
        if (len(errors) + 1) * errors.size * len(self.values) > _LARGE:
            touched = np.stack([errors.min(axis=0), errors.max(axis=0)])
        for row in (*touched, np.zeros(errors.shape[1])):
            at = np.tile(row, len(errors))
            self.rows.append(sparse.hstack([-2 * sparse.diags(at) @ self.sums, self.ones]))
            self.low.append(-2 * at * self.target - at**2)
            self.high.append(np.full(len(at), np.inf))

    def solve(self, nodes: int) -> tuple[npt.NDArray[np.int64] | None, float]:
        """The best assignment under the tangents, if any was found, and the bound."""
        n_bounds = len(self.target)
        with _silent():
            result = milp(
                np.concatenate([np.zeros(self.n_choices), np.ones(n_bounds)]),
                integrality=np.concatenate([np.ones(self.n_choices), np.zeros(n_bounds)]),
                bounds=Bounds(0, np.concatenate([self.upper, np.full(n_bounds, np.inf)])),
                constraints=LinearConstraint(
                    sparse.vstack(self.rows).tocsr(),
                    np.concatenate(self.low),
                    np.concatenate(self.high),
                ),
                options={"node_limit": nodes, "mip_rel_gap": CLOSE / 10},
            )
        bound = result.mip_dual_bound
        part = None
        if result.x is not None:
            part = result.x[: self.n_choices].reshape(-1, len(self.share)).argmax(axis=1)
        return part, float(bound) if bound is not None and np.isfinite(bound) else 0.0

    def _padded(self, rows: sparse.spmatrix) -> sparse.spmatrix:
        return sparse.hstack([rows, sparse.csr_matrix((rows.shape[0], len(self.target)))])

    def _add(self, rows: sparse.spmatrix, low: float) -> None:
        self.rows.append(self._padded(rows))
        self.low.append(np.full(rows.shape[0], low))
        self.high.append(np.full(rows.shape[0], np.inf))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep a line that HiGHS prints from deep within out of standard output, which may be JSON."""
    if os.name != "posix":
        yield
        return
    c = ctypes.CDLL(None)
    c.fflush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        c.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
