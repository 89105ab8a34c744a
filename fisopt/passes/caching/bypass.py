"""A bypass: what the values of a Program would be if some of its blocks added nothing."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from fisopt.rewrite.block import Block
from fisopt.rewrite.ops.operator import restored, selected
from fisopt.rewrite.outline import value_key
from fisopt.rewrite.rewriter import Rewriter


class Bypass:
    """The way around some blocks, along their residual streams.

    Args:
        rewriter: makes what is needed on the way.
        blocks: the blocks.

    Attributes:
        blocks: those of the blocks that there is a way around.
        refused: the others, and why there is none.
    """

    def __init__(self, rewriter: Rewriter, blocks: Sequence[Block]) -> None:
        self._rewriter = rewriter
        self._origins: dict[fx.Node, fx.Node] = {}
        self._around: dict[fx.Node, fx.Node] = {}
        self.blocks: list[Block] = []
        self.refused: list[tuple[Block, str]] = []
        for block in blocks:
            self._enter(block)
        self._calls = {block.call for block in self.blocks}

    def _enter(self, block: Block) -> None:
        found: dict[fx.Node, fx.Node] = {}
        written = self._rewriter.program.written
        for result in block.results:
            if (node := block.returned(result)) is None:
                continue
            if node in written and block.streams.get(result) is None:
                self.refused.append(
                    (block, ("it writes into a cache, and reuse would skip this write"))
                )
                return
            source, whole = block.source(result), _whole(node)
            before = block.passed(source) if source is not None else None
            if before is not None and value_key(before) != value_key(whole):
                before = selected(before)  # the block is passed some frames of it
            if before is None or value_key(before) != value_key(whole):
                self.refused.append((block, f"result {result.name} is no update of an argument"))
                return
            found[whole] = before
        self._origins |= found
        self.blocks.append(block)

    @property
    def leaving(self) -> list[fx.Node]:
        """The values that the blocks update and that something else than they reads, in order."""
        inside, read = self._calls | {*self._origins}, set[fx.Node]()
        for node in reversed(self._rewriter.graph.nodes):
            if node in inside or (node.target is operator.getitem and node.args[0] in inside):
                continue
            if node.op in ("output", "call_module") or not read.isdisjoint(node.users):
                read.add(node)
        graph = self._rewriter.graph
        return [n for n in graph.nodes if n in self._origins and not read.isdisjoint(n.users)]

    def settle(self, node: fx.Node, value: fx.Node) -> None:
        """Go on from a value, on the ways that pass a node."""
        self._around[node] = value

    def before(self, node: fx.Node) -> fx.Node:
        """What a value that the blocks update would be without them."""
        return self.around(self._origins[node])

    def around(self, node: fx.Node) -> fx.Node:
        """What a value would be without the blocks; made here if it has to be."""
        if node not in self._around:
            self._around[node] = self._made(node)
        return self._around[node]

    def _made(self, node: fx.Node) -> fx.Node:
        if node in self._origins:
            return self.before(node)
        if node.op != "call_function" or node.target is operator.getitem:
            return node
        others = {operand: self.around(operand) for operand in node.all_input_nodes}
        if all(operand is other for operand, other in others.items()):
            return node
        given: Any = fx.node.map_arg((node.args, node.kwargs), others.__getitem__)
        args, kwargs = given
        return self._rewriter.call(node.target, *args, **kwargs)


def _whole(node: fx.Node) -> fx.Node:
    """The value on every frame that is made of a result of a block and of nothing else."""
    while len(node.users) == 1 and restored(user := next(iter(node.users))) is node:
        node = user
    return node
