"""reduce_attend_restore by gathers around the device's own dense attention.

What is kept is copied side by side, in the order in memory that models have, attended to by the
best backend, and the results are copied to where they belong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fisopt.codegen.kernels.dense_attention import attend, refuse_operands
from fisopt.codegen.kernels.launching import in_four
from fisopt.errors import LoweringError
from fisopt.rewrite.ops.rows import take

OP = "fisopt::reduce_attend_restore"


def supports(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    queries: Tensor,
    keys: Tensor | None,
    origin: Tensor,
    scale: float | None,
    frames: int,
    before: int,
    after: int,
) -> None:
    """Check that a dense attention takes what is kept.

    Raises:
        LoweringError: it does not; the message names what it got and what is supported.
    """
    del mask, queries, keys, origin, scale, frames, before, after
    refuse_operands(OP, query, key, value)
    heads = [list(x.shape[:-2]) for x in (query, key, value)]
    if heads.count(heads[0]) < len(heads):
        raise LoweringError(
            f"{OP}: queries, keys and values have batch items and heads {heads}; wanted the same"
        )


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    queries: Tensor,
    keys: Tensor | None,
    origin: Tensor,
    scale: float | None,
    frames: int,
    before: int,
    after: int,
) -> Tensor:
    """Run the contract's arguments.

    Raises:
        LoweringError: see `supports`; or every backend fails.
    """
    place = (frames, before, after)
    supports(query, key, value, mask, queries, keys, origin, scale, *place)
    q, k, v = (in_four(x) for x in (query, key, value))
    q = _rows(q, queries)
    if keys is not None:
        k, v = _rows(k, keys), _rows(v, keys)
    if mask is None:
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        attended, _ = attend(q, k, v, None, scale)
    else:
        attended = scaled_dot_product_attention(q, k, v, in_four(mask), scale=scale)
    return _rows(attended, origin)[(0,) * (4 - query.ndim)]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Entries of x [B, h, N, D] at an index [..., h, M], its memory in the order [B, M, h, D]."""
    places = index.reshape(*x.shape[:2], -1).transpose(1, 2).long()
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    head = torch.arange(x.shape[1], device=x.device)
    return take(x, batch, head, places).transpose(1, 2)
