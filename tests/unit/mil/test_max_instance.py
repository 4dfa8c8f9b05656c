"""The highest tile score: the standard assumption of multiple-instance learning, as a property."""

from __future__ import annotations

import pytest
import torch

from mil.aggregators import create
from splits.errors import InputError

DIM, N_CLASSES = 4, 3


@pytest.mark.parametrize("negative", [0, 2])
def test_more_tiles_never_speak_for_the_negative_class(negative: int) -> None:
    torch.manual_seed(0)
    module = create("max_instance", dim=DIM, n_classes=N_CLASSES, negative=negative).double()
    x = torch.randn(200, DIM, dtype=torch.float64)
    with torch.no_grad():
        logits = torch.cat([module(x[:n], torch.tensor([0, n])).logits for n in range(1, 201)])
    assert (logits.diff(dim=0) > -1e-12).all()
    assert logits[0].lt(logits[-1]).sum() == N_CLASSES - 1
    assert logits[:, negative].eq(0).all()


@pytest.mark.parametrize("negative", [-1, 3, "normal"])
def test_a_negative_class_outside_the_classes_is_refused(negative: object) -> None:
    with pytest.raises(
        InputError, match=f"negative is {negative!r}, allowed is a class index from"
    ):
        create("max_instance", dim=DIM, n_classes=N_CLASSES, negative=negative)
