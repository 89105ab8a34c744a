"""Weights of which each rank holds a part: a lowered graph that gathers those of few stages.

What `torch.distributed.fsdp.fully_shard` leaves in a model are DTensors.  The graph reads them
where the model holds them, and has them whole for one stage after the other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from fisopt.codegen.choose import Choice
from fisopt.codegen.handing import Steps, hand_over, reading_stages
from fisopt.codegen.placement import size
from fisopt.counted import counted
from fisopt.rewrite.tools.fsdp import is_sharded
from fisopt.rewrite.tracing.weights import held_at

AHEAD = 1
"""How many stages ahead weights are gathered."""


def gather(module: fx.GraphModule, model: nn.Module) -> Choice | None:
    """Let a lowered graph gather the weights of each stage that are divided, before it calls it.

    Args:
        module: the graph; changed in place.
        model: the model that holds the weights.

    Returns:
        What is gathered; None where no weight is divided.
    """
    read = module.graph.find_nodes(op="get_attr")
    held: dict[fx.Node, Any] = {n: held_at(model, module, str(n.target)) for n in read}
    given = {n: x for n, x in held.items() if is_sharded(x)}
    if not given:
        return None
    first = next(n for n in module.graph.nodes if n.op != "placeholder" and n not in given)
    for node in given:
        first.prepend(node)
    stages = reading_stages(module.graph, given)
    hand_over(module, stages, Steps(_nothing, _start, _take), AHEAD)
    sizes = [sum(_bytes(given[n]) for n in each) for _, each in stages]
    most = max(sum(sizes[i : i + AHEAD + 1]) for i in range(len(sizes)))
    ranks = max(x.device_mesh.size() for x in given.values())
    said = f"{size(most)} of {size(sum(sizes))} whole at once"
    return Choice("weights", f"gathered from {counted(ranks, 'rank')}", said)


def sharded(model: nn.Module) -> bool:
    """Whether ranks divide a weight of a model."""
    return any(map(is_sharded, model.parameters()))


def _nothing() -> None:
    return None


def _start(_: None, *weights: Any) -> list[Any]:
    """Begin to gather some weights; a GPU waits for none of them."""
    from torch.distributed.tensor import Replicate

    return [
        x.redistribute(
            placements=[Replicate()] * x.device_mesh.ndim,
            async_op=x.device.type != "cpu",  # gloo corrupts memory when several are under way
        )
        for x in weights
    ]


def _take(_: None, started: list[Any]) -> list[Tensor]:
    """The whole weights, waited for."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    local = [x.to_local() for x in started]
    return [x.wait() if isinstance(x, AsyncCollectiveTensor) else x for x in local]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
