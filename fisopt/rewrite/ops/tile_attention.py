"""tile_attention: attention in which each group of queries reads only some ranges of the keys.

    out[q] = softmax(scale * query[q] @ key[kept(q)].T + mask[q, kept(q)]) @ value[kept(q)]

``kept(q)`` comes as tensors, see `fisopt.rewrite.tile_plan.TilePlan`: blocks that differ only in
what they keep share one graph.  Skipped keys are never read.

Source: the pattern is Efficient-vDiT's, arXiv:2502.06155.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from fisopt.rewrite.axes import Axes, axes_of
from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.relations.contract import attention_relation
from fisopt.rewrite.relations.table import Relation, shape


def empty_result(query: Tensor, value: Tensor) -> Tensor:
    """Room for the result, its memory in the order [..., N, h, E] that models go on with."""
    *batch, heads, tokens, _ = (1,) * max(3 - query.ndim, 0) + tuple(query.shape)
    room = query.new_empty(*batch, tokens, heads, value.shape[-1]).transpose(-3, -2)
    return room if query.ndim > 2 else room[0]


def _grouped(query: Tensor, key: Tensor) -> bool:
    """Whether several heads of the queries share one of the keys."""
    return query.ndim > 2 and query.shape[-3] != key.shape[-3]


def _in_four(x: Tensor) -> Tensor:
    """The same with four dimensions at least, as the fused attentions want it."""
    return x[(None,) * max(4 - x.ndim, 0)]


def _head(x: Tensor, head: int, query: Tensor) -> Tensor:
    """The part of a tensor with as many heads as the queries, or fewer, that a head works on."""
    return x.narrow(-3, head * x.shape[-3] // query.shape[-3], 1)


def _merged(
    starts: list[int], groups: list[list[list[int]]]
) -> list[tuple[int, int, list[list[int]]]]:
    """(start, end, key ranges) of each run of neighbouring groups that read the same keys."""
    result: list[tuple[int, int, list[list[int]]]] = []
    for start, end, padded in zip(starts[:-1], starts[1:], groups, strict=True):
        ranges = [r for r in padded if r[1] > r[0]]
        if result and result[-1][2] == ranges:
            start = result.pop()[0]
        result.append((start, end, ranges))
    return result


def take(x: Tensor, dim: int, ranges: Iterable[Sequence[int]]) -> Tensor:
    """Some ranges of a dimension side by side; a dimension of one entry is left to broadcast."""
    if x.shape[dim] == 1:
        return x
    pieces = [x.narrow(dim, start, end - start) for start, end in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _rows(mask: Tensor, start: int, end: int) -> Tensor:
    return mask if mask.shape[-2] == 1 else mask[..., start:end, :]


def _parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: list[int],
    keys: list[list[list[list[int]]]],
    scale: float | None,
) -> Iterator[tuple[int | None, int, int, Tensor]]:
    """(head, start, end, result) of each run of queries that read the same keys.

    The head is None where all heads read alike; tensors have four dimensions at least.
    """
    q, k, v = (_in_four(x) for x in (query, key, value))
    bias = None if mask is None else _in_four(mask)
    for h, groups in enumerate(keys):
        head = None if len(keys) == 1 else h
        parts = [q, k, v] if head is None else [_head(x, h, q) for x in (q, k, v)]
        seen = bias if bias is None or head is None else _head(bias, h, q)
        for start, end, ranges in _merged(rows, groups):
            part = scaled_dot_product_attention(
                parts[0][..., start:end, :],
                take(parts[1], -2, ranges),
                take(parts[2], -2, ranges),
                None if seen is None else take(_rows(seen, start, end), -1, ranges),
                scale=scale,
                enable_gqa=_grouped(parts[0], parts[1]),
            )
            yield head, start, end, part


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
    """See `tile_attention`; ``pairs``, the plan's count of kept pairs, is for the cost model.

    One fused dense attention a group, on its key ranges laid side by side: copying them costs
    little beside what is computed on them, and no partial results are merged.
    """
    del pairs
    result = empty_result(query, value)
    out = _in_four(result)
    for head, start, end, part in _parts(
        query, key, value, mask, rows.tolist(), keys.tolist(), scale
    ):
        room = out if head is None else out.narrow(-3, head, 1)
        room[..., start:end, :] = part
    return result


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
    heads: dict[int | None, list[Tensor]] = {}
    for head, _, _, part in _parts(query, key, value, mask, rows, keys, scale):
        heads.setdefault(head, []).append(part)
    result = torch.cat([torch.cat(parts, -2) for parts in heads.values()], -3)
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
        query, key, value, allowed, scale=scale, enable_gqa=_grouped(query, key)
    )
