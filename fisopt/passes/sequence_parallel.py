"""Sequence parallelism: the tokens of every frame are divided among ranks.

Source: the exchange around an attention is that of DeepSpeed-Ulysses, arXiv:2309.14509.  Each rank
computes some tokens of every frame, so that what a pass does to frames costs all ranks the same;
around an attention they exchange tokens for heads.  Exact: everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import distributed, nn

from fisopt.checked import is_int
from fisopt.errors import OptionError, OptionTypeError, PreconditionError, shown
from fisopt.passes.sharding.divided_program import DividedProgram
from fisopt.passes.sharding.group import is_set_up, ranks_of
from fisopt.passes.sharding.shard import part
from fisopt.passes.sharding.weights import shard_weights
from fisopt.passes.sharding.what import FrameTokens
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.pass_base import Pass, Stage
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.tracing.block_paths import blocks_of
from fisopt.spec import ModelSpec


@dataclass(frozen=True)
class SequenceParallel(Pass):
    """Divide the tokens inside every frame among ranks; every rank returns the whole result.

    Before and after (one attention on four ranks)::

        %o = aten::scaled_dot_product_attention(%q, %k, %v)            [2, 40, f21*3600, 128]

        %q1 = _c10d_functional::all_to_all_single(%q, ...)             and so %k and %v
        %o1 = aten::scaled_dot_product_attention(%q1, %k1, %v1)        [2, 10, f21*3600, 128]
        %o  = _c10d_functional::all_to_all_single(%o1, ...)            [2, 40, f21*900, 128]

    It comes after every other pass and is one graph for all ranks.  Text that is joined to the
    sequence is on every rank, and its heads are divided inside attentions.  Tokens and heads
    that the ranks do not divide are filled up, which the report says; so are operators that
    combine tokens in another way: they get all of them.

    Attributes:
        degree: how many ranks share the tokens of one clip; None for all, or next to a
            `GuidanceParallel` for half of them.  It divides their number: the ranks 0 to
            ``degree - 1`` share one clip, the next ones another.
        group: the ranks, a process group of torch or its name; None for all.
        shard_weights: each rank holds its part of the weights of the blocks, divided by torch's
            ``fully_shard`` when `fisopt.optimize` is called, and gathers those of two blocks at a
            time.  They then are on the device that the ranks send from: load the model on the
            host, and move what is left afterwards.

    Source: Ulysses, arXiv:2309.14509; dividing frames inside instead of between them is ours.
    """

    stage: ClassVar[Stage] = "ranks"
    differentiable: ClassVar[bool] = False

    degree: int | None = None
    group: str | None = None
    shard_weights: bool = False

    def __post_init__(self) -> None:
        if self.degree is not None and not is_int(self.degree, 1):
            raise OptionError(
                f"SequenceParallel: degree must be an int of at least 1 or None, got "
                f"{shown(self.degree)}"
            )
        group: Any = self.group
        if distributed.is_available() and isinstance(group, distributed.ProcessGroup):
            object.__setattr__(self, "group", group.group_name)
        elif group is not None and not isinstance(group, str):
            raise OptionTypeError(
                f"SequenceParallel: group must be a process group or its name, got {shown(group)}"
            )
        if not isinstance(self.shard_weights, bool):
            raise OptionTypeError(
                f"SequenceParallel: shard_weights must be a bool, got {shown(self.shard_weights)}"
            )

    def prepare(self, model: nn.Module, spec: ModelSpec | None, passes: Sequence[Pass]) -> None:
        """Divide the weights of the blocks, where that is asked for."""
        if not self.shard_weights:
            return
        if spec is None:
            raise PreconditionError(
                f"shard_weights=True: which modules of {type(model).__name__} are its blocks is "
                "not known before its first call; say it: optimize(..., spec=fisopt.ModelSpec("
                "blocks=..., grid=...))",
                pass_name=self.name,
            )
        several = is_set_up() and distributed.get_world_size() > 1
        beside = [Share("branches", "", 2) for p in passes if several and p.stage == "branches"]
        ranks = ranks_of(self.degree, self.group, self.name, beside)
        if ranks.count > 1:
            shard_weights(model, blocks_of(model, spec.blocks), ranks, self.name)

    @property
    def changes_model(self) -> bool:
        """Whether `prepare` divides the weights of the model."""
        return self.shard_weights

    def run(self, rewriter: Rewriter) -> None:
        """Divide the blocks, and what follows their tokens."""
        program, layout = rewriter.program, rewriter.program.layout
        ranks = ranks_of(self.degree, self.group, self.name, program.mesh)
        if ranks.count == 1:
            rewriter.note("dense: one rank")
            return
        self._check(program, ranks.count)
        what = FrameTokens(layout.tokens_per_frame)
        blocks, divided = len(program.blocks), DividedProgram(rewriter, ranks, what)
        divided.run()
        if not divided.blocks:
            rewriter.skip("the model", "no block takes tokens, so that none can be divided")
            return
        rewriter.mark(Share("tokens", ranks.group, ranks.count))
        tokens = part(layout.tokens_per_frame, ranks.count)
        filled = tokens * ranks.count - layout.tokens_per_frame
        more = f", {filled} of them repeated" if filled else ""
        rewriter.note(
            f"{divided.blocks} of {blocks} blocks on {ranks.count} ranks, "
            f"{tokens} of {layout.tokens_per_frame} tokens of every frame on each{more}"
        )
        for reason, calls in divided.reasons.items():
            rewriter.note(f"{reason} ({len(calls)} blocks)")

    def _check(self, program: Program, ranks: int) -> None:
        layout = program.layout
        if layout.frames <= BOUNDARIES:
            raise PreconditionError(
                f"{layout.frames} latent frames: where tokens are is found by comparing frame "
                f"counts, from {BOUNDARIES + 1} on; run so short a clip on one rank",
                pass_name=self.name,
            )
        if layout.tokens_per_frame < ranks:
            raise PreconditionError(
                f"a frame has {layout.tokens_per_frame} tokens ({layout}), fewer than the {ranks} "
                "ranks; use fewer ranks",
                pass_name=self.name,
            )
