"""What a whole generation saves, and which of its steps are dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fisopt.rewrite.cost import program_cost
from fisopt.rewrite.measured import UndecidedError
from fisopt.rewrite.program import Program
from fisopt.rewrite.variants import Variant, Variants


@dataclass(frozen=True)
class Plan:
    """The denoising steps of a generation.

    Attributes:
        steps: how many there are.
        stepwise: whether they differ.
        dense_steps: those at which no pass is active.
        ratio: FLOPs of a dense generation over those of this one; None where that is decided in
            the run.
        undecided: why it is.
    """

    steps: int
    stepwise: bool
    dense_steps: tuple[int, ...]
    ratio: float | None
    undecided: str = ""


def plan_steps(variants: Variants, steps: int, rewrite: Callable[[Variant], Program]) -> Plan:
    """Find the cost of all steps together.

    Args:
        variants: what runs in a generation of that many steps.
        steps: number of denoising steps.
        rewrite: the Program of a variant.
    """
    try:
        schedule = variants.schedule if variants.stepwise else variants.schedule * steps
    except UndecidedError as error:
        return Plan(steps, True, (), None, str(error))
    flops = {v: program_cost(rewrite(v)).work for v in {*schedule, Variant()}}
    return Plan(
        steps,
        bool(variants.stepwise),
        tuple(index for index, v in enumerate(schedule) if not v.passes),
        steps * flops[Variant()] / sum(flops[v] for v in schedule),
    )
