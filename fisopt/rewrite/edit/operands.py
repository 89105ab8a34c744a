"""What an attention reads: its operands, and if it is a plain one, its mask and scale.

An attention is either one fused operator, or a product of queries and keys, operators that keep
each score in its place or only give it another index, and a product with the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.analysis.fused import fused
from fisopt.rewrite.analysis.structure import (
    PRODUCTS,
    SOFTMAXES,
    Attention,
    bias_of,
    factors,
    made_of,
)
from fisopt.rewrite.axes import FrameAxis, axes_of
from fisopt.rewrite.edit.editor import BY
from fisopt.rewrite.relations import relation
from fisopt.rewrite.relations.table import argument, operand_of, shape
from fisopt.rewrite.views import COPIES, PLACES

aten = torch.ops.aten
_PRODUCTS_BY_NUMBER = {aten.mul.Tensor, aten.mul.Scalar}
_QUOTIENTS_BY_NUMBER = {aten.div.Tensor, aten.div.Scalar}
_IN_PLACE = {*COPIES, aten.dropout.default, *SOFTMAXES}
_VIEWS = {*PLACES, aten.expand.default}
_FILLS: dict[Any, int] = {
    aten.masked_fill.Scalar: 1,
    aten.masked_fill.Tensor: 1,
    aten.where.self: 0,
    aten.where.ScalarOther: 0,
    aten.where.ScalarSelf: 0,
}
"""Operators that put one number at the places of a mask, and which operand the mask is."""

_NUMBERS: dict[Any, int] = {aten.scalar_tensor.default: 0, aten.full.default: 1}
_LOW = -1e8
Place = tuple[int, int]


@dataclass(frozen=True)
class Operands:
    """What an attention reads, and the operators from its scores to its result.

    Attributes:
        query: rows [..., N, D].
        key: [..., M, D], or transposed.
        value: [..., M, E].
        key_dim: the dimension of ``key`` that holds the sequence.
        path: the operators from the product of queries and keys to the result, in order; one
            alone if the attention is fused.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    key_dim: int
    path: tuple[fx.Node, ...]

    @property
    def key_columns(self) -> bool:
        """Whether the keys are the columns of their operand."""
        return self.key_dim == len(shape(self.key)) - 1


@dataclass(frozen=True)
class PlainAttention(Operands):
    """An attention that is softmax(scale * query @ key.T + mask) @ value.

    Attributes:
        mask: broadcastable to [..., N, M], bool (True: seen) or added to the scores.
        scale: of the scores; None is one over the root of D.
        dropout: probability that a weight is dropped.
        causal: whether a query sees only the keys up to its own position.
        fill: the operator that puts a very low score where the mask says so, if it does.
    """

    mask: fx.Node | None
    scale: float | None
    dropout: float = 0.0
    causal: bool = False
    fill: fx.Node | None = None


def operands_of(attention: Attention) -> Operands | str:
    """The operands of an attention, or why they cannot be told."""
    result = attention.result
    if (one := fused(result)) is not None:
        return Operands(one.query, one.key, one.value, len(shape(one.key)) - 2, (result,))
    if (made := result.meta.get(BY)) is not None and result.target not in PRODUCTS:
        return (
            f"{made} has replaced the attention of this block ({result.target}), which needs "
            "whole frames, so this pass cannot drop tokens; keep one of the two passes out of "
            "the block"
        )
    path = _from_scores(factors(result)[0]) if result.target in PRODUCTS else None
    if path is None:
        return "no product of queries and keys leads to its softmax entry by entry"
    query, key = factors(path[0])
    read = Operands(query, key, attention.value, len(shape(key)) - 1, (*path, result))
    weights = len(shape(path[-1])) - 2, len(shape(path[-1])) - 1
    if (places := score_places(read)) is None or places[-1] != weights:
        return "its scores are not the rows and columns of its softmax's product with the values"
    return read


def score_places(read: Operands) -> tuple[Place, ...] | None:
    """The dimensions of queries and keys in every value from the scores to the weights.

    None if a view joins one of them with another dimension; none if the attention is fused.
    """
    if len(read.path) == 1:
        return ()
    first, *rest = read.path[:-1]
    places = [(len(shape(first)) - 2, len(shape(first)) - 1)]
    for before, node in zip(read.path, rest, strict=False):
        rows, columns = (
            _moved(before, node, d) if node.target in _VIEWS else d for d in places[-1]
        )
        if rows is None or columns is None or rows == columns:
            return None
        places.append((rows, columns))
    return tuple(places)


def _moved(operand: fx.Node, view: fx.Node, dim: int) -> int | None:
    """The dimension of a view that is one of its operand, whole and alone."""
    size, axes = shape(operand)[dim], axes_of(operand)
    axis = (axes[dim] if dim < len(axes) else None) or FrameAxis(size)
    for link in relation(view).links:
        if (link.operand, link.dim) == (operand, dim) and shape(view)[link.out] == size:
            found = link.convert(axis)
            if found is not None and found.size == size:
                return link.out
    return None


def of_one_sequence(read: Operands) -> bool:
    """Whether the values are of the arguments' entries of which the queries are, and no others."""
    queries, values = (
        {p for p in made_of(n, len(shape(n)) - 2) if p[0].op == "placeholder"}
        for n in (read.query, read.value)
    )
    return bool(values) and values <= queries


def plain_attention(attention: Attention) -> PlainAttention | str:
    """Read an attention with its mask and scale; text says why it is not a plain one."""
    read = operands_of(attention)
    if isinstance(read, str):
        return read
    parts = (read.query, read.key, read.value, read.key_dim, read.path)
    if (one := fused(attention.result)) is not None:
        if not one.plain:
            return f"what {one.own} means besides its queries, keys and values is not declared"
        return PlainAttention(
            *parts, mask=one.mask, scale=one.scale, dropout=one.dropout, causal=one.causal
        )
    found = _mask_and_scale(read)
    if isinstance(found, str):
        return found
    mask, scale, fill = found
    return PlainAttention(*parts, mask=mask, scale=scale, fill=fill)


def _mask_and_scale(read: Operands) -> tuple[fx.Node | None, float, fx.Node | None] | str:
    """What the operators between the two products do to the scores."""
    scores, weights = read.path[0], False
    fill: fx.Node | None = None
    scale, beta = (float(_number(scores, name)) for name in ("alpha", "beta"))
    if (mask := bias_of(scores)) is not None and beta != 1:
        return f"{scores.format_node()} scales its bias"
    for before, node in zip(read.path, read.path[1:-1], strict=False):
        left, right = (*node.args, None)[:2]
        other = right if left is before else left
        if node.target in COPIES or node.target in _VIEWS:
            continue
        if weights:
            return f"{node.format_node()} stands between the softmax and the values"
        if node.target in SOFTMAXES:
            dim = argument(node, 1, "dim")
            if dim % len(shape(node)) != _columns(read, node):
                return f"its softmax runs over dimension {dim}, not over the keys"
            weights = True
        elif (
            isinstance(right, (int, float))
            and mask is None
            and node.target in (_PRODUCTS_BY_NUMBER | _QUOTIENTS_BY_NUMBER)
        ):
            scale = scale * right if node.target in _PRODUCTS_BY_NUMBER else scale / right
        elif _adds(node) and mask is None and isinstance(other, fx.Node):
            mask = other
        elif node.target in _FILLS and mask is None:
            if not _hides(node, before):
                return f"{node.format_node()} puts a score that hides no key"
            mask, fill = operand_of(node, _FILLS[node.target]), node
        else:
            return f"{node.format_node()} stands between the scores and the softmax"
    if mask is not None and len(shape(mask)) > len(shape(read.query)):
        return f"its mask has shape {shape(mask)}, its queries have {shape(read.query)}"
    added = (read.query, None if fill is not None else mask)
    kinds = [n.meta["val"].dtype for n in added if n is not None]
    if len(set(kinds)) > 1:
        return f"its mask is {kinds[1]}, its queries {kinds[0]}"
    return mask, scale, fill


def _hides(fill: fx.Node, scores: fx.Node) -> bool:
    """Whether a fill keeps scores, and else puts one so low that nothing added to it counts."""
    mask = fill.args[_FILLS[fill.target]]
    rest = [a for a in fill.args if a is not mask and a is not scores]
    value: Any = rest[0] if len(rest) == 1 else None
    if isinstance(value, fx.Node):
        value = value.args[_NUMBERS[value.target]] if value.target in _NUMBERS else None
    lowest = max(torch.finfo(fill.meta["val"].dtype).min, _LOW)
    return mask is not scores and isinstance(value, (int, float)) and value <= lowest


def _number(product: fx.Node, name: str) -> Any:
    return product.kwargs.get(name, 1)


def _columns(read: Operands, node: fx.Node) -> int:
    """The dimension of the keys in a value on the way from the scores."""
    places = score_places(read)
    assert places is not None
    return places[read.path.index(node)][1]


def _adds(node: fx.Node) -> bool:
    return node.target is aten.add.Tensor and not node.kwargs


def _from_scores(node: Any) -> tuple[fx.Node, ...] | None:
    """The operators from the product that makes the scores to a node, each entry in its place."""
    if node.target in PRODUCTS:
        return (node,)
    if node.target in _VIEWS:
        path = _from_scores(node.args[0])
        return None if path is None else (*path, node)
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and node.target not in _IN_PLACE:
        return None
    alike = (n for n in node.all_input_nodes if shape(n) == shape(node))
    found = next((path for n in alike if (path := _from_scores(n)) is not None), None)
    return None if found is None else (*found, node)
