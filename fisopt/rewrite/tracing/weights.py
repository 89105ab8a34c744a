"""Weights: a graph's parameters and buffers are those that its model holds under the same paths."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fisopt.rewrite.outline import hold
from fisopt.rewrite.tools.tool import Place, tools
from fisopt.rewrite.tracing.inner import PARAMETRIZATIONS, inner_place


def place_of(model: nn.Module, path: str) -> Place | None:
    """Where a model holds the parameter or buffer of a path, None if it has none there."""
    *owner, name = path.split(".")
    holder: Any = model
    for i, part in enumerate(owner):
        inside = vars(holder).get("_modules", {}).get(part)
        if inside is None:
            made_of = part == PARAMETRIZATIONS and i == len(owner) - 2
            return inner_place(holder, owner[-1], name) if made_of else None
        holder = inside
    for tool in tools():
        if (place := tool.place(holder, name)) is not None:
            return place
    places = ((held, name) for held in (holder._parameters, holder._buffers))
    return next((place for place in places if place[0].get(name) is not None), None)


def held_at(model: nn.Module, module: nn.Module, path: str) -> torch.Tensor:
    """The tensor that a model holds under a path, else that of a graph of it."""
    place = place_of(model, path)
    held: Any = operator.attrgetter(path)(module) if place is None else place[0][place[1]]
    tensor: torch.Tensor = held
    return tensor


def refresh(module: fx.GraphModule, model: nn.Module) -> None:
    """Give a graph the weights that its model holds now.

    Tensors that the model does not hold under a path, such as constants that an export has lifted
    and buffers of passes, stay the graph's own.
    """
    for path in {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}:
        place = place_of(model, path)
        if place is None:
            continue
        now = place[0][place[1]]
        if now is not operator.attrgetter(path)(module):
            hold(module, path, now)
