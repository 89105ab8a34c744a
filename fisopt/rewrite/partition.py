"""Partition of a token grid into destinations, one in each cell, and sources, all others."""

from __future__ import annotations

import hashlib
import math

import torch

Cells = tuple[int, int, int]


def destination_count(grid: Cells, stride: Cells) -> int:
    """How many whole cells of ``stride`` a grid of frames, rows and columns has."""
    return math.prod(size // step for size, step in zip(grid, stride, strict=True))


def destinations(grid: Cells, stride: Cells, *key: object) -> torch.Tensor:
    """One random token of every cell; the first result of `destinations_in_cells`."""
    return destinations_in_cells(grid, stride, *key)[0]


def destinations_in_cells(
    grid: Cells, stride: Cells, *key: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one random token of every cell.

    The rim of ``size % step`` entries that fills no cell is split randomly between both ends of its
    dimension: 0 to ``size % step - 1`` of them lie before the first cell, as in AsymRnR's code.

    Args:
        grid: frames, rows and columns of the tokens.
        stride: frames, rows and columns of a cell.
        *key: what the choice depends on beside the grid: equal keys choose equally.

    Returns:
        [destinations] int64, increasing positions in the frame-major sequence; [3] int64, frame,
        row and column at which the first cell begins.
    """
    digest = hashlib.blake2b(repr((grid, stride, key)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    cells = [size // step for size, step in zip(grid, stride, strict=True)]
    position = torch.zeros(cells, dtype=torch.int64)
    corner = []
    for d, (size, step) in enumerate(zip(grid, stride, strict=True)):
        along = [1, 1, 1]
        along[d] = cells[d]
        corner.append(draw(max(1, size % step), 1))
        start = corner[d] + step * torch.arange(cells[d])
        position = position * size + start.reshape(along) + draw(step, *cells)
    return position.flatten().sort().values, torch.cat(corner)


def sources_to_keep(tokens: int, destinations: int, ratio: float) -> int:
    """How many sources stay at a dropped share; the destinations stay whatever the share is.

    The product is taken in doubles and truncated, as in AsymRnR's code: of 100 tokens a share of
    0.8 leaves 19, because ``1 - 0.8`` is a little less than 0.2.
    """
    return max(0, int(tokens * (1 - ratio)) - destinations)
