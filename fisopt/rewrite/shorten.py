"""Shorter attention: run an attention of a block on some of its queries, keys and values.

An attention is either one fused operator or a product of queries and keys, operators that keep
each score in its place, and a product with the values.  Masks lose the rows and columns of the
queries and keys that are gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.analysis import PRODUCTS, SOFTMAXES, Attention
from fisopt.rewrite.relations.table import argument, shape
from fisopt.rewrite.rewriter import Rewriter

aten = torch.ops.aten
REDUCE = torch.ops.fisopt.reduce_tokens.default

_IN_PLACE = {aten._to_copy.default, aten.clone.default, aten.dropout.default, *SOFTMAXES}


@dataclass(frozen=True)
class Operands:
    """What an attention reads, and the operators from its scores to its result.

    Attributes:
        query: rows [..., Sq, D].
        key: [..., Sk, D], or transposed.
        value: [..., Sk, Dv].
        key_dim: the dimension of ``key`` that holds the sequence.
        path: the operators to run again on shorter operands, in order; the last is the result.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    key_dim: int
    path: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Index:
    """Which entries of a sequence stay, for each leading index.

    Attributes:
        kept: [..., M] positions that stay.
        origin: [..., S] what stands for each entry, to take means; None to take entries as they
            are.
    """

    kept: fx.Node
    origin: fx.Node | None


def operands_of(attention: Attention) -> Operands | str:
    """The operands of an attention, or why it cannot be run on shorter ones."""
    result = attention.result
    if result.target is aten.scaled_dot_product_attention.default:
        if argument(result, 5, "is_causal", False):
            return "its attention is causal, so a token's place in the sequence says what it sees"
        query, key, value = result.args[:3]
        assert isinstance(query, fx.Node)
        assert isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        if shape(query)[:-2] != shape(value)[:-2]:
            return "its queries are grouped: queries and values have different heads"
        return Operands(query, key, value, len(shape(key)) - 2, (result,))
    path = _from_scores(result.args[0])
    if path is None:
        return "no product of queries and keys leads to its softmax entry by entry"
    first = path[0]
    query, key, value = first.args[0], first.args[1], attention.value
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    return Operands(query, key, value, len(shape(key)) - 1, (*path, result))


def _from_scores(node: Any) -> tuple[fx.Node, ...] | None:
    """The operators from the product that makes the scores to a node, each entry in its place."""
    if node.target in PRODUCTS:
        return (node,)
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and node.target not in _IN_PLACE:
        return None
    alike = (n for n in node.all_input_nodes if shape(n) == shape(node))
    found = next((path for n in alike if (path := _from_scores(n)) is not None), None)
    return None if found is None else (*found, node)


def shorten(
    rewriter: Rewriter, operands: Operands, queries: Index | None, keys: Index | None
) -> fx.Node:
    """Insert the attention on shorter operands here; None leaves a sequence whole.

    Returns:
        The attended values of the kept queries.
    """
    env: dict[fx.Node, fx.Node] = {}
    query, key, value = operands.query, operands.key, operands.value
    rows = len(shape(query)) - 2
    parts = ((query, queries, rows), (key, keys, operands.key_dim), (value, keys, rows))
    short = [
        node if index is None else rewriter.call(REDUCE, node, index.kept, index.origin, dim)
        for node, index, dim in parts
    ]
    first = operands.path[0]
    whole = set(short)

    def follow(operand: fx.Node) -> fx.Node:
        if operand in env or operand in whole:
            return env.get(operand, operand)
        return _mask(rewriter, operand, operands, queries, keys)

    for node in operands.path:
        given: list[Any] = list(node.args)
        if node is first:
            given[:2] = short[:2]
        if node is operands.path[-1]:
            given[1 if node.target in PRODUCTS else 2] = short[2]
        args, kwargs = fx.node.map_arg((tuple(given), node.kwargs), follow)
        env[node] = rewriter.call(node.target, *args, **kwargs)
    return env[operands.path[-1]]


def _mask(
    rewriter: Rewriter,
    mask: fx.Node,
    operands: Operands,
    queries: Index | None,
    keys: Index | None,
) -> fx.Node:
    """Rows and columns of a mask or bias that belong to the kept queries and keys."""
    lead = shape(operands.query)[:-2]
    sizes = (*[1] * (2 - len(shape(mask))), *shape(mask))
    cuts = [
        (index, len(lead) + d)
        for index, d in ((queries, 0), (keys, 1))
        if index is not None and sizes[d - 2] != 1
    ]
    if not cuts:
        return mask
    mask = rewriter.call(aten.expand.default, mask, [*lead, *sizes[-2:]])
    for index, d in cuts:
        mask = rewriter.call(REDUCE, mask, index.kept, None, d)
    return mask
