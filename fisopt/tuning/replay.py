"""Replay: recorded forward calls of the dense model, run again under some passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fisopt.api import optimize
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.runtime.optimized import OptimizedModule


@dataclass(frozen=True)
class Call:
    """A forward call of the dense model that was recorded, to be run again.

    Attributes:
        step: its place in a generation.
        branch: its guidance branch.
        inputs: its keyword arguments.
        output: the tensors that it returned.
    """

    step: Step
    branch: str
    inputs: Mapping[str, Any]
    output: list[Tensor]


def forward_errors(
    module: OptimizedModule, calls: Sequence[Call], passes: Sequence[Pass]
) -> list[float]:
    """Relative L2 error of a module's output under some passes, for each recorded call."""
    fast: OptimizedModule = optimize(module, passes, backend="eager")
    errors = []
    for call in calls:
        said = {"step_index": call.step.index, "num_inference_steps": call.step.count}
        with torch.no_grad(), fast.cache_context(call.branch, **said):
            got = tensors(fast(**call.inputs))
        pairs = zip(got, call.output, strict=True)
        off = sum(float((a - b).double().square().sum()) for a, b in pairs)
        errors.append(math.sqrt(off / sum(float(b.double().square().sum()) for b in call.output)))
    return errors


def tensors(output: Any) -> list[Tensor]:
    """The tensors in what a module returns."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
