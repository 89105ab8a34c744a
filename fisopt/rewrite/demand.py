"""Frame demand: which latent frames of each value of a block are needed.

A backward analysis over the dimensions of a block's values, like liveness.  A dimension is
demanded either whole or on the anchor frames.  A followed dimension demands of its operand
what is demanded of it; a mixed one (keys, values, a reduction) demands everything, unless the
node is in ``cut``, where it demands the anchors only: that is the approximation.  Numbers that
address a dimension, and values that no frame enters (positions made inside the block), speak of
all frames and are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import fx

from fisopt.rewrite.axes import axes_of, carries_frames
from fisopt.rewrite.relations import relation

Place = tuple[fx.Node, int]


@dataclass
class Demand:
    """The frames that each framed dimension of a graph is computed on.

    Attributes:
        anchors: places computed on the anchor frames; all other framed places are whole.
        needs: what an operator needs of an operand's dimension: True for the anchors.
        cut: operators that read the anchor frames as if there were no others.
        barriers: operators of unknown relation that were met with whole operands.
    """

    anchors: set[Place] = field(default_factory=set)
    needs: dict[tuple[fx.Node, fx.Node, int], bool] = field(default_factory=dict)
    cut: set[fx.Node] = field(default_factory=set)
    barriers: list[fx.Node] = field(default_factory=list)

    def sparse(self, node: fx.Node) -> bool:
        """Whether some dimension of the node's value is computed on the anchors only."""
        return any((node, d) in self.anchors for d in range(len(axes_of(node))))


def analyse(
    graph: fx.Graph,
    outputs: Collection[fx.Node],
    cut: Callable[[fx.Node], bool],
    exits: Collection[fx.Node] = (),
) -> Demand:
    """Find the frames that a graph must compute.

    Args:
        graph: a block's graph with axes.
        outputs: results demanded on the anchor frames only; other results are demanded whole.
        cut: operators whose mixed dimensions read the anchor frames only.
        exits: inner nodes computed on the anchors though their users want every frame
            (a fill follows them).
    """
    demand = Demand()
    whole: set[Place] = set()
    sink = next(n for n in reversed(graph.nodes) if n.op == "output")
    for node in sink.all_input_nodes:
        if node not in outputs:
            whole |= {(node, d) for d, a in enumerate(axes_of(node)) if a is not None}
    for node in outputs:
        demand.needs |= {(sink, node, d): True for d, a in enumerate(axes_of(node)) if a}
    entered = _entered(graph)
    for node in reversed(graph.nodes):
        if node.op != "call_function":
            continue
        found = relation(node)
        fixed = cut(node) and node in entered
        if fixed:
            demand.cut.add(node)
        open_kept = found.kept if found.addressed or not fixed else set()
        placed = {link.out for link in found.links if _framed(link.operand, link.dim)}
        for d, axis in enumerate(axes_of(node)):
            if axis is None:
                continue
            generated = d not in placed and d not in found.constant and d not in found.kept
            if node in exits and (d in placed or d in found.kept - open_kept):
                demand.anchors.add((node, d))
                whole.discard((node, d))
            elif (node, d) in whole or generated or d in open_kept:
                whole.add((node, d))
            else:
                demand.anchors.add((node, d))
        if isinstance(node.meta["val"], (tuple, list)):
            _agree(demand, node)
        for link in found.links:
            if _framed(link.operand, link.dim):
                narrow = (node, link.out) in demand.anchors
                _need(demand, whole, node, link.operand, link.dim, narrow)
        for operand, d in found.mixed:
            if _framed(operand, d):
                narrow = fixed and not (d in found.kept and (node, d) in whole)
                _need(demand, whole, node, operand, d, narrow)
        for operand, d in found.addressed:
            if _framed(operand, d):
                _need(demand, whole, node, operand, d, False)
        if found.barrier and (found.addressed or not fixed) and carries_frames(node):
            demand.barriers.append(node)
    return demand


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


def _agree(demand: Demand, node: fx.Node) -> None:
    """Compute the pieces of a tuple on every frame where the tuple itself is."""
    for piece in node.users:
        for link in relation(piece).links:
            if _framed(node, link.dim) and (node, link.dim) not in demand.anchors:
                demand.anchors.discard((piece, link.out))
                demand.needs[piece, node, link.dim] = False


def _framed(node: fx.Node, dim: int) -> bool:
    axes = axes_of(node)
    return dim < len(axes) and axes[dim] is not None


def _need(
    demand: Demand, whole: set[Place], user: fx.Node, operand: fx.Node, dim: int, narrow: bool
) -> None:
    key = (user, operand, dim)
    demand.needs[key] = demand.needs.get(key, True) and narrow
    if not narrow:
        whole.add((operand, dim))
