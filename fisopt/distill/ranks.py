"""Several processes that train one student: each has its share of a step's micro-batches.

They are started by ``torchrun`` or ``accelerate launch``, and the group is opened before training
begins (``torch.distributed.init_process_group``, or ``accelerate.Accelerator()``).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if _several() else 1


def own() -> int:
    """The number of this one; the first one writes."""
    return distributed.get_rank() if _several() else 0


def add(values: Iterable[Tensor]) -> None:
    """Add up values over all processes, in place."""
    if count() > 1:
        for value in values:
            distributed.all_reduce(value)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def gradients(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients of parameters, zeros where there is none: all processes add up the same."""
    held = list(parameters)
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in held if p.grad is not None]
