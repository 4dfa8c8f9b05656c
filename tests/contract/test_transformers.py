"""What holds for the transformers beyond the contract of all aggregators."""

from __future__ import annotations

import pytest
import torch

from mil.aggregators import create
from mil.aggregators.self_attention import SelfAttention
from mil.aggregators.transmil import NystromAttention, halved
from splits.errors import InputError


def tissue(n: int, width: int) -> torch.Tensor:
    """Tiles of a few kinds, with noise."""
    return torch.randn(8, width)[torch.randint(8, (n,))] + 0.3 * torch.randn(n, width)


@pytest.mark.parametrize("name", ["transformer", "transmil"])
def test_gradients_in_bfloat16_point_where_those_of_float32_do(name: str) -> None:
    # Weights that few tokens read are not the danger: sums over all tokens are.
    torch.manual_seed(0)
    x, offsets = tissue(3000, 32), torch.tensor([0, 400, 3000])
    module = create(name, dim=32, n_classes=2, hidden=64, n_heads=4)
    place = torch.stack([torch.arange(3000) // 60, torch.arange(3000) % 60], dim=1)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            args = (place,) if module.takes_positions else ()
            logits = module(x, offsets, *args).logits.float()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for exact, rough in zip(*found, strict=True):
        assert (exact - rough).norm() < 0.06 * exact.norm()


def test_landmarks_come_near_exact_attention_on_tissue_of_a_few_kinds() -> None:
    torch.manual_seed(0)
    layer = NystromAttention(64, 4, 0.0, n_landmarks=32, exact_tiles=32)
    with torch.no_grad():
        normed = layer.norm(tissue(1000, 64))
        qkv = layer.qkv(normed).view(1000, 3, 4, 16)
        exact = SelfAttention.attend(layer, qkv, normed)
        error = layer.attend(qkv, normed) - exact
    assert error.norm() < 0.35 * (exact - exact.mean(0)).norm()


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("transmil", {"n_landmarks": 100}, "n_landmarks is 100, allowed is a power of 2"),
        (
            "transmil",
            {"exact_tiles": 9},
            r"exact_tiles is 9, allowed is n_landmarks \(256\) or more",
        ),
        (
            "transmil",
            {"hidden": 12, "n_heads": 5},
            r"n_heads is 5, allowed is a divisor .*\[1, 2, 3",
        ),
        ("transformer", {"n_heads": 3}, "n_heads is 3, allowed is a divisor of hidden"),
        ("transformer", {"n_layers": 0}, "n_layers is 0, allowed is an integer of 1 or more"),
    ],
)
def test_arguments_that_build_no_layer_are_refused(
    name: str, args: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create(name, dim=4, n_classes=2, **args)


@pytest.mark.parametrize("n", [8, 9, 23, 1000])
def test_cells_hold_equal_numbers_and_the_order_of_rows_does_not_matter(n: int) -> None:
    keys = torch.randn(n, 3)
    order, bounds = halved(keys)
    assert sorted(order.tolist()) == list(range(n))
    assert bounds.diff().min() >= n // 8 >= bounds.diff().max() - 1
    half = bounds[4]
    assert keys[order[:half], 0].max() <= keys[order[half:], 0].min()
    shuffled = torch.randperm(n)
    again, _ = halved(keys[shuffled])
    assert shuffled[again].tolist() == order.tolist()


def test_a_bag_of_20_000_tiles() -> None:
    torch.manual_seed(0)
    module = create("transmil", dim=6, n_classes=2, hidden=12, n_heads=3)
    k = torch.arange(20_000)
    places = torch.stack([k // 100, k % 100], dim=1)
    output = module(torch.randn(20_000, 6), torch.tensor([0, 20_000]), places)
    output.logits.square().sum().backward()
    assert abs(output.attention.sum().item() - 1) < 1e-4
    assert all(p.grad.isfinite().all() for p in module.parameters())
