"""Shorter attention: run an attention of a block on some of its queries, keys and values.

The operators from its scores to its result run again on shorter operands.  Masks lose the rows and
columns of the queries and keys that are gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.analysis import PRODUCTS
from fisopt.rewrite.operands import Operands
from fisopt.rewrite.relations.table import argument, shape
from fisopt.rewrite.rewriter import Rewriter

aten = torch.ops.aten
REDUCE = torch.ops.fisopt.reduce_tokens.default


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


def cannot_shorten(operands: Operands) -> str | None:
    """Why an attention cannot run on some of its queries and keys, None if it can."""
    node = operands.path[-1]
    if node.target is not aten.scaled_dot_product_attention.default:
        return None
    if argument(node, 5, "is_causal", False):
        return "its attention is causal, so a token's place in the sequence says what it sees"
    if shape(operands.query)[:-2] != shape(operands.value)[:-2]:
        return "its queries are grouped: queries and values have different heads"
    return None


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
