"""Editing a block: a copy of its graph, and what crosses the border to the Program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fisopt.errors import PassError, VerifyError
from fisopt.rewrite.analysis.structure import results
from fisopt.rewrite.axes import Axes, axes_of, set_axes
from fisopt.rewrite.block import Block
from fisopt.rewrite.edit.demand import analyse
from fisopt.rewrite.edit.editor import GROUP, PART, Editor
from fisopt.rewrite.edit.restrict import Restrict, Restricted
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.lines import SAME_OPERATORS, parting, same_operators
from fisopt.rewrite.ops.fill_frames import Fill
from fisopt.rewrite.outline import copied
from fisopt.rewrite.relations.table import shape
from fisopt.rewrite.tracing.trace import MODE

Source = Callable[[Editor, Block], fx.Node]
"""For an argument that an edit has added: the node of the Program to pass for it."""


class BlockEdit(Editor):
    """Edit the graph of a block; made by `Rewriter.edit`.

    Whatever the edit reads from the Program (a constant, a tensor of an earlier step, a node)
    becomes an argument of the block. Whatever it stores or measures becomes a result.

    Attributes:
        block: the block before the edit.
        values: nodes of the Program that replace results of the block, as set by `give`.
    """

    def __init__(
        self,
        block: Block,
        mode: Any,
        pass_name: str,
        place: Callable[[], list[fx.Node]],
        resized: Callable[[Subset], fx.GraphModule],
    ) -> None:
        graph, self._twins = copied(block.body.graph)
        super().__init__(graph, mode, pass_name)
        self.block = block
        self.values: dict[fx.Node, fx.Node] = {}
        self._sources: list[Source] = []
        self._stores: list[tuple[str, fx.Node]] = []
        self._measures: list[tuple[str, fx.Node]] = []
        self._computed: dict[fx.Node, Subset] = {}
        self._narrowed: dict[fx.Node, tuple[Subset, tuple[int, ...]]] = {}
        self._shorts: dict[Subset, dict[fx.Node, fx.Node]] = {}
        self._placing, self._resized = place, resized
        self._placed: list[fx.Node] | None = None
        self._finished: fx.GraphModule | None = None

    def call(self, target: Any, *args: Any, axes: Axes | None = None, **kwargs: Any) -> fx.Node:
        """Insert an operator into the block; see `Editor.call`."""
        if self._finished is not None:
            raise PassError(
                f"{target} comes too late: the edited graph is already placed; edit first, then "
                "call `place`",
                pass_name=self.pass_name,
                node=self.block.path,
            )
        return super().call(target, *args, axes=axes, **kwargs)

    def twin(self, node: fx.Node) -> fx.Node:
        """The node of the copy that corresponds to a node of the block's body."""
        return self._twins[node]

    def bring(self, node: fx.Node, name: str = "brought") -> fx.Node:
        """Pass a node of the Program to the block as one more argument."""
        if node not in self._made:
            self._made[node] = self._add(name, node.meta["val"], lambda outer, block: node)
            set_axes(self._made[node], axes_of(node))
            self._made[node].meta |= {PART: node.meta.get(PART, {}), GROUP: self._made[node].name}
        return self._made[node]

    def buffer(self, name: str, value: torch.Tensor, argument: str | None = None) -> fx.Node:
        """Read a constant of the Program; see `Editor.buffer`."""
        return self._add(argument or name, value, lambda outer, block: outer.buffer(name, value))

    def load(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Load a tensor that an earlier step stored in this block under a name."""
        like = torch.empty(tuple(shape), dtype=dtype, device="meta")
        return self._add(
            name.replace(".", "_"),
            like,
            lambda outer, block: outer.load(f"{block.path}/{name}", shape, dtype, device),
            device,
        )

    def _add(
        self, name: str, like: torch.Tensor, source: Source, device: torch.device | None = None
    ) -> fx.Node:
        self._sources.append(source)
        return self.argument(name, like.shape, like.dtype, device or like.device)

    def store(self, name: str, node: fx.Node) -> None:
        """Store a value for a later step of the same pass; each block has its own names."""
        self._stores.append((name, node))
        self.changed = True

    def measure(self, name: str, node: fx.Node) -> None:
        """Return a measurement of this block."""
        self._measures.append((name, node))
        self.changed = True

    def compute(
        self,
        parts: Mapping[fx.Node, Subset],
        cut: Iterable[fx.Node] = (),
        fill: Fill | None = None,
    ) -> Restricted:
        """Compute some values, and whatever only they need, on a part of the video.

        The call passes arguments on the part that the computation needs. The block returns a result
        in ``parts`` on its part; `compute` spreads any other node again, because its users need the
        whole.

        Args:
            parts: nodes of the block's body and the subset of each; subsets may differ.
            cut: nodes of the body that treat the part as if it were the whole: attentions among
                them use only the part's keys and values. Others see the whole.
            fill: how to spread inner nodes; see `Subset.spread`.

        Raises:
            PassError: the edit already computes parts of the block, or the block's sizes at this
                number of tokens are unknown.
            VerifyError: an operator cannot be computed on its part, or two parts meet in one.
        """
        if self._computed:
            done, new = (
                "; ".join(f"{node.name} on {subset}" for node, subset in asked.items())
                for asked in (self._computed, parts)
            )
            raise PassError(
                f"the edit computes {done} already, so it cannot compute {new} too; ask for all "
                "parts at once",
                pass_name=self.pass_name,
                node=self.block.path,
            )
        self._computed = dict(parts)
        self._shorts = {subset: self._at(subset) for subset in parts.values()}
        mapped = {self._twins[n]: subset for n, subset in parts.items()}
        demand = analyse(self.graph, mapped, [self._twins[n] for n in cut if n in self._twins])
        exits = {n: s for n, s in mapped.items() if n not in results(self.graph)}
        restricted = Restrict(self, demand, exits, self._shorts, fill).run()
        self._narrowed = restricted.narrowed
        of_body = {twin: node for node, twin in self._twins.items()}
        partial = frozenset(of_body[n] for n in restricted.partial if n in of_body)
        return replace(restricted, partial=partial)

    def sizes(self, subset: Subset, node: fx.Node) -> tuple[int, ...]:
        """The sizes of a node of the body when the block runs on the part's number of tokens."""
        return shape(self._shorts[subset][self._twins[node]])

    def _at(self, subset: Subset) -> dict[fx.Node, fx.Node]:
        """The nodes of the block at as many tokens as a subset has, by node of the copy."""
        body, short = self.block.body.graph, self._resized(subset).graph
        if not same_operators(body, short):
            raise VerifyError(
                "the block runs other operators on a part of its tokens than on all, so its sizes "
                f"there are not known: {parting(short, body)}. {SAME_OPERATORS}"
            )
        return {self._twins[a]: b for a, b in zip(body.nodes, short.nodes, strict=True)}

    def place(self) -> list[fx.Node]:
        """Replace the block by the graph in its current state.

        Returns:
            A node of the Program for each result of the block; see `give`.
        """
        if self._placed is None:
            self._placed = self._placing()
        return self._placed

    def give(self, result: fx.Node, value: fx.Node) -> None:
        """Let a node of the Program replace a result of the block from now on."""
        if result not in self.block.results:
            raise PassError(
                f"{result} is not a result of the block, whose results are {self.block.results}",
                pass_name=self.pass_name,
                node=self.block.path,
            )
        self.values[result] = value

    def finished(self) -> fx.GraphModule:
        """The edited graph, ready to be called."""
        if self._finished is None:
            for _, node in (*self._stores, *self._measures):
                self.also_return(node)
            self.erase_dead()
            body = self.block.body
            self._finished = fx.GraphModule(body, self.graph, class_name="Block")
            self._finished.meta[MODE] = body.meta[MODE]
        return self._finished

    def passed(self, args: Sequence[fx.Node], outer: Editor, block: Block) -> list[fx.Node]:
        """The arguments of a call of the edited graph, from those of the block's call."""
        given = list(args)
        holders = [n for n in self.graph.nodes if n.op == "placeholder"]
        for i, holder in enumerate(holders[: len(given)]):
            if holder in self._narrowed:
                subset, dims = self._narrowed[holder]
                given[i] = subset.take(outer, given[i], dims)
        return [*given, *(source(outer, block) for source in self._sources)]

    def hand_over(self, extra: Sequence[fx.Node], outer: Editor, block: Block) -> None:
        """Store and measure what a call of the edited graph returns besides its results."""
        nodes = iter(extra)
        for name, _ in self._stores:
            outer.store(f"{block.path}/{name}", next(nodes))
        for name, _ in self._measures:
            outer.measure(f"{block.path}/{name}", next(nodes))
