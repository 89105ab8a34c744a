"""Notes: what a search did not try, and what it did not reach."""

from __future__ import annotations

from collections.abc import Iterator

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
        most = 1 / (1 - knapsack.most())
        yield (
            f"the target {goal} is out of reach: with every option in every block the transformers "
            f"are {most:.2f} times cheaper; this is the nearest plan"
        )
