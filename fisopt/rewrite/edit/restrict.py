"""Restriction: a block's graph, edited so that it computes no more than is demanded of it.

A gather goes where the demand drops; where an inner node was computed on a subset though its users
want the whole, it is spread again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fisopt.errors import VerifyError
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import axes_of, set_axes
from fisopt.rewrite.edit.demand import Demand
from fisopt.rewrite.edit.editor import GROUP, Editor
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.ops.fill_frames import Fill
from fisopt.rewrite.relations import relation, split_dim, virtual_shape

Shorts = Mapping[Subset, Mapping[fx.Node, fx.Node]]
"""For every subset, the nodes of the same block at as many tokens: its sizes are read there."""


@dataclass(frozen=True)
class Restricted:
    """What became of a block's graph.

    Attributes:
        narrowed: arguments that it expects on a subset only, with the dimensions to take it of.
        short: results that it returns on a subset only, by their place among the results.
        barriers: operators that are computed whole because nothing is known of them.
        partial: operators that combine entries of the video, and read a part of them only.
    """

    narrowed: dict[fx.Node, tuple[Subset, tuple[int, ...]]]
    short: dict[int, Subset]
    barriers: tuple[str, ...]
    partial: frozenset[fx.Node]


class Restrict:
    """Edit a graph as a demand asks for.

    Args:
        editor: of the graph.
        demand: the analysis of the graph.
        exits: inner nodes that are spread after they are computed.
        shorts: where numbers that depend on how much there is of the video are read.
        fill: how they are spread.
    """

    def __init__(
        self,
        editor: Editor,
        demand: Demand,
        exits: Mapping[fx.Node, Subset],
        shorts: Shorts,
        fill: Fill | None,
    ) -> None:
        self.editor, self.demand, self.exits = editor, demand, exits
        self.shorts, self.fill = shorts, fill
        self.whole: dict[fx.Node, fx.Node] = {}
        self.moved: set[fx.Node] = set()
        nodes = editor.graph.nodes
        self.sizes = {n: virtual_shape(n) for n in nodes if n.op != "output"}
        self.framed = {n: [d for d, axis in enumerate(axes_of(n)) if axis] for n in nodes}
        self.narrowed: dict[fx.Node, tuple[Subset, tuple[int, ...]]] = {}

    def run(self) -> Restricted:
        """Edit the graph from the arguments to the results.

        Raises:
            VerifyError: an operator cannot be computed on what is demanded of it.
        """
        barriers = tuple(n.format_node() or n.name for n in self.demand.barriers)
        short, partial = self._short_results(), frozenset(self._partial())
        for node in list(self.editor.graph.nodes):
            if node.op == "placeholder":
                self._narrow(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                node.args = fx.node.map_arg(node.args, lambda n: self._operand(node, n))  # noqa: B023
        return Restricted(self.narrowed, short, barriers, partial)

    def _partial(self) -> Iterator[fx.Node]:
        for node in self.editor.graph.nodes:
            if node.op == "call_function":
                places = ((node, operand, d) for operand, d in relation(node).mixed)
                if any(self.demand.needs.get(place) is not None for place in places):
                    yield node

    def _short_results(self) -> dict[int, Subset]:
        graph, needs = self.editor.graph, self.demand.needs
        sink = graph.output_node()
        found = {}
        for i, node in enumerate(results(graph)):
            for d in range(len(axes_of(node))):
                if (subset := needs.get((sink, node, d))) is not None:
                    found[i] = subset
        return found

    def _narrow(self, node: fx.Node) -> None:
        """Take an argument on a subset where nobody needs more of it."""
        needs = self.demand.needs
        dims = tuple(d for d, axis in enumerate(axes_of(node)) if axis is not None)
        places = ((user, node, d) for user in node.users for d in dims)
        uses = {needs[place] for place in places if place in needs}
        subset = uses.pop() if len(uses) == 1 else None
        if subset is None or any(user.op == "output" for user in node.users):
            return
        axes = list(axes_of(node))
        sizes = list(node.meta["val"].shape)
        for d in dims:
            axis = axes[d]
            if axis is None or not subset.covers(axis):
                return
            sizes, axes[d] = subset.shape(sizes, d, axis), subset.axis(axis)
        groups = list(dict.fromkeys(s for s, _ in (*self.narrowed.values(), (subset, dims))))
        self.narrowed[node] = (subset, dims)
        node.meta[GROUP] = groups.index(subset)
        self.demand.frames |= {(node, d): subset for d in dims}
        self.editor.resize(node, sizes)
        self.moved.add(node)
        set_axes(node, tuple(axes))

    def _operand(self, user: fx.Node, operand: fx.Node) -> fx.Node:
        """The operand as its user needs it: taken on a subset where the demand drops."""
        node, computed = self.whole.get(operand, operand), self.demand.frames
        drops: dict[Subset, list[int]] = {}
        for d in range(len(axes_of(operand))):
            need = self.demand.needs.get((user, operand, d))
            if need is not None and (operand in self.whole or (operand, d) not in computed):
                drops.setdefault(need, []).append(d)
        for subset, dims in drops.items():
            with self.editor.before(user):
                node = subset.take(self.editor, node, dims)
        return node

    def _call(self, node: fx.Node) -> None:
        given: Any = fx.node.map_arg(self._constants(node), lambda n: self._operand(node, n))
        if given == (node.args, node.kwargs) and not self.moved.intersection(node.all_input_nodes):
            return
        node.args, node.kwargs = given
        self.moved.add(node)
        self.editor.changed = True
        try:
            self.editor.evaluate(node)
        except Exception as error:
            raise VerifyError(
                f"{node.format_node()} cannot be computed on {self._said(node)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._check(node)
        whole = axes_of(node)
        held = [self.demand.frames.get((node, d)) for d in range(len(whole))]
        set_axes(node, tuple(s.axis(a) if s and a else a for s, a in zip(held, whole, strict=True)))
        if node in self.exits and self.demand.sparse(node):
            axes = tuple(a if s else None for s, a in zip(held, whole, strict=True))
            with self.editor.after(node):
                full = self.exits[node].spread(self.editor, node, axes, fill=self.fill)
            set_axes(full, whole)
            self.whole[node] = full

    def _check(self, node: fx.Node) -> None:
        """Insist on the sizes that the block has at as many tokens; items may be more."""
        value, sizes = node.meta["val"], list(self.sizes[node])
        for d in range(len(sizes)):
            if (subset := self.demand.frames.get((node, d))) is not None:
                sizes[d] = self._virtual(subset, node)[d]
        if not isinstance(value, torch.Tensor) or list(value.shape) == sizes:
            return
        items = {s.items for s in self._subsets(node)}
        if [*value.shape[1:]] != sizes[1:] or sizes[0] != 1 or value.shape[0] not in items:
            raise VerifyError(
                f"{node.format_node()} has shape {list(value.shape)} where the demand for "
                f"{self._said(node)} says {sizes}"
            )

    def _subsets(self, node: fx.Node) -> list[Subset]:
        """The subsets that a node and its operands are on."""
        nodes = (node, *node.all_input_nodes)
        return list(dict.fromkeys(subset for n in nodes for subset in self.demand.of(n)))

    def _said(self, node: fx.Node) -> str:
        return " and ".join(map(str, self._subsets(node))) or "the whole video"

    def _virtual(self, subset: Subset, node: fx.Node) -> tuple[int, ...]:
        """The sizes of a node in the block at as many tokens."""
        short = self.shorts[subset].get(node)
        return self.sizes[node] if short is None else virtual_shape(short)

    def _constants(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A node's arguments, sizes read at the subset of the dimension they speak of.

        Numbers that are not sizes (a scale made from the token count) are those of the subset
        only where the operator is cut.
        """
        subset = self._narrow_on(node)
        others = {s: short for s in self.shorts if (short := self.shorts[s].get(node)) is not None}
        same = (repr(short.args) == repr(node.args) for short in others.values())
        kept = (repr(short.kwargs) == repr(node.kwargs) for short in others.values())
        if all(same) and all(kept):
            return node.args, dict(node.kwargs)
        frames, rank = self.demand.frames, len(self.sizes[node])
        by_dim = split_dim(node) is None

        def size(value: Any, other: dict[Subset, Any]) -> Any:
            if isinstance(value, (list, tuple)):
                if len(value) == rank and by_dim:
                    held = [frames.get((node, d)) for d in range(rank)]
                    return [
                        v if (s := held[d]) is None else other[s][d] for d, v in enumerate(value)
                    ]
                return [size(v, {s: o[i] for s, o in other.items()}) for i, v in enumerate(value)]
            return value if isinstance(value, fx.Node) or subset is None else other[subset]

        def choose(schema: torch.Argument | None, value: Any, other: dict[Subset, Any]) -> Any:
            if schema is None or "int" in str(schema.type):
                return size(value, other)
            constant = not isinstance(value, (fx.Node, list, tuple))
            if constant and node in self.demand.cut and {value} != {*other.values()}:
                read = self._read_by(node) if subset is None and not self.framed[node] else subset
                return value if read is None else other[read]
            return value

        known = getattr(getattr(node.target, "_schema", None), "arguments", ())
        by_name = {a.name: a for a in known}
        schemas = itertools.zip_longest(known[: len(node.args)], node.args)
        args = tuple(
            choose(schema, value, {s: short.args[i] for s, short in others.items()})
            for i, (schema, value) in enumerate(schemas)
        )
        kwargs = {
            k: choose(by_name.get(k), v, {s: short.kwargs[k] for s, short in others.items()})
            for k, v in node.kwargs.items()
        }
        return args, kwargs

    def _read_by(self, node: fx.Node) -> Subset | None:
        """The subset that an operator without frames was made of, such as a mean of tokens.

        Raises:
            VerifyError: it was made of two.
        """
        held: set[Subset] = set()
        open_nodes = [node]
        while open_nodes:
            user = open_nodes.pop()
            for operand in user.all_input_nodes:
                places = ((user, operand, d) for d in self.framed.get(operand, ()))
                held |= {s for p in places if (s := self.demand.needs.get(p)) is not None}
                open_nodes += [] if self.framed.get(operand) else [operand]
        return self._one_of(node, held)

    def _one_of(self, node: fx.Node, held: set[Subset]) -> Subset | None:
        if len(held) > 1:
            one, two, *_ = sorted(map(str, held))
            raise VerifyError(
                f"{node.format_node()} meets {one} and {two}; ask for the same subset of both"
            )
        return held.pop() if held else None

    def _narrow_on(self, node: fx.Node) -> Subset | None:
        """The subset that the numbers of an operator speak of, None if of the whole video.

        Raises:
            VerifyError: it may be one of two.
        """
        held = {self.demand.frames.get((node, d)) for d in self.framed[node]}
        if not held:
            operands = (n for n in node.all_input_nodes if n not in self.exits)
            held = {subset for n in operands for subset in self.demand.of(n)}
        subsets = {subset for subset in held if subset is not None}
        return None if None in held else self._one_of(node, subsets)
