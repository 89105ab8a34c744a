"""tile_attention: attention in which each group of queries reads only some ranges of the keys.

    out[q] = softmax(scale * query[q] @ key[kept(q)].T + mask[q, kept(q)]) @ value[kept(q)]

``kept(q)`` comes as tensors, see `fisopt.rewrite.tile_plan.TilePlan`: blocks that differ only in
what they keep share one graph.  Skipped keys are never read.

Source: the pattern is Efficient-vDiT's, arXiv:2502.06155.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.ops.tile_groups import attended, gradients, grouped, in_four, runs_of
from fisopt.rewrite.relations.contract import attention_relation
from fisopt.rewrite.relations.table import Relation, shape


def empty_result(query: Tensor, value: Tensor) -> Tensor:
    """Room for the result, its memory in the order [..., N, h, E] that models go on with."""
    *batch, heads, tokens, _ = (1,) * max(3 - query.ndim, 0) + tuple(query.shape)
    room = query.new_empty(*batch, tokens, heads, value.shape[-1]).transpose(-3, -2)
    return room if query.ndim > 2 else room[0]


def _by_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> Tensor:
    """See `tile_attention`; ``pairs``, the plan's count of kept pairs, is for the cost model."""
    del pairs
    result, operands = empty_result(query, value), in_four(query, key, value, mask)
    (out,) = in_four(result)
    assert out is not None
    for run in runs_of(out.shape[-3], rows.tolist(), keys.tolist()):
        run.own(out)[..., run.start : run.end, :] = attended(run.seen(operands), scale)
    return result


def by_group_backward(
    needed: Sequence[int],
    grads: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> list[Tensor]:
    """The gradients of the operands ``needed``: those of one group's fused attention at a time.

    The copies of two groups are never held at once, and sums over groups are taken in float32.
    """
    del pairs
    given, (grad,) = (query, key, value, mask), in_four(*grads)
    assert grad is not None
    wanted = [x for i in needed if (x := given[i]) is not None]
    sums = [x.new_zeros(x.shape, dtype=max(x.dtype, torch.float32, key=_bits)) for x in wanted]
    operands = in_four(*given)
    for run in runs_of(grad.shape[-3], rows.tolist(), keys.tolist()):
        parts = gradients(run, operands, needed, grad, scale)
        for place, total, part in zip(needed, in_four(*sums), parts, strict=True):
            assert total is not None
            run.add(place, total, part)
    return [total.to(x.dtype) for total, x in zip(sums, wanted, strict=True)]


def _bits(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _planned(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: list[int],
    keys: list[list[list[list[int]]]],
    pairs: int,
    scale: float | None,
) -> Tensor:
    """The operator where the plan is known beforehand: a graph with no N x N tensor in it."""
    del pairs
    operands, heads = in_four(query, key, value, mask), query.shape[-3] if query.ndim > 2 else 1
    parts: dict[int | None, list[Tensor]] = {}
    for run in runs_of(heads, rows, keys):
        parts.setdefault(run.head, []).append(attended(run.seen(operands), scale))
    result = torch.cat([torch.cat(own, -2) for own in parts.values()], -3)
    return result.reshape(*query.shape[:-1], value.shape[-1])


def fake_result(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """The result of an attention on fake tensors, whatever else it takes."""
    return empty_result(query, value)


def kept_flops(
    query: Any, key: Any, value: Any, mask: Any, rows: Any, keys: Any, *rest: Any
) -> float:
    """FLOPs of the kept pairs: of the scores and of the values."""
    heads = query.shape[:-2].numel() // keys.shape[0]
    return float(2 * heads * rest[0] * (query.shape[-1] + value.shape[-1]))


def _example() -> tuple[Any, ...]:
    entries = torch.arange(8.0, device="cpu").reshape(1, 1, 4, 2)
    rows, keys = torch.tensor([0, 4], device="cpu"), torch.tensor([[[[0, 2]]]], device="cpu")
    return (entries, entries, entries, None, rows, keys, 8, None)


def _axes(node: fx.Node) -> Axes:
    """Axis rule: the result has the frames of the queries."""
    query = node.args[0]
    assert isinstance(query, fx.Node)
    return axes_of(query)


def _relation(node: fx.Node) -> Relation:
    """Of an attention in which a query's number says what it sees; heads may have own tiles."""
    result, keys = attention_relation(node, whole=True), node.args[5]
    assert isinstance(keys, fx.Node)
    if shape(keys)[0] > 1:
        result.link(keys, 0, len(shape(node)) - 3)
    return result


@operator(
    "fisopt::tile_attention",
    implementation=_by_group,
    backward=by_group_backward,
    planned=_planned,
    plan=("rows", "keys"),
    fake=fake_result,
    example=_example(),
    axes=_axes,
    relation=_relation,
    flops=kept_flops,
    attention=True,
    opaque=True,
)
def tile_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    keys: Tensor,
    pairs: int,
    scale: float | None,
) -> Tensor:
    """Dense attention under the explicit mask, in plain torch: N x N memory, for checking.

    Shapes: query [..., h, N, D]; key [..., h', M, D]; value [..., h', M, E], h a multiple of h';
        mask broadcastable to [..., h, N, M], bool (True: seen) or added to the scores; rows
        [groups + 1] int; keys [h or 1, groups, ranges, 2] int.
    Returns: [..., h, N, E] in query's dtype.
    """
    del pairs
    place = torch.arange(key.shape[-2], device=key.device)
    inside = (place >= keys[..., :1]) & (place < keys[..., 1:])  # [h or 1, groups, ranges, M]
    token = torch.arange(query.shape[-2], device=query.device)
    group = torch.searchsorted(rows[1:].contiguous(), token.to(rows.dtype), right=True)
    kept = inside.any(-2).index_select(-2, group)
    kept = kept if query.ndim > 2 else kept[0]
    if mask is None:
        allowed = kept
    elif mask.dtype == torch.bool:
        allowed = kept & mask
    else:
        allowed = torch.where(kept, mask, float("-inf"))
    return scaled_dot_product_attention(
        query, key, value, allowed, scale=scale, enable_gqa=grouped(query, key)
    )
