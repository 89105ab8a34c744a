"""Frame-interleaved sparsity: each block computes every n-th latent frame, the rest is filled.

Source: FIS-DiT, arXiv:2605.11869.  For the l-th sparse block and stride n the anchor frames are
``A = {f : f = l (mod n)} + {0, F-1}``; the block runs on them and its update of the residual
stream is interpolated in time for the skipped frames.  Exact: anchors against anchors
(``kv="anchors"``) or against every frame (``kv="all"``).  Approximated: the skipped frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from fisopt.checked import choice, is_int
from fisopt.errors import OptionError, PreconditionError, VerifyError, shown
from fisopt.rewrite.analysis.residual import Stream
from fisopt.rewrite.analysis.structure import attentions, self_attentions
from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.block import Block
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.edit.block_edit import BlockEdit
from fisopt.rewrite.edit.frames import Frames, interpolation
from fisopt.rewrite.edit.restrict import Restricted
from fisopt.rewrite.edit.subset import Subset
from fisopt.rewrite.ops.fill_frames import FILLS, Fill
from fisopt.rewrite.pass_base import Stage
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.relations.table import relation, shape
from fisopt.rewrite.rewriter import Rewriter
from fisopt.rewrite.selection import Selected

__all__ = ["FrameInterleave", "anchor_frames", "interpolation"]

KV = Literal["anchors", "all"]
Scope = Literal["block", "attention"]
_BLOCKS = "1:"


def anchor_frames(frames: int, stride: int, residue: int) -> tuple[int, ...]:
    """Latent frames that a sparse block computes: every stride-th and the two boundaries."""
    return tuple(sorted({*range(residue, frames, stride), 0, frames - 1}))


@dataclass(frozen=True)
class FrameInterleave(BlockPass):
    """Run each sparse block on every ``stride``-th latent frame, rotating from block to block.

    Before and after (stride 2, one block)::

        %h1 = block_a(%h0, %rope, ...)

        %a  = fisopt::gather_frames(%h0, 1, @anchors)
        %r  = fisopt::gather_frames(%rope, 1, @anchors)
        %y  = block_a_k9(%a, %r, ...)
        %h1 = fisopt::fill_frames(%h0, %y, 1, @anchors, @left, @right, @weight, residual)

    The boundary frames are always anchors; every interior frame is computed exactly once in
    ``stride`` consecutive sparse blocks.  Rotary tables, per-token modulation and masks are
    gathered at their original positions.  Text beside or inside the sequence is kept whole.

    Attributes:
        stride: n; 1 is dense.  At most the number of latent frames; with two latent frames or
            fewer every block is dense.
        fill: what skipped frames get: the interpolated update ("residual"), nothing
            ("carry"), or the interpolated output ("state").  A result that no residual stream
            leads to is interpolated itself, and the report says so.
        kv: keys and values of the anchor frames or of all frames.
        scope: whole blocks, or only their self-attention (its output is interpolated).
        blocks: the sparse blocks, see `BlockPass`.  The first block takes each frame's own noise
            in, so it is dense by default: on the testbed that decides whether a clip shows its
            prompt.  ":" makes every block sparse.
        steps: the sparse steps, see `BlockPass`.

    Source: FIS-DiT, arXiv:2605.11869; ``kv="all"``, ``scope="attention"`` and the fills other
    than "residual" are ours.
    """

    stage: ClassVar[Stage] = "frames"

    stride: int = 2
    fill: Fill = "residual"
    kv: KV = "anchors"
    scope: Scope = "block"
    blocks: Selected = field(default=_BLOCKS, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_int(self.stride, 1):
            raise OptionError(
                f"FrameInterleave: stride must be an int of at least 1, got {shown(self.stride)}"
            )
        for option, value, allowed in (
            ("fill", self.fill, FILLS),
            ("kv", self.kv, ("anchors", "all")),
            ("scope", self.scope, ("block", "attention")),
        ):
            choice(f"FrameInterleave: {option}", value, allowed)

    def requires(self, program: Program) -> None:
        """Check the stride against the frames, and the blocks."""
        frames, blocks = program.layout.frames, len(program.block_paths)
        if self.stride > frames > BOUNDARIES:
            raise PreconditionError(
                f"stride {self.stride} is more than the {frames} latent frames of "
                f"{program.layout}; use a stride of 1 to {frames}",
                pass_name=self.name,
            )
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
        frames = program.layout.frames
        if frames <= BOUNDARIES or self.stride == 1:
            boundaries = ", all of them boundaries" if frames <= BOUNDARIES else ""
            rewriter.note(f"dense: {frames} latent frames{boundaries}, stride {self.stride}")
            return
        every, interleaver = len(program.blocks), _Interleaver(self, rewriter)
        for position, block in enumerate(self.chosen(program)):
            interleaver.block(block, anchor_frames(frames, self.stride, position % self.stride))
        counts = sorted({len(a) for a in interleaver.used})
        rewriter.note(
            f"{interleaver.sparse} of {every} blocks sparse on "
            f"{' or '.join(map(str, counts)) or frames} of {frames} latent frames "
            f"(scope={self.scope}, kv={self.kv}, fill={self.fill})"
        )


class _Interleaver:
    """The state of one run: the figures of the report."""

    def __init__(self, options: FrameInterleave, rewriter: Rewriter) -> None:
        self.options, self.rewriter = options, rewriter
        self.used: set[tuple[int, ...]] = set()
        self.sparse = 0

    def block(self, block: Block, anchors: tuple[int, ...]) -> None:
        """Make one block sparse."""
        rewriter, frames = self.rewriter, self.rewriter.program.layout.frames
        if len(anchors) == frames:
            rewriter.note(f"{block.path}: every frame is an anchor, dense")
            return
        label = f"s{self.options.stride}_a{anchors[1]}_k{len(anchors)}"
        part, streams = Frames(anchors, frames, label), self._streams(block)
        if isinstance(parts := self._parts(block, part, streams), str):
            rewriter.skip(block.path, parts)
            return
        try:
            with rewriter.edit(block, name=f"k{len(anchors)}") as edit:
                done = edit.compute(parts, self._cut(block), self.options.fill)
                if edit.changed:
                    self._fill(block, edit, part, streams)
        except VerifyError as error:
            rewriter.skip(block.path, f"it cannot be cut to the anchor frames: {error}")
            return
        if not edit.changed:
            reason = "every value in it is needed on every frame"
            rewriter.skip(block.path, "; ".join([reason, *done.barriers]))
            return
        self._note(block, edit, part, streams, done)
        self.used.add(anchors)
        self.sparse += 1

    def _parts(
        self, block: Block, part: Frames, streams: dict[fx.Node, Stream | None]
    ) -> dict[fx.Node, Subset] | str:
        """What is computed on the anchors: the results or their attention, or why nothing is."""
        if not self.rewriter.untouched(block):
            return "another pass has edited this block; put FrameInterleave first"
        if self.options.scope == "block":
            return dict.fromkeys(streams, part) if streams else "no result carries frames"
        found = self_attentions(block.body.graph)
        return {a.result: part for a in found} or "no self-attention was found in it"

    def _cut(self, block: Block) -> Iterable[fx.Node]:
        """The operators that see the anchors as if there were no other frames."""
        graph = block.body.graph
        if self.options.kv == "all":
            return ()
        if self.options.scope == "block":
            return graph.nodes
        return {n for a in self_attentions(graph) for n in a.members}

    def _streams(self, block: Block) -> dict[fx.Node, Stream | None]:
        """The residual stream of every result that is filled.

        What the model writes into an input or a buffer, such as the keys of a cache, is read again
        at later calls, so it is computed on every frame unless it is a stream.
        """
        written = self.rewriter.program.written
        return {
            result: stream
            for result, stream in block.streams.items()
            if stream is not None or block.returned(result) not in written
        }

    def _fill(
        self, block: Block, edit: BlockEdit, part: Frames, streams: dict[fx.Node, Stream | None]
    ) -> None:
        """Make the results whole that the block returns on the anchors."""
        pieces = dict(zip(block.results, edit.place(), strict=False))
        for result, piece in pieces.items():
            if piece.meta["val"].shape == result.meta["val"].shape:
                continue
            stream = streams[result]
            full = self._before(block, stream) if stream is not None else None
            fill = self.options.fill if full is not None else "state"
            whole = part.spread(self.rewriter, piece, axes_of(result), full, fill)
            edit.give(result, whole)

    def _before(self, block: Block, stream: Stream) -> fx.Node:
        """What a result is the update of, on every frame."""
        node, *others = (block.passed(n) for n in stream.arguments)
        for other in others:
            node = self.rewriter.call(torch.ops.aten.add.Tensor, node, other)
        for view in stream.views:
            options: dict[str, Any] = dict(view.kwargs)
            node = self.rewriter.call(view.target, node, *view.args[1:], **options)
        return node

    def _note(
        self,
        block: Block,
        edit: BlockEdit,
        part: Frames,
        streams: dict[fx.Node, Stream | None],
        done: Restricted,
    ) -> None:
        """Report what is approximated in another way than is said, and what is not sparse."""
        note, options = self.rewriter.note, self.options
        if options.scope == "block" and options.fill != "state":
            for name in (n.name for n, stream in streams.items() if stream is None):
                note(
                    f"{block.path}: result {name} has no residual stream among the block's "
                    "arguments, so it is interpolated itself"
                )
        for attention in attentions(block.body.graph) if options.kv == "anchors" else ():
            value = attention.value
            short = edit.sizes(part, value)
            if short[-2] != shape(value)[-2] and axes_of(value)[-2] is None:
                note(
                    f"{block.path}: {attention.result.name} reads the keys of every frame: where "
                    "the frames are among them is not known"
                )
        if found := [n.name for n in _reductions(block) if n in set(self._cut(block))]:
            note(
                f"{block.path}: {_some(found)} made of all tokens at once, such as one scale for a "
                "whole activation; here of the anchors alone"
            )
        for barrier in done.barriers:
            note(f"{block.path}: computed on every frame, unknown operator: {barrier}")


def _reductions(block: Block) -> list[fx.Node]:
    """The operators outside of attentions that make one value of all frames."""
    graph = block.body.graph
    attended = {n for a in attentions(graph) for n in a.members}
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in attended and not any(axes_of(node))
        if any(axes_of(operand)[dim] for operand, dim in relation(node).mixed)
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more are" if names[1:] else " is"
    return f"{names[0]}{more}"
