"""What the guidance branches of a generation leave for their later steps."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from fisopt.rewrite.program import pass_of
from fisopt.rewrite.tracing.inputs import Inputs

Value = TypeVar("Value")
TIMESTEPS = ("timestep", "timesteps", "t")
"""Names under which models take the timestep."""


@dataclass
class Held:
    """What a branch holds for inputs of one shape; names begin with the pass that left it.

    Attributes:
        state: tensors by name.
        measured: numbers by name.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.state or self.measured)

    def clear(self) -> None:
        """Hold nothing."""
        self.state.clear()
        self.measured.clear()

    def leave(self, state: Mapping[str, Tensor], measured: Mapping[str, float]) -> None:
        """Hold what a step has left; of each pass it replaces all that was left before."""
        _replace(self.state, state)
        _replace(self.measured, measured)


def _replace(held: dict[str, Value], left: Mapping[str, Value]) -> None:
    passes = {pass_of(name) for name in left}
    for name in [name for name in held if pass_of(name) in passes]:
        del held[name]
    held.update(left)


@dataclass
class _Branch:
    """The step that a branch has reached, and what it holds for each shape of its inputs."""

    step: int
    held: dict[Hashable, Held] = field(default_factory=dict)


class Branches:
    """The guidance branches of one generation.

    A branch is called once a step.  Called at a step again, it is in another generation, and what
    every branch held is forgotten.
    """

    def __init__(self) -> None:
        self._branches: dict[Hashable, _Branch] = {}

    def __bool__(self) -> bool:
        return any(held for branch in self._branches.values() for held in branch.held.values())

    def clear(self) -> None:
        """Forget every branch."""
        self._branches.clear()

    def enter(self, key: Hashable, step: int, shape: Hashable) -> Held:
        """Go to a step of a branch: what its step before left for inputs of one shape."""
        known = self._branches.get(key)
        if known is not None and known.step == step:
            self.clear()
        self._branches = {k: b for k, b in self._branches.items() if b.step in (step - 1, step)}
        branch = self._branches.setdefault(key, _Branch(step))
        branch.step = step
        return branch.held.setdefault(shape, Held())


def conditioning(inputs: Inputs, framed: Collection[str]) -> Hashable:
    """A fingerprint of what tells branches without names apart, the same at every step.

    It is made of the values of the tensors that neither carry frames nor are timesteps, nor
    numbers for each batch item such as guidance scales, which may change from step to step.

    Args:
        inputs: the inputs of a call.
        framed: names of those that carry frames.
    """
    sums = []
    for i, x in inputs.tensors():
        name, scale = inputs.names[i], x.is_floating_point() and x.ndim <= 1
        if name not in framed and name not in TIMESTEPS and not scale:
            values = torch.view_as_real(x) if x.is_complex() else x
            flat = values.detach().reshape(-1).to(torch.float64)
            weights = torch.arange(1, len(flat) + 1, device=x.device, dtype=torch.float64).sin()
            sums.append(torch.stack([flat.sum(), flat @ weights]).cpu())
    return tuple(torch.stack(sums).flatten().tolist()) if sums else ()
