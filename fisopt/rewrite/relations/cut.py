"""Operators that take pieces of a dimension, join pieces, or read entries by position."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.axes import FrameAxis, axes_of
from fisopt.rewrite.relations.table import (
    RULES,
    Link,
    Relation,
    argument,
    operand_of,
    relation_rule,
    shape,
    tensors,
    wrap,
)

aten = torch.ops.aten


def _cut(axis: FrameAxis, start: int, end: int) -> FrameAxis | None:
    """Axis of ``[start, end)`` of a dimension; None unless it holds every frame or no change."""
    if start > axis.before or end < axis.before + axis.video:
        return None
    return FrameAxis(
        axis.frames, axis.outer, axis.inner, axis.before - start, end - axis.before - axis.video
    )


def _slice_link(
    result: Relation, operand: fx.Node, dim: int, out: int, start: int, end: int
) -> None:
    """Relate ``operand[dim]`` to its piece: followed, irrelevant (text only) or mixed."""
    axes = axes_of(operand)
    axis = axes[dim] if dim < len(axes) else None
    size = virtual_shape(operand)[dim]
    if axis is None or _cut(axis, start, end) is not None:
        result.links.append(
            Link(
                operand,
                dim,
                out,
                lambda a: _cut(a, start, end),
                lambda a: FrameAxis(
                    a.frames, a.outer, a.inner, a.before + start, a.after + size - end
                ),
            )
        )
    elif not (end <= axis.before or start >= axis.before + axis.video):
        _read_by_number(result, operand, dim, start, end)
        result.kept.add(out)


def _read_by_number(
    result: Relation, operand: fx.Node, dim: int, start: int, end: int, step: int = 1
) -> None:
    """Relate a dimension to some of its entries, which speak of all frames.

    Those of the first frame or of the last are the same ones on any frames that are kept: the
    boundaries are always among them.
    """
    result.mixed.append((operand, dim))
    axis = axes_of(operand)[dim] if carries(operand, dim) else None
    if axis is None:
        return
    first, last = axis.before + axis.inner, axis.before + axis.video - axis.inner
    if step != 1 or axis.outer != 1 or (first < end and start < last):
        result.addressed.append((operand, dim))
    else:
        result.ends.append((operand, dim))


def bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Clamp slice bounds as Python and ATen do."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


@relation_rule(aten.slice.Tensor, aten.narrow.default)
def _slice(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    dim = wrap(argument(node, 1, "dim", 0), len(shape(operand)))
    result = Relation()
    for d in range(len(shape(operand))):
        if d != dim:
            result.link(operand, d, d)
    if node.target is aten.narrow.default:
        start, step = wrap(argument(node, 2, "start"), shape(operand)[dim]), 1
        end = start + argument(node, 3, "length")
    else:
        start, end = bounds(
            argument(node, 2, "start"), argument(node, 3, "end"), shape(operand)[dim]
        )
        step = argument(node, 4, "step", 1)
    if step != 1:
        _read_by_number(result, operand, dim, start, end, step)
        result.kept.add(dim)
    else:
        _slice_link(result, operand, dim, dim, start, end)
        if not carries(operand, dim) and (written := _written(operand, dim)) is not None:
            result.placed.append(_read_back(*written, dim, shape(operand)[dim], start, end))
    return result


def _written(buffer: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
    """What was written last into a dimension of a buffer, and the position of its first entry."""
    if buffer.target in (aten.alias.default, aten.clone.default):
        return _written(operand_of(buffer, 0), dim)
    if buffer.target is aten.slice_scatter.default and argument(buffer, 5, "step", 1) == 1:
        at = wrap(argument(buffer, 2, "dim", 0), len(shape(buffer)))
        if at == dim:
            return operand_of(buffer, 1), bounds(*_ends(buffer), shape(buffer)[dim])[0]
        return None
    if buffer.target is aten.index_copy.default and buffer.args[1] == dim:
        first = _counted_from(operand_of(buffer, 2))
        return None if first is None else (operand_of(buffer, 3), first)
    if buffer.target is aten.select.int:
        row, source = argument(buffer, 1, "dim"), operand_of(buffer, 0)
        if source.target is aten.select_scatter.default and source.args[2:] == buffer.args[1:]:
            return _written(operand_of(source, 1), dim)
        return _written(source, dim if dim < row else dim + 1)
    return None


def _counted_from(index: fx.Node) -> int | None:
    """The first of numbers that count up by one, None if they may not."""
    if index.target is aten.arange.start and isinstance(index.args[0], int):
        return index.args[0]
    return 0 if index.target is aten.arange.default else None


def _ends(node: fx.Node) -> tuple[int | None, int | None]:
    return argument(node, 3, "start"), argument(node, 4, "end")


def _read_back(source: fx.Node, at: int, dim: int, size: int, start: int, end: int) -> Link:
    """The frames of ``buffer[start:end]`` where ``source`` was written at ``at``."""
    behind = size - at - shape(source)[dim]

    def convert(a: FrameAxis) -> FrameAxis | None:
        return _cut(replace(a, before=a.before + at, after=a.after + behind), start, end)

    return Link(source, dim, dim, convert, lambda _: None)


@relation_rule(aten.select.int)
def _select(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    dim = wrap(argument(node, 1, "dim"), len(shape(operand)))
    index = wrap(argument(node, 2, "index"), shape(operand)[dim])
    result = Relation()
    _read_by_number(result, operand, dim, index, index + 1)
    for d in range(len(shape(operand))):
        if d != dim:
            result.link(operand, d, d if d < dim else d - 1)
    return result


@relation_rule(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    aten.split.sizes,
)
def _split(node: fx.Node) -> Relation:
    """A split's own dimensions are its operand's; `getitem` does the cutting."""
    operand = operand_of(node, 0)
    result = Relation()
    for d in range(len(shape(operand))):
        result.link(operand, d, d)
    return result


def split_dim(node: fx.Node) -> int | None:
    """Dimension that a split-like node cuts, None for other multi-output operators."""
    names = {
        aten.split.Tensor: 2,
        aten.split.sizes: 2,
        aten.split_with_sizes.default: 2,
        aten.chunk.default: 2,
        aten.unbind.int: 1,
    }
    if node.target not in names:
        return None
    return wrap(argument(node, names[node.target], "dim", 0), len(shape(operand_of(node, 0))))


def virtual_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape over which a node's axes are kept: its value's, or its operand's for a split."""
    if node.op == "call_function" and split_dim(node) is not None:
        return shape(operand_of(node, 0))
    return shape(node)


def _getitem(node: fx.Node) -> Relation:
    source, index = operand_of(node, 0), argument(node, 1, "index")
    result = Relation()
    cut = split_dim(source) if source.op == "call_function" else None
    if cut is None:
        for d in range(len(shape(node))):
            result.link(source, d, d)
        return result
    unbound = source.target is aten.unbind.int
    start = 0
    for piece in source.meta["val"][:index]:
        start += 1 if unbound else piece.shape[cut]
    for d in range(len(virtual_shape(source))):
        if d != cut:
            result.link(source, d, d - 1 if unbound and d > cut else d)
    if unbound:
        _read_by_number(result, source, cut, start, start + 1)
        return result
    _slice_link(result, source, cut, cut, start, start + shape(node)[cut])
    return result


RULES[operator.getitem] = _getitem


def shifted(before: int, after: int) -> tuple[Any, Any]:
    """Conversions of an axis whose dimension gains entries on both sides, and back."""

    def grow(a: FrameAxis) -> FrameAxis:
        return replace(a, before=a.before + before, after=a.after + after)

    def shrink(a: FrameAxis) -> FrameAxis | None:
        if a.before < before or a.after < after:
            return None
        return replace(a, before=a.before - before, after=a.after - after)

    return grow, shrink


@relation_rule(aten.cat.default)
def _cat(node: fx.Node) -> Relation:
    """Joined text moves the video along; two framed operands on the joined dimension mix."""
    parts = [n for n in argument(node, 0, "tensors") if isinstance(n, fx.Node)]
    parts = [n for n in parts if shape(n) != (0,)]
    dim = wrap(argument(node, 1, "dim", 0), len(shape(node)))
    sizes = [shape(part)[dim] for part in parts]
    framed = [part for part in parts if (a := axes_of(part)) and a[dim] is not None]
    result = Relation()
    for i, part in enumerate(parts):
        for d in range(len(shape(part))):
            if d != dim:
                result.link(part, d, d)
        if len(framed) > 1:
            result.mixed.append((part, dim))
            result.kept.add(dim)
        else:
            grow, shrink = shifted(sum(sizes[:i]), sum(sizes[i + 1 :]))
            result.links.append(Link(part, dim, dim, grow, shrink))
    return result


@relation_rule(aten.stack.default)
def _stack(node: fx.Node) -> Relation:
    dim = wrap(argument(node, 1, "dim", 0), len(shape(node)))
    result = Relation()
    for part in tensors(node):
        for d in range(len(shape(part))):
            result.link(part, d, d if d < dim else d + 1)
    return result


@relation_rule(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(node: fx.Node) -> Relation:
    """Every dimension but the written one is followed, and that too if no frame is divided."""
    base, source = operand_of(node, 0), operand_of(node, 1)
    dim = wrap(argument(node, 2, "dim", 0), len(shape(base)))
    selected = node.target is aten.select_scatter.default
    result = Relation()
    for d in range(len(shape(base))):
        if d == dim:
            _write_slice(result, node, d)
            continue
        result.link(base, d, d)
        result.link(source, d - 1 if selected and d > dim else d, d)
    return result


def _write_slice(result: Relation, node: fx.Node, dim: int) -> None:
    """Relate the dimension in which a slice is written: text, every frame, or by position."""
    base, source = operand_of(node, 0), operand_of(node, 1)
    selected = node.target is aten.select_scatter.default
    axis = axes_of(base)[dim] if carries(base, dim) else None
    if not selected and axis is not None and argument(node, 5, "step", 1) == 1:
        start, end = bounds(*_ends(node), shape(base)[dim])
        text = end <= axis.before or start >= axis.before + axis.video
        if text or _cut(axis, start, end) is not None:
            result.link(base, dim, dim)
            if not text:
                grow, shrink = shifted(start, shape(base)[dim] - end)
                result.links.append(Link(source, dim, dim, grow, shrink))
            return
    result.write(base, dim)
    if not selected:
        result.addressed.append((source, dim))


def carries(node: fx.Node, dim: int) -> bool:
    """Whether a dimension of a node's value is known to carry frames."""
    axes = axes_of(node)
    return dim < len(axes) and axes[dim] is not None
