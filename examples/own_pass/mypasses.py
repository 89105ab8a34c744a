"""A pass of one's own: some blocks run without their cross-attention.

    fisopt inspect wan2.2-a14b --import mypasses --pass 'mypasses.SkipCross(blocks="2:-2")'

The text then reaches the video through the other blocks only.  It is an example, not advice.
"""

from __future__ import annotations

from dataclasses import dataclass

from fisopt import BlockPass, Rewriter


@dataclass(frozen=True)
class SkipCross(BlockPass):
    """Leave out the cross-attention of some video blocks."""

    def run(self, rewriter: Rewriter) -> None:
        skipped = 0
        for block in self.chosen(rewriter.program):
            branches = [b for b in block.branches if b.kind == "cross_attention"]
            if not branches:
                rewriter.skip(block.path, "it has no cross-attention that ends in an addition")
                continue
            with rewriter.edit(block) as edit:
                for branch in branches:
                    kept = next(x for x in branch.add.all_input_nodes if x is not branch.update)
                    edit.replace_uses(edit.twin(branch.add), edit.twin(kept))
            skipped += 1
        rewriter.note(f"{skipped} blocks without cross-attention")
