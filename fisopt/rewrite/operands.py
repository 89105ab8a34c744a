"""The operands of an attention, fused or written out: softmax(scale * q @ k.T + mask) @ v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import fx

from fisopt.rewrite.analysis import PRODUCTS, SOFTMAXES, Attention
from fisopt.rewrite.relations.table import argument, operand_of, shape

aten = torch.ops.aten
_CASTS = {aten._to_copy.default, aten.type_as.default, aten.alias.default, aten.clone.default}


@dataclass(frozen=True)
class Operands:
    """What an attention reads.

    Attributes:
        query: [..., N, D].
        key: [..., M, D], or [..., D, M] if ``key_columns``.
        value: [..., M, E].
        mask: broadcastable to [..., N, M], bool (True: seen) or added to the scores.
        scale: of the scores; None is one over the root of D.
        key_columns: whether the keys are the columns of their operand.
        dropout: probability that a weight is dropped.
        causal: whether a query sees only the keys up to its own position.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float | None
    key_columns: bool = False
    dropout: float = 0.0
    causal: bool = False


def operands(attention: Attention) -> Operands | str:
    """Read an attention; text says why it is not of the form above."""
    node = attention.result
    if node.target is aten.scaled_dot_product_attention.default:
        return Operands(
            operand_of(node, 0),
            operand_of(node, 1),
            operand_of(node, 2),
            argument(node, 3, "attn_mask"),
            argument(node, 6, "scale"),
            dropout=argument(node, 4, "dropout_p", 0.0),
            causal=argument(node, 5, "is_causal", False),
        )
    if node.target not in PRODUCTS:
        return f"{node.target} is no attention of plain operators"
    return _written_out(node)


def _written_out(node: fx.Node) -> Operands | str:
    """Walk back from the last product to the softmax, and from it to the product of scores."""
    weights = _uncast(operand_of(node, 0))
    if weights.target not in SOFTMAXES:
        return f"{weights.format_node()} stands between the softmax and the values"
    dim = argument(weights, 1, "dim")
    if dim not in (-1, len(shape(weights)) - 1):
        return f"its softmax runs over dimension {dim}, not over the keys"
    scores, scale, mask = _uncast(operand_of(weights, 0)), 1.0, None
    while scores.target not in PRODUCTS:
        left: Any
        right: Any
        left, right = (*scores.args, None)[:2]
        if scores.target in (aten.mul.Tensor, aten.mul.Scalar) and _number(right):
            scale *= float(right)
        elif scores.target in (aten.div.Tensor, aten.div.Scalar) and _number(right):
            scale /= float(right)
        elif scores.target is aten.add.Tensor and not scores.kwargs and mask is None and scale == 1:
            left, mask = _scores_first(left, right)
        else:
            return f"{scores.format_node()} stands between the scores and the softmax"
        if not isinstance(left, fx.Node):
            return f"{scores.format_node()} stands between the scores and the softmax"
        scores = _uncast(left)
    query, key, value = operand_of(scores, 0), operand_of(scores, 1), operand_of(node, 1)
    if mask is not None and mask.meta["val"].dtype != query.meta["val"].dtype:
        return f"its mask is {mask.meta['val'].dtype}, its queries {query.meta['val'].dtype}"
    return Operands(query, key, value, mask, scale, key_columns=True)


def _scores_first(a: Any, b: Any) -> tuple[Any, fx.Node | None]:
    """Order the operands of an addition: the one made from a product of matrices, the mask."""
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return None, None
    return (a, b) if _from_product(a) else (b, a)


def _from_product(node: fx.Node) -> bool:
    while node.target not in PRODUCTS:
        node = _uncast(node)
        if node.target in PRODUCTS:
            return True
        if node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
            return False
        node = operand_of(node, 0)
    return True


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float))


def _uncast(node: fx.Node) -> fx.Node:
    """The node before changes of type."""
    while node.target in _CASTS:
        node = operand_of(node, 0)
    return node
