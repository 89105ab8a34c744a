"""Numbers in an operator's call that speak of how long a divided dimension is."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fisopt.passes.sharding.followed import FILL, GATHER, Followed
from fisopt.passes.sharding.shard import Shard, part
from fisopt.rewrite.relations import split_dim
from fisopt.rewrite.relations.cut import bounds
from fisopt.rewrite.relations.table import argument, operand_of, shape, wrap
from fisopt.rewrite.views import BY_SIZES

aten = torch.ops.aten
_SLICES = (aten.slice.Tensor, aten.narrow.default)
_BY_LENGTHS = (aten.split_with_sizes.default, aten.split.sizes)
_BY_POSITION = (aten.slice_scatter.default, aten.select.int, aten.select_scatter.default)


def arguments(node: fx.Node, followed: Followed, ranks: int) -> tuple[Any, ...] | None:
    """The arguments of a call on one rank's parts, before its operands are exchanged.

    None if one of the numbers has no meaning there.
    """
    args, out = list(node.args), followed.result
    if node.target in BY_SIZES and out is not None:
        sizes: Any = args[1]
        if sizes[out.dim] != -1:
            args[1] = [*sizes[: out.dim], out.local(ranks).size, *sizes[out.dim + 1 :]]
    elif node.target is aten.unflatten.int and out is not None:
        dim = wrap(argument(node, 1, "dim"), len(shape(operand_of(node, 0))))
        inner = list[Any](args[2])  # type: ignore[arg-type]
        if 0 <= out.dim - dim < len(inner):
            inner[out.dim - dim] = out.local(ranks).size
        args[2] = inner
    elif node.target in (GATHER, FILL):
        return _of_frames(node, followed, ranks)
    else:
        return _by_position(node, followed, ranks)
    return tuple(args)


def _of_frames(node: fx.Node, followed: Followed, ranks: int) -> tuple[Any, ...]:
    """Gathering and filling of frames say how many videos there are, and tokens of a frame."""
    args, out = list(node.args), followed.result
    dim, outer, inner = (1, 3, 4) if node.target is GATHER else (2, 7, 8)
    if out is not None and out.dim == args[dim]:
        local = out.local(ranks)
        if args[outer] == out.axis.outer * out.axis.frames:
            args[outer] = local.outer * local.frames
        else:
            args[inner] = local.frames * local.inner
    return tuple(args)


def _by_position(node: fx.Node, followed: Followed, ranks: int) -> tuple[Any, ...] | None:
    """Operators that say by numbers which part of a dimension they read or write."""
    first = node.args[0] if node.args else None
    shard = followed.operands.get(first) if isinstance(first, fx.Node) else None
    if shard is None or not isinstance(first, fx.Node):
        return node.args
    if node.target in _SLICES:
        return _slice(node, first, shard, ranks)
    if split_dim(node) == shard.dim:
        return _split(node, shard, ranks) if node.target in _BY_LENGTHS else None
    if node.target in _BY_POSITION:
        where = 2 if "scatter" in str(node.target) else 1
        dim = wrap(argument(node, where, "dim", 0), len(shape(first)))
        return None if dim == shard.dim else node.args
    return node.args


def _slice(node: fx.Node, operand: fx.Node, shard: Shard, ranks: int) -> tuple[Any, ...] | None:
    """A slice of text, or of all that is divided and perhaps text."""
    rank = len(shape(operand))
    dim = wrap(argument(node, 1, "dim", 0), rank)
    if dim != shard.dim:
        return node.args
    if node.kwargs:
        return None
    size, axis = shape(operand)[dim], shard.axis
    start = argument(node, 2, "start")
    if node.target is aten.narrow.default:
        end = wrap(start, size) + argument(node, 3, "length")
    else:
        end = argument(node, 3, "end")
    start, end = bounds(start, end, size)
    shorter = size - shard.local(ranks).size
    video_end = axis.before + axis.video
    start, end = (n - shorter if n >= video_end else n for n in (start, end))
    if node.target is aten.narrow.default:
        return (operand, dim, start, end - start)
    return (operand, dim, start, end)


def _split(node: fx.Node, shard: Shard, ranks: int) -> tuple[Any, ...] | None:
    """A split by lengths, where one of the pieces has all that is divided."""
    lengths = list[Any](node.args[1])  # type: ignore[arg-type]
    start, axis = 0, shard.axis
    for i, length in enumerate(lengths):
        if start <= axis.before and start + length >= axis.before + axis.video:
            lengths[i] -= axis.video - part(axis.frames, ranks) * axis.outer * axis.inner
            return (node.args[0], lengths, *node.args[2:])
        start += length
    return None
