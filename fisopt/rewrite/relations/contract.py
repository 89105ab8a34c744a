"""Operators that combine the entries of a dimension: reductions, norms, products, attention."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.relations.table import (
    Relation,
    argument,
    dims_of,
    operand_of,
    relation_rule,
    shape,
    tensors,
)

aten = torch.ops.aten


def _along(operand: fx.Node, mixed_dims: set[int]) -> Relation:
    """Keep the shape, combine the entries along some dimensions."""
    result = Relation(kept=set(mixed_dims))
    for d in range(len(shape(operand))):
        if d in mixed_dims:
            result.mixed.append((operand, d))
        else:
            result.link(operand, d, d)
    return result


@relation_rule(
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.cumsum.default,
    aten.cumprod.default,
    aten.logcumsumexp.default,
)
def _softmax(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _along(operand, dims_of(argument(node, 1, "dim"), len(shape(operand))))


@relation_rule(aten.tril.default, aten.triu.default)
def _triangle(node: fx.Node) -> Relation:
    """Rows and columns are told apart by their numbers."""
    operand = operand_of(node, 0)
    rank = len(shape(operand))
    result = Relation()
    for d in range(rank):
        if d < rank - 2:
            result.link(operand, d, d)
        else:
            result.write(operand, d)
    return result


@relation_rule(aten.glu.default)
def _glu(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _along(operand, dims_of(argument(node, 1, "dim", -1), len(shape(operand))))


@relation_rule(
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_trilinear3d.vec,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    aten.upsample_bilinear2d.default,
    aten.upsample_trilinear3d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
def _resampled(node: fx.Node) -> Relation:
    """A dimension that keeps its size keeps its entries; another is combined."""
    operand = operand_of(node, 0)
    sizes = zip(shape(operand), shape(node), strict=True)
    return _along(operand, {d for d, (before, after) in enumerate(sizes) if before != after})


@relation_rule(aten.avg_pool2d.default, aten.avg_pool3d.default, aten.max_pool2d.default)
def _pool(node: fx.Node) -> Relation:
    """Follow each dimension over which the window is one entry; combine the others."""
    operand = operand_of(node, 0)
    window = list(argument(node, 1, "kernel_size"))
    windowed = 2 if node.target is not aten.avg_pool3d.default else 3
    window = [*window, *window[-1:] * (windowed - len(window))]
    first = len(shape(operand)) - windowed
    sizes = zip(shape(operand), shape(node), strict=True)
    return _along(
        operand,
        {
            d
            for d, (before, after) in enumerate(sizes)
            if d >= first and (window[d - first] != 1 or before != after)
        },
    )


@relation_rule(aten.flip.default)
def _flip(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _along(operand, dims_of(node.args[1], len(shape(operand))))


@relation_rule(aten.roll.default)
def _roll(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _along(operand, dims_of(argument(node, 2, "dims"), len(shape(operand))))


@relation_rule(aten.layer_norm.default, aten.rms_norm.default, aten.native_layer_norm.default)
def _norm(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    rank = len(shape(operand))
    normalized = node.args[1]
    width = len(normalized) if isinstance(normalized, (list, tuple)) else 1
    return _along(operand, set(range(rank - width, rank)))


@relation_rule(aten.instance_norm.default)
def _instance_norm(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _along(operand, set(range(2, len(shape(operand)))))


@relation_rule(aten.group_norm.default)
def _group_norm(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _along(operand, set(range(1, len(shape(operand)))))


@relation_rule(
    aten.sum.dim_IntList,
    aten.mean.dim,
    aten.amax.default,
    aten.amin.default,
    aten.var.correction,
    aten.var.dim,
    aten.std.correction,
    aten.argmax.default,
    aten.argmin.default,
    aten.any.dim,
    aten.all.dim,
    aten.any.dims,
    aten.all.dims,
    aten.logsumexp.default,
    aten.count_nonzero.dim_IntList,
    aten.max.dim,
    aten.min.dim,
    aten.median.dim,
    aten.prod.dim_int,
    aten.var_mean.correction,
    aten.std_mean.correction,
    aten.sum.default,
    aten.mean.default,
    aten.prod.default,
    aten.max.default,
    aten.min.default,
    aten.any.default,
    aten.all.default,
)
def _reduce(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    rank = len(shape(operand))
    reduced = dims_of(argument(node, 1, "dim"), rank)
    return _reduction(node, operand, reduced)


@relation_rule(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def _vector_norm(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _reduction(node, operand, dims_of(argument(node, 2, "dim"), len(shape(operand))))


def _reduction(node: fx.Node, operand: fx.Node, reduced: set[int]) -> Relation:
    keep = len(shape(node)) == len(shape(operand))
    result = Relation()
    out = 0
    for d in range(len(shape(operand))):
        if d in reduced:
            result.mixed.append((operand, d))
            out += keep
        else:
            result.link(operand, d, out)
            out += 1
    return result


@relation_rule(aten.linear.default)
def _linear(node: fx.Node) -> Relation:
    x = operand_of(node, 0)
    last = len(shape(x)) - 1
    result = Relation(mixed=[(x, last)])
    for d in range(last):
        result.link(x, d, d)
    for operand in tensors(node)[1:]:
        result.mixed += [(operand, d) for d in range(len(shape(operand)))]
    return result


def _contract(result: Relation, a: fx.Node, b: fx.Node, out_rank: int) -> Relation:
    """``[..., i, k] @ [..., k, j]``: rows and columns are followed, k is combined."""
    left, right = shape(a), shape(b)
    columns, rows = (a, len(left) - 1), (b, max(len(right) - 2, 0))
    result.mixed += [columns, rows]
    result.ties.append((columns, rows))
    if len(left) > 1:
        result.link(a, len(left) - 2, out_rank - (2 if len(right) > 1 else 1))
    if len(right) > 1:
        result.link(b, len(right) - 1, out_rank - 1)
    for operand, sizes in ((a, left), (b, right)):
        for back in range(3, len(sizes) + 1):
            if sizes[-back] != 1:
                result.link(operand, len(sizes) - back, out_rank - back)
    return result


@relation_rule(
    aten.mm.default,
    aten.bmm.default,
    aten.matmul.default,
    aten.mv.default,
    aten._int_mm.default,
)
def _matmul(node: fx.Node) -> Relation:
    return _contract(Relation(), operand_of(node, 0), operand_of(node, 1), len(shape(node)))


@relation_rule(aten.addmm.default, aten.baddbmm.default, aten._scaled_mm.default)
def _addmm(node: fx.Node) -> Relation:
    """A product, and what is added to it or scales it where it is."""
    first = 0 if node.target is aten._scaled_mm.default else 1
    factors = {first, first + 1}
    others = [x for i, x in enumerate(node.args) if i not in factors and isinstance(x, fx.Node)]
    a, b = operand_of(node, first), operand_of(node, first + 1)
    return _contract(_aligned(node, others), a, b, len(shape(node)))


def _aligned(node: fx.Node, operands: list[fx.Node]) -> Relation:
    """Follow operands that are aligned with the result on the right."""
    out, result = shape(node), Relation()
    for operand in operands:
        sizes = shape(operand)
        for back in range(1, len(sizes) + 1):
            if sizes[-back] == out[-back]:
                result.link(operand, len(sizes) - back, len(out) - back)
    return result


@relation_rule(aten.scaled_dot_product_attention.default)
def _attention(node: fx.Node) -> Relation:
    return attention_relation(node, whole=argument(node, 5, "is_causal", False))


def attention_relation(node: fx.Node, *, whole: bool) -> Relation:
    """Queries are followed, keys and values (and the mask's key dimension) are combined.

    Args:
        node: an attention: queries, keys, values [..., tokens, features], and a mask or None.
        whole: a query's number says what it may see.
    """
    query, key, value = (operand_of(node, i) for i in range(3))
    rank = len(shape(node))
    result = Relation()
    for operand in (query, key, value):
        for d in range(rank - 2):
            if any(shape(n)[d] not in (1, shape(node)[d]) for n in (query, key, value)):
                result.mixed.append((operand, d))  # several heads of the queries share one
                result.kept.add(d)
            elif shape(operand)[d] == shape(node)[d]:
                result.link(operand, d, d)
        result.mixed.append((operand, rank - 1 if operand is not value else rank - 2))
    if whole:
        result.mixed.append((query, rank - 2))
        result.kept.add(rank - 2)
    else:
        result.link(query, rank - 2, rank - 2)
    result.mixed.append((key, rank - 2))
    result.ties.append(((key, rank - 2), (value, rank - 2)))
    result.link(value, rank - 1, rank - 1)
    mask = argument(node, 3, "attn_mask")
    if isinstance(mask, fx.Node):
        sizes = shape(mask)
        result.mixed.append((mask, len(sizes) - 1))
        if sizes[-1] != 1:
            result.ties.append(((key, rank - 2), (mask, len(sizes) - 1)))
        for back in range(2, len(sizes) + 1):
            if sizes[-back] != 1:
                result.link(mask, len(sizes) - back, rank - back)
    return result


@relation_rule(
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.conv2d.padding,
    aten.convolution.default,
)
def _convolution(node: fx.Node) -> Relation:
    """Follow the batch, and each spatial dimension whose kernel covers one entry."""
    x, weight = operand_of(node, 0), operand_of(node, 1)
    kernel = shape(weight)[2:]
    result = Relation(mixed=[(x, 1)])
    result.mixed += [(weight, d) for d in range(len(shape(weight)))]
    result.link(x, 0, 0)
    for i, size in enumerate(kernel):
        d = i + 2
        if size == 1 and shape(x)[d] == shape(node)[d]:
            result.link(x, d, d)
        else:
            result.mixed.append((x, d))
            result.kept.add(d)
    return result
