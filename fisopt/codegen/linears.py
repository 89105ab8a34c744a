"""Linears in FP8 in a lowered graph: stages take rounded weights in the place of the model's."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx, nn

from fisopt.codegen import fp8
from fisopt.codegen.choose import Choice
from fisopt.codegen.lowering import check, signature
from fisopt.codegen.quantised_weights import QuantisedWeights
from fisopt.codegen.rounded_linears import NAME, Limits, linears_of
from fisopt.codegen.stages import Stage, stages_of
from fisopt.concurrency import tracing
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import rewrite


def use_fp8(module: fx.GraphModule, model: nn.Module, *, simulate: bool) -> Choice:
    """Let the large linears of a lowered graph multiply in FP8, in place.

    Activations are quantised where they are computed.  Weights are quantised once, by
    `QuantisedWeights`; stages take them in the place of the model's.

    Args:
        module: what `lower` has made.
        model: the model that holds its weights.
        simulate: compute the same numbers without FP8 units.

    Returns:
        What was changed and what was not, for the report.

    Raises:
        LoweringError: its device has no FP8, and nothing is simulated.
    """
    stages = [(stage, linears_of(stage.graph)) for stage in stages_of(module)]
    limits = Limits.of((node for _, nodes in stages for node in nodes), simulate=simulate)
    left: Counter[str] = Counter()
    count, swaps = 0, []
    for stage, nodes in stages:
        taken, others = limits.divided(nodes, partial(_computed, stage))
        left.update({reason: n * len(stage.calls) for reason, n in others.items()})
        count += len(taken) * len(stage.calls)
        if taken:
            with tracing():
                swaps.append(_rewritten(stage, taken, limits))
    if swaps:
        _hand_over(module, QuantisedWeights(model), swaps)
    return limits.choice(count, left)


def holds_fp8(stage: fx.GraphModule) -> bool:
    """Whether a stage takes weights in FP8."""
    values = (n.meta.get("val") for n in stage.graph.nodes if n.op == "placeholder")
    return any(isinstance(v, torch.Tensor) and v.dtype == fp8.FP8 for v in values)


def _computed(stage: Stage, linear: fx.Node) -> bool:
    """Whether a linear's weight is not the model's own in some call."""
    held = [i for i, node in enumerate(stage.holders) if node is linear.args[1]]
    read = (call.args[i] for i in held for call in stage.calls)
    own = all(isinstance(node, fx.Node) and node.op == "get_attr" for node in read)
    return not (held and own)


@dataclass(frozen=True)
class _Swap:
    """How the arguments of a stage have changed.

    Attributes:
        stage: the stage; pairs of a weight in FP8 and its scales are behind its other arguments.
        weights: the argument that each pair is made of, among those that it took.
        gone: the arguments that it takes no more.
    """

    stage: Stage
    weights: list[int]
    gone: set[int]


def _rewritten(stage: Stage, linears: list[fx.Node], limits: Limits) -> _Swap:
    """Change linears of a stage."""
    editor, holders = GraphEditor.of(stage.module, NAME), stage.holders
    weights: list[fx.Node] = list(dict.fromkeys(node.args[1] for node in linears))  # type: ignore[misc]
    places = [holders.index(weight) for weight in weights]
    pairs = dict(zip(weights, _placeholders(editor, holders[-1], weights), strict=True))
    rewrite(editor, [limits.rule(linears, pairs)], once=True)
    gone = {i for i in places if not holders[i].users}
    for i in gone:
        stage.graph.erase_node(holders[i])
    check(stage.module, signature(stage.graph), NAME)
    stage.module.recompile()
    return _Swap(stage, places, gone)


def _placeholders(
    editor: GraphEditor, last: fx.Node, weights: list[fx.Node]
) -> list[tuple[fx.Node, fx.Node]]:
    """Arguments behind the last one for each weight: its rows in FP8, and their scales."""

    def placeholder(name: str, value: torch.Tensor) -> fx.Node:
        nonlocal last
        with editor.graph.inserting_after(last):
            last = editor.graph.placeholder(name)
        last.meta.update({"val": value, "fisopt.parameter": True})
        return last

    pairs = []
    for weight in weights:
        like: torch.Tensor = weight.meta["val"]
        with editor.mode:
            rows = like.new_empty(like.shape, dtype=fp8.FP8)
            scale = like.new_empty(1, like.shape[0], dtype=torch.float32)
        name = weight.name
        pairs.append((placeholder(f"{name}_fp8", rows), placeholder(f"{name}_scale", scale)))
    return pairs


def _hand_over(module: fx.GraphModule, weights: QuantisedWeights, swaps: list[_Swap]) -> None:
    """Quantise the weights that stages take, before they are called, and hand them over."""
    calls = [(swap, call) for swap in swaps for call in swap.stage.calls]
    held = {call: [str(call.args[i].target) for i in swap.weights] for swap, call in calls}  # type: ignore[union-attr]
    paths = list(dict.fromkeys(path for each in held.values() for path in each))
    graph = module.graph
    module.add_module(NAME, weights)
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        made = graph.call_module(NAME, tuple(graph.get_attr(path) for path in paths))
        pieces = [graph.call_function(operator.getitem, (made, i)) for i in range(2 * len(paths))]
    pairs = {path: pieces[2 * i : 2 * i + 2] for i, path in enumerate(paths)}
    for swap, call in calls:
        kept = [x for i, x in enumerate(call.args) if i not in swap.gone]
        call.args = (*kept, *(node for path in held[call] for node in pairs[path]))
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    module.recompile()
