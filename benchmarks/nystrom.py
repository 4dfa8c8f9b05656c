"""What landmarks cost and what they lose: Nystrom attention against exact attention in one bag.

    OMP_NUM_THREADS=1 python benchmarks/nystrom.py [--tokens 1024 2048 4096 8192]

First table: error of Nystrom attention with 256 landmarks on 3,000 tokens of width 512, as a share
of how much exact attention differs between tokens (1: no better than one mean for all). Landmarks
are segments of the list as it comes (the paper), of the list sorted along one random direction, or
cells of a k-d tree. Tokens are 12 kinds of tissue with noise, a continuum of 16 dimensions, or
noise alone; weights are fresh (1) or three times that (3, sharper attention).

Second table: processor seconds of the attention of one layer in bfloat16 on one core, forward, and
forward and backward, exact and with landmarks, interleaved, medians of 5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mil.aggregators.self_attention import SelfAttention
from mil.aggregators.transmil import NystromAttention

WIDTH, HEADS, LANDMARKS = 512, 8, 256


class Segments(NystromAttention):
    """Segments of the list as it comes."""

    is_sorted = False

    def cells(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """As in the layer that it replaces."""
        n = len(normed)
        order = (normed.float() @ self.directions[:, 0]).argsort()
        bounds = torch.arange(LANDMARKS + 1) * n // LANDMARKS
        return order if self.is_sorted else torch.arange(n), bounds


class Sorted(Segments):
    """Segments of the list sorted along one direction."""

    is_sorted = True


def attention(kind: type[NystromAttention]) -> NystromAttention:
    """A layer with the same weights for every kind."""
    torch.manual_seed(0)
    return kind(WIDTH, HEADS, 0.0, n_landmarks=LANDMARKS, exact_tiles=LANDMARKS)


def tokens(kind: str, n: int) -> Tensor:
    """Tokens of a bag, ``(n, WIDTH)``."""
    torch.manual_seed(1)
    noise = torch.randn(n, WIDTH)
    if kind == "12 kinds":
        return torch.randn(12, WIDTH)[torch.randint(12, (n,))] + 0.5 * noise
    if kind == "continuum":
        return torch.randn(n, 16) @ torch.randn(16, WIDTH) + 0.3 * noise
    return noise


@torch.no_grad()
def losses() -> None:
    """Print the first table."""
    ways = {"list": Segments, "one direction": Sorted, "k-d tree": NystromAttention}
    print(f"{'tokens':<12}{'weights':>8}" + "".join(f"{way:>15}" for way in ways))
    for kind in ("12 kinds", "continuum", "noise"):
        for gain in (1, 3):
            line = f"{kind:<12}{gain:>8}"
            for way in ways.values():
                layer = attention(way)
                layer.qkv.weight.mul_(gain)
                normed = layer.norm(tokens(kind, 3000))
                qkv = layer.qkv(normed).view(-1, 3, HEADS, WIDTH // HEADS)
                exact = SelfAttention.attend(layer, qkv, normed)
                error = layer.attend(qkv, normed) - exact
                line += f"{error.norm() / (exact - exact.mean(0)).norm():>15.2f}"
            print(line)


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def costs(sizes: list[int]) -> None:
    """Print the second table."""
    layer = attention(NystromAttention)
    print(f"\n{'tokens':>8}{'exact fwd':>12}{'all':>8}{'landmarks fwd':>16}{'all':>8}  ms")
    for n in sizes:
        qkv = torch.randn(n, 3, HEADS, WIDTH // HEADS, dtype=torch.bfloat16, requires_grad=True)
        normed = torch.randn(n, WIDTH)

        def forward(way: type[SelfAttention], qkv: Tensor = qkv, normed: Tensor = normed) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return way.attend(layer, qkv, normed)

        def both(way: type[SelfAttention], qkv: Tensor = qkv) -> None:
            made = forward(way, qkv)
            torch.autograd.grad(made, qkv, torch.ones_like(made))

        ways = (SelfAttention, NystromAttention)
        took: dict[tuple[str, type[SelfAttention]], list[float]] = {}
        for _ in range(6):
            for way in ways:
                with torch.no_grad():
                    took.setdefault(("fwd", way), []).append(seconds(lambda w=way: forward(w)))
                took.setdefault(("all", way), []).append(seconds(lambda w=way: both(w)))
        ms = [
            1e3 * statistics.median(took[what, way][1:]) for way in ways for what in ("fwd", "all")
        ]
        print(f"{n:>8}{ms[0]:>12.0f}{ms[1]:>8.0f}{ms[2]:>16.0f}{ms[3]:>8.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    losses()
    costs(parser.parse_args().tokens)
