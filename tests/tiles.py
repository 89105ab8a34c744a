"""Tile-sparse attention the obvious way: the N x N mask token by token, softmax written out."""

from __future__ import annotations

import torch
from torch import Tensor

from fisopt.rewrite.axes import FrameAxis


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
