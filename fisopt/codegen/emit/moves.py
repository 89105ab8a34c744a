"""Rules of views, gathers, concatenations and scatters: only coordinates move."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fisopt.codegen.emit.arguments import arguments, shape, value
from fisopt.codegen.emit.expression import Expr, RefusalError, kind_of
from fisopt.codegen.emit.index import Every, Index, Range, constant
from fisopt.codegen.emit.rules import (
    MOVES,
    PIECES,
    VIEWS,
    Coords,
    Reader,
    element,
    rule,
)

aten = torch.ops.aten


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


@rule(
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


@rule(aten.clone.default, aten.alias.default, aten.contiguous.default, into=[MOVES, VIEWS])
def _same(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return read.at(_source(node), at)


@rule(aten.permute.default, aten.transpose.int, aten.t.default, into=[MOVES, VIEWS])
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


@rule(aten.expand.default, into=[MOVES, VIEWS])
def _expand(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return element(read, _source(node), node, at)


def _moved(at: Coords, dim: int, index: Index) -> Coords:
    return (*at[:dim], index, *at[dim + 1 :])


def _extent(start: Any, end: Any, size: int) -> tuple[int, int]:
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


@rule(aten.slice.Tensor, into=[MOVES, VIEWS])
def _slice(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(at)
    first, _ = _extent(given["start"], given["end"], shape(source)[dim])
    return read.at(source, _moved(at, dim, at[dim] * given["step"] + first))


@rule(aten.select.int, into=[MOVES, VIEWS])
def _select(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(shape(source))
    index = constant(given["index"] % shape(source)[dim])
    return read.at(source, (*at[:dim], index, *at[dim:]))


@rule(aten.index_select.default, into=[MOVES])
def _index_select(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    dim = given["dim"] % len(at)
    entry = read.look_up(given["index"], (at[dim],), shape(source)[dim])
    return read.at(source, _moved(at, dim, entry))


@rule(aten.embedding.default, into=[MOVES])
def _embedding(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    table = given["weight"]
    return read.at(table, (read.look_up(given["indices"], at[:-1], shape(table)[0]), at[-1]))


@rule(aten.repeat.default, into=[MOVES])
def _repeat(read: Reader, node: fx.Node, at: Coords) -> Expr:
    source = _source(node)
    sizes = shape(source)
    inner = at[len(at) - len(sizes) :]
    return read.at(
        source, tuple(read.divide(c, size)[1] for c, size in zip(inner, sizes, strict=True))
    )


@rule(aten.repeat_interleave.self_int, into=[MOVES])
def _repeat_interleave(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given, source = arguments(node), _source(node)
    if given["dim"] is None:
        raise RefusalError(f"{node.target} over all dimensions")
    dim = given["dim"] % len(at)
    return read.at(source, _moved(at, dim, read.divide(at[dim], given["repeats"])[0]))


@rule(aten.cat.default, aten.concat.default, into=[MOVES])
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


@rule(aten.stack.default, into=[MOVES])
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


@rule(aten.pad.default, aten.constant_pad_nd.default, into=[MOVES])
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


@rule(aten.slice_scatter.default, into=[MOVES])
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


@rule(aten.select_scatter.default, into=[MOVES])
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


@rule(aten.empty_like.default, aten.zeros_like.default, into=[MOVES])
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
