"""The residual stream of a block's result: what the block adds its update to."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.ops.operator import declared
from fisopt.rewrite.outline import value_key
from fisopt.rewrite.relations.table import argument, operand_of, shape
from fisopt.rewrite.views import WHOLE

aten = torch.ops.aten

_FIRST = {
    *WHOLE,
    aten.expand.default,
    aten.slice.Tensor,
    aten.narrow.default,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.roll.default,
    aten.flip.default,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.type_as.default,
    aten.dropout.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.nan_to_num.default,
    aten.clamp.default,
    aten.clip.default,
    operator.getitem,
}
_WRITTEN: dict[object, tuple[int, ...]] = {
    aten.where.self: (1, 2),
    aten.slice_scatter.default: (0, 1),
    aten.select_scatter.default: (0, 1),
    aten.index_put.default: (0, 2),
    aten.index_copy.default: (0, 3),
    aten.scatter.src: (0, 3),
    aten.masked_scatter.default: (0, 2),
}
_JOINS = {aten.cat.default, aten.stack.default, aten.hstack.default, aten.vstack.default}
_PARTS = {
    aten.slice_scatter.default: aten.slice.Tensor,
    aten.select_scatter.default: aten.select.int,
}
"""Operators that write a part of a buffer, and those that read the same part."""
ADDS = {aten.add.Tensor}
_ADDED_TO: dict[object, int] = {
    aten.sub.Tensor: 0,
    aten.rsub.Tensor: 1,
    aten.addcmul.default: 0,
    aten.baddbmm.default: 0,
    aten.index_add.default: 0,
    aten.scatter_add.default: 0,
}
_NORMS = {aten.layer_norm.default, aten.rms_norm.default}


def moved(node: fx.Node) -> list[fx.Node]:
    """The operands whose entries an operator hands on as they are, perhaps to other places."""
    if node.target is aten.expand.default and shape(node) != shape(node.all_input_nodes[0]):
        return []
    if node.target in _FIRST:
        return node.all_input_nodes[:1]
    if node.target in _JOINS:
        return node.all_input_nodes
    if node.target is aten.index_put.default and argument(node, 3, "accumulate", False):
        return []
    made = declared(node.target)
    places = made.moves if made is not None else _WRITTEN.get(node.target, ())
    return [n for i in places if isinstance(n := node.args[i], fx.Node)]


def _added(node: fx.Node) -> list[fx.Node]:
    """The operands that an operator adds something to, entry by entry."""
    places: tuple[int, ...] = ()
    if node.target in ADDS:
        places = (0, 1) if argument(node, 2, "alpha", 1) == 1 else (0,)
    elif node.target is aten.index_put.default and not moved(node):
        places = (0,)
    elif node.target in _ADDED_TO:
        places = (_ADDED_TO[node.target],) if node.kwargs.get("beta", 1) == 1 else ()
    operands = [n for i in places if isinstance(n := node.args[i], fx.Node)]
    return [n for n in operands if shape(n) == shape(node)]


@dataclass(frozen=True)
class Stream:
    """The residual stream of a result, as a block is given it.

    Attributes:
        arguments: those that are added up in it; an additive skip is one of them.
        views: the operators that bring it into the form of the result, in order.
    """

    arguments: tuple[fx.Node, ...]
    views: tuple[fx.Node, ...] = ()


def residual_path(graph: fx.Graph, output: fx.Node, arguments: Collection[fx.Node]) -> set[fx.Node]:
    """The values of the residual stream on its way from some arguments to a result, both ends."""
    edges = _residual_edges(graph)
    behind = set(arguments).union(*(nx.descendants(edges, n) for n in arguments))
    path: set[fx.Node] = behind & (nx.ancestors(edges, output) | {output})
    return path


def residual_stream(graph: fx.Graph, output: fx.Node) -> Stream | None:
    """The stream that a result is the update of, None if no argument reaches it as one.

    An argument does that is moved and added to, and nothing else, or whose sum with a branch is
    normalised (a block with norms behind its branches).  It may hold more frames than the result.
    """
    for edges in (_residual_edges(graph), _post_norm_edges(graph)):
        reached = nx.ancestors(edges, output)
        if fitting := tuple(n for n in graph.nodes if n in reached and _fits(n, output)):
            return Stream(fitting)
    return _viewed(graph, output)


def _viewed(graph: fx.Graph, output: fx.Node) -> Stream | None:
    """The one argument that reaches a result in another form, every entry of it."""
    copies = {n: source for n in graph.nodes if (source := _copied(n)) is not None}
    for edges in (_residual_edges(graph), _post_norm_edges(graph)):
        for node in graph.nodes:
            if node in copies:
                edges.remove_edges_from(list(edges.in_edges(node)))
                edges.add_edge(copies[node], node)
            elif node.op == "output" or (moved(node) and node.target not in WHOLE):
                edges.remove_node(node)
        if output not in edges:
            return None
        reached = [n for n in nx.ancestors(edges, output) if n.op == "placeholder"]
        whole = [n for n in reached if shape(n) and axes_of(n) and any(axes_of(n))]
        if len(whole) == 1:
            path = nx.shortest_path(edges, whole[0], output)
            return Stream((whole[0],), tuple(n for n in path if n.target in WHOLE))
    return None


def _copied(node: fx.Node) -> fx.Node | None:
    """The value that a buffer is a copy of, written part by part, each in its own place."""
    whole = shape(node)
    sources: set[Any] = set()
    parts: dict[Hashable, int] = {}
    while node.target in _PARTS:
        part = operand_of(node, 1)
        reads, one = _PARTS[node.target], node.target is aten.select_scatter.default
        place = _place(node.args[2:], whole, one=one)
        if part.target is not reads or _place(part.args[1:], whole, one=one) != place:
            return None
        sources.add(part.args[0])
        parts[part.target, place] = math.prod(shape(part))
        node = operand_of(node, 0)
    same = len(sources) == 1 and all(shape(n) == whole for n in sources)
    return sources.pop() if same and sum(parts.values()) == math.prod(whole) else None


def _place(said: tuple[Any, ...], whole: tuple[int, ...], *, one: bool) -> Hashable:
    """The entries of a dimension that an operator names: one, or from, to and how many apart."""
    dim, *bounds = said or (0,)
    size = whole[dim := dim % len(whole)]
    return dim, bounds[0] % size if one else slice(*(*bounds, None, None, None)[:3]).indices(size)


def _residual_edges(graph: fx.Graph) -> nx.DiGraph:
    """The dependences along which a value is only moved or added to."""
    result = nx.DiGraph()
    result.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        result.add_edges_from((n, node) for n in (*moved(node), *_added(node)))
    return result


def _post_norm_edges(graph: fx.Graph) -> nx.DiGraph:
    """The residual edges, with those through a norm of a sum and what scales its result."""
    result = _residual_edges(graph)
    normalised: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target in _NORMS and moved_from(node.args[0]).target in ADDS:
            normalised.add(node)
            result.add_edge(node.args[0], node)
        elif node.target is aten.mul.Tensor:
            scaled = [n for n in node.all_input_nodes if n in normalised]
            result.add_edges_from((n, node) for n in scaled)
            normalised |= {node} if scaled else set()
        elif normalised.intersection(moved(node)):
            normalised.add(node)
    return result


def moved_from(node: fx.Node) -> fx.Node:
    """The value that a chain of moves begins with, the first of those that are joined."""
    while operands := moved(node):
        node = operands[0]
    return node


def _fits(node: fx.Node, output: fx.Node) -> bool:
    """Whether a node is an argument of the form of a result, frames not counted."""
    return node.op == "placeholder" and form(node) == form(output)


def form(node: fx.Node) -> tuple[object, ...]:
    """Type and sizes of a value, frames not counted."""
    value, axes = node.meta.get("val"), axes_of(node)
    if not isinstance(value, torch.Tensor) or len(axes) != value.ndim:
        return value_key(node)
    sizes = (axis.at(1) if axis else size for axis, size in zip(axes, value.shape, strict=True))
    return (*sizes, value.dtype)
