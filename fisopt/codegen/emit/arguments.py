"""The arguments of an operator's call by name, with the schema's defaults."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fisopt.errors import LoweringError


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by the names of its schema; empty for what has no schema."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {}
    schema = target._schema.arguments
    named = {a.name: a.default_value for a in schema}
    named.update(zip((a.name for a in schema), node.args, strict=False))
    return named | dict(node.kwargs)


def shape(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a node's value."""
    return tuple(int(size) for size in value(node).shape)


def value(node: fx.Node) -> torch.Tensor:
    """A node's value, one tensor."""
    tensor = node.meta["val"]
    if not isinstance(tensor, torch.Tensor):
        raise LoweringError(f"{node.format_node()} is not one tensor")
    return tensor


def piece(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The operator of several results, and which, that a node picks."""
    if node.target is not operator.getitem or not isinstance(source := node.args[0], fx.Node):
        return None
    return source, int(node.args[1])  # type: ignore[arg-type]
