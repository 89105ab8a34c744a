"""What each operator does to one element: the table that decides what can be emitted.

A rule gives an element of the result at some coordinate from elements of the operands.  Views,
gathers and concatenations only move coordinates; norms sum over a row; the rest is pointwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from fisopt.codegen.emit.arguments import arguments, shape, value
from fisopt.codegen.emit.expression import Expr, Expressions, Kind, RefusalError, kind_of
from fisopt.codegen.emit.index import (
    Every,
    Guard,
    Index,
    Range,
    constant,
)

aten = torch.ops.aten
Coords = tuple[Index, ...]


class Reader(Protocol):
    """What a rule works with: elements of operands, sums over rows, the guards in force."""

    make: Expressions

    def at(self, node: fx.Node, coords: Coords) -> Expr:
        """An element of an operand."""

    def where(self, guard: Guard, yes: Callable[[], Expr], no: Callable[[], Expr]) -> Expr:
        """One of two elements; each is read only where its side of the guard holds."""

    def look_up(self, node: fx.Node, coords: Coords, size: int) -> Index:
        """An entry of an index tensor as an index, in [0, size)."""

    def row_sum(self, coords: Coords, size: int, body: Callable[[Index], Expr]) -> Expr:
        """The sum of a body over ``size`` elements of the row at ``coords``."""

    def divide(self, index: Index, by: int) -> tuple[Index, Index]:
        """Quotient and remainder."""

    def reshape(self, coords: Coords, sizes: Sequence[int], to: tuple[int, ...]) -> Coords:
        """A coordinate under other sizes."""


Rule = Callable[[Reader, fx.Node, Coords], Expr]
RULES: dict[Any, Rule] = {}
PIECES: dict[Any, Callable[[Reader, fx.Node, int, Coords], Expr]] = {}
REDUCTIONS: set[Any] = set()
MOVES: set[Any] = set()
VIEWS: set[Any] = set()


def _rule(*targets: Any, into: Sequence[set[Any]] = ()) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for target in targets:
            RULES[target] = rule
            for names in into:
                names.add(target)
        return rule

    return register


def scalar(read: Reader, x: Any, kind: Kind) -> Expr:
    """A number as an expression."""
    return read.make.const(x, kind)


def element(read: Reader, x: Any, node: fx.Node, coords: Coords, kind: Kind = "float") -> Expr:
    """An element of an operand that is broadcast to a result; or a number."""
    if not isinstance(x, fx.Node):
        return scalar(read, x, kind)
    sizes = shape(x)
    inner = coords[len(coords) - len(sizes) :]
    whole = shape(node)[len(coords) - len(sizes) :]
    return read.at(
        x,
        tuple(
            constant(0) if size == 1 != full else c
            for c, size, full in zip(inner, sizes, whole, strict=True)
        ),
    )


def _floats(node: fx.Node, *operands: Any) -> None:
    for x in operands:
        if isinstance(x, fx.Node) and kind_of(value(x).dtype, x) != "float":
            raise RefusalError(f"{node.target} of {value(x).dtype}: only floats are computed with")


_UNARY: dict[Any, str] = {
    aten.neg.default: "-{0}",
    aten.rsqrt.default: "tl.rsqrt({0})",
    aten.sqrt.default: "tl.sqrt({0})",
    aten.exp.default: "tl.exp({0})",
    aten.abs.default: "tl.abs({0})",
    aten.sigmoid.default: "tl.sigmoid({0})",
    aten.reciprocal.default: "1.0 / {0}",
    aten.relu.default: "tl.maximum({0}, 0.0)",
    aten.silu.default: "{0} * tl.sigmoid({0})",
    aten.tanh.default: "2.0 * tl.sigmoid(2.0 * {0}) - 1.0",
}
_BINARY: dict[Any, str] = {
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.maximum.default: "tl.maximum({0}, {1})",
    aten.minimum.default: "tl.minimum({0}, {1})",
}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_POWERS: dict[Any, str] = {
    2: "{0} * {0}",
    0.5: "tl.sqrt({0})",
    -0.5: "tl.rsqrt({0})",
    -1: "1.0 / {0}",
}
_GELU = {
    "none": "0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476))",
    "tanh": "{0} * tl.sigmoid(1.5957691216057308 * ({0} + 0.044715 * {0} * {0} * {0}))",
}


@_rule(*_UNARY)
def _unary(read: Reader, node: fx.Node, at: Coords) -> Expr:
    _floats(node, node.args[0])
    return read.make.call(_UNARY[node.target], (element(read, node.args[0], node, at),), "float")


@_rule(*_BINARY)
def _binary(read: Reader, node: fx.Node, at: Coords) -> Expr:
    left, right = node.args[:2]
    _floats(node, left, right)
    args = (element(read, left, node, at), element(read, right, node, at))
    return read.make.call(_BINARY[node.target], args, "float")


@_rule(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)
def _add(read: Reader, node: fx.Node, at: Coords) -> Expr:
    left, right = node.args[:2]
    _floats(node, left, right)
    a, b = element(read, left, node, at), element(read, right, node, at)
    if (alpha := arguments(node)["alpha"]) != 1:
        b = read.make.call("{0} * {1}", (b, scalar(read, alpha, "float")), "float")
    if node.target is aten.rsub.Scalar:
        a, b = b, a
    subtracts = node.target not in (aten.add.Tensor, aten.add.Scalar)
    return read.make.call("{0} - {1}" if subtracts else "{0} + {1}", (a, b), "float")


@_rule(aten.pow.Tensor_Scalar)
def _pow(read: Reader, node: fx.Node, at: Coords) -> Expr:
    base, exponent = node.args[:2]
    _floats(node, base)
    forms: dict[Any, str] = {
        2: "{0} * {0}",
        0.5: "tl.sqrt({0})",
        -0.5: "tl.rsqrt({0})",
        -1: "1.0 / {0}",
    }
    if exponent not in forms:
        raise RefusalError(f"{node.target} with exponent {exponent}; known are {list(forms)}")
    return read.make.call(forms[exponent], (element(read, base, node, at),), "float")


@_rule(aten.gelu.default)
def _gelu(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    _floats(node, given["self"])
    form = _GELU[str(given["approximate"])]
    return read.make.call(form, (element(read, given["self"], node, at),), "float")


@_rule(aten.lerp.Tensor, aten.lerp.Scalar)
def _lerp(read: Reader, node: fx.Node, at: Coords) -> Expr:
    _floats(node, *node.args[:3])
    start, end, weight = (element(read, x, node, at) for x in node.args[:3])
    return read.make.call("{0} + {2} * ({1} - {0})", (start, end, weight), "float")


@_rule(
    *(
        getattr(getattr(aten, name), overload)
        for name in _COMPARE
        for overload in ("Scalar", "Tensor")
    )
)
def _compare(read: Reader, node: fx.Node, at: Coords) -> Expr:
    left, right = node.args[:2]
    assert isinstance(left, fx.Node)
    kind = kind_of(value(left).dtype, left)
    sign = _COMPARE[str(node.target).split(".")[1]]
    args = (element(read, left, node, at, kind), element(read, right, node, at, kind))
    return read.make.call(f"{{0}} {sign} {{1}}", args, "bool")


@_rule(aten.logical_not.default, aten.bitwise_not.default)
def _not(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return read.make.call("{0} == 0", (_flag(read, node, node.args[0], at),), "bool")


@_rule(aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default)
def _and(read: Reader, node: fx.Node, at: Coords) -> Expr:
    args = tuple(_flag(read, node, x, at) for x in node.args[:2])
    return read.make.call("{0} & {1}", args, "bool")


def _flag(read: Reader, node: fx.Node, x: Any, at: Coords) -> Expr:
    if not isinstance(x, fx.Node) or value(x).dtype != torch.bool:
        raise RefusalError(f"{node.target} of what is not boolean")
    return element(read, x, node, at)


@_rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def _where(read: Reader, node: fx.Node, at: Coords) -> Expr:
    condition, yes, no = node.args[:3]
    kind = kind_of(value(node).dtype, node)
    args = (
        _flag(read, node, condition, at),
        element(read, yes, node, at, kind),
        element(read, no, node, at, kind),
    )
    return read.make.call("tl.where({0}, {1}, {2})", args, kind)


@_rule(aten._to_copy.default, aten.type_as.default, aten.to.dtype)
def _cast(read: Reader, node: fx.Node, at: Coords) -> Expr:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if value(source).device != value(node).device:
        raise RefusalError(f"{node.target} to another device")
    x = element(read, source, node, at)
    kind = kind_of(value(node).dtype, node)
    if kind == x.kind:
        return x
    if kind == "float":
        return read.make.call("{0}.to(tl.float32)", (x,), kind)
    if kind == "bool":
        return read.make.call("{0} != 0", (x,), kind)
    raise RefusalError(f"{node.target} from {value(source).dtype} to {value(node).dtype}")


# ---- row norms


def _row(read: Reader, node: fx.Node, at: Coords, count: int) -> tuple[Coords, tuple[int, ...]]:
    """The coordinate of a row of the last ``count`` dimensions, and their sizes."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    _floats(node, x)
    return at[: len(at) - count], shape(x)[-count:]


def _mean_over(
    read: Reader,
    source: fx.Node,
    outer: Coords,
    sizes: tuple[int, ...],
    body: Callable[[Expr], Expr],
) -> Expr:
    """The mean of something over the elements of a row."""
    count = math.prod(sizes)

    def at(j: Index) -> Expr:
        return body(read.at(source, (*outer, *read.reshape((j,), (count,), sizes))))

    total = read.row_sum(outer, count, at)
    return read.make.call("{0} / {1}", (total, read.make.const(count, "float")), "float")


def _affine(read: Reader, x: Expr, given: dict[str, Any], inner: Coords) -> Expr:
    for name, form in (("weight", "{0} * {1}"), ("bias", "{0} + {1}")):
        if (parameter := given.get(name)) is not None:
            x = read.make.call(form, (x, read.at(parameter, inner)), "float")
    return x


def _epsilon(read: Reader, given: dict[str, Any]) -> Expr:
    eps = given["eps"]
    if eps is None:
        eps = torch.finfo(value(given["input"]).dtype).eps
    return read.make.const(eps, "float")


def _layer_norm(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, make = arguments(node), read.make
    source = given["input"]
    outer, sizes = _row(read, node, at, len(given["normalized_shape"]))
    mean = _mean_over(read, source, outer, sizes, lambda x: x)

    def centred(x: Expr) -> Expr:
        return make.call("{0} - {1}", (x, mean), "float")

    variance = _mean_over(
        read, source, outer, sizes, lambda x: make.call("{0} * {0}", (centred(x),), "float")
    )
    scale = make.call("tl.rsqrt({0} + {1})", (variance, _epsilon(read, given)), "float")
    y = make.call("{0} * {1}", (centred(read.at(source, at)), scale), "float")
    return _affine(read, y, given, at[len(outer) :])


_rule(aten.layer_norm.default, into=[REDUCTIONS])(_layer_norm)


@_rule(aten.rms_norm.default, into=[REDUCTIONS])
def _rms_norm(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, make = arguments(node), read.make
    source = given["input"]
    outer, sizes = _row(read, node, at, len(given["normalized_shape"]))
    square = _mean_over(read, source, outer, sizes, lambda x: make.call("{0} * {0}", (x,), "float"))
    scale = make.call("tl.rsqrt({0} + {1})", (square, _epsilon(read, given)), "float")
    y = make.call("{0} * {1}", (read.at(source, at), scale), "float")
    return _affine(read, y, given, at[len(outer) :])


def _layer_norm_piece(read: Reader, node: fx.Node, which: int, at: Coords) -> Expr:
    if which != 0:
        raise RefusalError(f"{node.target}: statistics as results")
    return _layer_norm(read, node, at)


PIECES[aten.native_layer_norm.default] = _layer_norm_piece
REDUCTIONS.add(aten.native_layer_norm.default)


@_rule(aten.mean.dim, aten.sum.dim_IntList, into=[REDUCTIONS])
def _reduce(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    source, rank = given["self"], len(shape(given["self"]))
    dims = sorted(d % rank for d in given["dim"] or ())
    count = len(dims)
    if not dims or dims != list(range(rank - count, rank)):
        raise RefusalError(f"{node.target} over dimensions {given['dim']}, which are not the last")
    outer, sizes = _row(read, node, (*at[: rank - count], *dims_zero(count)), count)
    mean = _mean_over(read, source, outer, sizes, lambda x: x)
    if node.target is aten.mean.dim:
        return mean
    number = read.make.const(math.prod(sizes), "float")
    return read.make.call("{0} * {1}", (mean, number), "float")


def dims_zero(count: int) -> Coords:
    """A coordinate of zeros."""
    return (constant(0),) * count


# ---- views and other moves


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


@_rule(
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    into=[MOVES, VIEWS],
)
def _reshape(read: Reader, node: fx.Node, at: Coords) -> Expr:
    source = _source(node)
    return read.at(source, read.reshape(at, shape(node), shape(source)))


@_rule(aten.clone.default, aten.alias.default, aten.contiguous.default, into=[MOVES, VIEWS])
def _same(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return read.at(_source(node), at)


@_rule(aten.permute.default, aten.transpose.int, aten.t.default, into=[MOVES, VIEWS])
def _permute(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, rank = arguments(node), len(at)
    if node.target is aten.permute.default:
        order = [d % rank for d in given["dims"]]
    else:
        order = list(range(rank))
        a, b = (given.get("dim0", 0) % rank, given.get("dim1", rank - 1) % rank) if rank else (0, 0)
        order[a], order[b] = order[b], order[a]
    coords = list(at)
    for position, d in enumerate(order):
        coords[d] = at[position]
    return read.at(_source(node), tuple(coords))


@_rule(aten.expand.default, into=[MOVES, VIEWS])
def _expand(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return element(read, _source(node), node, at)


def _moved(at: Coords, dim: int, index: Index) -> Coords:
    return (*at[:dim], index, *at[dim + 1 :])


def _extent(start: Any, end: Any, size: int) -> tuple[int, int]:
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


@_rule(aten.slice.Tensor, into=[MOVES, VIEWS])
def _slice(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(at)
    first, _ = _extent(given["start"], given["end"], shape(source)[dim])
    return read.at(source, _moved(at, dim, at[dim] * given["step"] + first))


@_rule(aten.select.int, into=[MOVES, VIEWS])
def _select(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(shape(source))
    index = constant(given["index"] % shape(source)[dim])
    return read.at(source, (*at[:dim], index, *at[dim:]))


@_rule(aten.index_select.default, into=[MOVES])
def _index_select(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(at)
    entry = read.look_up(given["index"], (at[dim],), shape(source)[dim])
    return read.at(source, _moved(at, dim, entry))


@_rule(aten.embedding.default, into=[MOVES])
def _embedding(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    table = given["weight"]
    return read.at(table, (read.look_up(given["indices"], at[:-1], shape(table)[0]), at[-1]))


@_rule(aten.repeat.default, into=[MOVES])
def _repeat(read: Reader, node: fx.Node, at: Coords) -> Expr:
    source = _source(node)
    sizes = shape(source)
    inner = at[len(at) - len(sizes) :]
    return read.at(
        source, tuple(read.divide(c, size)[1] for c, size in zip(inner, sizes, strict=True))
    )


@_rule(aten.repeat_interleave.self_int, into=[MOVES])
def _repeat_interleave(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    if given["dim"] is None:
        raise RefusalError(f"{node.target} over all dimensions")
    dim = given["dim"] % len(at)
    return read.at(source, _moved(at, dim, read.divide(at[dim], given["repeats"])[0]))


@_rule(aten.cat.default, aten.concat.default, into=[MOVES])
def _cat(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    pieces: list[fx.Node] = [n for n in given["tensors"] if shape(n) != (0,)]
    dim = given["dim"] % len(at)
    if (whole := _reassembled(pieces, dim)) is not None:
        return read.at(whole, at)
    start = 0
    ends = []
    for piece in pieces:
        start += shape(piece)[dim]
        ends.append(start)

    def part(i: int, first: int) -> Expr:
        here = _moved(at, dim, at[dim] + -first)
        if i == len(pieces) - 1:
            return read.at(pieces[i], here)
        guard = Range(at[dim], first, ends[i])
        return read.where(guard, lambda: read.at(pieces[i], here), lambda: part(i + 1, ends[i]))

    return part(0, 0)


def _reassembled(pieces: list[fx.Node], dim: int) -> fx.Node | None:
    """The value that consecutive slices were cut from, if they are all of it."""
    end = 0
    for piece in pieces:
        if piece.target is not aten.slice.Tensor or piece.args[0] is not pieces[0].args[0]:
            return None
        given, size = arguments(piece), shape(_source(piece))[dim]
        first, last = _extent(given["start"], given["end"], size)
        if given["dim"] % len(shape(piece)) != dim or given["step"] != 1 or first != end:
            return None
        end = last
    return _source(pieces[0]) if end == shape(_source(pieces[0]))[dim] else None


@_rule(aten.stack.default, into=[MOVES])
def _stack(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    pieces: list[fx.Node] = list(given["tensors"])
    dim = given["dim"] % len(at)
    here = (*at[:dim], *at[dim + 1 :])
    expr = read.at(pieces[-1], here)
    for i in reversed(range(len(pieces) - 1)):
        last = expr
        expr = read.where(
            Every(at[dim], len(pieces), i),
            lambda i=i: read.at(pieces[i], here),  # type: ignore[misc]
            lambda last=last: last,  # type: ignore[misc]
        )
    return expr


@_rule(aten.pad.default, aten.constant_pad_nd.default, into=[MOVES])
def _pad(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    if given.get("mode", "constant") != "constant":
        raise RefusalError(f"{node.target} with mode {given['mode']}")
    kind = kind_of(value(node).dtype, node)
    number = given["value"] or 0
    fill = read.make.const(bool(number) if kind == "bool" else number, kind)
    coords, guards = list(at), []
    for i, before in enumerate(given["pad"][::2]):
        d = len(at) - 1 - i
        coords[d] = at[d] + -before
        guards.append(Range(at[d], before, before + shape(source)[d]))

    def inside(left: list[Range]) -> Expr:
        if not left:
            return read.at(source, tuple(coords))
        return read.where(left[0], lambda: inside(left[1:]), lambda: fill)

    return inside(guards)


@_rule(aten.slice_scatter.default, into=[MOVES])
def _slice_scatter(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    base, src, step = given["self"], given["src"], given["step"]
    dim = given["dim"] % len(at)
    size = shape(base)[dim]
    first, last = _extent(given["start"], given["end"], size)
    if size % step:
        raise RefusalError(f"{node.target} with step {step} over {size}, which it does not divide")

    def inside() -> Expr:
        if step == 1:
            return read.at(src, _moved(at, dim, at[dim] + -first))
        quotient, _ = read.divide(at[dim] + (first % step - first), step)
        here = _moved(at, dim, quotient)
        return read.where(Every(at[dim], step, first % step), lambda: read.at(src, here), outside)

    def outside() -> Expr:
        return read.at(base, at)

    if (first, last) == (0, size) or (step > 1 and first < step and last == size):
        return inside()
    return read.where(Range(at[dim], first, last), inside, outside)


@_rule(aten.select_scatter.default, into=[MOVES])
def _select_scatter(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    dim = given["dim"] % len(at)
    index = given["index"] % shape(given["self"])[dim]
    here = (*at[:dim], *at[dim + 1 :])
    return read.where(
        Range(at[dim], index, index + 1),
        lambda: read.at(given["src"], here),
        lambda: read.at(given["self"], at),
    )


@_rule(aten.copy.default, into=[MOVES])
def _copy(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return element(read, node.args[1], node, at, kind_of(value(node).dtype, node))


@_rule(aten.empty_like.default, aten.zeros_like.default, into=[MOVES])
def _empty(read: Reader, node: fx.Node, at: Coords) -> Expr:
    kind = kind_of(value(node).dtype, node)
    return read.make.const(False if kind == "bool" else 0, kind)


def _split_piece(read: Reader, node: fx.Node, which: int, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(shape(source))
    values = node.meta["val"]
    first = sum(int(v.shape[dim]) for v in values[:which])
    return read.at(source, _moved(at, dim, at[dim] + first))


def _unbind_piece(read: Reader, node: fx.Node, which: int, at: Coords) -> Expr:
    source = _source(node)
    dim = arguments(node)["dim"] % len(shape(source))
    return read.at(source, (*at[:dim], constant(which), *at[dim:]))


_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
PIECES.update(dict.fromkeys(_SPLITS, _split_piece))
PIECES[aten.unbind.int] = _unbind_piece
MOVES.update((*_SPLITS, aten.unbind.int))
VIEWS.update((*_SPLITS, aten.unbind.int))
