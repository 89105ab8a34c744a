"""Shorter attention: run an attention of a block on some of its queries, keys and values.

The operators from its scores to its result run again on shorter operands.  Masks lose the rows and
columns of the queries and keys that are gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.analysis.fused import fused
from fisopt.rewrite.edit.editor import Editor
from fisopt.rewrite.edit.operands import Operands, score_places
from fisopt.rewrite.relations.table import shape
from fisopt.rewrite.views import BY_SIZES

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
    if math.prod(shape(operands.query)[:-2]) != math.prod(shape(operands.value)[:-2]):
        return "its queries are grouped: queries and values have different heads"
    one = fused(operands.path[-1])
    if one is not None and one.causal:
        return "its attention is causal, so a token's place in the sequence says what it sees"
    if one is not None and not one.plain:
        return f"what {one.own} means besides its queries, keys and values is not declared"
    return None


def shorten(
    editor: Editor, operands: Operands, queries: Index | None, keys: Index | None
) -> fx.Node:
    """Insert the attention on shorter operands here; None leaves a sequence whole.

    Returns:
        The attended values of the kept queries.
    """
    env: dict[fx.Node, fx.Node] = {}
    query, key, value = operands.query, operands.key, operands.value
    rows = len(shape(query)) - 2
    parts = ((query, queries, rows), (key, keys, operands.key_dim), (value, keys, rows_of(value)))
    short = [
        node
        if index is None
        else editor.call(REDUCE, node, *_for(editor, index, shape(node)[:-2]), dim)
        for node, index, dim in parts
    ]
    first, last = operands.path[0], operands.path[-1]
    places = dict(zip(operands.path, score_places(operands) or (), strict=False))
    whole = set(short)

    for node in operands.path:
        given: list[Any] = list(node.args)
        if node is first:
            start = node.args.index(query)
            given[start : start + 2] = short[:2]
        if node is last:
            given[node.args.index(value) if len(operands.path) > 1 else 2] = short[2]
        if node in places and node.target in BY_SIZES:
            given[1] = _shorter(given[1], places[node], queries, keys)

        def follow(operand: fx.Node, node: fx.Node = node) -> fx.Node:
            if operand in env or operand in whole:
                return env.get(operand, operand)
            lead = shape(node if node in places else query)[:-2]
            return _mask(editor, operand, lead, queries, keys)

        new: tuple[Any, Any] = fx.node.map_arg((tuple(given), node.kwargs), follow)
        env[node] = editor.call(node.target, *new[0], **new[1])
    return env[last]


def rows_of(node: fx.Node) -> int:
    """The dimension of a query, key or value that holds the sequence."""
    return len(shape(node)) - 2


def _shorter(
    sizes: list[int], place: tuple[int, int], queries: Index | None, keys: Index | None
) -> list[int]:
    """The sizes of a view of the scores, with as many queries and keys as stay."""
    result = list(sizes)
    for dim, index in zip(place, (queries, keys), strict=True):
        if index is not None:
            result[dim] = shape(index.kept)[-1]
    return result


def _for(editor: Editor, index: Index, lead: tuple[int, ...]) -> tuple[fx.Node, fx.Node | None]:
    """What stays, for an operand whose heads and batch items are indexed by other dimensions."""

    def viewed(node: fx.Node) -> fx.Node:
        if shape(node)[:-1] == lead:
            return node
        return editor.call(aten.reshape.default, node, [*lead, shape(node)[-1]])

    return viewed(index.kept), None if index.origin is None else viewed(index.origin)


def _mask(
    editor: Editor,
    mask: fx.Node,
    lead: tuple[int, ...],
    queries: Index | None,
    keys: Index | None,
) -> fx.Node:
    """Rows and columns of a mask or bias that belong to the kept queries and keys."""
    sizes = (*[1] * (2 - len(shape(mask))), *shape(mask))
    cuts = [
        (index, len(lead) + d)
        for index, d in ((queries, 0), (keys, 1))
        if index is not None and sizes[d - 2] != 1
    ]
    if not cuts:
        return mask
    mask = editor.call(aten.expand.default, mask, [*lead, *sizes[-2:]])
    for index, d in cuts:
        mask = editor.call(REDUCE, mask, _for(editor, index, lead)[0], None, d)
    return mask
