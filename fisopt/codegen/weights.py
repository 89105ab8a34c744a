"""Weights: a graph's parameters and buffers found once, not by their paths at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from fisopt.errors import VerifyError


def bind_weights(module: fx.GraphModule) -> Callable[..., Sequence[Any]]:
    """Return a graph as a callable that is handed its weights.

    Looking up the parameters of forty blocks by path takes milliseconds a call.  What is kept is
    where each is held, so that weights that are loaded, replaced or moved later are seen.

    Args:
        module: the graph; its weights become its first arguments.
    """
    graph = module.graph
    places: list[tuple[dict[str, Any], str]] = []
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        places.insert(0, _place(module, str(node.target)))
        with graph.inserting_before():
            holder = graph.placeholder(f"weight_{node.name}")
        node.replace_all_uses_with(holder)
        graph.erase_node(node)
    module.recompile()
    forward = module.forward

    def run(*values: Any) -> Sequence[Any]:
        results: Sequence[Any] = forward(*[held[name] for held, name in places], *values)
        return results

    return run


def _place(module: nn.Module, path: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds what a path leads to, and its name in there."""
    owner, _, name = path.rpartition(".")
    holder = module.get_submodule(owner)
    for held in (holder._parameters, holder._buffers, holder.__dict__):
        if name in held:
            return held, name
    raise VerifyError(f"{type(module).__name__} holds no {path}")
