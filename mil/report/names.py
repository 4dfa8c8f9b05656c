"""What methods and metrics are called on the page; a name that is not known here stays as it is."""

from __future__ import annotations

from typing import Final

__all__ = ["HIGHER_IS_BETTER", "METHODS", "METRICS", "PER_CLASS", "TESTS", "heading", "title"]

METHODS: Final = {
    "tile": "single tiles",
    # mil.aggregators.voting.VOTES
    "vote": "plurality vote",
    "weighted_vote": "vote weighted by confidence",
    "quality_vote": "vote without blank tiles",
    "mean_probability": "mean probability",
    "top_k_mean": "mean of the surest tiles",
    "max_probability": "surest tile",
    "noisy_or": "noisy-or",
    # mil.aggregators.AGGREGATORS
    "abmil": "attention (ABMIL)",
    "gated_abmil": "gated attention (ABMIL)",
    "additive": "additive attention (Additive MIL)",
    "clam_sb": "clustered attention, one branch (CLAM-SB)",
    "clam_mb": "clustered attention, a branch a class (CLAM-MB)",
    "dsmil": "dual stream (DSMIL)",
    "dtfd": "pseudo-bags (DTFD-MIL)",
    "max_instance": "trained on its surest tile (max instance)",
    "mean": "mean pooling",
    "max": "max pooling",
    "lse": "log-sum-exp pooling",
    "transformer": "transformer",
    "transmil": "correlated transformer (TransMIL)",
    # mil.select
    "selected": "chosen by inner folds",
}
"""Title within a sentence by the name of a method."""

METRICS: Final = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "f1_macro": "F1, macro",
    "kappa_quadratic": "Kappa, quadratic",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "ece": "Calibration error",
}
"""Heading by metric, in the order of the columns; the first are better where higher."""
HIGHER_IS_BETTER: Final = frozenset(METRICS) - {"log_loss", "brier", "ece"}
PER_CLASS: Final = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "average_precision": "Average precision",
    "auroc": "AUROC",
}
TESTS: Final = {"bootstrap": "bootstrap", "mcnemar": "McNemar", "delong": "DeLong"}


def title(method: str) -> str:
    """How a method is called within a sentence; one of another tool keeps its own name."""
    return METHODS.get(method, method)


def heading(method: str) -> str:
    """The title at the start of a line; an unknown name stays as it is."""
    name = title(method)
    return name[:1].upper() + name[1:] if method in METHODS else name
