"""Tile-sparse attention the obvious way: the N x N mask token by token, softmax written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisopt.rewrite.axes import FrameAxis
from fisopt.rewrite.ops.tile_attention import tile_attention as contract
from fisopt.rewrite.tile_plan import tile_plan

TILE = torch.ops.fisopt.tile_attention.default
TOLERANCES = {
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,  # 8 bits of mantissa in the weights and in the result
    torch.float16: 3e-3,
}
AVERAGED = {dtype: tolerance / 10 for dtype, tolerance in TOLERANCES.items()}
"""Where thousands of random values are averaged: results are that much smaller."""
MASKS = ("none", "padding", "bias", "pairs", "heads")


def explicit(table: Tensor, queries: FrameAxis, keys: FrameAxis) -> Tensor:
    """The mask of every pair of tokens, [heads or 1, N, M]; text sees and is seen."""
    tables = table if table.ndim == 3 else table[None]

    def frame_of(axis: FrameAxis) -> Tensor:
        token = torch.arange(axis.size) - axis.before
        frame = token.div(axis.inner, rounding_mode="floor")
        return torch.where((token >= 0) & (token < axis.video), frame, -1)

    rows, columns = frame_of(queries)[:, None], frame_of(keys)
    return torch.stack([one[rows, columns] | (rows < 0) | (columns < 0) for one in tables])


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention over the kept pairs in float64: [..., h, N, D] with a mask [h, N, M]."""
    q, k, v = query.double(), key.double(), value.double()
    if q.ndim > 2 and (groups := q.shape[-3] // k.shape[-3]) > 1:
        k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask.double()
    kept = kept if query.ndim > 2 else kept[0]
    weights = scores.masked_fill(~kept, float("-inf")).softmax(-1)
    return (weights.nan_to_num(0.0) @ v).to(query.dtype)


@dataclass(frozen=True)
class Problem:
    """An attention and the arguments of the contract for it."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kept: Tensor
    plan: tuple[Any, ...]
    scale: float | None

    @property
    def args(self) -> tuple[Any, ...]:
        return (self.query, self.key, self.value, self.mask, *self.plan, self.scale)

    @property
    def want(self) -> Tensor:
        """The attention written out, in float64."""
        return dense(self.query, self.key, self.value, self.kept, self.mask, self.scale)

    def check(self, atol: float | None = None) -> None:
        """Compare operator and reference with the attention written out."""
        atol = TOLERANCES[self.query.dtype] if atol is None else atol
        for got in (TILE(*self.args), contract.reference(*self.args)):
            assert got.dtype == self.query.dtype
            torch.testing.assert_close(got, self.want, rtol=0, atol=atol)


def problem(
    table: Tensor,
    queries: FrameAxis,
    keys: FrameAxis | None = None,
    *,
    heads: int = 2,
    shared: int = 1,
    mask: str = "none",
    dtype: torch.dtype = torch.float32,
    rank: int = 4,
    scale: float | None = None,
    width: int = 8,
    wider: int = 4,
    batch: int = 2,
) -> Problem:
    """Random operands and the plan of a table; values have ``wider`` features more than keys."""
    keys = queries if keys is None else keys

    def random(axis: FrameAxis, count: int, size: int) -> Tensor:
        return torch.randn((batch, count, axis.size, size)[4 - rank :], dtype=dtype)

    q, k, v = (
        random(queries, heads, width),
        random(keys, heads // shared, width),
        random(keys, heads // shared, width + wider),
    )
    if mask == "none":
        extra = None
    elif mask == "bias":
        extra = torch.randn(batch, 1, 1, keys.size, dtype=dtype)
    else:
        rows = queries.size if mask == "pairs" else 1
        extra = torch.rand(batch, heads if mask == "heads" else 1, rows, keys.size) < 0.7
    plan = tile_plan(table, queries, keys)
    described = (plan.rows, plan.keys, plan.pairs)
    return Problem(q, k, v, extra, explicit(table, queries, keys), described, scale)
