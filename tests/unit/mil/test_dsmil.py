"""DSMIL where several tiles share the highest score of a class."""

from __future__ import annotations

import pytest
import torch

from mil.aggregators import DSMIL, Output, create, tiles

DIM, N_CLASSES = 4, 2


def tied(n_tied: int) -> tuple[DSMIL, torch.Tensor, torch.Tensor]:
    """A bag whose first tiles are different and share the highest score of both classes."""
    torch.manual_seed(0)
    module = create("dsmil", dim=DIM, n_classes=N_CLASSES).double().eval()
    with torch.no_grad():
        module.instance.weight.zero_()
        module.instance.weight[:, 0] = 1
    x = torch.randn(3 * n_tied, DIM, dtype=torch.float64).clamp(max=2)
    x[:n_tied, 0] = 3
    return module, x, torch.tensor([0, len(x)])


def close(one: Output, other: Output, order: torch.Tensor) -> None:
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        one.class_attention[order], other.class_attention, rtol=0, atol=1e-12
    )


def test_tied_tiles_share_the_critical_place_whatever_their_order() -> None:
    module, x, offsets = tied(3)
    order = torch.arange(len(x)).flip(0)
    close(module(x, offsets), module(x[order], offsets), order)
    mean = module.query(x[:3].mean(0))
    scores = module.query(x) @ mean / mean.shape[0] ** 0.5
    torch.testing.assert_close(module(x, offsets).class_attention[:, 0], scores.softmax(0))


def test_more_tied_tiles_than_a_block_holds_stream_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "_BLOCK", 4)
    module, x, offsets = tied(7)
    whole = module(x, offsets)
    module.budget = 1
    close(whole, module(x, offsets), torch.arange(len(x)))
