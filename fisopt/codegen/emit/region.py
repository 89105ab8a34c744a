"""Regions: which operators of a stage could run as one kernel each, found from structure.

Operators that the emitter does not know (matrix products, attention, convolutions) cut a stage
into levels: a level counts how many of them lie before a value, which is computed as late as its
users allow.  Connected known operators of one level depend on each other through known operators
alone, so that each such set is one step of the program.  A value that is cheaper to compute again
than to read back (a view, a gate that is broadcast over the tokens, a gathered copy) belongs to
no set: every region that uses it computes it from its own operands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from fisopt.codegen.emit.arguments import piece, shape
from fisopt.codegen.emit.operators import MOVES, PIECES, REDUCTIONS, RULES, VIEWS
from fisopt.rewrite.analysis.structure import results

_ONCE = 1.25
"""Reading this many elements for each of a value's own is no more than reading it back."""


@dataclass(frozen=True)
class Region:
    """Operators that could run as one kernel.

    Attributes:
        graph: a graph of their own; its inputs are the operands, its results have one shape.
        operands: the nodes of the stage that it reads, in the order of its inputs.
        results: the nodes of the stage that it computes, in the order of its results.
        operators: how many operators of it compute something; the others only move elements.
        stage_elements: elements of the largest value that the stage computes.
    """

    graph: fx.GraphModule
    operands: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]
    operators: int
    stage_elements: int


def find_regions(stage: fx.GraphModule) -> list[Region]:
    """Every region of a stage, in an order in which operands come first."""
    found = _Finder(stage.graph)
    regions: list[Region] = []
    for members in found.components():
        regions += found.regions(stage, members)
    return regions


class _Finder:
    """What is known of each node of one stage."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        computed = (n for n in graph.nodes if n.op == "call_function")  # weights say nothing
        self.largest = max(map(_elements, computed), default=0)
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.depth: dict[fx.Node, int] = {}
        self.level: dict[fx.Node, int] = {}
        self.sources: dict[fx.Node, frozenset[fx.Node]] = {}
        self.heavy: set[fx.Node] = set()
        self.normed: set[fx.Node] = set()
        for node in graph.nodes:
            before = max((self.depth[n] for n in node.all_input_nodes), default=0)
            self.depth[node] = before + (node.op == "call_function" and not known(node))
        for node in reversed(graph.nodes):
            self.level[node] = self._latest(node)
        for node in graph.nodes:
            if known(node):
                self._visit(node)
        self.wanted = self._wanted()

    def _latest(self, node: fx.Node) -> int:
        """The last level at which a known node can be computed, so that its users find it."""
        users = [u for u in node.users if u.op != "output"]
        if not known(node) or len(users) < len(node.users) or not users:
            return self.depth[node]
        return min(self.level[u] if known(u) else self.depth[u] - 1 for u in users)

    def _visit(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes
        self.sources[node] = frozenset(
            s for n in inputs for s in ([n] if self._is_source(n) else self.sources[n])
        )
        near = [n for n in inputs if known(n) and self.level[n] == self.level[node]]
        if node.target in REDUCTIONS or any(n in self.normed for n in near):
            self.normed.add(node)
        several = not isinstance(node.meta.get("val"), torch.Tensor)
        if not several and (node in self.normed or self._reads(node) > _ONCE * _elements(node)):
            self.heavy.add(node)

    def _is_source(self, node: fx.Node) -> bool:
        return not known(node) or node in self.heavy

    def _reads(self, node: fx.Node) -> int:
        own = _elements(node)
        return sum(min(_elements(s), own) for s in self.sources[node])

    def _wanted(self) -> set[fx.Node]:
        """Nodes that operators outside of every region read, or that the stage returns."""
        wanted: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "placeholder" or known(node):
                continue
            for source in node.all_input_nodes:
                if (end := self._materialised(source)) is not None:
                    wanted.add(end)
        return wanted

    def _materialised(self, node: fx.Node) -> fx.Node | None:
        """What has to be computed for a node to be there: itself, or what it is a view of."""
        base = node
        only = True
        while known(base) and _is_view(base):
            base = base.all_input_nodes[0]
            only = only and len(base.users) == 1
        if not known(base):
            return None
        return node if only or base not in self.heavy else base

    def components(self) -> list[list[fx.Node]]:
        """Connected sets of nodes that need a kernel, in an order in which operands come first."""
        kernels = self.heavy | self.wanted
        network = nx.Graph()
        network.add_nodes_from(kernels)
        for node in kernels:
            for source in self.sources[node]:
                if source in kernels and self.level[source] == self.level[node]:
                    network.add_edge(source, node)
        sets = [sorted(s, key=self.order.__getitem__) for s in nx.connected_components(network)]
        return sorted(sets, key=lambda s: (self.level[s[0]], self.order[s[0]]))

    def regions(self, stage: fx.GraphModule, members: list[fx.Node]) -> Iterator[Region]:
        """The regions of a connected set: one for each shape that its results have."""
        inside = set(members)
        kernels = self.heavy | self.wanted
        used = {s for n in kernels - inside for s in self.sources[n]}
        leaving = (used | self.wanted) & inside
        by_shape: dict[tuple[int, ...], list[fx.Node]] = {}
        for node in members:
            if node in leaving:
                by_shape.setdefault(shape(node), []).append(node)
        done: set[fx.Node] = set()
        for ends in by_shape.values():
            yield self._extract(stage, ends, done)
            done.update(ends)

    def _extract(self, stage: fx.GraphModule, ends: list[fx.Node], done: set[fx.Node]) -> Region:
        """Copy what some results need into a graph of its own."""
        level = self.level[ends[0]]
        needed: dict[fx.Node, None] = {}
        operands: dict[fx.Node, None] = {}

        def visit(node: fx.Node) -> None:
            if node in needed or node in operands:
                return
            outside = self.level[node] != level and node in self.heavy
            if not known(node) or node in done or outside:
                operands[node] = None
                return
            for source in node.all_input_nodes:
                visit(source)
            needed[node] = None

        for node in ends:
            visit(node)
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in operands:
            env[node] = graph.placeholder(node.name)
            env[node].meta = {"val": node.meta["val"]}
        for node in sorted(needed, key=self.order.__getitem__):
            env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta = {"val": node.meta["val"]}
        graph.output(tuple(env[node] for node in ends))
        module = fx.GraphModule(stage, graph, class_name="Region")
        computing = sum(n.target not in MOVES and piece(n) is None for n in needed)
        return Region(module, tuple(operands), tuple(ends), computing, self.largest)


def known(node: fx.Node) -> bool:
    """Whether the emitter has a rule for a node."""
    if (found := piece(node)) is not None:
        return found[0].target in PIECES
    return node.op == "call_function" and (node.target in RULES or node.target in PIECES)


def _is_view(node: fx.Node) -> bool:
    return node.target in VIEWS or piece(node) is not None


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return sum(v.numel() for v in values if isinstance(v, torch.Tensor))


def returned(region: Region) -> list[fx.Node]:
    """The results of a region in its own graph."""
    return results(region.graph.graph)
