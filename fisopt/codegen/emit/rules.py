"""Rules: what an operator does to one element, as tables that other files fill.

A rule gives an element of the result at some coordinate from elements of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from fisopt.codegen.emit.arguments import shape, value
from fisopt.codegen.emit.expression import Expr, Expressions, Kind, RefusalError, kind_of
from fisopt.codegen.emit.index import (
    Guard,
    Index,
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
"""Of operators with one result."""
PIECES: dict[Any, Callable[[Reader, fx.Node, int, Coords], Expr]] = {}
"""Of operators with several; the rule is told which result is read."""
REDUCTIONS: set[Any] = set()
"""Operators that sum over a row."""
MOVES: set[Any] = set()
"""Operators that only move coordinates."""
VIEWS: set[Any] = set()
"""Moves that cost nothing to do again."""


def rule(*targets: Any, into: Sequence[set[Any]] = ()) -> Callable[[Rule], Rule]:
    """Register the rule of some operators, and the sets that they belong to."""

    def register(made: Rule) -> Rule:
        for target in targets:
            RULES[target] = made
            for names in into:
                names.add(target)
        return made

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


def refuse_no_floats(node: fx.Node, *operands: Any) -> None:
    """Refuse an operator whose operands are not all floats."""
    for x in operands:
        if isinstance(x, fx.Node) and kind_of(value(x).dtype, x) != "float":
            raise RefusalError(f"{node.target} of {value(x).dtype}: only floats are computed with")
