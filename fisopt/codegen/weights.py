"""Weights: where a graph's parameters and buffers are is found once, not at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from fisopt.errors import VerifyError
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.edit.local import NodeRule, rewrite
from fisopt.rewrite.tools.tool import Place
from fisopt.rewrite.tracing.weights import place_of


def bind_weights(module: fx.GraphModule, model: nn.Module) -> Callable[..., Sequence[Any]]:
    """Return a graph as a callable that is handed its weights.

    Looking up the parameters of forty blocks by path takes milliseconds a call.  What is kept is
    where the model holds each, so that weights that are loaded, replaced or moved later are seen,
    and old ones are not kept.

    Args:
        module: the graph; its weights become its first arguments, and it lets go of those that
            the model holds.
        model: the model that it was captured from; a tensor that is not found there under its
            path is the graph's own.
    """
    places: list[Place] = []

    def handed(editor: GraphEditor, node: fx.Node) -> fx.Node:
        places.insert(0, _place(module, model, str(node.target)))
        with editor.graph.inserting_before():
            return editor.graph.placeholder(f"weight_{node.name}")

    rule = NodeRule("weight", lambda node: node.op == "get_attr", handed)
    rewrite(GraphEditor(module.graph, "hand over weights"), [rule])
    module.recompile()
    forward = module.forward

    def run(*values: Any) -> Sequence[Any]:
        results: Sequence[Any] = forward(*[held[name] for held, name in places], *values)
        return results

    return run


def _place(module: nn.Module, model: nn.Module, path: str) -> Place:
    """Where the tensor of a path is held: by the model, or else by the graph."""
    owner, _, name = path.rpartition(".")
    holder = module.get_submodule(owner)
    own = (holder._parameters, holder._buffers, holder.__dict__)
    if (place := place_of(model, path)) is not None:
        for held in own:
            held.pop(name, None)
        return place
    for held in own:
        if name in held:
            return held, name
    raise VerifyError(f"{type(module).__name__} holds no {path}")
