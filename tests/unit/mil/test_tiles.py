"""Tiles against a plain loop over the bags, around the edges of blocks, kept and streaming."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mil.aggregators import segments, tiles
from mil.aggregators.tiles import Tiles

DIM, WIDTH, BLOCK = 3, 4, 8
Work = Callable[[Tiles, Tensor, Tensor], Tensor]

# One tile, one short of a block, a block, one beyond, and bags over several blocks.
sizes = st.lists(st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 30]), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_BLOCK", BLOCK)
    monkeypatch.setattr(tiles, "_READ", 5)
    monkeypatch.setattr(segments, "_BLOCK", 6)


class Case:
    """Random bags behind a layer, their tiles, and the rows that a plain loop would see."""

    def __init__(self, sizes: list[int], seed: int, *, streams: bool) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
        n_tiles = sum(sizes)
        self.x, self.weight = draw(n_tiles, DIM), draw(WIDTH, DIM)
        mean, std = draw(DIM), draw(DIM).abs() + 0.1
        order = torch.randperm(n_tiles, generator=generator)
        self.shares, self.vectors = draw(n_tiles, 2), draw(len(sizes), 2, WIDTH)
        self.index = torch.randint(n_tiles, (5,), generator=generator)
        self.leaves = [t.requires_grad_() for t in (self.x, self.weight, self.shares, self.vectors)]
        self.tiles = Tiles(
            self.x,
            self.offsets,
            lambda rows: rows @ self.weight.T,
            mean=mean,
            std=std,
            budget=0 if streams else n_tiles,
            order=order,
        )
        self.plain = ((self.x - mean) / std)[order] @ self.weight.T  # (n_tiles, WIDTH)

    def bags(self, values: Tensor) -> list[Tensor]:
        return list(values.split(self.offsets.diff().tolist()))

    def per_bag(self, work: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        """``work`` on the rows, weights and vectors of each bag."""
        parts = zip(self.bags(self.plain), self.bags(self.shares), self.vectors, strict=True)
        return [work(*one) for one in parts]


WAYS: dict[str, tuple[Callable[[Case], Tensor], Callable[[Case], Tensor]]] = {
    "map": (
        lambda c: c.tiles.map(lambda rows: rows[:, :2].tanh()),
        lambda c: c.plain[:, :2].tanh(),
    ),
    "sum, one": (
        lambda c: c.tiles.sum(c.shares[:, 0]),
        lambda c: torch.stack(c.per_bag(lambda h, w, _: w[:, 0] @ h)),
    ),
    "sum, two": (
        lambda c: c.tiles.sum(c.shares),
        lambda c: torch.stack(c.per_bag(lambda h, w, _: w.T @ h)),
    ),
    "dot": (
        lambda c: c.tiles.dot(c.vectors),
        lambda c: torch.cat(c.per_bag(lambda h, _, u: h @ u.T)),
    ),
    "max": (
        lambda c: c.tiles.max(),
        lambda c: torch.stack(c.per_bag(lambda h, *_: h.amax(0))),
    ),
    "logsumexp": (
        lambda c: c.tiles.logsumexp(2.5),
        lambda c: torch.stack(c.per_bag(lambda h, *_: (2.5 * h).logsumexp(0) / 2.5)),
    ),
    "rows": (lambda c: c.tiles.rows(c.index), lambda c: c.plain[c.index]),
    "pick": (
        lambda c: c.tiles.pick(_sparse(c)),
        lambda c: torch.stack(
            [w.T @ h for w, h in zip(c.bags(_sparse(c)), c.bags(c.plain), strict=True)]
        ),
    ),
}


def _sparse(case: Case) -> Tensor:
    return case.shares.detach() * (case.shares.detach() > 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["kept", "streaming"])
@given(sizes=sizes, seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_values_and_gradients_equal_a_loop_over_bags(
    way: str, mode: str, sizes: list[int], seed: int
) -> None:
    case = Case(sizes, seed, streams=mode == "streaming")
    given_, plain = (work(case) for work in WAYS[way])
    torch.testing.assert_close(given_, plain, rtol=0, atol=1e-10)
    upstream = torch.randn_like(plain)
    pairs = [
        torch.autograd.grad((made * upstream).sum(), case.leaves, materialize_grads=True)
        for made in (given_, plain)
    ]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@given(n=st.integers(1, 200_000))
def test_few_heights_that_are_never_too_small_nor_much_too_large(n: int) -> None:
    height = tiles._rounded(n)
    assert n <= height < max(n + 64, 1.07 * n)
    assert len({tiles._rounded(m) for m in range(n, n + 10)}) <= 2


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", ["kept", "streaming"])
def test_tiles_of_any_type_are_standardised_in_the_type_of_the_model(
    kind: torch.dtype, mode: str
) -> None:
    x = (1000 + torch.randn(20, DIM)).to(kind)
    seen = Tiles(
        x,
        torch.tensor([0, 20]),
        nn.Identity(),
        mean=torch.full((DIM,), 1000.0, dtype=torch.float64),
        std=torch.full((DIM,), 0.5, dtype=torch.float64),
        budget=0 if mode == "streaming" else 100,
    ).map(nn.Identity())
    torch.testing.assert_close(seen, (x.double() - 1000) / 0.5, rtol=0, atol=1e-9)


def test_sums_of_bfloat16_rows_lose_nothing_to_autocast() -> None:
    x = torch.rand(3000, DIM).bfloat16().float()
    share = torch.full((3000,), 1 / 3000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tiles_ = Tiles(
            x,
            torch.tensor([0, 3000]),
            nn.Identity(),
            mean=torch.zeros(DIM),
            std=torch.ones(DIM),
            budget=5000,
        )
        mean = tiles_.sum(share)
    assert tiles_.map(nn.Identity()).dtype == torch.bfloat16
    torch.testing.assert_close(mean, x.mean(0, keepdim=True), rtol=0, atol=1e-6)


def test_without_gradients_nothing_is_drawn_from_the_generator() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        Case([9], 0, streams=True).tiles.map(nn.Identity())
    assert torch.equal(before, torch.get_rng_state())
