"""Notes: what a search did not try, and what it did not reach."""

from __future__ import annotations

from collections.abc import Iterator

from fisopt.codegen.kernel_options import KernelOptions
from fisopt.codegen.rounded_linears import UNCOUNTED
from fisopt.tuning.costs import Unit
from fisopt.tuning.goal import Goal
from fisopt.tuning.plan_choice import Knapsack
from fisopt.tuning.pricing import Prices


def notes_of(
    goal: Goal, prices: Prices, knapsack: Knapsack, minutes: float, *, reached: bool
) -> Iterator[str]:
    """What the user should know of a search, a sentence each.

    Args:
        goal: what was to be reached.
        prices: what was measured and guessed.
        knapsack: the choice by these prices.
        minutes: how long it took.
        reached: whether the chosen plan is as wanted.
    """
    alone, unknown = prices.not_tried()
    size = prices.space.size
    for option in prices.space.left_out():
        yield f"{option.own} was not tried: it saves nothing in any block by the costs"
    yield (
        f"{size - alone} of {size} changes were measured alone, {alone - unknown} guessed from "
        f"others of their kind, {unknown} not tried; {prices.measured.count} measurements in "
        f"{minutes:.1f} minutes"
    )
    if reached:
        return
    if unknown:
        yield (
            f"no measured plan reaches the target {goal}, and {unknown} changes have no price: "
            "give more minutes; this is the nearest plan"
        )
    elif goal.bounds_error:
        yield f"the target {goal} is out of reach; this is the nearest plan"
    else:
        most = prices.space.gained / (1 - knapsack.most())
        yield (
            f"the target {goal} is out of reach: with every option in every block the transformers "
            f"are {most:.2f} times cheaper; this is the nearest plan"
        )


def rounding_notes(kernels: KernelOptions, unit: Unit, psnr: float, gained: float) -> Iterator[str]:
    """What the user should know of linears that round, a sentence each.

    Args:
        kernels: what rounds.
        unit: of costs.
        psnr: of the latents of the dense model that rounds, in dB.
        gained: the speed-up that rounding alone brings, by the costs.
    """
    speed = UNCOUNTED if unit == "flops" else f"FP8 alone is {gained:.2f} times as fast"
    yield f"linears in FP8 alone leave {psnr:.1f} dB to the model in its own precision; {speed}"
    if kernels.simulates:
        yield "the recipe simulates FP8; on a GPU pass linear='fp8' together with the recipe"
