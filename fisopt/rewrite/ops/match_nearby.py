"""match_nearby: `fisopt::match_tokens` where a source looks for its destination nearby only.

The grid is cut into cells with one destination each.  A source looks among the destinations of its
own cell and of the cells around it, 27 at most; what fills no cell belongs to the nearest one.
Tokens are laid out cell by cell, so that the distances are products of small dense blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisopt.rewrite.ops import match_tokens as everywhere
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.rows import take

_BUDGET = {"cpu": 16 << 20}
"""Bytes of the operands of one product, by device."""
_LARGE = 1 << 30


@dataclass(frozen=True)
class _Side:
    """One side of the grid: ``size`` entries cut into ``cells`` of ``step``, and what they miss.

    Pieces are the cells and, where a rim may lie before or behind them, what has its place there.
    """

    size: int
    step: int

    @property
    def cells(self) -> int:
        return self.size // self.step

    @property
    def lead(self) -> int:
        """Pieces before the first cell: one, where the rim may lie there."""
        return int(self.size % self.step > 1)

    @property
    def pieces(self) -> int:
        return self.lead + self.cells + int(self.size % self.step > 0)

    def cell(self, piece: Tensor) -> Tensor:
        """The cell that a piece belongs to."""
        return (piece - self.lead).clamp(0, self.cells - 1)

    def around(self, cell: Tensor) -> Tensor:
        """A cell and its neighbours, [..., 3]; at the ends one of them twice."""
        if self.cells < 3:
            return torch.arange(self.cells, device=cell.device).expand(*cell.shape, -1)
        reach = torch.arange(-1, 2, device=cell.device)
        return (cell.unsqueeze(-1) + reach).clamp(0, self.cells - 1)


def _joined(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Row-major places [product of R, product of C] from those [R, C] along each side."""
    a, b, c = parts
    place = a[:, None, None, :, None, None] * sizes[1] + b[None, :, None, None, :, None]
    place = place * sizes[2] + c[None, None, :, None, None, :]
    return place.reshape(math.prod(len(p) for p in parts), -1)


@dataclass(frozen=True)
class _Layout:
    """Tokens piece by piece.

    Attributes:
        tokens: [G, P] the tokens of each piece; at the ends of the grid some of them again.
        slot: [N] where in ``tokens`` each token is.
        candidates: [G, Q] the destinations that a piece's tokens may have, by number.
    """

    tokens: Tensor
    slot: Tensor
    candidates: Tensor


def _layout(destinations: Tensor, corner: Tensor, sides: Sequence[_Side]) -> _Layout:
    def count(n: int) -> Tensor:
        return torch.arange(n, device=corner.device)

    starts = [corner[i] - side.lead * side.step for i, side in enumerate(sides)]
    pairs = list(zip(sides, starts, strict=True))
    grid, steps = [s.size for s in sides], [s.step for s in sides]
    entries = [
        (start + count(s.pieces * s.step)).clamp(0, s.size - 1).view(s.pieces, s.step)
        for s, start in pairs
    ]
    piece = [((count(s.size) - start) // s.step).unsqueeze(1) for s, start in pairs]
    inner = [((count(s.size) - start) % s.step).unsqueeze(1) for s, start in pairs]
    slot = _joined(piece, [s.pieces for s in sides]) * math.prod(steps) + _joined(inner, steps)
    cells = [s.cells for s in sides]
    cell = _joined([s.cell(p) for s, p in zip(sides, piece, strict=True)], cells).flatten()
    number = torch.empty_like(destinations)
    number.scatter_(0, cell[destinations], count(len(destinations)))
    around = _joined([s.around(s.cell(count(s.pieces))) for s in sides], cells)
    return _Layout(_joined(entries, grid), slot.flatten(), number[around])


def _nearest(
    corner: Tensor,
    grid: Sequence[int],
    stride: Sequence[int],
    video: Tensor,
    destinations: Tensor,
    sources: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As that of all destinations, see `fisopt.rewrite.ops.match_tokens`."""
    wide = torch.promote_types(video.dtype, torch.float32)
    layout = _layout(destinations, corner, [*map(_Side, grid, stride)])
    squares = torch.linalg.vector_norm(video, dim=-1, dtype=wide).square()
    norm, chosen = squares[:, destinations], video.index_select(1, destinations)
    groups, width = len(layout.tokens), video.shape[-1]
    nearest = torch.empty(len(video), *layout.tokens.shape, dtype=torch.int64, device=video.device)
    least = torch.empty(nearest.shape, dtype=wide, device=video.device)
    operands = (layout.tokens.shape[1] + layout.candidates.shape[1]) * (width + 1) * 4
    room = max(1, _BUDGET.get(video.device.type, _LARGE) // operands)
    rows = max(1, room // groups)
    for first in range(0, len(video), rows):
        mine = slice(first, first + rows)
        for start in range(0, groups, room):
            part = slice(start, start + room)
            candidates = layout.candidates[part]
            each = torch.arange(len(video[mine]), device=video.device)[:, None, None]
            z = take(video[mine], each, layout.tokens[part])
            y = take(chosen[mine], each, candidates)
            far = norm[mine][:, candidates].unsqueeze(2)
            scores = torch.sub(far, _products(z, y, wide), alpha=2)
            least[mine, part], index = scores.min(-1)
            nearest[mine, part] = candidates.expand(len(z), -1, -1).gather(2, index)
    slot = layout.slot[sources]
    distance = (least.flatten(1)[:, slot] + squares[:, sources]).clamp_(min=0)
    return nearest.flatten(1)[:, slot], distance, squares.sum(-1)


def _products(z: Tensor, y: Tensor, wide: torch.dtype) -> Tensor:
    """Products [R, G, P, Q] of z [R, G, P, D] and y [R, G, Q, D], summed in a wide type."""
    a, b = z.flatten(0, 1), y.flatten(0, 1).transpose(1, 2)
    if z.is_cuda and z.dtype != wide:
        out = torch.bmm(a, b, out_dtype=wide)
    else:
        out = torch.bmm(a.to(wide), b.to(wide))
    return out.view(*z.shape[:-1], y.shape[-2])


def _fake(
    x: Tensor, destinations: Tensor, corner: Tensor, grid: Any, stride: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return everywhere.fake(x, destinations, *rest)


def _sizes(grid: Sequence[int], stride: Sequence[int]) -> tuple[int, int, int]:
    """How many pieces a layout has, and tokens and candidates each of them."""
    sides = [*map(_Side, grid, stride)]
    pieces, candidates = (
        math.prod(side) for side in zip(*((s.pieces, min(s.cells, 3)) for s in sides), strict=True)
    )
    return pieces, math.prod(stride), candidates


def _flops(x: Any, destinations: Any, corner: Any, grid: Any, stride: Any, *rest: Any) -> float:
    """FLOPs of the distances: a multiply-add for each feature of each pair of a product."""
    return float(2 * x.shape[:-2].numel() * math.prod(_sizes(grid, stride)) * x.shape[-1])


def _traffic(x: Any, destinations: Any, corner: Any, grid: Any, stride: Any, *rest: Any) -> float:
    """Operands are read, written side by side and read again, distances written and read twice."""
    pieces, tokens, candidates = _sizes(grid, stride)
    row = x.shape[-1] * x.element_size()
    operands = 3 * (tokens + candidates) * row
    each = pieces * (operands + 4 * 4 * tokens * candidates)
    return float(x.shape[:-2].numel() * each + x.shape[:-1].numel() * (row + everywhere.RANKING))


@operator(
    "fisopt::match_nearby",
    fake=_fake,
    example=(
        torch.eye(3, device="cpu"),
        torch.tensor([0], device="cpu"),
        torch.tensor([0, 0, 0], device="cpu"),
        [3, 1, 1],
        [2, 1, 1],
        1,
        0,
        0,
    ),
    axes=everywhere.no_axes,
    relation=everywhere.by_itself,
    flops=_flops,
    traffic=_traffic,
    counts_as="matching",
    gradient="zero",
    opaque=True,
)
def match_nearby(
    x: Tensor,
    destinations: Tensor,
    corner: Tensor,
    grid: Sequence[int],
    stride: Sequence[int],
    keep: int,
    before: int,
    after: int,
    profile: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match in plain torch, each leading index (batch, head) for itself.

    Shapes: as those of `fisopt::match_tokens`; corner [3] int64: where the first cell of the
        grid begins.  Args: grid, stride: frames, rows and columns of the tokens and of a cell,
        which holds one destination.

    Returns: as `fisopt::match_tokens`.
    """
    nearest_of = partial(_nearest, corner, grid, stride)
    return everywhere.match_with(nearest_of, x, destinations, keep, before, after, profile)
