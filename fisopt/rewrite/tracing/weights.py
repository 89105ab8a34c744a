"""Weights: a graph's parameters and buffers are those that its model holds under the same paths."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fisopt.rewrite.outline import hold
from fisopt.rewrite.tools.tool import Place, tools
from fisopt.rewrite.tracing.inner import inner_place


@dataclass(frozen=True)
class WeightPlace:
    """A place of a model that holds a parameter or a buffer.

    Attributes:
        path: of the weight.
        holder: the dictionary that holds it.
        name: its name in there.
        tensor: what it holds.
        is_buffer: whether it is a buffer.
    """

    path: str
    holder: dict[str, Any]
    name: str
    tensor: torch.Tensor
    is_buffer: bool


def weight_places(model: nn.Module) -> Iterator[WeightPlace]:
    """Every place of a parameter or a buffer once, though its module may have several names."""
    for path, module in model.named_modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for holder in holders:
            for name, x in [*holder.items()]:
                if x is not None:
                    full = f"{path}.{name}" if path else name
                    yield WeightPlace(full, holder, name, x, holder is module._buffers)


def place_of(model: nn.Module, path: str) -> Place | None:
    """Where a model holds the parameter or buffer of a path, None if it has none there."""
    *owner, name = path.split(".")
    holder: Any = model
    for i, part in enumerate(owner):
        inside = vars(holder).get("_modules", {}).get(part)
        if inside is None:
            return inner_place(holder, part, ".".join((*owner[i + 1 :], name)))
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
