"""Several processes that train one student: each has its share of a step's micro-batches.

They are started by ``torchrun`` or ``accelerate launch``, and the group is opened before training
begins (``torch.distributed.init_process_group``, or ``accelerate.Accelerator()``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed

from fisopt.errors import RankError


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


def first(value: float, device: torch.device) -> float:
    """The value that the first one has."""
    if count() == 1:
        return value
    held = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.broadcast(held, 0)
    return float(held)


@torch.no_grad()
def check_alike(step: int, parameters: Mapping[str, Tensor]) -> None:
    """Check that all begin at the same step with the same values.

    Raises:
        RankError: on every process, if one has another step or another value than the first.
    """
    if count() == 1:
        return
    device = next(iter(parameters.values())).device
    differ = [step != int(first(step, device))]
    for value in parameters.values():
        other = value.detach().clone()
        distributed.broadcast(other, 0)
        differ.append(not torch.allclose(other, value, rtol=0, atol=0, equal_nan=True))
    found = torch.tensor(differ, dtype=torch.int32, device=device)
    distributed.all_reduce(found)
    step_differs, *others = found.tolist()
    if step_differs:
        raise RankError(
            f"distill: process {own()} begins at step {step}, and not all begin at the same; give "
            "every process the same folder"
        )
    if any(others):
        name, number = next((n, k) for n, k in zip(parameters, others, strict=True) if k)
        raise RankError(
            f"distill: {name} has other values in {number} of {count()} processes than in the "
            "first; load the same weights in all, and draw new ones after the same torch seed"
        )


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def gradients(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients of parameters, zeros where there is none: all processes add up the same."""
    held = list(parameters)
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in held if p.grad is not None]
