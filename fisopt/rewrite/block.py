"""Block: one call of a video block, with what its graph says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from fisopt.rewrite.analysis.residual import Stream, residual_path, residual_stream
from fisopt.rewrite.analysis.structure import (
    Branch,
    residual_branches,
    residual_source,
    result_nodes,
    results,
)
from fisopt.rewrite.axes import carries_frames
from fisopt.rewrite.outline import structure

EXTRA = "fisopt.extra"
"""Number of results that passes have added to a call, after the model's own."""


@dataclass(frozen=True)
class Block:
    """One call of a video block.

    The nodes of ``body`` compute the block; `passed` maps its placeholders to the Program's nodes.

    Attributes:
        path: module path of the block; ``path@1`` is its second call.
        index: its position among the video blocks in execution order, including blocks that hooks
            skip.
        call: the node of the Program's graph that calls it.
        body: the graph that is called; blocks of equal structure share it.
    """

    path: str
    index: int
    call: fx.Node
    body: fx.GraphModule

    @property
    def arguments(self) -> list[fx.Node]:
        """The placeholders of the body, in order, including the block's parameters."""
        return [n for n in self.body.graph.nodes if n.op == "placeholder"]

    @cached_property
    def results(self) -> list[fx.Node]:
        """The nodes of the body with the model's own results, without those that passes added."""
        held = results(self.body.graph)
        return held[: len(held) - self.call.meta.get(EXTRA, 0)]

    @cached_property
    def streams(self) -> dict[fx.Node, Stream | None]:
        """Every result that carries frames, and the residual stream that it updates."""
        graph = self.body.graph
        return {n: residual_stream(graph, n) for n in self.results if carries_frames(n)}

    @cached_property
    def stream(self) -> fx.Node | None:
        """The argument that is, unchanged, the residual stream of the block's video.

        None if there is no such argument, or if the stream is a sum or a view of another shape.
        """
        return next((self.source(result) for result in self.streams), None)

    def source(self, result: fx.Node) -> fx.Node | None:
        """The argument that is, unchanged, a result's residual stream; None if there is none."""
        return residual_source(self.body.graph, result)

    @cached_property
    def branches(self) -> list[Branch]:
        """The residual branches of the block's video, in order: the terms added to its stream."""
        graph, found = self.body.graph, []
        for result, stream in self.streams.items():
            path = residual_path(graph, result, stream.arguments) if stream is not None else set()
            found += [b for b in residual_branches(graph) if {b.stream, b.add} <= path]
        return found

    def passed(self, argument: fx.Node) -> fx.Node:
        """The node of the Program that the call passes for a placeholder of the body."""
        value = self.call.args[self.arguments.index(argument)]
        assert isinstance(value, fx.Node)
        return value

    def returned(self, result: fx.Node) -> fx.Node | None:
        """The node of the Program that holds a result; None if nothing uses the result."""
        held = results(self.body.graph)
        return result_nodes(self.call, len(held))[held.index(result)]


def repeated_blocks(blocks: Sequence[Block]) -> list[list[Block]]:
    """Group blocks by structure: those of one group are one graph with other weights."""
    groups: dict[object, list[Block]] = {}
    for block in blocks:
        groups.setdefault(structure(block.body.graph), []).append(block)
    return list(groups.values())
