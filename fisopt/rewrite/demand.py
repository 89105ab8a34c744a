"""Frame demand: which latent frames of each value are needed, and a graph that computes no more.

A backward analysis over the dimensions of a block's values, like liveness.  A dimension is
demanded either whole or on the anchor frames.  A followed dimension demands of its operand
what is demanded of it; a mixed one (keys, values, a reduction) demands everything, unless the
node is in ``cut``, where it demands the anchors only: that is the approximation.  A gather goes
where the demand drops.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fisopt.rewrite.axes import FrameAxis, axes_of
from fisopt.rewrite.relations import relation, split_dim, virtual_shape

Place = tuple[fx.Node, int]


@dataclass
class Demand:
    """The frames that each framed dimension of a graph is computed on.

    Attributes:
        anchors: places computed on the anchor frames; all other framed places are whole.
        needs: what an operator needs of an operand's dimension: True for the anchors.
        barriers: operators of unknown relation that were met with whole operands.
    """

    anchors: set[Place] = field(default_factory=set)
    needs: dict[tuple[fx.Node, fx.Node, int], bool] = field(default_factory=dict)
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
    for node in reversed(graph.nodes):
        if node.op == "placeholder":
            continue
        if node.op != "call_function":
            continue
        found = relation(node)
        fixed = cut(node)
        placed = {link.out for link in found.links if _framed(link.operand, link.dim)}
        for d, axis in enumerate(axes_of(node)):
            if axis is None:
                continue
            generated = d not in placed and d not in found.constant and d not in found.kept
            if node in exits and d in placed:
                demand.anchors.add((node, d))
            elif (node, d) in whole or generated or (d in found.kept and not fixed):
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
        if found.barrier and not fixed and any(a is not None for a in axes_of(node)):
            demand.barriers.append(node)
    return demand


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


@dataclass
class Restricted:
    """A block graph that computes only what is demanded.

    Attributes:
        graph_module: takes the block's arguments, then the frame tables that it uses.
        narrowed: positions of arguments that it expects on the anchor frames, with the
            dimensions to gather.
        tables: names of the frame tables it takes after the block's own arguments.
        sparse_outputs: positions of results that hold the anchor frames only.
        barriers: operators that were computed whole for want of a relation.
    """

    graph_module: fx.GraphModule
    narrowed: dict[int, tuple[int, ...]]
    tables: tuple[str, ...]
    sparse_outputs: tuple[int, ...]
    barriers: tuple[str, ...]


TABLES = ("anchors", "left", "right", "weight")


class Restrict:
    """Write the graph that a demand asks for.

    Args:
        body: the block's graph at all frames.
        short: the same graph, node for node, at ``anchors`` frames: where constants that
            depend on the frame count are read.
        demand: the analysis of ``body``.
        anchors: the number of anchor frames.
        frames: the number of all frames.
        exits: inner nodes to be filled after they are computed, with the fill.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        short: fx.GraphModule,
        demand: Demand,
        anchors: int,
        frames: int,
        exits: Collection[fx.Node] = (),
        fill: str = "residual",
    ) -> None:
        self.body, self.demand = body, demand
        self.twin = dict(zip(body.graph.nodes, short.graph.nodes, strict=True))
        self.count, self.frames = anchors, frames
        self.exits, self.fill = set(exits), fill
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.tables: dict[str, fx.Node] = {}
        self.gathered: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}
        self.narrowed: dict[int, tuple[int, ...]] = {}
        self.mode = body.meta["fisopt.mode"]

    def run(self) -> Restricted:
        """Emit the graph."""
        holders = [n for n in self.body.graph.nodes if n.op == "placeholder"]
        for position, node in enumerate(holders):
            self.env[node] = self._placeholder(position, node)
        for name in TABLES:
            self.tables[name] = self._table(name)
        for node in self.body.graph.nodes:
            if node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                self.graph.output(fx.node.map_arg(node.args[0], self._whole_or_sparse))
                results = node.all_input_nodes
        used = [name for name, table in self.tables.items() if table.users]
        for name, table in self.tables.items():
            if name not in used:
                self.graph.erase_node(table)
        module = fx.GraphModule(self.body, self.graph, class_name="Block")
        module.meta["fisopt.mode"] = self.mode
        sparse = tuple(
            i for i, n in enumerate(results) if self.demand.sparse(n) and n not in self.exits
        )
        barriers = tuple(n.format_node() or n.name for n in self.demand.barriers)
        return Restricted(module, self.narrowed, tuple(used), sparse, barriers)

    def _whole_or_sparse(self, node: fx.Node) -> fx.Node:
        return self.env[node]

    def _placeholder(self, position: int, node: fx.Node) -> fx.Node:
        """Take an argument on the anchors where nobody needs more of it."""
        new = self.graph.placeholder(node.name)
        dims = tuple(d for d, axis in enumerate(axes_of(node)) if axis is not None)
        uses = [
            self.demand.needs.get((user, node, d))
            for user in node.users
            for d in dims
            if (user, node, d) in self.demand.needs
        ]
        returned = any(user.op == "output" for user in node.users)
        if dims and uses and all(uses) and not returned:
            self.narrowed[position] = dims
            self.demand.anchors |= {(node, d) for d in dims}
            new.meta = dict(self.twin[node].meta)
        else:
            new.meta = dict(node.meta)
        return new

    def _table(self, name: str) -> fx.Node:
        node = self.graph.placeholder(f"frames_{name}")
        size = self.count if name == "anchors" else self.frames
        dtype = torch.float32 if name == "weight" else torch.int64
        device = next(
            n.meta["val"].device for n in self.env if isinstance(n.meta.get("val"), torch.Tensor)
        )
        with self.mode:
            node.meta["val"] = torch.empty(size, dtype=dtype, device=device)
        return node

    def _operand(self, user: fx.Node, operand: fx.Node) -> fx.Node:
        """The operand as its user needs it: gathered where the demand drops."""
        drops = tuple(
            d
            for d, axis in enumerate(axes_of(operand))
            if axis is not None
            and (operand, d) not in self.demand.anchors
            and self.demand.needs.get((user, operand, d), False)
        )
        if operand in self.exits:
            drops = tuple(
                d
                for d, axis in enumerate(axes_of(operand))
                if axis is not None and self.demand.needs.get((user, operand, d), False)
            )
        if not drops:
            return self.env[operand]
        key = (operand, drops)
        if key not in self.gathered:
            node = self.env[operand]
            for d in drops:
                axis = axes_of(operand)[d]
                assert axis is not None
                node = self.emit(
                    torch.ops.fisopt.gather_frames.default,
                    (
                        node,
                        d,
                        self.tables["anchors"],
                        axis.outer,
                        axis.inner,
                        axis.before,
                        axis.after,
                    ),
                )
            self.gathered[key] = node
        return self.gathered[key]

    def _call(self, node: fx.Node) -> fx.Node:
        args, kwargs = self._constants(node)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda n: self._operand(node, n))
        new = self.emit(node.target, args, kwargs, name=node.name)
        new.meta |= {k: v for k, v in node.meta.items() if k not in ("val", "fisopt.axes")}
        new.meta["fisopt.axes"] = self._axes(node)
        want = self._sizes(node)
        got = tuple(new.meta["val"].shape) if isinstance(new.meta["val"], torch.Tensor) else want
        if want != got:
            raise ValueError(f"{node.format_node()} has shape {got} where the demand says {want}")
        return self._filled(node, new) if node in self.exits else new

    def _filled(self, node: fx.Node, new: fx.Node) -> fx.Node:
        for d, axis in enumerate(axes_of(node)):
            if axis is not None and (node, d) in self.demand.anchors:
                tables = [self.tables[name] for name in TABLES]
                new = self.emit(
                    torch.ops.fisopt.fill_frames.default,
                    (
                        None,
                        new,
                        d,
                        *tables,
                        axis.outer,
                        axis.inner,
                        axis.before,
                        axis.after,
                        self.fill,
                    ),
                )
        new.meta["fisopt.axes"] = axes_of(node)
        return new

    def _axes(self, node: fx.Node) -> tuple[FrameAxis | None, ...]:
        return tuple(
            axis.at(self.count) if axis is not None and (node, d) in self.demand.anchors else axis
            for d, axis in enumerate(axes_of(node))
        )

    def _sizes(self, node: fx.Node) -> tuple[int, ...]:
        short = virtual_shape(self.twin[node])
        return tuple(
            short[d] if (node, d) in self.demand.anchors else size
            for d, size in enumerate(virtual_shape(node))
        )

    def _constants(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A node's arguments with ints read at the frame count of the dimension they speak of."""
        twin = self.twin[node]
        if repr(node.args) == repr(twin.args) and repr(node.kwargs) == repr(twin.kwargs):
            return node.args, dict(node.kwargs)
        rank = len(virtual_shape(node))
        framed = [d for d, a in enumerate(axes_of(node)) if a is not None]
        if framed:
            narrow = all((node, d) in self.demand.anchors for d in framed)
        else:
            narrow = any(self.demand.sparse(n) for n in node.all_input_nodes)

        def choose(value: Any, other: Any) -> Any:
            if isinstance(value, (list, tuple)) and len(value) == rank and split_dim(node) is None:
                return type(value)(
                    o if (node, d) in self.demand.anchors else v
                    for d, (v, o) in enumerate(zip(value, other, strict=True))
                )
            if isinstance(value, (list, tuple)):
                return type(value)(choose(v, o) for v, o in zip(value, other, strict=True))
            if isinstance(value, fx.Node):
                return value
            return other if narrow else value

        args = tuple(choose(a, b) for a, b in zip(node.args, twin.args, strict=True))
        kwargs = {k: choose(v, twin.kwargs[k]) for k, v in node.kwargs.items()}
        return args, kwargs

    def emit(
        self, target: Any, args: Any, kwargs: dict[str, Any] | None = None, name: str | None = None
    ) -> fx.Node:
        """Add a call and compute its value on fake tensors."""
        node = self.graph.create_node("call_function", target, args, kwargs or {}, name=name)
        values, options = fx.node.map_arg((args, kwargs or {}), lambda n: n.meta["val"])
        with self.mode, torch.no_grad():
            node.meta["val"] = target(*values, **options)
        return node
