"""Rehearsal: what a search would do and need, from the cost model alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isnan, log10

import torch

from fisopt.overview.rate import rate
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.program import Program
from fisopt.tuning.component import Component
from fisopt.tuning.goal import Goal
from fisopt.tuning.prior import prior_plan
from fisopt.tuning.space import Space, screening


@dataclass(frozen=True)
class Saving:
    """What one option saves where every block runs so at every step.

    Attributes:
        component: the transformer.
        option: in words.
        share: of the dense FLOPs.
    """

    component: str
    option: str
    share: float


@dataclass(frozen=True)
class Rehearsal:
    """What `rehearse` knows before any measurement.

    Attributes:
        changes: number of single changes to choose from.
        plans: number of possible plans, as a power of ten.
        generations: cost of screening, in whole generations; pricing and checks take about as many
            again.
        minutes: duration of one search, by FLOPs at the rate of a large matrix product; None if
            that rate is unknown.
        peak: peak memory in bytes: the weights and a block's largest values at one time.
        savings: what each option saves.
        most: the largest speed-up of any plan.
        plan: passes for the target by the testbed's prices, if the target is a speed; see
            `fisopt.tuning.prior`.
        speed_up: the speed-up of that plan, from its Programs; None without one.
    """

    changes: int
    plans: float
    generations: float
    minutes: float | None
    peak: int
    savings: tuple[Saving, ...]
    most: float
    plan: Mapping[str, list[Pass]] = field(default_factory=dict)
    speed_up: float | None = None

    @staticmethod
    def of(space: Space, goal: Goal | None = None) -> Rehearsal:
        """Compute what a space contains and what reaching a target may cost."""
        components = list(space.components.values())
        plans = sum(log10(1 + len(options)) for options in space.options.values())
        generations = 2 * screening(space) + 2
        seconds = 0.0
        for c in components:
            speed = rate(*_where(c.dense))
            work = c.total * sum(c.calls.values())
            seconds = seconds + work / speed if speed is not None else float("nan")
        minutes = generations * seconds / 60
        most = sum(
            max(space.saves(place, o) for o in options) for place, options in space.options.items()
        )
        plan = prior_plan(space, goal.value) if goal is not None and goal.kind == "speed" else None
        return Rehearsal(
            changes=space.size,
            plans=plans + len(space.reuses) * log10(2),
            generations=generations,
            minutes=None if isnan(minutes) else minutes,
            peak=sum(_peak(c.dense) for c in components),
            savings=tuple(_savings(components)),
            most=1 / (1 - most / space.total),
            plan={} if plan is None else space.passes(plan),
            speed_up=None if plan is None else space.total / space.cost(plan),
        )


def _savings(components: list[Component]) -> Iterator[Saving]:
    for c in components:
        for option, saved in c.saved.items():
            if any(saved):
                yield Saving(c.name, str(option), sum(saved) / c.total)


def _where(program: Program) -> tuple[torch.device, torch.dtype]:
    weight = next(program.source.model.parameters())
    return weight.device, weight.dtype


def _peak(program: Program) -> int:
    """Bytes of the weights and of the largest operator's operands and result, four times over."""
    weights = sum(p.numel() * p.element_size() for p in program.source.model.parameters())
    values = [n.meta["val"] for b in program.blocks for n in b.body.graph.nodes if n.op != "output"]
    sizes = [v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor)]
    return int(weights + 4 * max(sizes, default=0))
