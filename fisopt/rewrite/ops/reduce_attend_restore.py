"""reduce_attend_restore: attention on some queries and keys, its results given to every entry.

    out = restore_tokens(attention(reduce_tokens(query), reduce_tokens(key), reduce_tokens(value)))

as one operator: rows are gathered where they are read and results written where they belong.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.reduce_tokens import reduce_tokens
from fisopt.rewrite.ops.restore_tokens import frame_axis, restore_tokens
from fisopt.rewrite.ops.tile_attention import empty_result, fake_result


def _example() -> tuple[Any, ...]:
    entries = torch.arange(8.0, device="cpu").reshape(1, 1, 4, 2)
    kept = torch.tensor([[[0, 2]]], dtype=torch.int32, device="cpu")
    origin = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.int32, device="cpu")
    return (entries, entries, entries, None, kept, kept, origin, None, 2, 0, 0)


def _axes(node: fx.Node) -> Axes:
    """Axis rule: the restored sequence carries the frames that the arguments say."""
    query, origin, frames, before, after = (node.args[i] for i in (0, 6, 8, 9, 10))
    assert isinstance(query, fx.Node)
    assert isinstance(origin, fx.Node)
    assert isinstance(frames, int)
    assert isinstance(before, int)
    assert isinstance(after, int)
    sequence = frame_axis(origin, frames, before, after)
    return (*axes_of(query)[:-2], sequence, None)


def _kept(query: Any, key: Any, queries: Any, keys: Any) -> tuple[int, int, int]:
    """Heads of all batch items, and queries and keys of each that stay."""
    count = key.shape[-2] if keys is None else keys.shape[-1]
    return query.shape[:-2].numel(), queries.shape[-1], count


def _flops(
    query: Any, key: Any, value: Any, mask: Any, queries: Any, keys: Any, *rest: Any
) -> float:
    """FLOPs of the attention on what is kept."""
    widths = query.shape[-1] + value.shape[-1]
    return float(2 * math.prod(_kept(query, key, queries, keys)) * widths)


def _traffic(
    query: Any, key: Any, value: Any, mask: Any, queries: Any, keys: Any, *rest: Any
) -> float:
    """Every row that is kept, and every row of the result, is read and written."""
    heads, few, count = _kept(query, key, queries, keys)
    features = few * query.shape[-1] + query.shape[-2] * value.shape[-1]
    if keys is not None:
        features += count * (key.shape[-1] + value.shape[-1])
    return float(2 * heads * features * query.element_size())


@operator(
    "fisopt::reduce_attend_restore",
    fake=fake_result,
    example=_example(),
    axes=_axes,
    restores="value",
    flops=_flops,
    traffic=_traffic,
    counts_as="self-attention",
    opaque=True,
)
def reduce_attend_restore(
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
    """Reduce, attend and restore in plain torch.

    Shapes: query [..., h, S, D]; key [..., h, T, D]; value [..., h, T, E]; mask broadcastable to
        [..., h, M, K] (the kept queries and keys), bool (True: seen) or added to the scores;
        queries [..., h, M] int32, positions in [0, S); keys [..., h, K] int32, positions in
        [0, T), or None to read all; origin [..., h, S] int32, positions in [0, M).
    Args: frames, before, after: the frame axis of the sequence, 0 frames if it carries none.
    Returns: [..., h, S, E] in query's dtype, laid out in memory as models go on with it.
    """
    dim, whole = query.ndim - 2, query
    query = reduce_tokens.reference(query, queries, None, dim)
    if keys is not None:
        key, value = (reduce_tokens.reference(x, keys, None, dim) for x in (key, value))
    attended = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    result = restore_tokens.reference(attended, origin, dim, frames, before, after)
    return empty_result(whole, value).copy_(result)
