"""The calls of a clip of a few steps, under a plan that differs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from roofline import Ceilings, roofline

import fisopt
from fisopt.rewrite.cost import program_cost
from fisopt.tuning.tune import rehearse_program

STEPS = 4
TARGETS = {f"plan for {target}, {STEPS} steps": target for target in ("2x", "3x")}
"""The speed of each configuration; the plan follows the testbed's prices, as weights are random."""
TINY = "1.2x"
"""What a tiny model reaches, in which few frames save little."""


def planned(
    dense: fisopt.OptimizedModule, call: Mapping[str, Any], target: str
) -> fisopt.OptimizedModule:
    """A model under a plan for a speed."""
    found = rehearse_program(dense.program(call), steps=STEPS, target=target)
    if not found.plan:
        raise RuntimeError(f"no plan reaches {target}; the most is {found.most:.2f}x")
    made: fisopt.OptimizedModule = fisopt.optimize(dense, found.plan["transformer"], call)
    return made


def clip(module: fisopt.OptimizedModule, call: Mapping[str, Any]) -> Callable[[], None]:
    """All calls of a clip of one guidance branch."""

    def run() -> None:
        for step in range(STEPS):
            with module.cache_context("cond", step_index=step, num_inference_steps=STEPS):
                module(**call)

    return run


def described(
    module: fisopt.OptimizedModule,
    dense: fisopt.OptimizedModule,
    call: Mapping[str, Any],
    limits: Ceilings | None,
) -> dict[str, Any]:
    """What is predicted of a step, mean over the clip."""
    programs = [module.program(call, fisopt.Step(i, STEPS)) for i in range(STEPS)]
    work = sum(program_cost(program).work for program in programs) / STEPS
    row: dict[str, Any] = {
        "steps": STEPS,
        "predicted": round(program_cost(dense.program(call)).work / work, 3),
        "passes": [str(p) for p in module.passes],
    }
    if limits is not None:
        seconds = sum(roofline(program, limits).seconds for program in programs) / STEPS
        row["roofline"] = round(seconds, 4)
    return row
