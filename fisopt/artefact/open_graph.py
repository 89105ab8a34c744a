"""Writing sizes into a flat graph: polynomials of the inputs' sizes in the place of numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fisopt.artefact.numbers import is_number
from fisopt.artefact.polynomials import Polynomial
from fisopt.artefact.sizes import Roles
from fisopt.rewrite.program import Program

_SIZE = "fisopt.size"


def write_sizes(
    module: fx.GraphModule,
    fits: Sequence[Polynomial | None],
    names: Sequence[str],
    roles: Roles,
    program: Program,
) -> None:
    """Write polynomials of the inputs' sizes in the place of numbers."""
    graph = module.graph
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
    made: dict[tuple[tuple[tuple[str, ...], int], ...], fx.Node] = {}
    order = iter(fits)
    with graph.inserting_before(first):
        sizes = _size_nodes(graph, holders, names, roles, program)

        def replaced(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)([replaced(item) for item in value])
            if isinstance(value, dict):
                return {key: replaced(item) for key, item in value.items()}
            if not is_number(value) or (fit := next(order)) is None:
                return value
            key = tuple(fit.items())
            if key not in made:
                made[key] = _polynomial(graph, fit, sizes)
            return made[key]

        for node in list(graph.nodes):
            if node.op in ("placeholder", "get_attr") or node.meta.get(_SIZE):
                continue
            args, kwargs = replaced(tuple(node.args)), replaced(dict(node.kwargs))
            node.args, node.kwargs = args, kwargs
    graph.lint()
    module.recompile()


def _size_nodes(
    graph: fx.Graph,
    holders: Sequence[fx.Node],
    names: Sequence[str],
    roles: Roles,
    program: Program,
) -> dict[str, fx.Node]:
    """A node for each open size, read from the first input that tells it."""
    tensors = [i for i, _ in program.inputs.tensors()]
    found: dict[str, fx.Node] = {}
    for leaf, places in roles.items():
        for dim, (factor, of) in places.items():
            if len(of) != 1 or of[0] not in names or of[0] in found:
                continue
            holder = holders[tensors.index(leaf)]
            node = graph.call_function(torch.ops.aten.sym_size.int, (holder, dim))
            node.meta[_SIZE] = True
            if factor != 1:
                node = graph.call_function(operator.floordiv, (node, factor))
                node.meta[_SIZE] = True
            found[of[0]] = node
    return found


def _polynomial(graph: fx.Graph, fit: Polynomial, sizes: Mapping[str, fx.Node]) -> fx.Node:
    total: Any = None
    for names, factor in fit.items():
        term: Any = factor
        for name in names:
            term = sizes[name] if term == 1 else _called(graph, operator.mul, sizes[name], term)
        total = term if total is None else _called(graph, operator.add, total, term)
    assert isinstance(total, fx.Node)
    return total


def _called(graph: fx.Graph, target: Callable[..., Any], a: Any, b: Any) -> fx.Node:
    node = graph.call_function(target, (a, b))
    node.meta[_SIZE] = True
    return node
