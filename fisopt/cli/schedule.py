"""Which Program runs at which denoising step, and what a whole generation saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fisopt.errors import OptionError
from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.program import Program


@dataclass(frozen=True)
class Plan:
    """The denoising steps of a generation.

    Attributes:
        steps: how many there are.
        stepwise: whether they differ.
        dense_steps: those at which no pass is active.
        ratio: FLOPs of a dense generation over those of this one.
    """

    steps: int
    stepwise: bool
    dense_steps: tuple[int, ...]
    ratio: float


def plan_steps(
    dense: Program,
    passes: Sequence[Pass],
    steps: int,
    rewrite: Callable[[tuple[Pass, ...]], Program],
) -> Plan:
    """Find the passes of every step and the cost of all steps together.

    Args:
        dense: the captured Program.
        passes: the passes of the generation.
        steps: number of denoising steps.
        rewrite: applies the passes that are active at a step.
    """
    if steps < 1:
        raise OptionError(f"steps must be at least 1, got {steps}")
    active = [
        tuple(now for p in passes if (now := p.at(Step(index, steps))) is not None)
        for index in range(steps)
    ]
    flops = {each: program_cost(rewrite(each) if each else dense).total for each in set(active)}
    total = sum(flops[each] for each in active)
    return Plan(
        steps,
        any(p.stepwise for p in passes),
        tuple(index for index, each in enumerate(active) if not each),
        steps * program_cost(dense).total / total,
    )
