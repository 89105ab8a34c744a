"""Restriction: a block's graph that computes no more frames than are demanded of it.

A gather goes where the demand drops, a fill where an inner node was computed on the anchors
though its users want every frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.errors import VerifyError
from fisopt.rewrite.analysis import results
from fisopt.rewrite.axes import FrameAxis, axes_of, set_axes
from fisopt.rewrite.demand import Demand
from fisopt.rewrite.relations import split_dim, virtual_shape

TABLES = ("anchors", "left", "right", "weight")
"""The frame tables that a restricted block may take after its own arguments."""


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
                self._output(node)
        used = [name for name, table in self.tables.items() if table.users]
        for name, table in self.tables.items():
            if name not in used:
                self.graph.erase_node(table)
        module = fx.GraphModule(self.body, self.graph, class_name="Block")
        module.meta["fisopt.mode"] = self.mode
        sparse = tuple(i for i, n in enumerate(results(self.body.graph)) if self._ends_sparse(n))
        barriers = tuple(n.format_node() or n.name for n in self.demand.barriers)
        return Restricted(module, self.narrowed, tuple(used), sparse, barriers)

    def _output(self, sink: fx.Node) -> None:
        """Return the results, cut to the anchors where that is all that is demanded."""
        self.graph.output(fx.node.map_arg(sink.args[0], lambda n: self._operand(sink, n)))

    def _ends_sparse(self, node: fx.Node) -> bool:
        sink = next(n for n in reversed(self.body.graph.nodes) if n.op == "output")
        return any(self.demand.needs.get((sink, node, d)) for d in range(len(axes_of(node))))

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
                source = node
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
                axes = axes_of(source) or axes_of(operand)
                set_axes(node, (*axes[:d], axis.at(self.count), *axes[d + 1 :]))
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
            raise VerifyError(f"{node.format_node()} has shape {got} where the demand says {want}")
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
        """A node's arguments, sizes read at the frame count of the dimension they speak of.

        Numbers that are not sizes (a scale made from the token count) are those of the anchors
        only where the operator is cut.
        """
        twin = self.twin[node]
        if repr(node.args) == repr(twin.args) and repr(node.kwargs) == repr(twin.kwargs):
            return node.args, dict(node.kwargs)
        anchors, rank = self.demand.anchors, len(virtual_shape(node))
        framed = [d for d, a in enumerate(axes_of(node)) if a is not None]
        if framed:
            narrow = all((node, d) in anchors for d in framed)
        else:
            narrow = any(self.demand.sparse(n) for n in node.all_input_nodes if n not in self.exits)
        by_dim = split_dim(node) is None

        def size(value: Any, other: Any) -> Any:
            if isinstance(value, (list, tuple)):
                pairs = list(zip(value, other, strict=True))
                if len(value) == rank and by_dim:
                    return [o if (node, d) in anchors else v for d, (v, o) in enumerate(pairs)]
                return [size(v, o) for v, o in pairs]
            return value if isinstance(value, fx.Node) or not narrow else other

        def choose(schema: torch.Argument | None, value: Any, other: Any) -> Any:
            if schema is None or "int" in str(schema.type):
                return size(value, other)
            constant = not isinstance(value, (fx.Node, list, tuple))
            return other if constant and node in self.demand.cut else value

        known = getattr(getattr(node.target, "_schema", None), "arguments", ())
        by_name = {a.name: a for a in known}
        pairs = itertools.zip_longest(known[: len(node.args)], node.args, twin.args)
        args = tuple(choose(*pair) for pair in pairs)
        kwargs = {k: choose(by_name.get(k), v, twin.kwargs[k]) for k, v in node.kwargs.items()}
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
