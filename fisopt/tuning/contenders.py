"""Contenders: presets, measured whole as plans are, so that no search ends with less than one."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from fisopt.errors import FisoptError
from fisopt.passes.figures import figure_of
from fisopt.passes.presets import PRESETS
from fisopt.tuning.judge import Judge
from fisopt.tuning.pricing import OutOfTimeError
from fisopt.tuning.space import Plan

FAR = 4.0
"""A preset whose squared error on the first clip is so many times too large runs on no other."""


class Contenders:
    """The presets that may win.

    Args:
        judge: compares plans.

    Attributes:
        found: what reaches the goal, with its squared error over all clips.
        failed: by preset, why it does not run here.
        far: presets that were given up after the first clip.
        left: presets that might reach the goal and are not measured.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.found: list[tuple[Plan, float]] = []
        self.failed: dict[str, str] = {}
        self.far: list[str] = []
        self.left = list(PRESETS)
        self._costs: dict[str, float] = {}

    def measure(self) -> None:
        """Cost every preset that is left, and measure those that may reach the goal.

        It ends without an error when the time is up; a second call goes on.
        """
        try:
            self._cost()
            self._measure()
        except OutOfTimeError:
            return

    def _cost(self) -> None:
        """Cost the presets, in the unit of the search; no clip runs."""
        for name in [n for n in self.left if n not in self._costs]:
            if perf_counter() > self.judge.measured.deadline:
                raise OutOfTimeError
            try:
                self._costs[name] = self.judge.measured.space.cost(Plan(preset=name))
            except FisoptError as error:
                self._fail(name, error)
                continue
            if self._slow(name):
                self.left.remove(name)

    def _slow(self, name: str) -> bool:
        """Whether a preset saves nothing, or less than the goal asks for."""
        dense = self._costs[name] >= self.judge.measured.space.total
        return dense or self.judge.short(Plan(preset=name))

    def _measure(self) -> None:
        for name in sorted(self.left, key=self._turn):
            plan = Plan(preset=name)
            try:
                if self.judge.measured.error(plan, 0) > self._most():
                    self.far.append(name)
                elif self._reaches(plan, error := self.judge.error(plan)):
                    self.found.append((plan, error))
            except FisoptError as error:
                self._fail(name, error)
                continue
            self.left.remove(name)
            if self.judge.goal.bounds_error and self.found:
                self.left.clear()  # the others cost more
                return

    def _turn(self, name: str) -> float:
        """The cheapest first where an error is given, else the closest one on the testbed."""
        if self.judge.goal.bounds_error:
            return self._costs[name]
        figure = figure_of(name, self.judge.measured.space.steps)
        return 0.0 if figure is None else -figure.psnr

    def _most(self) -> float:
        """The squared error on the first clip up to which a preset is measured on the others."""
        if self.judge.goal.bounds_error:
            return FAR * self.judge.bound
        known = (self.judge.measured.error(plan, 0) for plan, _ in self.found)
        return FAR * min(known, default=float("inf"))

    def _reaches(self, plan: Plan, error: float) -> bool:
        return not self.judge.rank(error, plan)[0]

    def _fail(self, name: str, error: FisoptError) -> None:
        self.failed[name] = str(error).splitlines()[0]
        self.left.remove(name)

    def best(self, plan: Plan, least: float) -> Plan:
        """A plan of some squared error, or the preset that is better or as good."""
        for other, error in self.found:
            if not self.judge.better(plan, least, other, error):
                plan, least = other, error
        return plan

    def notes(self, plan: Plan) -> Iterator[str]:
        """What the user should know of presets, a sentence each.

        Args:
            plan: the chosen plan.
        """
        if plan.preset:
            space = self.judge.measured.space
            own = any(o.own for c in space.components.values() for o in c.saved)
            yield (
                f"preset {plan.preset} is the best plan that was found: the recipe holds its "
                f"passes as they are{', and none of your own' if own else ''}"
            )
        for name, why in self.failed.items():
            yield f"preset {name} was not tried: {why}"
        if self.far:
            yield (
                f"presets that were measured on the first clip alone, where their error is more "
                f"than {FAR**0.5:g} times too large: {', '.join(self.far)}"
            )
        if self.left:
            yield (
                f"presets that may reach the target and were not measured: "
                f"{', '.join(self.left)}; give more minutes"
            )
