"""What a block is made of, found from structure: dependences, residuals, attentions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import networkx as nx
import torch
from torch import fx

from fisopt.rewrite.analysis.fused import FUSED
from fisopt.rewrite.analysis.residual import ADDS, form, moved_from, residual_stream
from fisopt.rewrite.axes import axes_of, carries_frames
from fisopt.rewrite.lines import line_of
from fisopt.rewrite.ops.operator import declared, restored
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.relations import relation
from fisopt.rewrite.relations.reshape import of_dims
from fisopt.rewrite.relations.table import operand_of, shape
from fisopt.rewrite.views import CUTS

aten = torch.ops.aten

_WITH_BIAS = {aten.baddbmm.default, aten.addmm.default}
PRODUCTS = {aten.bmm.default, aten.matmul.default, aten.mm.default, *_WITH_BIAS}
SOFTMAXES = {aten.softmax.int, aten._softmax.default}
BranchKind = Literal["self_attention", "cross_attention", "feed_forward"]


def dependences(graph: fx.Graph) -> nx.DiGraph:
    """The data dependences of a graph: an edge from every operand to its user."""
    result = nx.DiGraph()
    for node in graph.nodes:
        result.add_node(node)
        result.add_edges_from((operand, node) for operand in node.all_input_nodes)
    return result


def residual_source(graph: fx.Graph, output: fx.Node) -> fx.Node | None:
    """The one argument that is, as it stands, the residual stream of a result."""
    found = residual_stream(graph, output)
    whole = found is not None and len(found.arguments) == 1 and not found.views
    return found.arguments[0] if found is not None and whole else None


@dataclass(frozen=True)
class Branch:
    """A residual branch: what runs between the residual stream and the addition back to it.

    Attributes:
        stream: the value of the stream that it reads.
        add: the addition that closes it.
        update: what is added to the stream.
        nodes: the operators between the two, ``update`` among them.
        kind: by what it attends to: the video itself, something else such as text, or nothing.
    """

    stream: fx.Node
    add: fx.Node
    update: fx.Node
    nodes: frozenset[fx.Node]
    kind: BranchKind


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

    itself = {a.result for a in self_attentions(graph)}
    attended = {a.result for a in attentions(graph)}

    def kind(nodes: set[fx.Node]) -> BranchKind:
        if not nodes & attended:
            return "feed_forward"
        return "self_attention" if nodes & itself else "cross_attention"

    branches = []
    for node in graph.nodes:
        if node.target not in ADDS or not carries_frames(node):
            continue
        pair = [n for n in node.args[:2] if isinstance(n, fx.Node) and n in framed]
        if len(pair) != 2 or axes_of(pair[0]) != axes_of(pair[1]):
            continue
        for stream, last in (pair, pair[::-1]):
            if stream is not last and dominates(stream, last):
                between = (nx.ancestors(framed, last) | {last}) & nx.descendants(framed, stream)
                branches.append(Branch(stream, node, last, frozenset(between), kind(between)))
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
        made = declared(node.target)
        if node.target is FUSED or (made is not None and made.attention):
            found.append(Attention(node, frozenset([node]), node.args[2]))
        elif node.target in PRODUCTS and (bias_of(node) is None):
            left, right = factors(node)
            weights = moved_from(left)
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


def no_self_attention(graph: fx.Graph) -> str:
    """What to say of a block without `self_attentions`, and of attention to ranges of its video."""
    streams, edges = _streams(graph), dependences(graph)
    parts = [a.result for a in attentions(graph) if streams & nx.ancestors(edges, a.value)]
    if not parts:
        return "no self-attention was found in it"
    line = line_of(parts[0])
    return (
        f"no self-attention was found in it that has the tokens of every frame; {len(parts)} have "
        "others, such as ranges of them or text" + (line and f", the first at {line}") + ". If "
        "they are ranges, write one attention over all tokens with attn_mask"
    )


def in_window(graph: fx.Graph, attention: Attention) -> bool:
    """Whether an attention reads the block's own video among other keys, in places not known.

    So is a cache that moves on: it holds as many keys at any number of frames.
    """
    keys, queries = shape(attention.value), shape(attention.result)
    long = keys[-2] >= queries[-2] and not carries_frames(attention.value)
    return long and attention in self_attentions(graph)


def _is_visual(result: fx.Node) -> bool:
    """Whether an attention answers queries of frames, all of them or some that stand for them."""
    return carries_frames(result) or any(restored(user) is result for user in result.users)


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
    if (made := declared(node.target)) is not None and made.entries:
        return {(n, dim) for i in made.entries if isinstance(n := node.args[i], fx.Node)}
    if node.target in CUTS:
        return {(operand_of(node, 0), d) for d in of_dims(node, dim)}
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
            stream = residual_stream(graph, output)
            alike = (n for n in holders if form(n) == form(output))
            found |= set(stream.arguments if stream is not None else alike)
    return found or set(holders)


def results(graph: fx.Graph) -> list[fx.Node]:
    """What a graph returns, in order."""
    return [n for n in outputs_of(graph) if isinstance(n, fx.Node)]


def result_nodes(call: fx.Node, count: int) -> list[fx.Node | None]:
    """The nodes that stand for each of the results of a call, None where nobody uses it."""
    if count == 1:
        return [call]
    by_index = {user.args[1]: user for user in call.users}
    return [by_index.get(i) for i in range(count)]
