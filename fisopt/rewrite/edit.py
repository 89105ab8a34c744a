"""Editing a block: a copy of its graph, and what crosses the border to the Program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fisopt.errors import PassError
from fisopt.rewrite.axes import Axes, axes_of, set_axes
from fisopt.rewrite.block import Block
from fisopt.rewrite.editor import Editor
from fisopt.rewrite.outline import copied
from fisopt.rewrite.template import MODE

Source = Callable[[Editor, Block], fx.Node]
"""The node of the Program that a block is passed for an argument that an edit has added."""


class BlockEdit(Editor):
    """Edit the graph of a block; made by `Rewriter.edit`.

    What the edit reads from the Program (a constant, a tensor of an earlier step, a node) becomes
    an argument of the block, what it stores and measures becomes a result.

    Attributes:
        block: the block as it was.
        values: nodes of the Program that stand for results of the block, as they were given.
    """

    def __init__(
        self, block: Block, mode: Any, pass_name: str, place: Callable[[], list[fx.Node]]
    ) -> None:
        graph, self._twins = copied(block.body.graph)
        super().__init__(graph, mode, pass_name)
        self.block = block
        self.values: dict[fx.Node, fx.Node] = {}
        self._sources: list[Source] = []
        self._stores: list[tuple[str, fx.Node]] = []
        self._gauges: list[tuple[str, fx.Node]] = []
        self._placing = place
        self._placed: list[fx.Node] | None = None
        self._finished: fx.GraphModule | None = None

    def call(self, target: Any, *args: Any, axes: Axes | None = None, **kwargs: Any) -> fx.Node:
        """Insert an operator into the block; see `Editor.call`."""
        if self._finished is not None:
            raise PassError(
                f"{target} would come too late: the edited graph is in its place; edit first, "
                "then `place`",
                pass_name=self.pass_name,
                node=self.block.path,
            )
        return super().call(target, *args, axes=axes, **kwargs)

    def twin(self, node: fx.Node) -> fx.Node:
        """The node of the copy that stands for a node of the block's body."""
        return self._twins[node]

    def bring(self, node: fx.Node, name: str = "brought") -> fx.Node:
        """Let the block see a node of the Program, by one more argument."""
        value = node.meta["val"]
        held = self._add(name, value, lambda outer, block: node)
        set_axes(held, axes_of(node))
        return held

    def buffer(self, name: str, value: torch.Tensor, argument: str | None = None) -> fx.Node:
        """Read a constant of the Program; see `Editor.buffer`."""
        return self._add(argument or name, value, lambda outer, block: outer.buffer(name, value))

    def load(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> fx.Node:
        """Take a tensor that an earlier step stored in this block under a name."""
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
        """Keep a value of the block for a later step of the same pass; names are of this block."""
        self._stores.append((name, node))
        self.changed = True

    def gauge(self, name: str, node: fx.Node) -> None:
        """Return a measurement of this block."""
        self._gauges.append((name, node))
        self.changed = True

    def place(self) -> list[fx.Node]:
        """Put the graph, as it is now, in the place of the block.

        Returns:
            A node of the Program for each result of the block; see `give`.
        """
        if self._placed is None:
            self._placed = self._placing()
        return self._placed

    def give(self, result: fx.Node, value: fx.Node) -> None:
        """Let a node of the Program stand for a result of the block from now on."""
        if result not in self.block.results:
            raise PassError(
                f"{result} is no result of the block, whose results are {self.block.results}",
                pass_name=self.pass_name,
                node=self.block.path,
            )
        self.values[result] = value

    def finished(self) -> fx.GraphModule:
        """The edited graph, ready to be called."""
        if self._finished is None:
            for _, node in (*self._stores, *self._gauges):
                self.also_return(node)
            self.erase_dead()
            body = self.block.body
            self._finished = fx.GraphModule(body, self.graph, class_name="Block")
            self._finished.meta[MODE] = body.meta[MODE]
        return self._finished

    def passed(self, args: Sequence[fx.Node], outer: Editor, block: Block) -> list[fx.Node]:
        """The arguments of a call of the edited graph, from those of the block's."""
        return [*args, *(source(outer, block) for source in self._sources)]

    def hand_over(self, extra: Sequence[fx.Node], outer: Editor, block: Block) -> None:
        """Store and measure what a call of the edited graph returns beside its results."""
        nodes = iter(extra)
        for name, _ in self._stores:
            outer.store(f"{block.path}/{name}", next(nodes))
        for name, _ in self._gauges:
            outer.gauge(f"{block.path}/{name}", next(nodes))
