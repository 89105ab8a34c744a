"""Frame-interleaved sparsity: each block computes every n-th latent frame, the rest is filled.

Source: FIS-DiT, arXiv:2605.11869.  For the l-th sparse block and stride n the anchor frames are
``A = {f : f = l (mod n)} + {0, F-1}``; the block runs on them and its update of the residual
stream is interpolated in time for the skipped frames.  Exact: anchors against anchors
(``kv="anchors"``) or against every frame (``kv="all"``).  Approximated: the skipped frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from fisopt.checked import choice, ints, is_int
from fisopt.errors import OptionError, PreconditionError, VerifyError, shown
from fisopt.rewrite.analysis import (
    Attention,
    attentions,
    result_nodes,
    results,
    self_attentions,
)
from fisopt.rewrite.axes import Axes, axes_of, carries_frames
from fisopt.rewrite.demand import analyse
from fisopt.rewrite.ops.fill_frames import FILLS, Fill
from fisopt.rewrite.outline import structure
from fisopt.rewrite.pass_base import Pass, Stage, Step
from fisopt.rewrite.program import BOUNDARIES, Program
from fisopt.rewrite.relations.table import shape
from fisopt.rewrite.residual import Stream, residual_stream
from fisopt.rewrite.restrict import TABLES, Restrict, Restricted
from fisopt.rewrite.rewriter import Rewriter

KV = Literal["anchors", "all"]
Scope = Literal["block", "attention"]


def anchor_frames(frames: int, stride: int, residue: int) -> tuple[int, ...]:
    """Latent frames that a sparse block computes: every stride-th and the two boundaries."""
    return tuple(sorted({*range(residue, frames, stride), 0, frames - 1}))


def interpolation(
    anchors: Sequence[int], frames: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Linear interpolation in time between anchors.

    Returns:
        left, right [frames] int64: positions in ``anchors`` of the neighbours of each frame;
        weight [frames] float32 of the right one, 0 exactly at the anchors.
    """
    known = torch.tensor(anchors)
    time = torch.arange(frames)
    left = torch.searchsorted(known, time, right=True) - 1
    right = torch.clamp(left + 1, max=len(anchors) - 1)
    span = (known[right] - known[left]).clamp(min=1)
    weight = (time - known[left]) / span
    return left, torch.where(weight == 0, left, right), weight.to(torch.float32)


@dataclass(frozen=True)
class FrameInterleave(Pass):
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
        first_block: first sparse block, counted over all video blocks in execution order.  The
            first block takes each frame's own noise in, so it is dense by default: on the
            testbed that decides whether a clip shows its prompt.  0 makes every block sparse.
        last_block: end of the sparse blocks as in a slice; negative counts from the end.
        dense_steps: denoising steps that stay dense; negative counts from the last step.
        fill: what skipped frames get: the interpolated update ("residual"), nothing
            ("carry"), or the interpolated output ("state").  A result that no residual stream
            leads to is interpolated itself, and the report says so.
        kv: keys and values of the anchor frames or of all frames.
        scope: whole blocks, or only their self-attention (its output is interpolated).

    Source: FIS-DiT, arXiv:2605.11869; ``kv="all"``, ``scope="attention"`` and the fills other
    than "residual" are ours.
    """

    stage: ClassVar[Stage] = "frames"

    stride: int = 2
    first_block: int = 1
    last_block: int | None = None
    dense_steps: tuple[int, ...] = ()
    fill: Fill = "residual"
    kv: KV = "anchors"
    scope: Scope = "block"

    def __post_init__(self) -> None:
        if not is_int(self.stride, 1):
            raise OptionError(
                f"FrameInterleave: stride must be an int of at least 1, got {shown(self.stride)}"
            )
        for option in ("first_block", "last_block"):
            value = getattr(self, option)
            if not is_int(value) and not (value is None and option == "last_block"):
                raise OptionError(f"FrameInterleave: {option} must be an int, got {shown(value)}")
        object.__setattr__(self, "dense_steps", ints(self, "dense_steps"))
        for option, value, allowed in (
            ("fill", self.fill, FILLS),
            ("kv", self.kv, ("anchors", "all")),
            ("scope", self.scope, ("block", "attention")),
        ):
            choice(f"FrameInterleave: {option}", value, allowed)

    @property
    def stepwise(self) -> bool:
        """Whether some steps are dense."""
        return bool(self.dense_steps)

    def at(self, step: Step) -> FrameInterleave | None:
        """None at dense steps."""
        return None if step.among(self.dense_steps, self.name) else self

    def requires(self, program: Program) -> None:
        """Check the stride against the frames and the range against the blocks."""
        frames, blocks = program.layout.frames, len(program.blocks)
        if self.stride > frames > BOUNDARIES:
            raise PreconditionError(
                f"stride {self.stride} is more than the {frames} latent frames of "
                f"{program.layout}; use a stride of 1 to {frames}",
                pass_name=self.name,
            )
        for option, value in (("first_block", self.first_block), ("last_block", self.last_block)):
            if value is not None and not -blocks <= value <= blocks:
                raise PreconditionError(
                    f"{option}={value} is outside the model's {blocks} video blocks",
                    pass_name=self.name,
                )
        if blocks == 1 and self.first_block == 1:
            raise PreconditionError(
                "the model has one video block, and the first block is dense by default "
                "(first_block=1), so none can be sparse; pass first_block=0 to make it sparse, "
                "which costs quality",
                pass_name=self.name,
            )
        if not program.blocks[self.first_block : self.last_block]:
            raise PreconditionError(
                f"blocks[{self.first_block}:{self.last_block}] is empty; the model has {blocks} "
                "video blocks; choose first_block and last_block so that some remain",
                pass_name=self.name,
            )

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite the sparse blocks one by one."""
        program = rewriter.program
        frames = program.layout.frames
        if frames <= BOUNDARIES or self.stride == 1:
            boundaries = ", all of them boundaries" if frames <= BOUNDARIES else ""
            rewriter.note(f"dense: {frames} latent frames{boundaries}, stride {self.stride}")
            return
        original = program.at(program.inputs)
        every = program.blocks
        selected = every[self.first_block : self.last_block]
        interleaver = _Interleaver(self, rewriter, original)
        for position, block in enumerate(selected):
            anchors = anchor_frames(frames, self.stride, position % self.stride)
            interleaver.block(block.index, block.call, anchors)
        counts = sorted({len(a) for a in interleaver.used})
        rewriter.note(
            f"{interleaver.sparse} of {len(every)} blocks sparse on "
            f"{' or '.join(map(str, counts)) or frames} of {frames} latent frames "
            f"(scope={self.scope}, kv={self.kv}, fill={self.fill})"
        )


class _Interleaver:
    """The state of one run: gathers shared by blocks of one residue, graphs by anchor count."""

    def __init__(self, options: FrameInterleave, rewriter: Rewriter, original: Program) -> None:
        self.options, self.rewriter, self.original = options, rewriter, original
        self.gathers: dict[tuple[fx.Node, tuple[int, ...], tuple[int, ...]], fx.Node] = {}
        self.restricted: dict[tuple[str, int], Restricted] = {}
        self.unplaced: dict[tuple[str, int], list[str]] = {}
        self.used: set[tuple[int, ...]] = set()
        self.sparse = 0

    def block(self, index: int, call: fx.Node, anchors: tuple[int, ...]) -> None:
        """Make one block call sparse."""
        where = str(call.meta["fisopt.region"])
        program = self.rewriter.program
        if len(anchors) == program.layout.frames:
            self.rewriter.note(f"{where}: every frame is an anchor, dense")
            return
        body = program.callee(call)
        outputs = results(body.graph)
        streams = self._streams(call, outputs)
        found = self_attentions(body.graph) if self.options.scope == "attention" else []
        if reason := self._refusal(index, body, streams, found):
            self.rewriter.skip(where, reason)
            return
        try:
            restricted = self._restrict(index, call, body, len(anchors), list(streams), found)
        except VerifyError as error:
            self.rewriter.skip(where, f"it cannot be cut to the anchor frames: {error}")
            return
        if not restricted.tables and not restricted.narrowed:
            reason = "every value in it is needed on every frame"
            self.rewriter.skip(where, "; ".join([reason, *restricted.barriers]))
            return
        for name in self._without_stream(streams) if self.options.scope == "block" else ():
            self.rewriter.note(
                f"{where}: result {name} has no residual stream among the block's arguments, so "
                "it is interpolated itself"
            )
        for name in self.unplaced[str(call.target), len(anchors)]:
            self.rewriter.note(
                f"{where}: {name} reads the keys of every frame: where the frames are among them "
                "is not known"
            )
        for barrier in restricted.barriers:
            self.rewriter.note(f"{where}: computed on every frame, unknown operator: {barrier}")
        self._rewrite(call, restricted, anchors, outputs, streams)
        self.used.add(anchors)
        self.sparse += 1

    def _refusal(
        self,
        index: int,
        body: fx.GraphModule,
        streams: dict[fx.Node, Stream | None],
        found: list[Attention],
    ) -> str | None:
        if structure(body.graph) != structure(self.original.blocks[index].body.graph):
            return "another pass has edited this block; put FrameInterleave first"
        if self.options.scope == "attention":
            return None if found else "no self-attention was found in it"
        return None if streams else "no result carries frames"

    def _streams(self, call: fx.Node, outputs: list[fx.Node]) -> dict[fx.Node, Stream | None]:
        """The residual stream of every result that is filled.

        What the model writes into an input or a buffer, such as the keys of a cache, is read again
        at later calls, so it is computed on every frame unless it is a stream.
        """
        body, written = self.rewriter.program.callee(call), self.rewriter.program.written
        found: dict[fx.Node, Stream | None] = {}
        for output, result in zip(outputs, result_nodes(call, len(outputs)), strict=True):
            if carries_frames(output):
                stream = residual_stream(body.graph, output)
                if stream is not None or result not in written:
                    found[output] = stream
        return found

    def _without_stream(self, streams: dict[fx.Node, Stream | None]) -> list[str]:
        """The results that are interpolated themselves though the fill wants their update."""
        if self.options.fill == "state":
            return []
        return [n.name for n, stream in streams.items() if stream is None]

    def _restrict(
        self,
        index: int,
        call: fx.Node,
        body: fx.GraphModule,
        count: int,
        framed: list[fx.Node],
        found: list[Attention],
    ) -> Restricted:
        key = (str(call.target), count)
        if key not in self.restricted:
            program, options = self.rewriter.program, self.options
            short_program = program.resized(count)
            short = short_program.blocks[index].body
            anchors_only = options.kv == "anchors"
            if options.scope == "block":
                demand = analyse(body.graph, framed, lambda _: anchors_only)
                exits: list[fx.Node] = []
            else:
                exits = [a.result for a in found]
                cut = {n for a in found for n in a.members} if anchors_only else set()
                demand = analyse(body.graph, (), cut.__contains__, exits)
            frames = program.layout.frames
            self.unplaced[key] = _unplaced(body.graph, short.graph) if anchors_only else []
            self.restricted[key] = Restrict(
                body, short, demand, count, frames, exits, options.fill
            ).run()
        return self.restricted[key]

    def _rewrite(
        self,
        call: fx.Node,
        restricted: Restricted,
        anchors: tuple[int, ...],
        outputs: list[fx.Node],
        streams: dict[fx.Node, Stream | None],
    ) -> None:
        rewriter = self.rewriter
        body = rewriter.program.callee(call)
        arguments = dict(
            zip((n for n in body.graph.nodes if n.op == "placeholder"), call.args, strict=True)
        )
        tables = self._tables(anchors, call)
        old = result_nodes(call, len(outputs))
        with rewriter.before(call):
            args: list[fx.Node] = [n for n in call.args if isinstance(n, fx.Node)]
            for position, dims in restricted.narrowed.items():
                args[position] = self._gather(args[position], dims, anchors, tables["anchors"])
            pieces = rewriter.call_block(
                restricted.graph_module,
                [*args, *(tables[name] for name in restricted.tables)],
                like=call,
                name=f"{call.target}_k{len(anchors)}",
                axes=[
                    _narrow(n, len(anchors)) if i in restricted.sparse_outputs else axes_of(n)
                    for i, n in enumerate(outputs)
                ],
            )
            for i, (output, piece) in enumerate(zip(outputs, pieces, strict=True)):
                if i in restricted.sparse_outputs:
                    stream = streams[output]
                    full = self._before(stream, arguments) if stream is not None else None
                    piece = self._fill(output, full, piece, tables)
                if (result := old[i]) is not None:
                    rewriter.replace_uses(result, piece)

    def _before(self, stream: Stream, arguments: dict[fx.Node, fx.Node]) -> fx.Node:
        """What a result is the update of, on every frame."""
        node, *others = (arguments[n] for n in stream.arguments)
        for other in others:
            node = self.rewriter.call(torch.ops.aten.add.Tensor, node, other)
        for view in stream.views:
            args = (node, *view.args[1:])
            options: dict[str, Any] = dict(view.kwargs)
            node = self.rewriter.call(view.target, *args, **options)
        return node

    def _tables(self, anchors: tuple[int, ...], call: fx.Node) -> dict[str, fx.Node]:
        frames = self.rewriter.program.layout.frames
        values = (torch.tensor(anchors), *interpolation(anchors, frames))
        device = next(
            v.device for n in call.all_input_nodes if isinstance(v := n.meta["val"], torch.Tensor)
        )
        stem = f"s{self.options.stride}_a{anchors[1]}_k{len(anchors)}"
        return {
            name: self.rewriter.buffer(f"{name}_{stem}", value.to(device))
            for name, value in zip(TABLES, values, strict=True)
        }

    def _gather(
        self, node: fx.Node, dims: tuple[int, ...], anchors: tuple[int, ...], index: fx.Node
    ) -> fx.Node:
        key = (node, dims, anchors)
        if key not in self.gathers:
            for d in dims:
                axis = axes_of(node)[d]
                assert axis is not None
                node = self.rewriter.call(
                    torch.ops.fisopt.gather_frames.default,
                    node,
                    d,
                    index,
                    axis.outer,
                    axis.inner,
                    axis.before,
                    axis.after,
                )
            self.gathers[key] = node
        return self.gathers[key]

    def _fill(
        self, output: fx.Node, full: fx.Node | None, piece: fx.Node, tables: dict[str, fx.Node]
    ) -> fx.Node:
        fill: Fill = self.options.fill if full is not None else "state"
        for d, axis in enumerate(axes_of(output)):
            if axis is not None:
                piece = self.rewriter.call(
                    torch.ops.fisopt.fill_frames.default,
                    None if fill == "state" else full,
                    piece,
                    d,
                    *(tables[name] for name in TABLES),
                    axis.outer,
                    axis.inner,
                    axis.before,
                    axis.after,
                    fill,
                )
        return piece


def _unplaced(graph: fx.Graph, short: fx.Graph) -> list[str]:
    """The attentions whose values grow with the frames, but hold them in places not known."""
    twin = dict(zip(graph.nodes, short.nodes, strict=True))
    return [
        a.result.name
        for a in attentions(graph)
        if shape(a.value)[-2] != shape(twin[a.value])[-2] and axes_of(a.value)[-2] is None
    ]


def _narrow(node: fx.Node, count: int) -> Axes:
    return tuple(axis.at(count) if axis is not None else None for axis in axes_of(node))
