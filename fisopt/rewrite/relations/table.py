"""The table: what one operator does with the dimensions of its operands.

Two analyses read it: axes flow along a relation (`propagate`), frame demand flows backwards
(`demand`).  An operator that is not in the table is a barrier: every operand dimension counts
as mixed, which is always correct and never sparse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fisopt.errors import OptionError, VerifyError
from fisopt.rewrite.axes import FrameAxis


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
        addressed: operand dimensions whose entries are read or written by number: the numbers
            speak of the whole dimension, so it is never cut.
        ends: those of ``mixed`` of which only the first or the last frame is read, by number.
        placed: dimensions whose frames lie where those of a value written there before lie; the
            operator reads the whole buffer all the same.
        ties: pairs of operand dimensions that are combined entry by entry.
        constant: result dimensions along which the value does not change (broadcast, fill).
        barrier: the operator is not in the table.
    """

    links: list[Link] = field(default_factory=list)
    mixed: list[tuple[fx.Node, int]] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    addressed: list[tuple[fx.Node, int]] = field(default_factory=list)
    ends: list[tuple[fx.Node, int]] = field(default_factory=list)
    placed: list[Link] = field(default_factory=list)
    ties: list[tuple[tuple[fx.Node, int], tuple[fx.Node, int]]] = field(default_factory=list)
    constant: set[int] = field(default_factory=set)
    barrier: bool = False

    def link(self, operand: fx.Node, dim: int, out: int) -> None:
        """Add a plain one-to-one link."""
        self.links.append(Link(operand, dim, out))

    def write(self, base: fx.Node, dim: int) -> None:
        """Entries of a dimension are replaced at numbered positions: it keeps its frames, whole."""
        self.mixed.append((base, dim))
        self.addressed.append((base, dim))
        self.kept.add(dim)


Rule = Callable[[fx.Node], Relation]
RULES: dict[Any, Rule] = {}


def relation_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the relation of some operators; registering one twice is an error."""

    def register(rule: Rule) -> Rule:
        for target in targets:
            if target in RULES:
                raise OptionError(f"{target} has a relation already")
            RULES[target] = rule
        return rule

    return register


def relation(node: fx.Node) -> Relation:
    """Return the relation of a call node, a barrier where none is registered."""
    rule = RULES.get(node.target)
    if rule is not None:
        return rule(node)
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return pointwise(node)
    return barrier(node)


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's value; of a tuple of values, that of its first tensor."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        value = next((v for v in value if isinstance(v, torch.Tensor)), None)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def tensors(node: fx.Node) -> list[fx.Node]:
    """Operand nodes that hold tensors, each once, in order."""
    return [
        n for n in node.all_input_nodes if shape(n) or isinstance(n.meta.get("val"), torch.Tensor)
    ]


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by position or by name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def operand_of(node: fx.Node, index: int) -> fx.Node:
    """An operator's argument that must be a value of the graph."""
    operand = node.args[index]
    if not isinstance(operand, fx.Node):
        raise VerifyError(f"{node.format_node()}: argument {index} is not a tensor")
    return operand


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim


def dims_of(value: Any, rank: int) -> set[int]:
    """The dimensions that an argument names; all of them if it names none."""
    if value is None or value == []:
        return set(range(rank))
    return {wrap(d, rank) for d in (value if isinstance(value, (list, tuple)) else [value])}


def barrier(node: fx.Node) -> Relation:
    """The relation of an operator about which nothing is known."""
    mixed = [(operand, d) for operand in tensors(node) for d in range(len(shape(operand)))]
    return Relation(mixed=mixed, kept=set(range(len(shape(node)))), barrier=True)


def pointwise(node: fx.Node) -> Relation:
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
