"""Operators that keep every entry and change its place: views, permutations, repetitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx

from fisopt.rewrite.axes import FrameAxis, axes_of
from fisopt.rewrite.relations.table import (
    Link,
    Relation,
    argument,
    barrier,
    dims_of,
    operand_of,
    pointwise,
    relation_rule,
    shape,
    wrap,
)
from fisopt.rewrite.views import CUTS, ONES, ORDERS

aten = torch.ops.aten


def _groups(a: tuple[int, ...], b: tuple[int, ...]) -> Iterator[tuple[range, range]]:
    """Cut two shapes of equal size into the finest runs of dimensions with equal products."""
    i = j = 0
    while i < len(a) or j < len(b):
        i0, j0 = i, j
        left = a[i] if i < len(a) else 1
        right = b[j] if j < len(b) else 1
        i, j = min(i + 1, len(a)), min(j + 1, len(b))
        while left != right:
            if left < right:
                left, i = left * a[i], i + 1
            else:
                right, j = right * b[j], j + 1
        yield range(i0, i), range(j0, j)


def _place(
    axis: FrameAxis, dim: int, source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[int, FrameAxis] | None:
    """Find the dimension of a reshaped run that holds the frames of ``source[dim]``."""
    alone = all(size == 1 for size in target if size != axis.size)
    if len(source) == 1 and axis.size in target and alone:
        return target.index(axis.size), axis
    if not axis.pure:
        if all(size == 1 for i, size in enumerate(source) if i != dim) and axis.size in target:
            return target.index(axis.size), axis
        return None
    outer = math.prod(source[:dim]) * axis.outer
    inner = axis.inner * math.prod(source[dim + 1 :])
    for e, size in enumerate(target):
        before, after = math.prod(target[:e]), math.prod(target[e + 1 :])
        if outer % before == 0 and inner % after == 0:
            found = FrameAxis(axis.frames, outer // before, inner // after)
            if found.size == size:
                return e, found
    return None


def of_dims(view: fx.Node, dim: int) -> range:
    """The dimensions of a view's operand of whose entries one of its dimensions is made."""
    source, target = shape(operand_of(view, 0)), shape(view)
    runs = _groups(source, target) if 0 not in source else ()
    return next((left for left, right in runs if dim in right), range(0))


@relation_rule(*CUTS)
def _view(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    return _reshaped(operand, shape(operand), shape(node))


def _reshaped(operand: fx.Node, source: tuple[int, ...], target: tuple[int, ...]) -> Relation:
    result = Relation()
    axes = axes_of(operand)
    if 0 in source:
        return result
    for left, right in _groups(source, target):
        run_in = tuple(source[d] for d in left)
        run_out = tuple(target[d] for d in right)
        framed = [d for d in left if d < len(axes) and axes[d] is not None]
        if len(framed) == 1 and (axis := axes[framed[0]]) is not None:
            d = framed[0]
            place = _place(axis, d - left.start, run_in, run_out)
            if place is None:
                result.mixed += [(operand, x) for x in left]
                result.kept |= set(right)
                continue
            out = right.start + place[0]
            result.links.append(_reshape_link(operand, d, out, left, right, run_in, run_out))
        elif len(framed) > 1:
            result.mixed += [(operand, x) for x in left]
            result.kept |= set(right)
        elif len(left) == 1:
            # the frames of a result dimension may be known before those of the operand
            for out in right:
                result.links.append(
                    _reshape_link(operand, left.start, out, left, right, run_in, run_out)
                )
    return result


def _reshape_link(
    operand: fx.Node,
    dim: int,
    out: int,
    left: range,
    right: range,
    run_in: tuple[int, ...],
    run_out: tuple[int, ...],
) -> Link:
    def convert(axis: FrameAxis) -> FrameAxis | None:
        place = _place(axis, dim - left.start, run_in, run_out)
        return place[1] if place is not None and right.start + place[0] == out else None

    def invert(axis: FrameAxis) -> FrameAxis | None:
        place = _place(axis, out - right.start, run_out, run_in)
        return place[1] if place is not None and left.start + place[0] == dim else None

    return Link(operand, dim, out, convert, invert)


@relation_rule(*ONES)
def _squeeze(node: fx.Node) -> Relation:
    """Follow the dimensions in order; those that come or go have size one."""
    operand = operand_of(node, 0)
    source, target = shape(operand), shape(node)
    result = Relation()
    if node.target is aten.unsqueeze.default:
        gone = wrap(argument(node, 1, "dim"), len(target))
        for d in range(len(source)):
            result.link(operand, d, d if d < gone else d + 1)
        return result
    dims = dims_of(argument(node, 1, "dim"), len(source))
    out = 0
    for d, size in enumerate(source):
        if d in dims and size == 1:
            continue
        result.link(operand, d, out)
        out += 1
    return result


@relation_rule(aten.permute.default)
def _permute(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    result = Relation()
    for out, d in enumerate(argument(node, 1, "dims")):
        result.link(operand, wrap(d, len(shape(operand))), out)
    return result


@relation_rule(*(o for o in ORDERS if o is not aten.permute.default))
def _transpose(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    order = list(range(len(shape(operand))))
    if node.target is aten.transpose.int:
        a = wrap(argument(node, 1, "dim0"), len(order))
        b = wrap(argument(node, 2, "dim1"), len(order))
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    result = Relation()
    for out, d in enumerate(order):
        result.link(operand, d, out)
    return result


@relation_rule(aten.expand.default)
def _expand(node: fx.Node) -> Relation:
    return pointwise(node)


@relation_rule(aten.repeat.default)
def _repeat(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    source, times = shape(operand), list(argument(node, 1, "repeats"))
    shift = len(times) - len(source)
    result = Relation()
    for out, count in enumerate(times):
        d = out - shift
        if d < 0 or source[d] == 1:
            result.constant.add(out)
        elif count == 1:
            result.link(operand, d, out)
        else:
            result.mixed.append((operand, d))
            result.kept.add(out)
    return result


@relation_rule(aten.repeat_interleave.self_int)
def _repeat_interleave(node: fx.Node) -> Relation:
    operand = operand_of(node, 0)
    times = int(argument(node, 1, "repeats"))
    dims = dims_of(argument(node, 2, "dim"), len(shape(operand)))
    if len(dims) != 1:
        return barrier(node)
    result = Relation()
    for d in range(len(shape(operand))):
        if d not in dims:
            result.link(operand, d, d)
        elif shape(operand)[d] == 1:
            result.constant.add(d)
        else:
            result.links.append(_repeated(operand, d, times))
    return result


def _repeated(operand: fx.Node, dim: int, times: int) -> Link:
    """Every entry of a dimension becomes several in a row."""

    def convert(a: FrameAxis) -> FrameAxis | None:
        return FrameAxis(a.frames, a.outer, a.inner * times) if a.pure else None

    def invert(a: FrameAxis) -> FrameAxis | None:
        whole = a.pure and a.inner % times == 0
        return FrameAxis(a.frames, a.outer, a.inner // times) if whole else None

    return Link(operand, dim, dim, convert, invert)


@relation_rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default)
def _pixel_shuffle(node: fx.Node) -> Relation:
    """Rows and columns become several, or several become one; channels are combined."""
    operand, factor = operand_of(node, 0), int(argument(node, 1, "upscale_factor"))
    rank = len(shape(operand))
    result = Relation(mixed=[(operand, rank - 3)], kept={rank - 3})
    for d in range(rank):
        if d < rank - 3:
            result.link(operand, d, d)
        elif d > rank - 3:
            link = _repeated(operand, d, factor)
            if node.target is aten.pixel_unshuffle.default:
                link = replace(link, convert=link.invert, invert=link.convert)
            result.links.append(link)
    return result


@relation_rule(aten.view_as_complex.default, aten.view_as_real.default)
def _complex_view(node: fx.Node) -> Relation:
    """The last dimension of pairs comes or goes; every other is followed."""
    operand = operand_of(node, 0)
    result = Relation()
    for d in range(min(len(shape(operand)), len(shape(node)))):
        result.link(operand, d, d)
    if node.target is aten.view_as_complex.default:
        result.mixed.append((operand, len(shape(operand)) - 1))
    return result


@relation_rule(aten.unfold.default)
def _unfold(node: fx.Node) -> Relation:
    """Windows of one dimension; those of one entry each keep it as it is."""
    operand = operand_of(node, 0)
    dim = wrap(argument(node, 1, "dimension"), len(shape(operand)))
    alone = argument(node, 2, "size") == argument(node, 3, "step") == 1
    result = Relation()
    for d in range(len(shape(operand))):
        if d != dim or alone:
            result.link(operand, d, d)
        else:
            result.mixed.append((operand, d))
            result.kept.add(d)
    return result
