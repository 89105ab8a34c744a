"""Masks of tokens that are written as masks of pairs: an attention reads the tokens' own.

A model that pads its text may build the mask of an attention as ``valid[i] and valid[j]``, a table
of all pairs.  Such a mask is that of the keys alone, and the results of queries that see nothing
are zero, which is what the operator itself returns for them.  The table, quadratic in the tokens,
is not built: for 110,000 tokens it has 12 GB in each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.relations.table import argument, shape

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
_ANDS = {aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default}
_KEPT = {aten.alias.default, aten.clone.default, aten._to_copy.default, aten.contiguous.default}

Insert = Callable[..., fx.Node]
Make = Callable[[Insert], fx.Node]


@dataclass(frozen=True)
class _Factors:
    """Masks whose conjunction a mask is: of size one over the keys, and over the queries."""

    queries: tuple[Make, ...]
    keys: tuple[Make, ...]

    def through(self, change: Callable[[Insert, fx.Node], fx.Node]) -> _Factors:
        """The factors of a view of the mask."""

        def changed(make: Make) -> Make:
            return lambda insert: change(insert, make(insert))

        return _Factors(tuple(map(changed, self.queries)), tuple(map(changed, self.keys)))


def separate_masks(graph: fx.Graph, insert_for: Callable[[fx.Node, bool], Insert]) -> None:
    """Give every fused attention whose mask is an outer product the mask of its keys.

    Args:
        graph: a flat graph with values; changed in place.
        insert_for: for an attention, what writes an operator of its block before or after it.
    """
    for node in list(graph.nodes):
        mask = argument(node, 3, "attn_mask") if node.target is ATTENTION else None
        if not isinstance(mask, fx.Node) or argument(node, 5, "is_causal", False):
            continue
        found = _factors(mask)
        pairs = math.prod(shape(mask)[-2:])
        if found is None or pairs == max(shape(mask)[-2:]):
            continue
        _separate(node, mask, found, insert_for)
    graph.eliminate_dead_code()


def _separate(
    node: fx.Node,
    mask: fx.Node,
    found: _Factors,
    insert_for: Callable[[fx.Node, bool], Insert],
) -> None:
    before, after = insert_for(node, False), insert_for(node, True)
    keys, queries = (_all(factors, before) for factors in (found.keys, found.queries))
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda operand: keys if operand is mask else operand
    )
    node.args, node.kwargs = args, kwargs
    if queries is not None:
        seeing = before(aten._to_copy.default, queries, dtype=node.meta["val"].dtype)
        zeroed = after(aten.mul.Tensor, node, seeing)
        node.replace_all_uses_with(zeroed, lambda user: user is not zeroed)


def _all(factors: tuple[Make, ...], insert: Insert) -> fx.Node | None:
    """The conjunction of some masks, None of none."""
    if not factors:
        return None
    first, *rest = (make(insert) for make in factors)
    return reduce(lambda a, b: insert(aten.logical_and.default, a, b), rest, first)


def _factors(node: fx.Node) -> _Factors | None:
    """What a mask [..., queries, keys] is the outer product of, None if it is not seen to be."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or value.ndim < 2:
        return None
    if shape(node)[-2] == 1:
        return _Factors((), (lambda _: node,))
    if shape(node)[-1] == 1:
        return _Factors((lambda _: node,), ())
    if node.target in _ANDS:
        return _conjunction(*node.args[:2])
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    found = _factors(source) if len(shape(source)) >= 2 else None
    if found is None or node.target in _KEPT or _repeats_one(node, source):
        return found
    if node.target is aten.unsqueeze.default:
        dim = int(node.args[1]) % value.ndim  # type: ignore[arg-type]
        if dim >= value.ndim - 2:
            return None
        return found.through(lambda insert, x: insert(aten.unsqueeze.default, x, dim))
    if _swaps_last(node):
        turned = found.through(lambda insert, x: insert(aten.transpose.int, x, -2, -1))
        return _Factors(turned.keys, turned.queries)
    return None


def _conjunction(one: Any, two: Any) -> _Factors | None:
    found = [_factors(x) if isinstance(x, fx.Node) else None for x in (one, two)]
    a, b = found
    return None if a is None or b is None else _Factors(a.queries + b.queries, a.keys + b.keys)


def _repeats_one(node: fx.Node, source: fx.Node) -> bool:
    """Whether an operator only broadcasts: it repeats along dimensions of size one."""
    if node.target is aten.expand.default:
        return True
    if node.target is not aten.repeat.default:
        return False
    counts: Any = node.args[1]
    sizes = (*[1] * (len(counts) - len(shape(source))), *shape(source))
    return all(size == 1 or count == 1 for size, count in zip(sizes, counts, strict=True))


def _swaps_last(node: fx.Node) -> bool:
    """Whether an operator exchanges queries and keys and nothing else."""
    rank = len(shape(node))
    if node.target is aten.transpose.int:
        return {int(d) % rank for d in node.args[1:3]} == {rank - 2, rank - 1}  # type: ignore[arg-type]
    order: Any = node.args[1] if node.target is aten.permute.default else ()
    wanted = [*range(rank - 2), rank - 1, rank - 2]
    return [int(d) % rank for d in order] == wanted
