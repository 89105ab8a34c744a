"""How one operator relates the dimensions of its operands to those of its result.

The table serves two analyses: axes flow forwards along a relation (`axes`), frame demand
flows backwards (`demand`). An operator that is not in the table is a barrier: every operand
dimension counts as mixed, which is always correct and never sparse.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.axes import FrameAxis, axes_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Link:
    """Entry i of an operand's dimension reaches only entry i of the result's dimension ``out``.

    ``convert`` turns the operand's frame axis into the result's and ``invert`` the result's
    into the operand's; both return None where the axis cannot be followed.
    """

    operand: fx.Node
    dim: int
    out: int
    convert: Callable[[FrameAxis], FrameAxis | None] = lambda axis: axis
    invert: Callable[[FrameAxis], FrameAxis | None] = lambda axis: axis


@dataclass
class Relation:
    """What an operator does with the dimensions of its operands.

    Attributes:
        links: dimensions followed one to one.
        mixed: operand dimensions whose entries are combined (contraction, softmax, reduction).
        kept: result dimensions computed from a mixed operand dimension of the same position.
        ties: pairs of operand dimensions that are combined entry by entry.
        constant: result dimensions along which the value does not change (broadcast, fill).
        barrier: the operator is not in the table.
    """

    links: list[Link] = field(default_factory=list)
    mixed: list[tuple[fx.Node, int]] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    ties: list[tuple[tuple[fx.Node, int], tuple[fx.Node, int]]] = field(default_factory=list)
    constant: set[int] = field(default_factory=set)
    barrier: bool = False

    def link(self, operand: fx.Node, dim: int, out: int) -> None:
        """Add a plain one-to-one link."""
        self.links.append(Link(operand, dim, out))


Rule = Callable[[fx.Node], Relation]
_RULES: dict[Any, Rule] = {}


def relation_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the relation of some operators; registering one twice is an error."""

    def register(rule: Rule) -> Rule:
        for target in targets:
            if target in _RULES:
                raise ValueError(f"{target} has a relation already")
            _RULES[target] = rule
        return rule

    return register


def relation(node: fx.Node) -> Relation:
    """Return the relation of a call node, a barrier where none is registered."""
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node)
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return _pointwise(node)
    return _barrier(node)


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's value; of a tuple of values, that of its first tensor."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        value = next((v for v in value if isinstance(v, torch.Tensor)), None)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def tensors(node: fx.Node) -> list[fx.Node]:
    """Operand nodes that hold tensors, each once, in order."""
    return [n for n in node.all_input_nodes if shape(n) or isinstance(n.meta.get("val"), torch.Tensor)]


def _arg(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def _node(node: fx.Node, index: int) -> fx.Node:
    operand = node.args[index]
    if not isinstance(operand, fx.Node):
        raise TypeError(f"{node.format_node()}: argument {index} is not a tensor")
    return operand


def _wrap(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _dims(value: Any, rank: int) -> set[int]:
    if value is None or value == []:
        return set(range(rank))
    return {_wrap(d, rank) for d in (value if isinstance(value, (list, tuple)) else [value])}


def _barrier(node: fx.Node) -> Relation:
    mixed = [(operand, d) for operand in tensors(node) for d in range(len(shape(operand)))]
    return Relation(mixed=mixed, kept=set(range(len(shape(node)))), barrier=True)


def _pointwise(node: fx.Node) -> Relation:
    """Align operands on the right; a stretched dimension is constant where nobody fills it."""
    out = shape(node)
    result = Relation()
    filled = set()
    for operand in tensors(node):
        sizes = shape(operand)
        for back in range(1, len(sizes) + 1):
            if sizes[-back] == out[-back]:
                result.link(operand, len(sizes) - back, len(out) - back)
                filled.add(len(out) - back)
    result.constant = set(range(len(out))) - filled
    return result


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
)(_pointwise)


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


def _along(operand: fx.Node, mixed_dims: set[int]) -> Relation:
    """Keep the shape, combine the entries along some dimensions."""
    result = Relation(kept=set(mixed_dims))
    for d in range(len(shape(operand))):
        if d in mixed_dims:
            result.mixed.append((operand, d))
        else:
            result.link(operand, d, d)
    return result


@relation_rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.cumsum.default)
def _softmax(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    return _along(operand, _dims(_arg(node, 1, "dim"), len(shape(operand))))


@relation_rule(aten.flip.default)
def _flip(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    return _along(operand, _dims(node.args[1], len(shape(operand))))


@relation_rule(aten.roll.default)
def _roll(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    return _along(operand, _dims(_arg(node, 2, "dims"), len(shape(operand))))


@relation_rule(aten.layer_norm.default, aten.rms_norm.default, aten.native_layer_norm.default)
def _norm(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    rank = len(shape(operand))
    normalized = node.args[1]
    width = len(normalized) if isinstance(normalized, (list, tuple)) else 1
    return _along(operand, set(range(rank - width, rank)))


@relation_rule(aten.group_norm.default)
def _group_norm(node: fx.Node) -> Relation:
    operand = _node(node, 0)
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
)
def _reduce(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    rank = len(shape(operand))
    reduced = _dims(_arg(node, 1, "dim"), rank)
    return _reduction(node, operand, reduced)


@relation_rule(aten.linalg_vector_norm.default)
def _vector_norm(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    return _reduction(node, operand, _dims(_arg(node, 2, "dim"), len(shape(operand))))


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
    if len(source) == 1 and axis.size in target:
        if all(size == 1 for size in target if size != axis.size):
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


@relation_rule(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
)
def _view(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    return _reshaped(operand, shape(operand), shape(node))


def _reshaped(operand: fx.Node, source: tuple[int, ...], target: tuple[int, ...]) -> Relation:
    result = Relation()
    axes = axes_of(operand)
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


@relation_rule(
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims
)
def _squeeze(node: fx.Node) -> Relation:
    """Follow the dimensions in order; those that come or go have size one."""
    operand = _node(node, 0)
    source, target = shape(operand), shape(node)
    result = Relation()
    if node.target is aten.unsqueeze.default:
        gone = _wrap(int(node.args[1]), len(target))  # type: ignore[arg-type]
        for d in range(len(source)):
            result.link(operand, d, d if d < gone else d + 1)
        return result
    dims = _dims(_arg(node, 1, "dim"), len(source))
    out = 0
    for d, size in enumerate(source):
        if d in dims and size == 1:
            continue
        result.link(operand, d, out)
        out += 1
    return result


@relation_rule(aten.permute.default)
def _permute(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    result = Relation()
    for out, d in enumerate(node.args[1]):  # type: ignore[arg-type]
        result.link(operand, _wrap(d, len(shape(operand))), out)  # type: ignore[arg-type]
    return result


@relation_rule(aten.transpose.int, aten.t.default, aten.numpy_T.default)
def _transpose(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    order = list(range(len(shape(operand))))
    if node.target is aten.transpose.int:
        a, b = (_wrap(int(d), len(order)) for d in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    result = Relation()
    for out, d in enumerate(order):
        result.link(operand, d, out)
    return result


@relation_rule(aten.expand.default)
def _expand(node: fx.Node) -> Relation:
    return _pointwise(node)


@relation_rule(aten.repeat.default)
def _repeat(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    source, times = shape(operand), list(node.args[1])  # type: ignore[arg-type]
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
    operand = _node(node, 0)
    times = int(node.args[1])  # type: ignore[arg-type]
    dims = _dims(_arg(node, 2, "dim"), len(shape(operand)))
    if len(dims) != 1:
        return _barrier(node)
    result = Relation()
    for d in range(len(shape(operand))):
        if d not in dims:
            result.link(operand, d, d)
        elif shape(operand)[d] == 1:
            result.constant.add(d)
        else:
            result.links.append(
                Link(
                    operand,
                    d,
                    d,
                    lambda a: FrameAxis(a.frames, a.outer, a.inner * times) if a.pure else None,
                    lambda a: (
                        FrameAxis(a.frames, a.outer, a.inner // times)
                        if a.pure and a.inner % times == 0
                        else None
                    ),
                )
            )
    return result


def _cut(axis: FrameAxis, start: int, end: int) -> FrameAxis | None:
    """Axis of ``[start, end)`` of a dimension; None unless it holds every frame or no change."""
    if start > axis.before or end < axis.before + axis.video:
        return None
    return FrameAxis(
        axis.frames, axis.outer, axis.inner, axis.before - start, end - axis.before - axis.video
    )


def _slice_link(result: Relation, operand: fx.Node, dim: int, out: int, start: int, end: int) -> None:
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
                lambda a: (
                    FrameAxis(
                        a.frames, a.outer, a.inner, a.before + start, a.after + size - end
                    )
                ),
            )
        )
    elif not (end <= axis.before or start >= axis.before + axis.video):
        result.mixed.append((operand, dim))
        result.kept.add(out)


def bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Clamp slice bounds as Python and ATen do."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


@relation_rule(aten.slice.Tensor, aten.narrow.default)
def _slice(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    dim = _wrap(_arg(node, 1, "dim", 0), len(shape(operand)))
    result = Relation()
    for d in range(len(shape(operand))):
        if d != dim:
            result.link(operand, d, d)
    if node.target is aten.narrow.default:
        start, end, step = int(node.args[2]), int(node.args[2]) + int(node.args[3]), 1  # type: ignore[arg-type]
    else:
        start, end = bounds(
            _arg(node, 2, "start"), _arg(node, 3, "end"), shape(operand)[dim]
        )
        step = _arg(node, 4, "step", 1)
    if step != 1:
        result.mixed.append((operand, dim))
        result.kept.add(dim)
    else:
        _slice_link(result, operand, dim, dim, start, end)
    return result


@relation_rule(aten.select.int)
def _select(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    dim = _wrap(int(node.args[1]), len(shape(operand)))  # type: ignore[arg-type]
    result = Relation(mixed=[(operand, dim)])
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
    operand = _node(node, 0)
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
    return _wrap(_arg(node, names[node.target], "dim", 0), len(shape(_node(node, 0))))


def virtual_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape over which a node's axes are kept: its value's, or its operand's for a split."""
    if node.op == "call_function" and split_dim(node) is not None:
        return shape(_node(node, 0))
    return shape(node)


def _getitem(node: fx.Node) -> Relation:
    source, index = _node(node, 0), int(node.args[1])  # type: ignore[arg-type]
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
        result.mixed.append((source, cut))
        return result
    _slice_link(result, source, cut, cut, start, start + shape(node)[cut])
    return result


_RULES[operator.getitem] = _getitem


def _shifted(before: int, after: int) -> tuple[Any, Any]:
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
    parts: list[fx.Node] = [n for n in node.args[0] if isinstance(n, fx.Node)]  # type: ignore[union-attr]
    parts = [n for n in parts if shape(n) != (0,)]
    dim = _wrap(_arg(node, 1, "dim", 0), len(shape(node)))
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
            grow, shrink = _shifted(sum(sizes[:i]), sum(sizes[i + 1 :]))
            result.links.append(Link(part, dim, dim, grow, shrink))
    return result


@relation_rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(node: fx.Node) -> Relation:
    operand = _node(node, 0)
    if node.target is aten.pad.default and _arg(node, 2, "mode", "constant") != "constant":
        return _barrier(node)
    rank = len(shape(operand))
    pads = list(node.args[1])  # type: ignore[arg-type]
    result = Relation()
    for d in range(rank):
        k = 2 * (rank - 1 - d)
        before, after = (pads[k], pads[k + 1]) if k + 1 < len(pads) else (0, 0)
        grow, shrink = _shifted(before, after)
        result.links.append(Link(operand, d, d, grow, shrink))
    return result


@relation_rule(aten.stack.default)
def _stack(node: fx.Node) -> Relation:
    dim = _wrap(_arg(node, 1, "dim", 0), len(shape(node)))
    result = Relation()
    for part in tensors(node):
        for d in range(len(shape(part))):
            result.link(part, d, d if d < dim else d + 1)
    return result


@relation_rule(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(node: fx.Node) -> Relation:
    """Writing at positions of a framed dimension mixes it; every other dimension is followed."""
    base, source = _node(node, 0), _node(node, 1)
    dim = _wrap(_arg(node, 2, "dim", 0), len(shape(base)))
    selected = node.target is aten.select_scatter.default
    result = Relation()
    for d in range(len(shape(base))):
        if d == dim and carries(base, d):
            result.mixed.append((base, d))
            result.kept.add(d)
            if not selected:
                result.mixed.append((source, d))
            continue
        result.link(base, d, d)
        if d != dim:
            result.link(source, d - 1 if selected and d > dim else d, d)
    return result


def carries(node: fx.Node, dim: int) -> bool:
    """Whether a dimension of a node's value is known to carry frames."""
    axes = axes_of(node)
    return dim < len(axes) and axes[dim] is not None


@relation_rule(aten.index_select.default)
def _index_select(node: fx.Node) -> Relation:
    operand, index = _node(node, 0), _node(node, 2)
    dim = _wrap(int(node.args[1]), len(shape(operand)))  # type: ignore[arg-type]
    result = Relation(mixed=[(operand, dim)])
    for d in range(len(shape(operand))):
        if d != dim:
            result.link(operand, d, d)
    result.link(index, 0, dim)
    return result


@relation_rule(aten.embedding.default)
def _embedding(node: fx.Node) -> Relation:
    table, index = _node(node, 0), _node(node, 1)
    result = Relation(mixed=[(table, 0)])
    for d in range(len(shape(index))):
        result.link(index, d, d)
    result.link(table, 1, len(shape(index)))
    return result


@relation_rule(aten.linear.default)
def _linear(node: fx.Node) -> Relation:
    x = _node(node, 0)
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


@relation_rule(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default)
def _matmul(node: fx.Node) -> Relation:
    return _contract(Relation(), _node(node, 0), _node(node, 1), len(shape(node)))


@relation_rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(node: fx.Node) -> Relation:
    out = shape(node)
    result = Relation()
    bias = shape(_node(node, 0))
    for back in range(1, len(bias) + 1):
        if bias[-back] == out[-back]:
            result.link(_node(node, 0), len(bias) - back, len(out) - back)
    return _contract(result, _node(node, 1), _node(node, 2), len(out))


@relation_rule(aten.scaled_dot_product_attention.default)
def _attention(node: fx.Node) -> Relation:
    """Queries are followed, keys and values (and the mask's key dimension) are combined."""
    query, key, value = (_node(node, i) for i in range(3))
    rank = len(shape(node))
    result = Relation()
    for operand in (query, key, value):
        for d in range(rank - 2):
            if shape(operand)[d] == shape(node)[d]:
                result.link(operand, d, d)
        result.mixed.append((operand, rank - 1 if operand is not value else rank - 2))
    result.link(query, rank - 2, rank - 2)
    result.mixed.append((key, rank - 2))
    result.ties.append(((key, rank - 2), (value, rank - 2)))
    result.link(value, rank - 1, rank - 1)
    mask = _arg(node, 3, "attn_mask")
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
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.conv2d.padding,
    aten.convolution.default,
)
def _convolution(node: fx.Node) -> Relation:
    """Follow the batch, and each spatial dimension whose kernel covers one entry."""
    x, weight = _node(node, 0), _node(node, 1)
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
