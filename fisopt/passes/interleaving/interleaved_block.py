"""One block of a Program, computed on some of the frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx
import torch
from torch import fx

from fisopt.errors import VerifyError
from fisopt.passes.interleaving.form import Form, part_of
from fisopt.rewrite.analysis.residual import Stream
from fisopt.rewrite.analysis.structure import (
    attentions,
    dependences,
    in_window,
    no_self_attention,
    self_attentions,
)
from fisopt.rewrite.axes import axes_of
from fisopt.rewrite.block import Block
from fisopt.rewrite.edit.block_edit import BlockEdit
from fisopt.rewrite.edit.frames import Frames
from fisopt.rewrite.edit.restrict import Restricted
from fisopt.rewrite.relations.table import relation, shape
from fisopt.rewrite.rewriter import Rewriter

Parts = Mapping[fx.Node, Frames]
Streams = dict[fx.Node, Stream | None]


class Interleaver:
    """The state of one run: the figures of the report."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.used: set[tuple[int, ...]] = set()
        self.sparse = 0

    def block(self, block: Block, form: Form, place: int) -> None:
        """Make one block sparse; ``place`` is its place in the rotation of the anchors."""
        rewriter = self.rewriter
        if form.dense:
            return
        streams = self._streams(block)
        if isinstance(parts := self._parts(block, form, place, streams), str):
            rewriter.skip(block.path, parts)
            return
        if not parts:
            rewriter.note(f"{block.path}: every frame is an anchor, dense")
            return
        kept = "_".join(map(str, dict.fromkeys(len(part.kept) for part in parts.values())))
        try:
            with rewriter.edit(block, name=f"k{kept}") as edit:
                done = edit.compute(parts, _cut(block, form), form.fill)
                if edit.changed:
                    self._fill(block, edit, form, parts, streams)
        except VerifyError as error:
            rewriter.skip(block.path, f"it cannot be cut to the anchor frames: {error}")
            return
        if not edit.changed:
            reason = "every value in it is needed on every frame"
            rewriter.skip(block.path, "; ".join([reason, *done.barriers]))
            return
        self._note(block, edit, form, parts, streams, done)
        self.used |= {part.kept for part in parts.values()}
        self.sparse += 1

    def _parts(self, block: Block, form: Form, place: int, streams: Streams) -> Parts | str:
        """What is computed on which anchors, or why nothing is."""
        frames = self.rewriter.program.layout.frames
        if not self.rewriter.untouched(block):
            return "another pass has edited this block; put FrameInterleave first"
        if form.scope == "attention":
            found = [a.result for a in self_attentions(block.body.graph)]
            if not found:
                return no_self_attention(block.body.graph)
            strides = dict.fromkeys(found, form.strides["self_attention"])
        elif form.stride is not None:
            if not streams:
                return "no result carries frames"
            strides = dict.fromkeys(streams, form.stride)
        else:
            if not block.branches:
                return "no residual branch was found in it; give stride= alone, which needs none"
            strides = {branch.update: form.strides[branch.kind] for branch in block.branches}
        each = {node: part_of(stride, place, frames) for node, stride in strides.items()}
        return {node: part for node, part in each.items() if part is not None}

    def _streams(self, block: Block) -> Streams:
        """The residual stream of every result that is filled.

        What the model writes into an input or a buffer, such as the keys of a cache, is read again
        at later calls, so it is computed on every frame unless it is a stream.  So are keys and
        values that the model returns.
        """
        program, graph = self.rewriter.program, block.body.graph
        edges = dependences(graph)
        attended = {n for a in attentions(graph) for n in nx.ancestors(edges, a.result)}
        written, left = program.written, program.returned

        def kept(result: fx.Node) -> bool:
            node = block.returned(result)
            return node in written or (node in left and result in attended)

        return {
            result: stream
            for result, stream in block.streams.items()
            if stream is not None or not kept(result)
        }

    def _fill(
        self, block: Block, edit: BlockEdit, form: Form, parts: Parts, streams: Streams
    ) -> None:
        """Make the results whole that the block returns on the anchors."""
        pieces = dict(zip(block.results, edit.place(), strict=False))
        for result, piece in pieces.items():
            if piece.meta["val"].shape == result.meta["val"].shape:
                continue
            stream = streams[result]
            full = self._before(block, stream) if stream is not None else None
            fill = form.fill if full is not None else "state"
            whole = parts[result].spread(self.rewriter, piece, axes_of(result), full, fill)
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
        form: Form,
        parts: Parts,
        streams: Streams,
        done: Restricted,
    ) -> None:
        """Report what is approximated in another way than is said, and what is not sparse."""
        note = self.rewriter.note
        if form.scope == "block" and form.stride is not None and form.fill != "state":
            for name in (n.name for n, stream in streams.items() if stream is None):
                note(
                    f"{block.path}: result {name} has no residual stream among the block's "
                    "arguments, so it is interpolated itself"
                )
        cut = set(_cut(block, form))
        for attention in attentions(block.body.graph) if form.kv == "anchors" else ():
            value = attention.value
            short = edit.sizes(next(iter(parts.values())), value)
            unplaced = short[-2] != shape(value)[-2] and axes_of(value)[-2] is None
            if unplaced or in_window(block.body.graph, attention):
                note(
                    f"{block.path}: {attention.result.name} reads the keys of every frame, "
                    "because the positions of the frames among them are unknown"
                )
        partial = [n for n in _mixers(block) if n in cut and n in done.partial]
        if found := [n.name for n in _mixers(block) if n in cut and n not in done.partial]:
            note(
                f"{block.path}: {_some(found)} computed from every frame, because the positions "
                "of the frames in what it reads or returns are unknown"
            )
        if found := [n.name for n in partial if not any(axes_of(n))]:
            note(
                f"{block.path}: {_some(found)} computed from all tokens at once, such as one "
                "scale for a whole activation; here from the anchors only"
            )
        if found := [n.name for n in partial if any(axes_of(n))]:
            note(
                f"{block.path}: {_some(found)} computed from several frames, such as by a "
                "convolution over time; here from anchors, as if they were neighbours"
            )
        for barrier in done.barriers:
            note(f"{block.path}: computed on every frame, unknown operator: {barrier}")


def _cut(block: Block, form: Form) -> Iterable[fx.Node]:
    """The operators that see the anchors as if there were no other frames."""
    graph = block.body.graph
    if form.kv == "all":
        return ()
    if form.scope == "attention":
        return {n for a in self_attentions(graph) for n in a.members}
    if form.stride is not None:
        return graph.nodes
    mine = (b.nodes for b in block.branches if b.kind == "self_attention")
    return {n for nodes in mine for n in nodes if form.strides["self_attention"] > 1}


def _mixers(block: Block) -> list[fx.Node]:
    """The operators outside of attentions that make a value of several frames."""
    graph = block.body.graph
    attended = {n for a in attentions(graph) for n in a.members}
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in attended
        if any(axes_of(operand)[dim] for operand, dim in relation(node).mixed)
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more are" if names[1:] else " is"
    return f"{names[0]}{more}"
