"""Operators that read, write or order the entries of a dimension by number."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.relations.table import (
    Relation,
    argument,
    operand_of,
    relation_rule,
    shape,
    tensors,
    wrap,
)

aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)


@relation_rule(aten.index_select.default)
def _index_select(node: fx.Node) -> Relation:
    operand, index = operand_of(node, 0), operand_of(node, 2)
    dim = wrap(argument(node, 1, "dim"), len(shape(operand)))
    result = Relation(addressed=[(operand, dim)])
    for d in range(len(shape(operand))):
        if d != dim:
            result.link(operand, d, d)
    result.link(index, 0, dim)
    return result


@relation_rule(aten.gather.default)
def _gather(node: fx.Node) -> Relation:
    """The index has the result's shape; dimensions that it does not cover cannot be followed."""
    operand, index = operand_of(node, 0), operand_of(node, 2)
    dim = wrap(argument(node, 1, "dim"), len(shape(operand)))
    result = Relation(addressed=[(operand, dim)])
    for d in range(len(shape(operand))):
        result.link(index, d, d)
        if d == dim:
            continue
        if shape(operand)[d] == shape(index)[d]:
            result.link(operand, d, d)
        else:
            result.addressed.append((operand, d))
    return result


@relation_rule(aten.index.Tensor)
def _index(node: fx.Node) -> Relation:
    """Index tensors are broadcast together and take the place of the dimensions they read."""
    operand = operand_of(node, 0)
    rank = len(shape(operand))
    given = list(argument(node, 1, "indices"))
    given += [None] * (rank - len(given))
    read = [d for d, index in enumerate(given) if index is not None]
    indices = [given[d] for d in read]
    if any(n.meta["val"].dtype in (torch.bool, torch.uint8) for n in indices):
        return by_number(node)
    wide = max(len(shape(n)) for n in indices)
    first = read[0] if read == list(range(read[0], read[-1] + 1)) else 0
    result = Relation(addressed=[(operand, d) for d in read])
    rest = [d for d in range(rank) if d not in read]
    for i, d in enumerate(rest):
        result.link(operand, d, i if i < first else i + wide)
    for n in indices:
        sizes = shape(n)
        for back in range(1, len(sizes) + 1):
            out = first + wide - back
            if sizes[-back] == shape(node)[out]:
                result.link(n, len(sizes) - back, out)
    return result


@relation_rule(
    aten.masked_scatter.default,
    aten.masked_select.default,
    aten.take.default,
    aten.put.default,
)
def by_number(node: fx.Node) -> Relation:
    """Entries are read or written by numbers, or by a count of what a mask lets through."""
    every = [(operand, d) for operand in tensors(node) for d in range(len(shape(operand)))]
    return Relation(addressed=every, kept=set(range(len(shape(node)))), barrier=True)


@relation_rule(
    aten.index_copy.default,
    aten.index_add.default,
    aten.index_reduce.default,
    aten.index_fill.int_Scalar,
    aten.index_fill.int_Tensor,
)
def _index_copy(node: fx.Node) -> Relation:
    """Rows of one dimension are replaced by number; every other dimension is followed."""
    base, index = operand_of(node, 0), operand_of(node, 2)
    dim = wrap(argument(node, 1, "dim"), len(shape(base)))
    source = argument(node, 3, "source")
    rows = isinstance(source, fx.Node) and len(shape(source)) == len(shape(base))
    result = Relation(addressed=[(index, d) for d in range(len(shape(index)))])
    for d in range(len(shape(base))):
        if d == dim:
            result.write(base, d)
        else:
            result.link(base, d, d)
        if rows and d == dim:
            result.addressed.append((source, d))
        elif rows:
            result.link(source, d, d)
    return result


@relation_rule(
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
)
def _scatter(node: fx.Node) -> Relation:
    """The index says where in one dimension; another is followed if the index covers it."""
    base, index = operand_of(node, 0), operand_of(node, 2)
    dim = wrap(argument(node, 1, "dim"), len(shape(base)))
    source = argument(node, 3, "src")
    writers = [n for n in (index, source) if isinstance(n, fx.Node) and shape(n)]
    result = Relation()
    for d, size in enumerate(shape(base)):
        if d != dim and all(shape(n)[d] == size for n in writers):
            for n in (base, *writers):
                result.link(n, d, d)
        else:
            result.write(base, d)
            result.addressed += [(n, d) for n in writers]
    return result


@relation_rule(aten.index_put.default)
def _index_put(node: fx.Node) -> Relation:
    """What `index` reads is written; a mask with one value for all is followed entry by entry."""
    base, values = operand_of(node, 0), operand_of(node, 2)
    given = list(argument(node, 1, "indices"))
    given += [None] * (len(shape(base)) - len(given))
    read = [d for d, index in enumerate(given) if index is not None]
    indices = [given[d] for d in read]
    if any(n.meta["val"].dtype in _MASKS for n in indices):
        return _masked_put(node, base, indices[0], read[0]) if len(read) == 1 else by_number(node)
    wide = max(len(shape(n)) for n in indices)
    first = read[0] if read == list(range(read[0], read[-1] + 1)) else 0
    rest = [d for d in range(len(shape(base))) if d not in read]
    shift = len(rest) + wide - len(shape(values))
    place = {d: (i if i < first else i + wide) - shift for i, d in enumerate(rest)}
    result = Relation(addressed=[(n, d) for n in indices for d in range(len(shape(n)))])
    for d in read:
        result.write(base, d)
    for d in rest:
        result.link(base, d, d)
        if place[d] >= 0 and shape(values)[place[d]] == shape(base)[d]:
            result.link(values, place[d], d)
    followed = set(place.values())
    result.addressed += [(values, d) for d in range(len(shape(values))) if d not in followed]
    return result


def _masked_put(node: fx.Node, base: fx.Node, mask: fx.Node, first: int) -> Relation:
    if operand_of(node, 2).meta["val"].numel() != 1:
        return by_number(node)
    result = Relation()
    for d in range(len(shape(base))):
        result.link(base, d, d)
    for d in range(len(shape(mask))):
        result.link(mask, d, first + d)
    return result


@relation_rule(aten.topk.default, aten.sort.default, aten.sort.stable)
def _ordered(node: fx.Node) -> Relation:
    """The order of a dimension follows its content: its entries are of no frame any more."""
    operand = operand_of(node, 0)
    position = 2 if node.target is aten.topk.default else 1
    dim = wrap(argument(node, position, "dim", -1), len(shape(operand)))
    result = Relation(addressed=[(operand, dim)], kept={dim})
    for d in range(len(shape(operand))):
        if d != dim:
            result.link(operand, d, d)
    return result


@relation_rule(aten.embedding.default)
def _embedding(node: fx.Node) -> Relation:
    table, index = operand_of(node, 0), operand_of(node, 1)
    result = Relation(addressed=[(table, 0)])
    for d in range(len(shape(index))):
        result.link(index, d, d)
    result.link(table, 1, len(shape(index)))
    return result


@relation_rule(aten.bucketize.Tensor)
def _bucketize(node: fx.Node) -> Relation:
    """Each entry is compared with all boundaries."""
    operand, boundaries = operand_of(node, 0), operand_of(node, 1)
    result = Relation(addressed=[(boundaries, 0)])
    for d in range(len(shape(operand))):
        result.link(operand, d, d)
    return result


@relation_rule(aten.one_hot.default)
def _one_hot(node: fx.Node) -> Relation:
    result = Relation()
    for d in range(len(shape(operand_of(node, 0)))):
        result.link(operand_of(node, 0), d, d)
    return result
