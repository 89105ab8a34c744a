"""Operators that combine entries of equal position, and operators that make values from none."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.relations.table import Relation, pointwise, relation_rule, shape, tensors

aten = torch.ops.aten


relation_rule(
    aten.clone.default,
    aten.copy.default,
    aten._to_copy.default,
    aten.type_as.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
    aten.lift_fresh_copy.default,
    aten.where.self,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.nan_to_num.default,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.__xor__.Tensor,
    aten.complex.default,
    aten.polar.default,
    aten._conj.default,
    aten.conj.default,
    aten.real.default,
    aten.imag.default,
    aten.isin.Tensor_Scalar,
    aten.floor_divide.default,
    aten.floor_divide.Scalar,
)(pointwise)


@relation_rule(
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.empty.memory_format,
    aten.scalar_tensor.default,
)
def _constant(node: fx.Node) -> Relation:
    result = Relation(constant=set(range(len(shape(node)))))
    for operand in tensors(node):
        if shape(operand) == shape(node) and "_like" in str(node.target):
            for d in range(len(shape(node))):
                result.link(operand, d, d)
            result.constant = set()
    return result


@relation_rule(
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.eye.default,
    aten.tril_indices.default,
)
def _generator(node: fx.Node) -> Relation:
    return Relation()
