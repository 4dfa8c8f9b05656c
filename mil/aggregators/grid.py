"""Convolution over the tiles of slides where they lie: on a grid of which few cells are taken.

Only squares of the grid that hold tiles are made dense, with a margin as wide as the kernel
reaches. All squares have one size, whatever the slides, and are worked some at a time: memory
follows the tiles and not the extent of a slide.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mil.aggregators.self_attention import within_budget
from splits.errors import InputError

__all__ = ["grid_convolution"]

_SIDE: Final = 10
"""Of a square, in tiles: with the margins of a 7 x 7 kernel 16."""
_SQUARES: Final = 256
"""Squares worked at once: 256 of 16 x 16 x 512 in float32 are 134 MB."""


def grid_convolution(tiles: Tensor, bag: Tensor, positions: Tensor, kernel: Tensor) -> Tensor:
    """Depth-wise convolution of the tiles of each bag, zero where no tile lies.

    Several tiles at one position share its cell: it holds their mean, and each receives the same.

    Args:
        tiles: ``(n_tiles, width)``.
        bag: ``(n_tiles,)`` int64 from 0.
        positions: ``(n_tiles, 2)`` int64, column and row; the origin does not matter.
        kernel: ``(width, 1, k, k)`` with odd k, indexed by row and column, as in ``conv2d``.

    Returns:
        ``(n_tiles, width)``.

    Raises:
        InputError: Places lie too far apart to be counted.
    """
    reach = kernel.shape[-1] // 2
    first = positions.new_zeros(int(bag.max()) + 1, 2)
    first = first.scatter_reduce(
        0, bag[:, None].expand(-1, 2), positions, "amin", include_self=False
    )
    place = positions - first[bag]  # (n_tiles, 2), from 0 in each bag
    square, within = place // _SIDE, place % _SIDE
    n_squares = square.amax(0) + 1  # columns and rows of squares
    n_columns, n_rows = n_squares * _SIDE + 2 * reach

    n_bags, columns, rows = len(first), *(place.amax(0) + 1).tolist()
    if n_bags * (columns + 16) * (rows + 16) >= 2**62:
        message = (
            f"positions of {n_bags} bags of up to {columns} x {rows} places given, more than there "
            "are numbers for: positions count tiles, not pixels"
        )
        raise InputError(message)

    # A number for each cell, with margins, so that a step beyond a border meets no other cell.
    key = (bag * n_columns + place[:, 0] + reach) * n_rows + place[:, 1] + reach
    cells, cell = torch.unique(key, return_inverse=True)  # sorted
    share = 1 / cell.bincount().to(tiles.dtype)  # (n_cells,)
    glass = len(cells)
    dense = tiles.new_zeros(glass + 1, tiles.shape[1])
    dense = dense.index_add(0, cell, tiles * share[cell, None])

    key = (bag * n_squares[0] + square[:, 0]) * n_squares[1] + square[:, 1]
    squares, square_of_tile = torch.unique(key, return_inverse=True)
    corner = squares // n_squares[1] * _SIDE  # of all columns of all bags
    corner = corner + squares // n_squares.prod() * 2 * reach
    corner = corner * n_rows + squares % n_squares[1] * _SIDE
    steps = torch.arange(_SIDE + 2 * reach, device=tiles.device)
    window = corner[:, None, None] + steps[:, None] + steps * n_rows  # (n, rows, columns)
    found = torch.searchsorted(cells, window).clamp(max=glass - 1)
    found = torch.where(cells[found] == window, found, glass)

    order = square_of_tile.argsort(stable=True)
    spot = square_of_tile % _SQUARES * _SIDE**2 + within[:, 1] * _SIDE + within[:, 0]
    n_tiles = (square_of_tile // _SQUARES).bincount().tolist()
    made = [
        within_budget(_convolve, dense, *part, kernel, streams=len(squares) > _SQUARES)
        for part in zip(
            torch.split(found, _SQUARES), torch.split(spot[order], n_tiles), strict=True
        )
    ]
    return torch.cat(made)[order.argsort()]


def _convolve(cells: Tensor, windows: Tensor, spots: Tensor, kernel: Tensor) -> Tensor:
    """Rows ``spots`` of the convolution of squares ``windows (n, k, k)`` of ``cells``."""
    # Laid out with channels last, which is how the rows come; twice as fast as channels first.
    dense = F.embedding(windows, cells).permute(0, 3, 1, 2)  # (n, width, k, k)
    made = F.conv2d(dense, kernel, groups=len(kernel)).permute(0, 2, 3, 1)
    return made.reshape(-1, len(kernel))[spots]
