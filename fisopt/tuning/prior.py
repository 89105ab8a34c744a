"""Prices before anything is measured: those of the testbed, the same in every block and step.

They order options; how much a clip will differ only a search on its own pipeline tells.
"""

from __future__ import annotations

from fisopt.rewrite.pass_base import Pass
from fisopt.tuning.plan_choice import Knapsack
from fisopt.tuning.space import Change, Space

FIRST = 50.0
"""How much more a first block's branch matters that does not attend to the video itself."""
PRIOR = {
    "self_attention stride 2 all": 0.018,
    "self_attention stride 2 anchors": 0.098,
    "self_attention stride 4 all": 0.078,
    "self_attention stride 3 anchors": 0.132,
    "self_attention stride 4 anchors": 0.150,
    "self_attention drops 0.5 0": 0.020,
    "self_attention drops 0.5 0.3": 0.040,
    "cross_attention stride 2": 0.012,
    "cross_attention stride 4": 0.046,
    "feed_forward stride 2": 0.008,
    "feed_forward stride 4": 0.027,
    "block stride 2 all": 0.034,
    "block stride 2 anchors": 0.081,
    "block stride 4 all": 0.100,
    "block stride 3 anchors": 0.135,
    "block stride 4 anchors": 0.223,
}
"""Squared relative error of the final latents with an option in all blocks but the first."""


def prior_prices(space: Space) -> dict[Change, float]:
    """A price for every option of a space that the testbed has one for; none for reused steps."""
    prices: dict[Change, float] = {}
    for place, options in space.options.items():
        component = space.components[place.component]
        share = len(place.blocks) / len(component.parts) * len(place.steps) / space.steps
        first = 0 in place.blocks and place.part != "self_attention"
        for option in options:
            if str(option) in PRIOR:
                prices[place, option] = PRIOR[str(option)] * share * (FIRST if first else 1)
    return prices


def prior_plan(space: Space, speed: float) -> dict[str, list[Pass]]:
    """The passes of least error for a speed by these prices; empty if none is that fast."""
    plan = Knapsack(space, prior_prices(space)).least_error(1 - 1 / speed)
    return {} if plan is None else space.passes(plan)
