"""Operators that add entries at the ends of a dimension."""

from __future__ import annotations

import torch
from torch import fx

from fisopt.rewrite.relations.cut import shifted
from fisopt.rewrite.relations.table import (
    Link,
    Relation,
    argument,
    operand_of,
    relation_rule,
    shape,
)

aten = torch.ops.aten


@relation_rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    if node.target is aten.pad.default and argument(node, 2, "mode", "constant") != "constant":
        return _pad_from_edges(node)
    rank = len(shape(operand))
    pads = list(argument(node, 1, "pad"))
    result = Relation()
    for d in range(rank):
        k = 2 * (rank - 1 - d)
        before, after = (pads[k], pads[k + 1]) if k + 1 < len(pads) else (0, 0)
        grow, shrink = shifted(before, after)
        result.links.append(Link(operand, d, d, grow, shrink))
    return result


@relation_rule(
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
)
def _pad_from_edges(node: fx.Node) -> Relation:
    """A dimension that repeats its own edges is combined; every other is followed."""
    operand = operand_of(node, 0)
    pads = list(argument(node, 1, "pad", argument(node, 1, "padding")))
    result = Relation()
    for d in range(len(shape(operand))):
        k = 2 * (len(shape(operand)) - 1 - d)
        if any(pads[k : k + 2]):
            result.mixed.append((operand, d))
            result.kept.add(d)
        else:
            result.link(operand, d, d)
    return result
