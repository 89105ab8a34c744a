"""Frame-interleaved sparsity: each block computes every n-th latent frame, the rest is filled.

Source: FIS-DiT, arXiv:2605.11869.  For the l-th sparse block and stride n the anchor frames are
``A = {f : f = l (mod n)} + {0, F-1}``; the block runs on them and its update of the residual
stream is interpolated in time for the skipped frames.  Exact: anchors against anchors
(``kv="anchors"``) or against every frame (``kv="all"``).  Approximated: the skipped frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

from fisopt.checked import choice, is_int
from fisopt.errors import OptionError, PreconditionError, shown
from fisopt.passes.interleaving.by_block import Strides, by_block, check_count, largest, of_block
from fisopt.passes.interleaving.form import BRANCHES, KV, Form, Scope, anchor_frames
from fisopt.passes.interleaving.interleaved_block import Interleaver
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.edit.frames import interpolation
from fisopt.rewrite.ops.fill_frames import FILLS, Fill
from fisopt.rewrite.pass_base import Pass, Stage, Step
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import ALL, Selected

__all__ = ["FrameInterleave", "anchor_frames", "interpolation"]

Rotate = Literal["blocks", "steps"]
_BLOCKS = "1:"


@dataclass(frozen=True)
class FrameInterleave(BlockPass):
    """Run each sparse block on every ``stride``-th latent frame, rotated from block to block.

    Before and after (stride 2, one block)::

        %h1 = block_a(%h0, %rope, ...)

        %a  = fisopt::gather_frames(%h0, 1, @anchors)
        %r  = fisopt::gather_frames(%rope, 1, @anchors)
        %y  = block_a_k9(%a, %r, ...)
        %h1 = fisopt::fill_frames(%h0, %y, 1, @anchors, @left, @right, @weight, residual)

    The boundary frames are always anchors. Any ``stride`` consecutive sparse blocks compute every
    interior frame exactly once. Rotary tables, per-token modulation and masks keep their original
    positions. Text outside or inside the sequence stays whole.

    Attributes:
        stride: n, at most the number of latent frames; 1 is dense. With two latent frames or fewer
            every block is dense.
        fill: what skipped frames get: the interpolated update ("residual"), nothing ("carry"), or
            the interpolated output ("state"). If no residual stream leads to a result, the pass
            interpolates the result itself and notes this in the report.
        kv: keys and values of the anchor frames or of all frames; or a list, one for each video
            block.
        scope: whole blocks, or only their self-attention (its output is interpolated).
        self_attention: the stride of this branch of a block alone; the pass interpolates what the
            branch adds to the residual stream. None for ``stride``. Or a list, one for each video
            block.
        cross_attention: the same for attention to text.
        feed_forward: the same for the feed-forward layers.
        rotate: whether the anchors change from sparse block to sparse block, or also from step to
            step. The latter interpolates other frames at every step: closer to the dense clip at no
            cost, but steps then differ, see `BlockPass.steps`.
        shift: offset in that rotation.
        blocks: the sparse blocks, see `BlockPass`. The first block is dense by default, because it
            reads each frame's own noise: on the testbed this decides whether a clip shows its
            prompt. ":" makes every block sparse.
        steps: the sparse steps, see `BlockPass`.

    Source: FIS-DiT, arXiv:2605.11869; ``kv="all"``, ``scope="attention"``, branches, steps in the
    rotation and the fills other than "residual" are ours.
    """

    stage: ClassVar[Stage] = "frames"

    stride: int = 2
    fill: Fill = "residual"
    kv: KV | tuple[KV, ...] = "anchors"
    scope: Scope = "block"
    self_attention: Strides | None = field(default=None, kw_only=True)
    cross_attention: Strides | None = field(default=None, kw_only=True)
    feed_forward: Strides | None = field(default=None, kw_only=True)
    rotate: Rotate = field(default="blocks", kw_only=True)
    shift: int = field(default=0, kw_only=True)
    blocks: Selected = field(default=_BLOCKS, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "FrameInterleave:"
        if not is_int(self.stride, 1):
            raise OptionError(
                f"{name} stride must be an int of at least 1, got {shown(self.stride)}"
            )
        for branch, stride in self._named.items():
            kept = by_block(f"{name} {branch}", stride, _is_stride, "an int of at least 1")
            object.__setattr__(self, branch, kept)
        for option, value, allowed in (
            ("fill", self.fill, FILLS),
            ("scope", self.scope, get_args(Scope)),
            ("rotate", self.rotate, get_args(Rotate)),
        ):
            choice(f"{name} {option}", value, allowed)
        if isinstance(self.kv, (tuple, list)):
            kv = by_block(f"{name} kv", self.kv, get_args(KV).__contains__, "'anchors' or 'all'")
            object.__setattr__(self, "kv", kv)
        else:
            choice(f"{name} kv", self.kv, get_args(KV))
        if not is_int(self.shift, 0):
            raise OptionError(f"{name} shift must be an int of at least 0, got {shown(self.shift)}")
        if self._named and self.scope != "block":
            raise OptionError(
                f"{name} scope={self.scope!r} and {next(iter(self._named))}= both set which part "
                "of a block is sparse; give one of them"
            )

    @property
    def _named(self) -> dict[str, Strides]:
        """The strides that are given for a branch."""
        each = {branch: getattr(self, branch) for branch in BRANCHES}
        return {branch: stride for branch, stride in each.items() if stride is not None}

    @property
    def stepwise(self) -> bool:
        """Whether some steps are dense or the anchors rotate from step to step."""
        return self.rotate == "steps" or super().stepwise

    def at(self, step: Step) -> Pass | None:
        """None at dense steps; else the pass with the anchors of the step."""
        if not self.active(step):
            return None
        if self.rotate == "blocks":
            return replace(self, steps=ALL)
        strides = {n for kept in (self.stride, *self._named.values()) for n in _each(kept)}
        turn = (self.shift + step.index) % math.lcm(*strides)
        return replace(self, steps=ALL, rotate="blocks", shift=turn)

    def requires(self, program: Program) -> None:
        """Check the strides against the frames, and the blocks."""
        if program.source.spec.images:
            raise PreconditionError(
                "the model makes images, with rows instead of frames, and rows cannot be "
                "interpolated like frames; use TokenReduction or TileAttention",
                pass_name=self.name,
            )
        frames, blocks = program.layout.frames, len(program.block_paths)
        stride = max(largest(n) for n in (self.stride, *self._named.values()))
        if stride > frames > BOUNDARIES:
            raise PreconditionError(
                f"stride {stride} is more than the {frames} latent frames of "
                f"{program.layout}; use a stride of 1 to {frames}",
                pass_name=self.name,
            )
        for option, value in {**self._named, "kv": self.kv}.items():
            check_count(option, value, blocks, self.name)
        if blocks == 1 and self.blocks == _BLOCKS:
            raise PreconditionError(
                "the model has one video block, and the first block is dense by default "
                f"(blocks={_BLOCKS!r}), so none can be sparse; pass blocks=':' to make it sparse, "
                "which costs quality",
                pass_name=self.name,
            )
        super().requires(program)

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite the sparse blocks one by one."""
        program = rewriter.program
        frames, chosen = program.layout.frames, self.chosen(program)
        forms = [self._form(block.index) for block in chosen]
        if frames <= BOUNDARIES or all(form.dense for form in forms):
            boundaries = ", all of them boundaries" if frames <= BOUNDARIES else ""
            rewriter.note(f"dense: {frames} latent frames{boundaries}, stride {self.stride}")
            return
        every, interleaver = len(program.blocks), Interleaver(rewriter)
        for position, (block, form) in enumerate(zip(chosen, forms, strict=True)):
            interleaver.block(block, form, position + self.shift)
        counts = sorted({len(a) for a in interleaver.used})
        what = "by branches" if self._named else f"scope={self.scope}"
        kv = self.kv if isinstance(self.kv, str) else "by blocks"
        rewriter.note(
            f"{interleaver.sparse} of {every} blocks sparse on "
            f"{' or '.join(map(str, counts)) or frames} of {frames} latent frames "
            f"({what}, kv={kv}, fill={self.fill})"
        )

    def _form(self, index: int) -> Form:
        """What becomes of one block."""
        named = self._named
        strides = {b: of_block(named.get(b, self.stride), index) for b in BRANCHES}
        return Form(strides, of_block(self.kv, index), self.fill, self.scope)


def _is_stride(value: object) -> bool:
    return is_int(value, 1)


def _each(value: Strides) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
