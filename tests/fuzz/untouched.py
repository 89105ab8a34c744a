"""Whether a model and its inputs are as they were: every attribute, every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[str, Any]


def snapshot(model: nn.Module, given: Sequence[Mapping[str, Any]]) -> Snapshot:
    """What a model, its parts and some inputs hold, by path."""
    held: Snapshot = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in vars(module).items():
            if key not in ("_modules", "form"):
                held |= told(f"{name}.{key}", value)
    for i, inputs in enumerate(given):
        held |= told(f"inputs[{i}]", dict(inputs))
    return held


def told(path: str, value: Any) -> Snapshot:
    """A value as it can be compared: a tensor by what it is, its place and its numbers."""
    if isinstance(value, Tensor):
        marks = sorted(n for n in vars(value) if n != "_dynamo_static_input_type")
        return {path: (type(value), id(value), value.requires_grad, marks, value.detach().clone())}
    if isinstance(value, Mapping):
        parts = [told(f"{path}[{k!r}]", v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [told(f"{path}[{k}]", v) for k, v in enumerate(value)]
    else:
        return {path: value}
    held: Snapshot = {path: (type(value), len(parts))}
    for part in parts:
        held |= part
    return held


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What is not as it was."""
    found = []
    for path in before.keys() | after.keys():
        if path not in before or path not in after:
            found.append(f"{path} is {'new' if path in after else 'gone'}")
        elif not same(before[path], after[path]):
            found.append(f"{path} was {before[path]}, is {after[path]}")
    return sorted(found)


def same(a: Any, b: Any) -> bool:
    """Whether two values of a snapshot are equal."""
    if isinstance(a, tuple) and a and isinstance(a[-1], Tensor):
        return a[:-1] == b[:-1] and a[-1].shape == b[-1].shape and torch.equal(a[-1], b[-1])
    return bool(a == b)
