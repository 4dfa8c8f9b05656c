"""TransMIL: a transformer whose attention scales and whose position encoding is a convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil.aggregators.contract import AGGREGATORS, Aggregator, Output, check_sizes, linear
from mil.aggregators.grid import grid_convolution
from mil.aggregators.segments import segment_ids
from mil.aggregators.self_attention import (
    LayerNorm,
    SelfAttention,
    check_heads,
    join,
    within_budget,
)
from splits.errors import InputError

__all__ = ["UNKNOWN", "NystromAttention", "TransMIL"]

UNKNOWN = torch.iinfo(torch.int64).min
"""Column and row of the tiles of a slide without positions, in a batch where others have them."""

_ITERATIONS = 6


class NystromAttention(SelfAttention):
    """Self-attention through landmarks, exact in small bags.

    Source: Xiong et al., "Nystromformer", AAAI 2021, equation 13 and algorithm 1:
    ``softmax(Q Kl^T) Z softmax(Ql K^T) V``, each scaled by ``1 / sqrt(d)``; Ql and Kl are means of
    queries and keys over segments of the tokens, Z approximates the pseudo-inverse of
    ``softmax(Ql Kl^T)`` in six iterations.

    Args:
        width: Of a token.
        n_heads: A divisor of ``width``.
        dropout: On what a token receives.
        n_landmarks: A power of 2.
        exact_tiles: Bags of up to this many tiles have exact attention.
    """

    directions: Tensor

    def __init__(
        self, width: int, n_heads: int, dropout: float, *, n_landmarks: int, exact_tiles: int
    ) -> None:
        super().__init__(width, n_heads, dropout)
        self.exact_tiles = exact_tiles
        n_cuts = n_landmarks.bit_length() - 1
        self.register_buffer("directions", torch.randn(width, n_cuts))

    def attend(self, qkv: Tensor, *normed: Tensor) -> Tensor:
        """Attention in one bag ``(n, 3, n_heads, width / n_heads)``, its class token first."""
        if len(qkv) <= self.exact_tiles + 1:
            return super().attend(qkv, *normed)
        q, k, v = (one.transpose(0, 1)[None] for one in qkv.unbind(1))  # (1, n_heads, n, d)
        # Landmarks and the inverse of their softmax in float32 or wider, also under autocast.
        with torch.autocast(qkv.device.type, enabled=False):
            rows = torch.cat(normed)  # (n, width)
            order, bounds = self.cells(rows)
            # Queries and keys are linear in the tokens, and so are their means.
            means = F.embedding_bag(order, rows, bounds, mode="mean", include_last_offset=True)
            heads = self.qkv.weight.view(3, self.n_heads, -1, rows.shape[1])[:2]
            at_q, at_k = torch.einsum("phdw,mw->phmd", heads, means)[:, None]
            among = (at_q @ at_k.mT * at_q.shape[-1] ** -0.5).softmax(-1)
            inverse = pseudo_inverse(among)  # (1, n_heads, n_landmarks, n_landmarks)
        gathered = F.scaled_dot_product_attention(at_q.to(v), k, v)  # (1, n_heads, n_landmarks, d)
        with torch.autocast(qkv.device.type, enabled=False):
            spread = inverse @ gathered.to(inverse)
        mixed = F.scaled_dot_product_attention(q, at_k.to(q), spread.to(q))
        return mixed[0].transpose(0, 1).flatten(1)

    def cells(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Order ``(n,)`` of tokens ``(n, width)`` and bounds ``(n_landmarks + 1,)`` of segments."""
        return halved((normed @ self.directions).detach())


class _PPEG(nn.Module):
    """Pyramid position encoding generator: ``t + conv7(t) + conv5(t) + conv3(t)``, depth-wise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.middle, self.narrow = (
            nn.Conv2d(width, width, side, groups=width, bias=False) for side in (7, 5, 3)
        )
        # One bias does what three would, and three would always be equal.
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tiles: Tensor, bag: Tensor, positions: Tensor) -> Tensor:
        """``(n_tiles, width)`` to the same."""
        # Convolution is linear: the sum of the kernels does the work of all three.
        kernel = self.wide.weight + F.pad(self.middle.weight, (1,) * 4)
        kernel = kernel + F.pad(self.narrow.weight, (2,) * 4)
        with torch.autocast(tiles.device.type, enabled=False):
            around = grid_convolution(tiles.to(kernel.dtype), bag, positions, kernel)
            return (tiles + around + self.bias).to(tiles.dtype)


@AGGREGATORS.register("transmil")
class TransMIL(Aggregator):
    r"""Transformer with Nystrom attention and a convolution over the slide.

    Source: Shao et al., "TransMIL: transformer based correlated multiple instance learning for
    whole slide image classification", NeurIPS 2021, algorithms 1 to 3. Tokens are a class token c
    and ``ReLU(W x_k + b)``; ``t += MSA(LN(t))``; PPEG on the grid; ``t += MSA(LN(t))``; the logits
    are linear in ``LN(c)``. MSA is the Nystrom form of self-attention (Xiong et al., AAAI 2021).

    ``attention`` is that of the class token in the last layer, averaged over the heads, without the
    share of the class token itself, scaled to sum to 1 in each bag.

    Deviations, all of them because the order of a table says nothing about a slide:

    * PPEG works where tiles lie, on the true grid of the slide, and only where positions are given.
      The authors lay tiles out in a square in the order of their list and repeat some to fill it.
      Tiles at one position hold their mean together, and each receives the same.
    * Landmarks are means over tokens that are alike and not over runs of the list: tokens are
      halved again and again at the median of a fixed random projection (a k-d tree).
    * Bags of up to ``exact_tiles`` tiles have exact attention, which costs less there.
    * The last layer is computed for the class token only, and exactly: time is linear anyway.
    * No depth-wise convolution of values along the list, which the authors' code adds.
    * The pseudo-inverse starts head by head, so that a bag never depends on its batch.
    * Dropout is 0 unless asked for (0.1 in the authors' code).

    Memory and, in bags beyond ``exact_tiles``, time are linear in tiles. All tokens of a batch are
    kept, whatever the ``budget``; beyond it layers are made anew for the backward pass.

    Args:
        dim: Length of a tile embedding.
        n_classes: Number of slide classes.
        hidden: Width of a token.
        n_heads: Heads of attention, a divisor of ``hidden``.
        n_landmarks: A power of 2 (the authors have half of ``hidden``).
        exact_tiles: At least ``n_landmarks``.
        dropout: On what attention adds to a token.

    Raises:
        InputError: An argument lies outside its range.
    """

    takes_positions = True

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        hidden: int = 512,
        n_heads: int = 8,
        n_landmarks: int = 256,
        exact_tiles: int = 2500,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(
            n_classes=n_classes,
            dropout=dropout,
            dim=dim,
            hidden=hidden,
            n_heads=n_heads,
            n_landmarks=n_landmarks,
            exact_tiles=exact_tiles,
        )
        check_heads(hidden=hidden, n_heads=n_heads)
        if n_landmarks & (n_landmarks - 1):
            message = f"n_landmarks is {n_landmarks}, allowed is a power of 2"
            raise InputError(message)
        if exact_tiles < n_landmarks:
            message = (
                f"exact_tiles is {exact_tiles}, allowed is n_landmarks ({n_landmarks}) or more"
            )
            raise InputError(message)
        super().__init__(dim, n_classes)
        self.embed = nn.Sequential(linear(dim, hidden, activation="relu"), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(hidden))
        self.first = NystromAttention(
            hidden, n_heads, dropout, n_landmarks=n_landmarks, exact_tiles=exact_tiles
        )
        self.ppeg = _PPEG(hidden)
        self.last = SelfAttention(hidden, n_heads, dropout)
        self.norm = LayerNorm(hidden)
        self.classifier = linear(hidden, n_classes)

    def forward(self, x: Tensor, offsets: Tensor, positions: Tensor | None = None) -> Output:
        """Classify bags and weigh their tiles.

        Args:
            x: ``(n_tiles, dim)``.
            offsets: ``(n_bags + 1,)``.
            positions: ``(n_tiles, 2)`` int64, column and row of each tile on the grid of its slide;
                ``UNKNOWN`` for both in slides without; None where no slide has any.

        Raises:
            InputError: There is not one position a tile.
        """
        n_bags = len(offsets) - 1
        if positions is not None and positions.shape != (len(x), 2):
            message = f"positions of shape {tuple(positions.shape)} given, allowed ({len(x)}, 2)"
            raise InputError(message)
        embedded = self.tiles(x, offsets, self.embed).map(nn.Identity())  # (n_tiles, hidden)
        tokens = join(self.class_token, embedded, n_bags)  # (n_tokens, hidden)
        streams = len(x) > self.budget
        tokens = tokens + within_budget(self.first, tokens, offsets, streams=streams)
        if positions is not None:
            parts = torch.split(tokens, [n_bags, len(x), len(tokens) - n_bags - len(x)])
            tiles = self._placed(parts[1], offsets, positions)
            tokens = torch.cat([parts[0], tiles, parts[2]])
        received, attention = within_budget(
            self.last.of_class_token, tokens, offsets, streams=streams
        )
        bags = tokens[:n_bags] + received  # (n_bags, hidden)
        return Output(self.classifier(self.norm(bags)), attention)

    def _placed(self, tiles: Tensor, offsets: Tensor, positions: Tensor) -> Tensor:
        """Tiles ``(n_tiles, hidden)`` behind PPEG, where their place is known."""
        bag = segment_ids(offsets)
        (known,) = torch.where(positions[:, 0] != UNKNOWN)
        if len(known) == 0:
            return tiles
        if len(known) == len(tiles):
            placed: Tensor = self.ppeg(tiles, bag, positions)
            return placed
        return tiles.index_copy(0, known, self.ppeg(tiles[known], bag[known], positions[known]))


def halved(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Cut rows into cells of equal number by halving at medians, column after column.

    Args:
        keys: ``(n, n_cuts)``; rows are cut along column 0, each half along column 1, and so on.

    Returns:
        Rows in the order of their cells ``(n,)``, and where the cells begin ``(2^n_cuts + 1,)``.
    """
    n, n_cuts = keys.shape
    order = torch.arange(n, device=keys.device)
    for cut in range(n_cuts):
        bounds = torch.arange(2**cut + 1, device=keys.device) * n // 2**cut
        cell = segment_ids(bounds)  # (n,)
        by_key = keys[order, cut].argsort(stable=True)
        order = order[by_key[cell[by_key].argsort(stable=True)]]
    return order, torch.arange(2**n_cuts + 1, device=keys.device) * n // 2**n_cuts


def pseudo_inverse(matrices: Tensor) -> Tensor:
    """Approximate Moore-Penrose inverse of ``(..., m, m)`` rows of softmax.

    Source: Xiong et al. 2021, equation 11, six iterations of third order (Razavi et al. 2014).
    """
    columns, rows = matrices.sum(-2).amax(-1), matrices.sum(-1).amax(-1)
    z = matrices.mT / (columns * rows)[..., None, None]
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(_ITERATIONS):
        product = matrices @ z
        z = 0.25 * z @ (13 * one - product @ (15 * one - product @ (7 * one - product)))
    return z
