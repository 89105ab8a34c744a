"""Handing over weights: a lowered graph that gets those of each stage shortly before it runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

Step = Callable[..., Any]


class _Step(nn.Module):
    """A step of a graph that a function takes."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands: Any) -> Any:
        """Take it."""
        return self.function(*operands)


@dataclass(frozen=True)
class Steps:
    """What a graph does to have the weights of its stages.

    Attributes:
        begin: makes what the other steps get first, once a call.
        start: begins to bring the weights of a stage: ``(begun, *weights)``.
        take: returns them in order, for the stage to read: ``(begun, started)``.
        own: returns the results of a stage such that none lies in the memory of its weights:
            ``(begun, results)``; None where that memory is never used again.
    """

    begin: Step
    start: Step
    take: Step
    own: Step | None = None


def reading_stages(
    graph: fx.Graph, given: Collection[fx.Node]
) -> list[tuple[fx.Node, list[fx.Node]]]:
    """The nodes that read some weights and are none of them, in order, each with what it reads."""
    inputs = [(n, [x for x in n.all_input_nodes if x in given]) for n in graph.nodes]
    return [(node, read) for node, read in inputs if read and node not in given]


def hand_over(
    module: fx.GraphModule,
    stages: Sequence[tuple[fx.Node, Sequence[fx.Node]]],
    steps: Steps,
    ahead: int,
) -> None:
    """Let a graph bring the weights of each stage before it runs, and let go of them after it.

    Args:
        module: the graph; changed in place.
        stages: its stages in order, each with the weights that it reads; they stand before all
            of them.
        steps: how weights are brought.
        ahead: how many stages ahead that begins.
    """
    graph = module.graph
    named: Mapping[str, Step | None] = {
        "weights_begin": steps.begin,
        "weights_start": steps.start,
        "weights_take": steps.take,
        "weights_own": steps.own,
    }
    for name, function in named.items():
        if function is not None:
            module.add_module(name, _Step(function))
    weights = {x for _, read in stages for x in read}
    last = next(n for n in reversed(graph.nodes) if n in weights or n.op == "placeholder")
    with graph.inserting_after(last):
        begun = after = graph.call_module("weights_begin")
    started: list[fx.Node] = []
    for i, (stage, read) in enumerate(stages):
        for _, each in stages[len(started) : i + ahead + 1]:
            with graph.inserting_after(after):
                after = graph.call_module("weights_start", (begun, *each))
            started.append(after)
        with graph.inserting_before(stage):
            taken = graph.call_module("weights_take", (begun, started[i]))
            for k, weight in enumerate(read):
                piece = graph.call_function(operator.getitem, (taken, k))
                stage.replace_input_with(weight, piece)
        if stage.op != "output":
            after = stage if steps.own is None else _owned(graph, begun, stage)
    module.recompile()


def _owned(graph: fx.Graph, begun: fx.Node, stage: fx.Node) -> fx.Node:
    """What stands for the results of a stage, none of which lies in the memory of its weights."""
    with graph.inserting_after(stage):
        owned = graph.call_module("weights_own", (begun, stage))
    stage.replace_all_uses_with(owned, lambda user: user is not owned)
    owned.meta |= stage.meta
    return owned
