"""Weights that stay on the host: a lowered graph that has those of few stages on its device."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fisopt.codegen.placement import Placement
from fisopt.codegen.ring import Copies, Ring, aligned


class _Step(nn.Module):
    """A step of a graph that a function takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands: Any) -> Any:
        """Take it."""
        return self.function(*operands)


def _start(ring: Ring, *weights: Tensor) -> Copies:
    return ring.start(weights)


def offload(module: fx.GraphModule, placement: Placement) -> None:
    """Let a lowered graph copy the weights of each stage to its device before it calls it.

    Weights of the next stages are copied while one computes, and forgotten when theirs has been.
    All else stays as it was: the graph reads its weights where the model holds them.

    Args:
        module: the graph; changed in place.
        placement: the device, how many stages ahead weights are copied, and what is counted.
    """
    graph = module.graph
    host = _on_host(module)
    body = next(n for n in graph.nodes if n.op != "placeholder" and n not in host)
    for node in host:
        body.prepend(node)
    stages = [n for n in graph.nodes if n not in host and host.keys() & set(n.all_input_nodes)]
    if not stages:
        return
    weights = [[x for x in stage.all_input_nodes if x in host] for stage in stages]
    sizes = [sum(aligned(_bytes(x)) for x in each) for each in weights]
    placement.held.device = str(placement.device)
    placement.held.total = max(placement.held.total, sum(sizes))
    steps: dict[str, Callable[..., Any]] = {
        "weights_ring": partial(Ring, placement, max(sizes)),
        "weights_start": _start,
        "weights_take": Ring.take,
        "weights_own": Ring.own,
    }
    for name, function in steps.items():
        module.add_module(name, _Step(function))
    with graph.inserting_before(body):
        ring = graph.call_module("weights_ring")
    slots, after = placement.offload.prefetch + 1, ring
    begun: list[fx.Node] = []
    for i, stage in enumerate(stages):
        for each in weights[len(begun) : i + slots]:
            with graph.inserting_after(after):
                after = graph.call_module("weights_start", (ring, *each))
            begun.append(after)
        _hand_over(graph, ring, begun[i], stage, weights[i])
        if stage.op != "output":
            after = _owned(graph, ring, stage)
    module.recompile()


def _on_host(module: fx.GraphModule) -> dict[fx.Node, None]:
    """The nodes that follow from weights alone, outside of stages, in order."""
    host: dict[fx.Node, None] = {}
    for node in module.graph.nodes:
        called = module.get_submodule(node.target) if node.op == "call_module" else None
        follows = all(n in host for n in node.all_input_nodes) and bool(node.all_input_nodes)
        if node.op == "get_attr" or (
            follows and node.op != "output" and not isinstance(called, fx.GraphModule)
        ):
            host[node] = None
    return host


def _hand_over(
    graph: fx.Graph, ring: fx.Node, begun: fx.Node, stage: fx.Node, weights: list[fx.Node]
) -> None:
    """Let a stage take copies in the place of weights."""
    with graph.inserting_before(stage):
        taken = graph.call_module("weights_take", (ring, begun))
        for i, weight in enumerate(weights):
            stage.replace_input_with(weight, graph.call_function(operator.getitem, (taken, i)))


def _owned(graph: fx.Graph, ring: fx.Node, stage: fx.Node) -> fx.Node:
    """What stands for the results of a stage, none of which lies in the memory of its weights."""
    with graph.inserting_after(stage):
        owned = graph.call_module("weights_own", (ring, stage))
    stage.replace_all_uses_with(owned, lambda user: user is not owned)
    owned.meta |= stage.meta
    return owned


def _bytes(node: fx.Node) -> int:
    """Bytes of a weight; what is computed of weights has a value only where it is handed over."""
    value: Any = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        users = [u for u in node.users if u.op == "call_module"]
        value = next(v for u in users if (v := _taken(u, node)) is not None)
    return int(value.numel() * value.element_size())


def _taken(call: fx.Node, operand: fx.Node) -> Any:
    """The value of the argument of a stage that an operand is handed over as."""
    module: Any = call.graph.owning_module
    callee = module.get_submodule(str(call.target))
    if not isinstance(callee, fx.GraphModule):
        return None
    holders = [n for n in callee.graph.nodes if n.op == "placeholder"]
    return holders[call.args.index(operand)].meta.get("val")
