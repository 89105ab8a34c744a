"""Demand: on which part of the video each value of a block is needed.

A backward analysis over the dimensions of a block's values, like liveness.  A dimension is
demanded whole or on a subset; where two subsets are demanded of one, it is whole.  A followed
dimension demands of its operand what is demanded of it; a mixed one (keys, values, a reduction)
demands everything, unless the node is in ``cut``, where it demands the node's own subset: that is
the approximation.  Numbers that address a dimension, and values that no frame enters (positions
made inside the block), speak of the whole video and are never cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import fx

from fisopt.errors import VerifyError
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import FrameAxis, axes_of, carries_frames
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.relations import Relation, relation

Place = tuple[fx.Node, int]


@dataclass
class Demand:
    """The part of the video that each dimension of a graph with frames is computed on.

    Attributes:
        frames: places computed on a subset; all other places with frames are whole.
        needs: what an operator needs of an operand's dimension, None for all of it.
        cut: operators that read a subset as if there were nothing else.
        barriers: operators of unknown relation that were met with whole operands.
    """

    frames: dict[Place, Subset] = field(default_factory=dict)
    needs: dict[tuple[fx.Node, fx.Node, int], Subset | None] = field(default_factory=dict)
    cut: set[fx.Node] = field(default_factory=set)
    barriers: list[fx.Node] = field(default_factory=list)

    def sparse(self, node: fx.Node) -> bool:
        """Whether some dimension of the node's value is computed on a subset only."""
        return bool(self.of(node))

    def of(self, node: fx.Node) -> set[Subset]:
        """The subsets that dimensions of the node's value are computed on."""
        places = ((node, d) for d in range(len(axes_of(node))))
        return {self.frames[p] for p in places if p in self.frames}


def analyse(
    graph: fx.Graph, parts: Mapping[fx.Node, Subset], cut: Collection[fx.Node] = ()
) -> Demand:
    """Find what a graph must compute.

    Args:
        graph: a block's graph with axes.
        parts: results that are demanded on a subset only, other results are demanded whole; and
            inner nodes that are computed on one though their users want the whole (what they
            return is spread again).
        cut: operators whose mixed dimensions read their own subset only.

    Raises:
        VerifyError: two subsets meet in an operator of ``cut``.
    """
    return _Analysis(graph, parts, cut).run()


class _Analysis:
    def __init__(
        self, graph: fx.Graph, parts: Mapping[fx.Node, Subset], cut: Collection[fx.Node]
    ) -> None:
        self.graph, self.parts, self.cut = graph, parts, set(cut)
        subsets = set(parts.values())
        self.only = subsets.pop() if len(subsets) == 1 else None
        self.demand = Demand()
        self.wanted: dict[Place, Subset | None] = {}
        self.results = set(results(graph))

    def run(self) -> Demand:
        """Go from the results back to the arguments."""
        sink = self.graph.output_node()
        for node in sink.all_input_nodes:
            for d, axis in _framed(node):
                subset = self.parts.get(node)
                self._need(sink, node, d, subset if subset and subset.covers(axis) else None)
        entered = _entered(self.graph)
        for node in reversed(self.graph.nodes):
            if node.op == "call_function":
                self._visit(node, node in self.cut and node in entered)
        return self.demand

    def _visit(self, node: fx.Node, fixed: bool) -> None:
        demand, found = self.demand, relation(node)
        if fixed:
            demand.cut.add(node)
        open_kept = found.kept if found.addressed or not fixed else set()
        placed = {link.out for link in found.links if _carries(link.operand, link.dim)}
        for d, axis in _framed(node):
            made_here = d not in placed and d not in found.constant and d not in found.kept
            exits = node in self.parts and node not in self.results
            if exits and (d in placed or d in found.kept - open_kept):
                subset: Subset | None = self.parts[node]
            elif made_here or d in open_kept:
                subset = None
            else:
                subset = self.wanted.get((node, d), self.only)
            if subset is not None and self._can(subset, axis, found, d):
                demand.frames[node, d] = subset
        if isinstance(node.meta["val"], (tuple, list)):
            self._agree(node)
        for link in found.links:
            if _carries(link.operand, link.dim):
                subset = demand.frames.get((node, link.out))
                self._need(node, link.operand, link.dim, subset)
        mixed = self._mixed(node) if fixed else None
        for operand, d in found.mixed:
            if _carries(operand, d):
                whole = d in found.kept and _carries(node, d) and (node, d) not in demand.frames
                by_number = (operand, d) in found.ends and not (mixed and mixed.has_ends)
                self._need(node, operand, d, None if whole or by_number else mixed)
        for operand, d in found.addressed:
            if _carries(operand, d):
                self._need(node, operand, d, None)
        if found.barrier and (found.addressed or not fixed) and carries_frames(node):
            demand.barriers.append(node)

    def _can(self, subset: Subset, axis: FrameAxis, found: Relation, dim: int) -> bool:
        """Whether a dimension, and those that it follows, can be computed on a subset."""
        operands = (
            axes_of(link.operand)[link.dim]
            for link in found.links
            if link.out == dim and _carries(link.operand, link.dim)
        )
        return all(a is not None and subset.covers(a) for a in (axis, *operands))

    def _mixed(self, node: fx.Node) -> Subset | None:
        """What an operator that is cut reads of the dimensions that it combines."""
        found = sorted(self.demand.of(node), key=str)
        if len(found) > 1:
            raise VerifyError(
                f"{node.format_node()} is needed on {found[0]} and on {found[1]}, and combines "
                "values of one of them only; ask for the same subset of both"
            )
        return found[0] if found else self.only

    def _agree(self, node: fx.Node) -> None:
        """Compute the pieces of a tuple whole where the tuple itself is."""
        for piece in node.users:
            for link in relation(piece).links:
                if _carries(node, link.dim) and (node, link.dim) not in self.demand.frames:
                    self.demand.frames.pop((piece, link.out), None)
                    self.demand.needs[piece, node, link.dim] = None

    def _need(self, user: fx.Node, operand: fx.Node, dim: int, subset: Subset | None) -> None:
        axis = axes_of(operand)[dim]
        if subset is not None and axis is not None and not subset.covers(axis):
            subset = None
        key = (user, operand, dim)
        needs = self.demand.needs
        needs[key] = subset if needs.get(key, subset) == subset else None
        place = (operand, dim)
        self.wanted[place] = subset if self.wanted.get(place, subset) == subset else None


def _framed(node: fx.Node) -> list[tuple[int, FrameAxis]]:
    return [(d, axis) for d, axis in enumerate(axes_of(node)) if axis is not None]


def _carries(node: fx.Node, dim: int) -> bool:
    axes = axes_of(node)
    return dim < len(axes) and axes[dim] is not None


def _entered(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that some argument with frames flows into."""
    entered: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            inside = carries_frames(node)
        else:
            inside = any(n in entered for n in node.all_input_nodes)
        if inside:
            entered.add(node)
    return entered
