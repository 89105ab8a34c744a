"""A pass that also returns what the blocks make of the video, for a loss on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.block import Block
from fisopt.rewrite.pass_base import Pass, Stage
from fisopt.rewrite.program import Program
from fisopt.rewrite.rewriter import Rewriter

KEPT = "kept"
"""Ends the name of what says which of the dense result's entries a block returns."""


@dataclass(frozen=True)
class BlockOutputs(Pass):
    """Measure the video that each block returns, by the names ``block/number``.

    Of a block that runs on a part of the video ``block/number/kept`` says on which: positions
    [K] int64 in the dimension that is shorter than the dense model's.  Blocks that return it in
    another form, such as tokens chosen for each clip, are skipped.
    """

    stage: ClassVar[Stage | None] = "outputs"

    def run(self, rewriter: Rewriter) -> None:
        """Measure what each block that runs returns."""
        program = rewriter.program
        dense = {block.path: block for block in program.at(program.inputs).blocks}
        for block in program.blocks:
            own = [result for result in dense[block.path].results if carries_frames(result)]
            found = [result for result in block.results if carries_frames(result)]
            for number, (result, whole) in enumerate(zip(found, own, strict=False)):
                if (node := block.returned(result)) is not None:
                    self._measure(rewriter, f"{block.path}/{number}", node, whole, block.path)

    def _measure(
        self, rewriter: Rewriter, name: str, node: fx.Node, whole: fx.Node, path: str
    ) -> None:
        got, want = list(node.meta["val"].shape), list(whole.meta["val"].shape)
        if got == want:
            rewriter.measure(name, node)
            return
        fill = _fill(rewriter.program, node)
        if fill is None:
            rewriter.note(f"{path} is not compared: it returns {got}, the dense model {want}")
            return
        _, _, dim, anchors, _, _, _, *place, _ = fill.args
        assert isinstance(dim, int)
        with rewriter.before(fill):
            order = torch.arange(want[dim], device=node.meta["val"].device)
            every = rewriter.buffer(f"order_{len(order)}", order, "order")
            kept = rewriter.call(torch.ops.fisopt.gather_frames.default, every, 0, anchors, *place)
        rewriter.measure(name, node)
        rewriter.measure(f"{name}/{KEPT}", kept)


def _fill(program: Program, node: fx.Node | None) -> fx.Node | None:
    """What makes a part of the video whole, after the blocks that stay on it; None for nothing."""
    blocks = {block.call: block for block in program.blocks}
    while node is not None:
        for user in node.users:
            if user.target is torch.ops.fisopt.fill_frames.default and user.args[1] is node:
                return user
        following = [b for u in node.users if (b := blocks.get(u)) is not None]
        node = next((_carried_on(block, node) for block in following), None)
    return None


def _carried_on(block: Block, node: fx.Node) -> fx.Node | None:
    """What a block makes of a stream that it takes, None if that is another one's operand."""
    streams = {r: block.source(r) for r in block.streams}
    made = (r for r, source in streams.items() if source and block.passed(source) is node)
    result = next(made, None)
    return None if result is None else block.returned(result)
