"""What a plan runs in every branch of every block, in words and with its price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fisopt.page.data import Choice
from fisopt.tuning.space import Change, Plan, Space, said_numbers


def choices_of(
    space: Space, plan: Plan, prices: Mapping[Change, float], target: str
) -> Iterator[Choice]:
    """What runs in every branch of every block by group of steps, or is reused.

    Of a preset nothing is said: it was not chosen branch by branch.

    Args:
        space: what could be chosen.
        plan: what was.
        prices: squared errors of single changes.
        target: of the plan.
    """
    for place in space.options if not plan.preset else ():
        option = plan.options.get(place)
        price = prices.get((place, option)) if option is not None else None
        said = str(option).removeprefix(f"{place.part} ") if option is not None else "dense"
        reused = sorted(space.reused(place.component, plan) & {*place.steps})
        if len(reused) == len(place.steps):
            said, price = "reused", _reuse_price(place.component, reused, plan, prices)
        elif reused:
            said += f", reused at {said_numbers(reused)}"
        for block in place.blocks:
            yield Choice(
                block,
                place.part.replace("_", "-"),
                said_numbers(place.steps),
                said,
                price=None if price is None else price**0.5,
                configuration=target,
                transformer=place.component,
            )


def _reuse_price(
    name: str, steps: Sequence[int], plan: Plan, prices: Mapping[Change, float]
) -> float:
    """Of the runs that some steps are of."""
    runs = [r for r in plan.reuses if r.component == name and {*r.steps} & {*steps}]
    return sum(prices[run] for run in runs)
