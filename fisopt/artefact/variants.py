"""Variants: the distinct Programs of a generation, and which of them runs at which step."""

from __future__ import annotations

from dataclasses import dataclass

from fisopt.errors import ExportError, shown
from fisopt.rewrite.inputs import Inputs
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.program import Program
from fisopt.runtime.optimized import OptimizedModule, active_at


@dataclass(frozen=True)
class Variant:
    """One Program of a generation.

    Attributes:
        passes: the passes that are active in it.
        program: what they made.
        afresh: position of the variant that runs instead where the state that this one loads is
            not there; its own if it loads none.
    """

    passes: tuple[Pass, ...]
    program: Program
    afresh: int


@dataclass(frozen=True)
class Variants:
    """What runs in a generation.

    Attributes:
        all: the variants, each different from the others.
        steps: how many denoising steps the schedule has, None where they do not matter.
        schedule: position of the variant of each step; of all steps if they do not matter.
    """

    all: tuple[Variant, ...]
    steps: int | None
    schedule: tuple[int, ...]


def variants_of(optimized: OptimizedModule, inputs: Inputs, steps: int | None) -> Variants:
    """Find the variants of an optimised module for inputs of one shape.

    Args:
        optimized: the module.
        inputs: the call to export.
        steps: number of denoising steps, needed if a pass differs between steps.

    Raises:
        ExportError: a pass differs between steps and their number is not given, or is none.
    """
    stepwise = [p.name for p in optimized.passes if p.stepwise]
    if stepwise and steps is None:
        raise ExportError(
            f"{', '.join(stepwise)} differs between denoising steps: pass steps=, their number "
            "(--steps), so that every step finds its variant"
        )
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ExportError(f"steps must be at least 1, got {shown(steps)}")
    counted = steps if stepwise else None
    active = (
        [tuple(optimized.passes)]
        if counted is None
        else [active_at(optimized.passes, Step(i, counted)) for i in range(counted)]
    )
    fresh = {passes: tuple(p.afresh() for p in passes) for passes in active}
    order = list(dict.fromkeys([*active, *fresh.values()]))
    place = {passes: i for i, passes in enumerate(order)}
    every = tuple(
        Variant(
            passes,
            optimized.rewritten(inputs, passes),
            place[fresh.get(passes, passes)],
        )
        for passes in order
    )
    return Variants(every, counted, tuple(place[passes] for passes in active))
