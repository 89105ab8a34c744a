"""Training through a graph: when gradients flow, and what in a graph has none."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fisopt.errors import InputError, PassError
from fisopt.rewrite.ops.operator import declared

SWITCHES = "fisopt.switches_gradients"
"""Whether the model of a graph turned gradients off or on while it was traced."""


class GradientSwitches(TorchFunctionMode):
    """Inside, notice that a model turns gradients off or on: a graph does not keep that."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func is torch._C._set_grad_enabled
        return func(*args, **(kwargs or {}))


def asks_for_gradients(model: nn.Module, inputs: Iterable[torch.Tensor]) -> bool:
    """Whether gradients are on, and an input or a parameter wants one."""
    return torch.is_grad_enabled() and any(
        x.requires_grad for x in chain(inputs, model.parameters())
    )


def check_gradients(module: fx.GraphModule, model: nn.Module) -> None:
    """Refuse to train through a graph whose gradients are not those of its model.

    Raises:
        InputError: the model turns gradients off or on itself.
        PassError: an operator is declared to have none.
    """
    if module.meta.get(SWITCHES):
        raise InputError(
            f"{type(model).__name__} switches gradients off or on inside its forward "
            "(torch.no_grad); a captured graph does not, so its gradients would differ; write "
            ".detach() there, which a graph keeps, or call it under torch.no_grad"
        )
    graphs = (m.graph for m in (module, *module.children()) if isinstance(m, fx.GraphModule))
    for node in chain.from_iterable(graph.nodes for graph in graphs):
        made = declared(node.target)
        if made is not None and made.gradient == "missing":
            raise PassError(
                f"{made.target} has no gradient, so nothing can be trained through it; leave out "
                "what inserts it, or call the module under torch.no_grad",
                pass_name=node.meta.get("fisopt.by", type(model).__name__),
                node=node,
            )
