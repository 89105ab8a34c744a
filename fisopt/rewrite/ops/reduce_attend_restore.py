"""reduce_attend_restore: attention on some queries and keys, its results given to every entry.

    out = restore_tokens(attention(reduce_tokens(query), reduce_tokens(key), reduce_tokens(value)))

as one operator: rows are gathered where they are read and results written where they belong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops import reduce_tokens, restore_tokens
from fisopt.rewrite.ops.tile_attention import empty_result


def reference(
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
    Returns: [..., h, S, E] in query's dtype.
    """
    dim = query.ndim - 2
    query = reduce_tokens.reference(query, queries, None, dim)
    if keys is not None:
        key, value = (reduce_tokens.reference(x, keys, None, dim) for x in (key, value))
    attended = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    return restore_tokens.reference(attended, origin, dim, frames, before, after)


def plain(
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
    """`reference`, its result laid out in memory as models go on with it."""
    place = (frames, before, after)
    result = reference(query, key, value, mask, queries, keys, origin, scale, *place)
    return empty_result(query, value).copy_(result)


reduce_attend_restore = torch.library.custom_op(
    "fisopt::reduce_attend_restore", plain, mutates_args=()
)


@reduce_attend_restore.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    return empty_result(query, value)


def axes(node: fx.Node) -> Axes:
    """Axis rule: the restored sequence carries the frames that the arguments say."""
    query, origin, frames, before, after = (node.args[i] for i in (0, 6, 8, 9, 10))
    assert isinstance(query, fx.Node)
    assert isinstance(origin, fx.Node)
    assert isinstance(frames, int)
    assert isinstance(before, int)
    assert isinstance(after, int)
    sequence = restore_tokens.frame_axis(origin, frames, before, after)
    return (*axes_of(query)[:-2], sequence, None)
