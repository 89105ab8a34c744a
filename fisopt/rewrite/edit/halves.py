"""Halves: a Program cut in two where some of its values are known, and what crosses the cut."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx


def first_half(graph: fx.Graph, known: Iterable[fx.Node]) -> list[fx.Node]:
    """The calls that some values need, in order, each with all of its results."""
    inside: set[fx.Node] = set()
    open_nodes = list(known)
    while open_nodes:
        if (node := open_nodes.pop()) not in inside:
            inside.add(node)
            open_nodes += node.all_input_nodes
            open_nodes += [user for user in node.users if user.target is operator.getitem]
    return [n for n in graph.nodes if n in inside and n.op in ("call_function", "call_module")]


def carried_over(first: list[fx.Node]) -> dict[str, fx.Node]:
    """What the second half reads of the first, by names that both halves have in common."""
    inside = set(first)
    return {
        f"carried_{i}": node
        for i, node in enumerate(first)
        if isinstance(node.meta["val"], torch.Tensor) and not inside.issuperset(node.users)
    }
