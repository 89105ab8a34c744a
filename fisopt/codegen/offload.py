"""Weights that stay on the host: a lowered graph that has those of few stages on its device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.codegen.handing import Steps, hand_over, reading_stages
from fisopt.codegen.placement import Placement
from fisopt.codegen.ring import Copies, Ring, aligned


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
    stages = reading_stages(graph, host)
    if not stages:
        return
    sizes = [sum(aligned(_bytes(x)) for x in read) for _, read in stages]
    placement.held.device = str(placement.device)
    placement.held.total = max(placement.held.total, sum(sizes))
    begin = partial(Ring, placement, max(sizes))
    steps = Steps(begin, _start, Ring.take, Ring.own)
    hand_over(module, stages, steps, placement.offload.prefetch)


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
