"""Judge: which of two whole plans is better for a goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fisopt.tuning.goal import Goal, geometric
from fisopt.tuning.pricing import Measured
from fisopt.tuning.space import Plan


@dataclass(frozen=True)
class Judge:
    """How plans are compared.

    Attributes:
        goal: what to reach.
        measured: measures.
        clips: plans are chosen by these.
        rounded: squared error that linears in FP8 cause alone.
    """

    goal: Goal
    measured: Measured
    clips: Sequence[int]
    rounded: float = 0.0

    @property
    def speed(self) -> float:
        """The speed-up that is asked for, over a dense generation with the plan's kernels."""
        space = self.measured.space
        if self.goal.kind == "ms":
            return max(1.0, 1000 * space.total / self.goal.value)
        return max(1.0, self.goal.value / space.gained)

    @property
    def bound(self) -> float:
        """The squared error that passes may add, where quality is given."""
        most = self.goal.most_error(self.measured.trials.peak())
        return max(0.0, most**2 - self.rounded)

    def error(self, plan: Plan) -> float:
        """Squared error of a plan, geometric mean over the clips: the mean of their decibels."""
        return geometric(self.measured.error(plan, clip) for clip in self.clips)

    def speed_of(self, plan: Plan) -> float:
        """The speed-up of a plan, over a dense generation with its kernels."""
        space = self.measured.space
        return space.total / space.cost(plan)

    def short(self, plan: Plan) -> bool:
        """Whether a plan is slower than it should be, as the fastest may be."""
        return not self.goal.bounds_error and self.speed_of(plan) < 0.999 * self.speed

    def rank(self, error: float, plan: Plan) -> tuple[bool, float]:
        """What sorts plans, the best one first: those that are as wanted, then the others."""
        if not self.goal.bounds_error:
            return self.short(plan), error
        over = error > self.bound
        return over, error if over else self.measured.space.cost(plan)

    def better(self, plan: Plan, error: float, best: Plan, least: float) -> bool:
        """Whether a plan of some error is better than another one of another."""
        return self.rank(error, plan) < self.rank(least, best)
