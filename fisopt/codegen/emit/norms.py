"""Rules of norms and other reductions over the last dimensions: a row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fisopt.codegen.emit.arguments import arguments, shape, value
from fisopt.codegen.emit.expression import Expr, RefusalError
from fisopt.codegen.emit.index import Index, constant
from fisopt.codegen.emit.rules import (
    PIECES,
    REDUCTIONS,
    Coords,
    Reader,
    refuse_no_floats,
    rule,
)

aten = torch.ops.aten


def _row(read: Reader, node: fx.Node, at: Coords, count: int) -> tuple[Coords, tuple[int, ...]]:
    """The coordinate of a row of the last ``count`` dimensions, and their sizes."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    refuse_no_floats(node, x)
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


rule(aten.layer_norm.default, into=[REDUCTIONS])(_layer_norm)


@rule(aten.rms_norm.default, into=[REDUCTIONS])
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


@rule(aten.mean.dim, aten.sum.dim_IntList, into=[REDUCTIONS])
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
