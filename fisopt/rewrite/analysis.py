"""What a block is made of, found from structure: dependences, residuals, attentions, repeats."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from fisopt.rewrite.axes import axes_of, carries_frames
from fisopt.rewrite.ops import (
    fill_frames,
    gather_frames,
    reduce_tokens,
    restore_tokens,
    tile_attention,
)
from fisopt.rewrite.outline import structure, value_key
from fisopt.rewrite.program import Program
from fisopt.rewrite.relations import relation
from fisopt.rewrite.relations.table import operand_of, shape

aten = torch.ops.aten

_MOVES = {
    aten.reshape.default,
    aten.view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.cat.default,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.clone.default,
    aten._to_copy.default,
    gather_frames.gather_frames._opoverload,
    fill_frames.fill_frames._opoverload,
    operator.getitem,
}
_RESTORE = restore_tokens.restore_tokens._opoverload
_REDUCE = reduce_tokens.reduce_tokens._opoverload
_ADDS = {aten.add.Tensor}
_NORMS = {aten.layer_norm.default, aten.rms_norm.default}
_FUSED = {
    aten.scaled_dot_product_attention.default,
    tile_attention.tile_attention._opoverload,
}
_WITH_BIAS = {aten.baddbmm.default, aten.addmm.default}
PRODUCTS = {aten.bmm.default, aten.matmul.default, aten.mm.default, *_WITH_BIAS}
SOFTMAXES = {aten.softmax.int, aten._softmax.default}


def dependences(graph: fx.Graph) -> nx.DiGraph:
    """The data dependences of a graph: an edge from every operand to its user."""
    result = nx.DiGraph()
    for node in graph.nodes:
        result.add_node(node)
        result.add_edges_from((operand, node) for operand in node.all_input_nodes)
    return result


def _residual_edges(graph: fx.Graph) -> nx.DiGraph:
    """The dependences along which a value is only moved or added to."""
    result = nx.DiGraph()
    result.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        if node.target in _ADDS:
            result.add_edges_from((n, node) for n in node.args[:2] if isinstance(n, fx.Node))
        elif node.target in _MOVES:
            result.add_edges_from((n, node) for n in node.all_input_nodes)
        elif node.target is aten.type_as.default:
            result.add_edge(node.args[0], node)
    return result


def residual_source(graph: fx.Graph, output: fx.Node) -> fx.Node | None:
    """The argument that reaches a result as its residual stream, None if none or several do.

    It is moved and added to, and nothing else, or its sum with a branch is normalised (a block
    with norms behind its branches).  The argument may hold more frames than the result.
    """
    for edges in (_residual_edges(graph), _post_norm_edges(graph)):
        reached = [n for n in nx.ancestors(edges, output) if _fits(n, output)]
        if reached:
            return reached[0] if len(reached) == 1 else None
    return None


def _post_norm_edges(graph: fx.Graph) -> nx.DiGraph:
    """The residual edges, with those through a norm of a sum and what scales its result."""
    result = _residual_edges(graph)
    normalised: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target in _NORMS and _moved_from(node.args[0]).target in _ADDS:
            normalised.add(node)
            result.add_edge(node.args[0], node)
        elif node.target is aten.mul.Tensor:
            scaled = [n for n in node.all_input_nodes if n in normalised]
            result.add_edges_from((n, node) for n in scaled)
            normalised |= {node} if scaled else set()
        elif node.target in _MOVES and normalised.intersection(node.all_input_nodes):
            normalised.add(node)
    return result


def _fits(node: fx.Node, output: fx.Node) -> bool:
    """Whether a node is an argument of the form of a result, frames not counted."""
    return node.op == "placeholder" and _form(node) == _form(output)


def _form(node: fx.Node) -> tuple[object, ...]:
    """Type and sizes of a value, frames not counted."""
    value, axes = node.meta.get("val"), axes_of(node)
    if not isinstance(value, torch.Tensor) or len(axes) != value.ndim:
        return value_key(node)
    sizes = (axis.at(1) if axis else size for axis, size in zip(axes, value.shape, strict=True))
    return (*sizes, value.dtype)


@dataclass(frozen=True)
class Branch:
    """A residual branch: what runs between the residual stream and the addition back to it."""

    stream: fx.Node
    add: fx.Node
    nodes: frozenset[fx.Node]


def residual_branches(graph: fx.Graph) -> list[Branch]:
    """Find the residual branches of a block: single entry, single exit, closed by an addition.

    An addition closes a branch if one operand (the stream) dominates the other among the values
    that the block's video flows into; tables that enter on the way are no second entry.
    """
    edges = dependences(graph)
    streams = _streams(graph)
    inside = streams.union(*(nx.descendants(edges, n) for n in streams))
    framed = edges.subgraph([n for n in inside if n.op != "output" and carries_frames(n)]).copy()
    root = object()
    framed.add_edges_from((root, n) for n in streams)
    dominators = nx.immediate_dominators(framed, root)

    def dominates(a: fx.Node, b: fx.Node) -> bool:
        while b is not root and dominators.get(b) is not None and b is not a:
            if dominators[b] is b:
                return False
            b = dominators[b]
        return b is a

    branches = []
    for node in graph.nodes:
        if node.target not in _ADDS or not carries_frames(node):
            continue
        pair = [n for n in node.args[:2] if isinstance(n, fx.Node) and n in framed]
        if len(pair) != 2 or axes_of(pair[0]) != axes_of(pair[1]):
            continue
        for stream, last in (pair, pair[::-1]):
            if stream is not last and dominates(stream, last):
                between = (nx.ancestors(framed, last) | {last}) & nx.descendants(framed, stream)
                branches.append(Branch(stream, node, frozenset(between)))
    return branches


@dataclass(frozen=True)
class Attention:
    """An attention in a block's graph.

    Attributes:
        result: the node that holds the attended values.
        members: the operators that mix tokens: the fused attention, or softmax and product.
        value: the operand that is averaged.
    """

    result: fx.Node
    members: frozenset[fx.Node]
    value: fx.Node


def attentions(graph: fx.Graph) -> list[Attention]:
    """Find every attention of a block, fused or written out, in execution order."""
    found = []
    for node in graph.nodes:
        if node.target in _FUSED:
            found.append(Attention(node, frozenset([node]), node.args[2]))
        elif node.target in PRODUCTS and (bias_of(node) is None):
            left, right = factors(node)
            weights = _moved_from(left)
            if weights.target in SOFTMAXES:
                found.append(Attention(node, frozenset([node, weights]), right))
    return found


def factors(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two operands that a product multiplies."""
    first = int(product.target in _WITH_BIAS)
    left, right = product.args[first : first + 2]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    return left, right


def bias_of(product: fx.Node) -> fx.Node | None:
    """What a product adds to its result, None if nothing."""
    if product.target not in _WITH_BIAS or not product.kwargs.get("beta", 1):
        return None
    bias = product.args[0]
    assert isinstance(bias, fx.Node)
    return bias


def _moved_from(node: fx.Node) -> fx.Node:
    while node.target in _MOVES or node.target in (aten.type_as.default, aten.dropout.default):
        node = node.all_input_nodes[0]
    return node


def self_attentions(graph: fx.Graph) -> list[Attention]:
    """The attentions of frames to the block's own video: queries and values are tokens of it.

    Values that only depend on the video, such as text that has attended to it, are no tokens.
    """
    streams = _streams(graph)
    edges = dependences(graph)
    return [
        a
        for a in attentions(graph)
        if _is_visual(a.result)
        and streams & nx.ancestors(edges, a.value)
        and _holds_video(a.value, streams)
    ]


def _is_visual(result: fx.Node) -> bool:
    """Whether an attention answers queries of frames, all of them or some that stand for them."""
    return carries_frames(result) or any(user.target is _RESTORE for user in result.users)


def _holds_video(value: fx.Node, streams: set[fx.Node]) -> bool:
    """Whether the sequence of a value [..., M, D] is of frames, or of a stream's own entries.

    Attention inside one frame has no frames along its sequence: its entries are followed back.
    """
    return any(
        node in streams or (dim < len(axes_of(node)) and axes_of(node)[dim] is not None)
        for node, dim in made_of(value, len(shape(value)) - 2)
    )


def made_of(node: fx.Node, dim: int) -> set[tuple[fx.Node, int]]:
    """The dimensions, this one among them, whose entries a dimension is made of in place."""
    open_places = [(node, dim)]
    seen = set(open_places)
    while open_places:
        new = _followed(*open_places.pop()) - seen
        seen |= new
        open_places += new
    return seen


def _followed(node: fx.Node, dim: int) -> set[tuple[fx.Node, int]]:
    """The dimensions of operands whose entries a dimension of a value is made of, in place."""
    if node.op != "call_function":
        return set()
    if node.target is _REDUCE:
        return {(operand_of(node, 0), dim)}
    found = relation(node)
    kept = {(n, d) for n, d in found.mixed if d == dim and dim in found.kept}
    return {(link.operand, link.dim) for link in found.links if link.out == dim} | kept


def _streams(graph: fx.Graph) -> set[fx.Node]:
    """The arguments that hold the block's video.

    A result without a residual path has all arguments of its form; a block whose results have
    neither (long skips that are joined to the channels) has all arguments with frames.
    """
    holders = [n for n in graph.nodes if n.op == "placeholder" and carries_frames(n)]
    found: set[fx.Node] = set()
    for output in results(graph):
        if carries_frames(output):
            source = residual_source(graph, output)
            found |= {n for n in holders if _fits(n, output)} if source is None else {source}
    return found or set(holders)


def results(graph: fx.Graph) -> list[fx.Node]:
    """What a graph returns, in order."""
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    value = output.args[0]
    return [
        n
        for n in (value if isinstance(value, (tuple, list)) else [value])
        if isinstance(n, fx.Node)
    ]


def result_nodes(call: fx.Node, count: int) -> list[fx.Node | None]:
    """The nodes that stand for each of the results of a call, None where nobody uses it."""
    if count == 1:
        return [call]
    by_index = {user.args[1]: user for user in call.users}
    return [by_index.get(i) for i in range(count)]


def repeated_blocks(program: Program) -> list[list[fx.Node]]:
    """Group the video blocks by structure: blocks of one group are one graph, other weights."""
    groups: dict[object, list[fx.Node]] = {}
    for call in program.blocks:
        groups.setdefault(structure(program.callee(call).graph), []).append(call)
    return list(groups.values())
