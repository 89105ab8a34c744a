"""Guidance parallelism: two ranks compute one guidance branch each.

Source: CFG parallelism of xDiT (arXiv:2411.01738, section 3).  Exact: everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fisopt.passes.sharding.divided_program import DividedProgram
from fisopt.passes.sharding.group import pair
from fisopt.passes.sharding.what import Items
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.pass_base import Pass, Stage
from fisopt.rewrite.program import Program
from fisopt.rewrite.rewriter import Rewriter


@dataclass(frozen=True)
class GuidanceParallel(Pass):
    """Divide a clip between two ranks: each computes one guidance branch.

    Among n ranks, rank i and rank i + n/2 form a pair. A `SequenceParallel` in the same list
    divides the tokens of a branch among n/2 ranks or fewer. How the pass divides the branches
    depends on how the pipeline calls the model:

    An even batch (both branches in one call, or several clips) is divided: every rank computes half
    of the items and gathers the results once, at the end of the call.

    An odd batch is computed in pairs of calls. During the first call of a step ("cond") the other
    rank computes the second one ("uncond") on predicted arguments: the same video and timestep, and
    everything else as in the second call of the step before. The ranks exchange both results at
    once. When the second call comes, the pass compares its arguments with the predicted ones. If
    one differs, the call is computed then, and the report says so.

    Source: CFG parallelism, xDiT, arXiv:2411.01738; computing a call ahead is ours.
    """

    stage: ClassVar[Stage] = "branches"
    differentiable: ClassVar[bool] = False

    def run(self, rewriter: Rewriter) -> None:
        """Divide the batch, or leave the division to the calls."""
        ranks, program = pair(self.name), rewriter.program
        if ranks is None:
            rewriter.note("one rank: it computes every branch")
            return
        items = batch_of(program)
        if items % ranks.count:
            rewriter.mark(Share("branches", ranks.group, ranks.count))
            rewriter.note("2 ranks, each computes one of two calls of a step")
            return
        blocks, divided = len(program.blocks), DividedProgram(rewriter, ranks, Items(items))
        divided.run()
        if not divided.blocks:
            rewriter.skip("the model", "its blocks take no part of a batch")
            return
        rewriter.mark(Share("items", ranks.group, ranks.count))
        rewriter.note(
            f"{divided.blocks} of {blocks} blocks on 2 ranks, {items // 2} of {items} items of "
            "the batch on each"
        )
        for reason, calls in divided.reasons.items():
            rewriter.note(f"{reason} ({len(calls)} blocks)")


def video_of(program: Program) -> str | None:
    """The name of the input that holds the video: the first that carries frames behind a batch."""
    for i, growths in sorted(program.source.frame_dims.items()):
        leaf = program.inputs.leaves[i]
        if isinstance(leaf, torch.Tensor) and all(growth.dim != 0 for growth in growths):
            return program.inputs.names[i]
    return None


def batch_of(program: Program) -> int:
    """The number of items in the batch of a Program, 1 where the video has no batch."""
    inputs, name = program.inputs, video_of(program)
    return 1 if name is None else int(inputs.leaves[inputs.names.index(name)].shape[0])
