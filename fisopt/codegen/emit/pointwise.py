"""Rules of pointwise operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fisopt.codegen.emit.arguments import arguments, value
from fisopt.codegen.emit.expression import Const, Expr, RefusalError, kind_of
from fisopt.codegen.emit.rules import (
    Coords,
    Reader,
    element,
    refuse_no_floats,
    rule,
    scalar,
)

aten = torch.ops.aten

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


@rule(*_UNARY)
def _unary(read: Reader, node: fx.Node, at: Coords) -> Expr:
    refuse_no_floats(node, node.args[0])
    return read.make.call(_UNARY[node.target], (element(read, node.args[0], node, at),), "float")


@rule(*_BINARY)
def _binary(read: Reader, node: fx.Node, at: Coords) -> Expr:
    left, right = node.args[:2]
    refuse_no_floats(node, left, right)
    args = (element(read, left, node, at), element(read, right, node, at))
    return read.make.call(_BINARY[node.target], args, "float")


@rule(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)
def _add(read: Reader, node: fx.Node, at: Coords) -> Expr:
    left, right = node.args[:2]
    refuse_no_floats(node, left, right)
    a, b = element(read, left, node, at), element(read, right, node, at)
    if (alpha := arguments(node)["alpha"]) != 1:
        b = read.make.call("{0} * {1}", (b, scalar(read, alpha, "float")), "float")
    if node.target is aten.rsub.Scalar:
        a, b = b, a
    subtracts = node.target not in (aten.add.Tensor, aten.add.Scalar)
    return read.make.call("{0} - {1}" if subtracts else "{0} + {1}", (a, b), "float")


@rule(aten.pow.Tensor_Scalar)
def _pow(read: Reader, node: fx.Node, at: Coords) -> Expr:
    base, exponent = node.args[:2]
    refuse_no_floats(node, base)
    if exponent not in _POWERS:
        raise RefusalError(f"{node.target} with exponent {exponent}; known are {list(_POWERS)}")
    return read.make.call(_POWERS[exponent], (element(read, base, node, at),), "float")


@rule(aten.gelu.default)
def _gelu(read: Reader, node: fx.Node, at: Coords) -> Expr:
    given = arguments(node)
    refuse_no_floats(node, given["self"])
    form = _GELU[str(given["approximate"])]
    return read.make.call(form, (element(read, given["self"], node, at),), "float")


@rule(aten.lerp.Tensor, aten.lerp.Scalar)
def _lerp(read: Reader, node: fx.Node, at: Coords) -> Expr:
    refuse_no_floats(node, *node.args[:3])
    start, end, weight = (element(read, x, node, at) for x in node.args[:3])
    return read.make.call("{0} + {2} * ({1} - {0})", (start, end, weight), "float")


@rule(
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


@rule(aten.logical_not.default, aten.bitwise_not.default)
def _not(read: Reader, node: fx.Node, at: Coords) -> Expr:
    return read.make.call("{0} == 0", (_flag(read, node, node.args[0], at),), "bool")


@rule(aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default)
def _and(read: Reader, node: fx.Node, at: Coords) -> Expr:
    args = tuple(_flag(read, node, x, at) for x in node.args[:2])
    return read.make.call("{0} & {1}", args, "bool")


def _flag(read: Reader, node: fx.Node, x: Any, at: Coords) -> Expr:
    if not isinstance(x, fx.Node) or value(x).dtype != torch.bool:
        raise RefusalError(f"{node.target} of what is not boolean")
    return element(read, x, node, at)


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def _where(read: Reader, node: fx.Node, at: Coords) -> Expr:
    condition, yes, no = node.args[:3]
    kind = kind_of(value(node).dtype, node)
    args = (
        _flag(read, node, condition, at),
        element(read, yes, node, at, kind),
        element(read, no, node, at, kind),
    )
    return read.make.call("tl.where({0}, {1}, {2})", args, kind)


@rule(aten._to_copy.default, aten.type_as.default, aten.to.dtype)
def _cast(read: Reader, node: fx.Node, at: Coords) -> Expr:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if value(source).device != value(node).device:
        raise RefusalError(f"{node.target} to another device")
    x = element(read, source, node, at)
    kind = kind_of(value(node).dtype, node)
    if kind == x.kind:
        return x
    if isinstance(x, Const):
        return read.make.const({"float": float, "int": int, "bool": bool}[kind](x.value), kind)
    if kind == "float":
        return read.make.call("{0}.to(tl.float32)", (x,), kind)
    if kind == "bool":
        return read.make.call("{0} != 0", (x,), kind)
    raise RefusalError(f"{node.target} from {value(source).dtype} to {value(node).dtype}")
