"""What an operator makes of divided operands: which dimension of its result is divided then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fisopt.passes.sharding.shard import Shard
from fisopt.rewrite.axes import KEY, FrameAxis, set_axes
from fisopt.rewrite.relations import Link, Relation, relation, virtual_shape
from fisopt.rewrite.relations.table import argument

aten = torch.ops.aten
GATHER = torch.ops.fisopt.gather_frames.default
FILL = torch.ops.fisopt.fill_frames.default
States = Mapping[fx.Node, Shard | None]


@dataclass(frozen=True)
class Followed:
    """An operator that each rank can run on parts of its operands.

    Attributes:
        operands: how each operand is divided, None for whole.
        result: how its result is, None for whole.
    """

    operands: dict[fx.Node, Shard | None]
    result: Shard | None


@contextmanager
def _divided(states: States) -> Iterator[None]:
    """Let the axes of values be those of what is divided, for relations to follow."""
    held = {node: node.meta.get(KEY) for node in states}
    try:
        for node, shard in states.items():
            sizes = virtual_shape(node)
            dims = range(len(sizes))
            set_axes(node, tuple(shard.axis if shard and d == shard.dim else None for d in dims))
        yield
    finally:
        for node, axes in held.items():
            if axes is None:
                node.meta.pop(KEY, None)
            else:
                set_axes(node, axes)


def related(node: fx.Node, states: States) -> Relation:
    """The relation of an operator, told where what is divided lies in its operands."""
    if node.target in (GATHER, FILL):
        return _of_frames(node)
    with _divided({n: states.get(n) for n in node.all_input_nodes}):
        return relation(node)


def placed(node: fx.Node, found: Relation, operand: fx.Node, shard: Shard) -> list[Shard | None]:
    """Where the divided entries of an operand are in the result, None where that is not known."""
    every = [link for link in found.links if (link.operand, link.dim) == (operand, shard.dim)]
    result: list[Shard | None] = []
    for link in every:
        axis = link.convert(shard.axis)
        fits = axis is not None and axis.size == virtual_shape(node)[link.out]
        result.append(Shard(link.out, axis) if axis is not None and fits else None)
    return result


def follow(node: fx.Node, states: States) -> Followed | None:
    """How an operator runs on operands that are divided so, None if it cannot.

    Operands that meet a divided one entry by entry are divided with it.
    """
    found = related(node, states)
    divided = {n: s for n in node.all_input_nodes if (s := states.get(n)) is not None}
    combined = {*found.mixed, *found.addressed}
    outs: list[Shard | None] = []
    for operand, shard in divided.items():
        if (operand, shard.dim) in combined:
            return None
        outs += placed(node, found, operand, shard)
    if not outs:
        return Followed(dict(divided), None)
    result = outs[0]
    if result is None or any(other != result for other in outs) or result.dim in found.kept:
        return None
    operands: dict[fx.Node, Shard | None] = dict(divided)
    for link in found.links:
        if link.out != result.dim or _is_beside(node, link):
            continue
        axis = link.invert(result.axis)
        if axis is None or operands.get(link.operand, Shard(link.dim, axis)) != Shard(
            link.dim, axis
        ):
            return None
        operands[link.operand] = Shard(link.dim, axis)
    return Followed(operands, result)


def _is_beside(node: fx.Node, link: Link) -> bool:
    """Whether an operand is joined to the divided one, in the same dimension."""
    joined = node.target is aten.cat.default
    return joined and link.out == argument(node, 1, "dim", 0) % len(virtual_shape(node))


def _of_frames(node: fx.Node) -> Relation:
    """Gathering and filling frames leaves tokens where they are in a frame, videos in a batch."""
    gathers, args = node.target is GATHER, list[Any](node.args)
    values, dim = (args[:1], args[1]) if gathers else (args[:2], args[2])
    outer, inner, before, after = args[-4:] if gathers else args[-5:-1]
    result = Relation()

    def at(axis: FrameAxis, value: fx.Node) -> FrameAxis | None:
        size = virtual_shape(value)[dim]
        frames = (size - before - after) // (outer * inner)
        if (axis.before, axis.after) != (before, after):
            return None
        if axis.outer * axis.frames == outer and axis.inner % inner == 0:
            return replace(axis, inner=frames * inner)
        alike = axis.frames * axis.inner == inner
        return replace(axis, outer=outer * frames) if alike else None

    for value in values:
        if not isinstance(value, fx.Node):
            continue
        for d in range(len(virtual_shape(value))):
            if d != dim:
                result.link(value, d, d)
            else:
                there = (lambda a: at(a, node), lambda a, v=value: at(a, v))
                result.links.append(Link(value, d, d, *there))
    return result
