"""What is exported: the distinct Programs of a generation, and which of them runs at which step."""

from __future__ import annotations

from dataclasses import dataclass

from fisopt.errors import ExportError, ScheduleError
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import Variant, Variants
from fisopt.runtime.optimized import OptimizedModule


@dataclass(frozen=True)
class Exported:
    """One Program of a generation.

    Attributes:
        variant: the passes that are active in it.
        program: what they made.
        afresh: position of what runs instead where the state that this one loads is not there;
            its own if it loads none.
    """

    variant: Variant
    program: Program
    afresh: int


@dataclass(frozen=True)
class Exports:
    """What runs in a generation.

    Attributes:
        all: the Programs, each of another variant.
        steps: how many denoising steps there are, None where they do not matter.
        positions: that of the Program of each step; of all steps if they do not matter.
    """

    all: tuple[Exported, ...]
    steps: int | None
    positions: tuple[int, ...]


def exports_of(optimized: OptimizedModule, inputs: Inputs, steps: int | None) -> Exports:
    """Rewrite every variant of an optimised module for inputs of one shape.

    Args:
        optimized: the module.
        inputs: the call to export.
        steps: number of denoising steps, needed if a pass differs between steps.

    Raises:
        ExportError: a pass differs between steps and their number is not given, or is none; or
            what a pass does at a step depends on what it measures.
    """
    try:
        variants = Variants.of(optimized.passes, steps)
        if variants.stepwise and steps is None:
            raise ExportError(
                f"{', '.join(variants.stepwise)} differs between denoising steps: pass steps=, "
                "their number (--steps), so that every step finds its variant"
            )
        schedule, distinct = variants.schedule, variants.distinct
    except ScheduleError as error:
        raise ExportError(f"{error}; an artefact has a fixed schedule") from error
    place = {variant: i for i, variant in enumerate(distinct)}
    every = tuple(
        Exported(v, optimized.rewritten(inputs, v), place.get(v.afresh(), i))
        for v, i in place.items()
    )
    counted = steps if variants.stepwise else None
    return Exports(every, counted, tuple(place[v] for v in schedule))
