"""Prices before anything is measured: those of the testbed, the same in every block and step.

They order options; how much a clip will differ only a search on its own pipeline tells.  They stand
in prior.json, which ``make results`` writes from what benchmarks/bench_prior.py has measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fisopt.reading import read_json
from fisopt.tuning.plan_choice import Knapsack
from fisopt.tuning.space import Change, Plan, Space


@dataclass(frozen=True)
class Prior:
    """What options do to the testbed's latents alone: squared relative error, by their name.

    Attributes:
        options: in all blocks but the first.
        first: in the first block alone.
    """

    options: dict[str, float]
    first: dict[str, float]


@cache
def prior() -> Prior:
    """What was measured."""
    return Prior(**read_json(Path(__file__).parent / "prior.json"))


def prior_prices(space: Space) -> dict[Change, float]:
    """A price for every option of a space that the testbed has one for; none for reused steps."""
    known, prices = prior(), dict[Change, float]()
    for place, options in space.options.items():
        others = max(len(space.components[place.component].parts) - 1, 1)
        behind = sum(block > 0 for block in place.blocks) / others
        for option in options:
            if (name := str(option)) in known.options:
                price = behind * known.options[name] + (0 in place.blocks) * known.first[name]
                prices[place, option] = price * len(place.steps) / space.steps
    return prices


def prior_plan(space: Space, speed: float) -> Plan | None:
    """The plan of least error for a speed by these prices; None if none is that fast."""
    knapsack, wanted = Knapsack(space, prior_prices(space)), 1 - 1 / speed
    return None if knapsack.least_error(wanted) is None else knapsack.reaching(wanted)
