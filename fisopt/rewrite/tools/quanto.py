"""Quanto: the operators that its weights and activations are multiplied and rounded by."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fisopt.rewrite.ops.declare import operator
from fisopt.rewrite.relations.table import Relation, operand_of, pointwise, shape
from fisopt.rewrite.tools.tool import Tool

_MULTIPLY = torch.ops.quanto.qbytes_mm.default
_ROUND = torch.ops.quanto.quantize_symmetric.default


def _product(node: fx.Node) -> Relation:
    """Activations [..., K] times weights [N, K], scaled by [N, 1]."""
    x, weight = operand_of(node, 0), operand_of(node, 1)
    last = len(shape(x)) - 1
    result = Relation(mixed=[(x, last), (weight, 1), (operand_of(node, 2), 0)])
    for dim in range(last):
        result.link(x, dim, dim)
    result.link(weight, 0, last)
    return result


def _flops(x: Tensor, weight: Tensor, _: Tensor) -> float:
    return 2.0 * x.numel() * weight.shape[0]


operator(_MULTIPLY, relation=_product, flops=_flops, counts_as="linear")
operator(_ROUND, relation=pointwise)  # by a scale that was measured before
TOOL = Tool()
