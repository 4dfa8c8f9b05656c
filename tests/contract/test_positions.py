"""What an aggregator owes that takes the positions of tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil.aggregators import AGGREGATORS, grid
from mil.aggregators.transmil import UNKNOWN
from splits.errors import InputError
from tests.contract.references import VARIANTS
from tests.contract.references.transformer import PLACED
from tests.contract.test_aggregators import build, close, packed, spans

SIZES = (12, 1, 9, 2)
every_placed = pytest.mark.parametrize(
    ("name", "args"), [(name, args) for name, args in VARIANTS if name in PLACED]
)


def scattered(n: int, seed: int = 0, extent: int = 14) -> torch.Tensor:
    """Places on a grid, far enough for several squares; the first two tiles share one."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(extent * extent, generator=generator)[:n]
    places[:2] = places[0].item()
    return torch.stack([places // extent, places % extent], dim=1)


def test_every_aggregator_that_takes_positions_is_held_to_it() -> None:
    assert set(PLACED) == {n for n in AGGREGATORS if AGGREGATORS.get(n).takes_positions}


@every_placed
def test_output_equals_the_equations_of_the_paper(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed(SIZES)
    positions = scattered(len(x))
    with torch.no_grad():
        output = module(x, offsets, positions)
    weights = {key: value.numpy() for key, value in module.state_dict().items()}
    for i, span in enumerate(spans(offsets)):
        expected = PLACED[name](weights, args, x[span].numpy(), positions[span].numpy())
        np.testing.assert_allclose(output.logits[i], expected.logits, rtol=0, atol=1e-10)
        np.testing.assert_allclose(output.attention[span], expected.attention, rtol=0, atol=1e-10)


@every_placed
def test_tiles_moved_in_the_list_with_their_places_change_nothing(
    name: str, args: dict[str, object]
) -> None:
    module, (x, offsets) = build(name, args), packed(SIZES)
    positions = scattered(len(x))
    order = torch.cat(
        [span.start + torch.randperm(span.stop - span.start) for span in spans(offsets)]
    )
    plain, permuted = module(x, offsets, positions), module(x[order], offsets, positions[order])
    close(plain.logits, permuted.logits)
    close(plain.attention[order], permuted.attention)


@every_placed
def test_slides_have_no_origin(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed(SIZES)
    positions = scattered(len(x))
    plain = module(x, offsets, positions)
    for shift in (torch.tensor([7, -3]), torch.tensor([-(10**12), 10**12])):
        moved = module(x, offsets, positions + shift)
        close(plain.logits, moved.logits)
        close(plain.attention, moved.attention)


@every_placed
def test_places_matter_and_only_within_a_bag(name: str, args: dict[str, object]) -> None:
    module, (x, offsets) = build(name, args), packed(SIZES)
    positions = scattered(len(x))
    plain, without = module(x, offsets, positions), module(x, offsets)
    assert ((plain.logits - without.logits).abs().amax(1) > 1e-6).all()
    moved = positions.clone()
    moved[3:5] = moved[3:5].flip(1) + 1
    other = module(x, offsets, moved)
    assert (plain.logits - other.logits)[0].abs().max() > 1e-6
    close(plain.logits[1:], other.logits[1:])


@every_placed
def test_slides_without_positions_in_a_batch_are_as_if_alone(
    name: str, args: dict[str, object]
) -> None:
    module, (x, offsets) = build(name, args), packed(SIZES)
    positions = scattered(len(x))
    plain, without = module(x, offsets, positions), module(x, offsets)
    first, _, third, _ = spans(offsets)
    positions[first] = positions[third] = UNKNOWN
    mixed = module(x, offsets, positions)
    close(mixed.logits[[0, 2]], without.logits[[0, 2]])
    close(mixed.logits[[1, 3]], plain.logits[[1, 3]])
    positions[:] = UNKNOWN
    close(module(x, offsets, positions).logits, without.logits)


@pytest.mark.parametrize("squares", [1, 1000])
def test_convolution_on_the_grid_equals_one_on_the_dense_slide(
    squares: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "_SQUARES", squares)
    places = torch.randperm(45 * 31)[:300]
    positions = torch.stack([places % 45, places // 45], dim=1)
    tiles = torch.randn(300, 3, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 1, 7, 7, dtype=torch.float64, requires_grad=True)
    slide = torch.zeros(31 * 45, 3, dtype=torch.float64).index_add(0, places, tiles)
    slide = slide.T.view(1, 3, 31, 45)
    dense = torch.conv2d(slide, kernel, padding=3, groups=3)
    expected = dense.flatten(2)[0].T[places]
    bag = torch.zeros(300, dtype=torch.int64)
    made = grid.grid_convolution(tiles, bag, positions, kernel)
    close(made, expected)
    weight = torch.randn_like(made)
    for one, other in zip(
        torch.autograd.grad(made, [tiles, kernel], weight),
        torch.autograd.grad(expected, [tiles, kernel], weight),
        strict=True,
    ):
        close(one, other)


def test_sections_far_apart_take_no_more_memory_than_near_ones() -> None:
    # Dense, this slide would be 10^12 cells.
    positions = torch.tensor([[0, 0], [1, 0], [10**6, 10**6], [10**6 + 1, 10**6]])
    tiles = torch.randn(4, 2, dtype=torch.float64)
    bag = torch.zeros(4, dtype=torch.int64)
    kernel = torch.randn(2, 1, 7, 7, dtype=torch.float64)
    far = grid.grid_convolution(tiles, bag, positions, kernel)
    near = grid.grid_convolution(tiles, bag, positions % (10**6 - 4), kernel)
    close(far, near)


def test_places_beyond_all_slides_are_refused() -> None:
    positions = torch.tensor([[0, 0], [2**40, 2**40]])
    with pytest.raises(InputError, match="2 bags of up to 1099511627777 x 1099511627777 places"):
        grid.grid_convolution(
            torch.ones(2, 1), torch.tensor([1, 1]), positions, torch.ones(1, 1, 3, 3)
        )


def test_positions_of_other_tiles_are_refused() -> None:
    module, (x, offsets) = build("transmil", {}), packed(SIZES)
    with pytest.raises(InputError, match=r"positions of shape \(23, 2\) given, allowed \(24, 2\)"):
        module(x, offsets, scattered(len(x))[1:])
