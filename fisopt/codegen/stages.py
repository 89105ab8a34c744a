"""Rewrite the stages of a lowered graph: their calls, and functions inserted as operators."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fisopt.lru import Lru
from fisopt.rewrite.edit.graph_editor import GraphEditor
from fisopt.rewrite.outline import value_key


@dataclass(frozen=True)
class Stage:
    """A stage of a lowered graph.

    Attributes:
        module: its graph.
        calls: the nodes that call it.
    """

    module: fx.GraphModule
    calls: list[fx.Node]

    @property
    def graph(self) -> fx.Graph:
        """Its graph."""
        return self.module.graph

    @property
    def holders(self) -> list[fx.Node]:
        """What it takes."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]


def stages_of(module: fx.GraphModule) -> list[Stage]:
    """The stages of a graph that `lower` has made."""
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    graphs = {name: module.get_submodule(name) for name in calls}
    return [Stage(g, calls[n]) for n, g in graphs.items() if isinstance(g, fx.GraphModule)]


def traced(editor: GraphEditor, function: Callable[..., Any], *operands: fx.Node) -> fx.Graph:
    """The operators that a function of some nodes' values runs."""
    with editor.mode, torch.no_grad():  # equal values share a fake: each needs its own
        fakes = [torch.empty_like(node.meta["val"]) for node in operands]
        return make_fx(function)(*fakes).graph


def inserted(editor: GraphEditor, function: Callable[..., Any], *operands: fx.Node) -> Any:
    """Insert a function's operators here, on some nodes; return what it returns.

    They are traced once for operands of equal form, in all graphs.

    Args:
        editor: of the graph.
        function: equal to another one if it runs the same operators; without tensors of its own.
        operands: what it is called with.
    """
    strides = [node.meta["val"].stride() for node in operands]
    key = function, tuple(map(value_key, operands)), tuple(map(tuple, strides))
    if (body := _TRACED.get(key)) is None:
        body = _TRACED[key] = traced(editor, function, *operands)
        for node in body.nodes:
            node.meta.clear()  # values of this graph's mode
    holders = [node for node in body.nodes if node.op == "placeholder"]
    written: dict[fx.Node, Any] = dict(zip(holders, operands, strict=True))
    result = None
    for node in body.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), written.__getitem__)
        if node.op == "call_function":
            written[node] = editor.call(node.target, *args, **kwargs)
        elif node.op == "output":
            (result,) = args
    return result


_TRACED: MutableMapping[Any, fx.Graph] = Lru()
