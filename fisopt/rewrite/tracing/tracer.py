"""The tracer of a model: its flat graphs for inputs of any shapes, on fake tensors of one mode."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fisopt.rewrite.tracing.block_paths import BLOCK
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.joined_parts import join_parts
from fisopt.rewrite.tracing.key_masks import Insert, separate_masks
from fisopt.rewrite.tracing.read_back import read_back
from fisopt.rewrite.tracing.recorder import Recorder
from fisopt.rewrite.tracing.roles import separate_roles
from fisopt.rewrite.tracing.trace import trace
from fisopt.rewrite.tracing.writes import take_parts

PARTS = "fisopt.parts"
"""Where a flat graph says of which tensors it writes a part; what is written follows its results
and what it puts into containers."""


@dataclass
class Tracer:
    """Makes the flat graph of a model for inputs of any shapes.

    Graphs of two frame counts correspond node for node, by name, where the model runs the same
    operators.

    Attributes:
        model: the model.
        blocks: paths of its blocks.
        recorder: runs it; the values of all its graphs are fake in this one mode.
        traces: how often it was traced.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    recorder: Recorder = field(default_factory=Recorder)
    traces: int = 0

    def flat(self, inputs: Inputs, framed: Collection[int] = ()) -> fx.GraphModule:
        """The graph for inputs of these shapes.

        Args:
            inputs: the inputs.
            framed: which of them hold frames alone.

        Raises:
            CaptureError: the model cannot be traced.
        """
        self.traces += 1
        module = trace(self.model, inputs, self.blocks, self.recorder)
        holders = (n for n in module.graph.nodes if n.op == "placeholder")
        pairs = zip(holders, inputs.tensors(), strict=True)
        video = [holder for holder, (i, _) in pairs if i in framed]
        read_back(module.graph, lambda node: self._insert_for(node, False), video)
        module.meta[PARTS] = take_parts(module.graph, inputs)
        join_parts(module.graph, self._insert_for)
        separate_masks(module.graph, self._insert_for)
        separate_roles(module.graph)
        return module

    def _insert_for(self, place: fx.Node, after: bool) -> Insert:
        """What writes operators before or after a node of a graph, as parts of its block."""
        graph = place.graph
        here = graph.inserting_after if after else graph.inserting_before

        def insert(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
            values, options = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
            name = f"{place.name}_{target.overloadpacket.__name__}"
            with here(place):
                new = graph.create_node("call_function", target, args, kwargs, name=name)
            with self.recorder, torch.no_grad():
                new.meta["val"] = target(*values, **options)
            new.meta |= {k: v for k, v in place.meta.items() if k == BLOCK}
            return new

        return insert
