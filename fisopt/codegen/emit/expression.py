"""Element expressions: what one element of a result is, as a function of the tile's coordinates.

Equal expressions are one object, so that what several results share is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from fisopt.codegen.emit.index import Axis, Guard, Guards, Index, Lookup, Var, atoms

Kind = Literal["float", "int", "bool"]
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_INTS = (torch.int64, torch.int32)


class RefusalError(Exception):
    """The emitter cannot write a kernel for something; the message says for what and why."""


@dataclass(frozen=True, eq=False)
class Load:
    """An element of an operand; where a guard fails it is not read and counts as zero."""

    operand: int
    index: tuple[Index, ...]
    guards: Guards
    kind: Kind


@dataclass(frozen=True, eq=False)
class Const:
    """A number."""

    value: float | int | bool
    kind: Kind


@dataclass(frozen=True, eq=False)
class Call:
    """A pointwise operator."""

    name: str
    args: tuple[Expr, ...]
    kind: Kind


@dataclass(frozen=True, eq=False)
class Select:
    """One of two expressions, by a condition on coordinates."""

    guard: Guard
    yes: Expr
    no: Expr
    kind: Kind


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of ``body`` over a whole row: over all values of ``var``."""

    body: Expr
    var: Var
    kind: Kind = "float"


Expr: TypeAlias = Load | Const | Call | Select | Sum


@dataclass
class Expressions:
    """Makes expressions; asked for the same one twice, it returns the first."""

    _made: dict[object, Expr] = field(default_factory=dict)

    def load(self, operand: int, index: tuple[Index, ...], guards: Guards, kind: Kind) -> Expr:
        """An element of an operand."""
        made = Load(operand, index, guards, kind)
        return self._made.setdefault((Load, operand, index, guards), made)

    def const(self, value: float | bool, kind: Kind) -> Expr:
        """A number."""
        key = (Const, type(value), repr(value), kind)
        return self._made.setdefault(key, Const(value, kind))

    def call(self, name: str, args: tuple[Expr, ...], kind: Kind) -> Expr:
        """A pointwise operator."""
        return self._made.setdefault((Call, name, *map(id, args)), Call(name, args, kind))

    def select(self, guard: Guard, yes: Expr, no: Expr) -> Expr:
        """One of two expressions; two that read the same elements are one."""
        if yes is no:
            return yes
        made = Select(guard, yes, no, yes.kind)
        return self._made.setdefault((Select, guard, id(yes), id(no)), made)

    def sum(self, body: Expr, var: Var) -> Expr:
        """A sum over a row."""
        return self._made.setdefault((Sum, id(body), var), Sum(body, var))


def parts(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that one is made of; of a load, those that its indices look up."""
    if isinstance(expr, Call):
        return expr.args
    if isinstance(expr, Select):
        return (*lookups((expr.guard.index,)), expr.yes, expr.no)
    if isinstance(expr, Sum):
        return (expr.body,)
    if isinstance(expr, Load):
        return tuple(lookups((*expr.index, *(guard.index for guard in expr.guards))))
    return ()


def lookups(indices: tuple[Index, ...]) -> Iterator[Load]:
    """The loads that indices take entries from."""
    for index in indices:
        for atom in atoms(index):
            if isinstance(atom, Lookup):
                yield atom.load


def walk(*roots: Expr) -> list[Expr]:
    """Every expression under some, each once, parts first."""
    seen: dict[Expr, None] = {}

    def visit(expr: Expr) -> None:
        if expr not in seen:
            for part in parts(expr):
                visit(part)
            seen[expr] = None

    for root in roots:
        visit(root)
    return list(seen)


def axes(expr: Expr) -> frozenset[Axis]:
    """The axes of the tile along which an expression differs."""
    if isinstance(expr, Load):
        indices = (*expr.index, *(guard.index for guard in expr.guards))
        return frozenset(axis for index in indices for axis in index.axes)
    if isinstance(expr, Sum):
        return axes(expr.body) - {expr.var.axis}
    own = expr.guard.index.axes if isinstance(expr, Select) else frozenset()
    return own.union(*(axes(part) for part in parts(expr)))


def kind_of(dtype: torch.dtype, what: object) -> Kind:
    """What a dtype is computed as: floats of up to 32 bits are computed in float32.

    Raises:
        RefusalError: it is of none of these kinds.
    """
    if dtype in _FLOATS:
        return "float"
    if dtype in _INTS:
        return "int"
    if dtype == torch.bool:
        return "bool"
    raise RefusalError(f"{what} is {dtype}; emitted kernels compute float32 and narrower")
