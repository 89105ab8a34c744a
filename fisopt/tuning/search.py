"""Search: prices, a plan by them, whole plans measured, and what hurts most undone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import fmean
from time import perf_counter
from typing import Any

from fisopt.errors import OptionError
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.block_pass import BlockPass
from fisopt.tuning.chosen import choices_of
from fisopt.tuning.component import components_of
from fisopt.tuning.contenders import Contenders
from fisopt.tuning.costs import Unit, costs_of
from fisopt.tuning.goal import Goal, geometric, psnr_of
from fisopt.tuning.judge import Judge
from fisopt.tuning.notes import notes_of, rounding_notes
from fisopt.tuning.plan_choice import Knapsack
from fisopt.tuning.pricing import Measured, OutOfTimeError, Prices, named
from fisopt.tuning.progress import Progress
from fisopt.tuning.reuse import Reuse
from fisopt.tuning.space import Plan, Space, most_bands, screening
from fisopt.tuning.trial import Trials
from fisopt.tuning.tuned import Tuned

CONTENDING, SCREENING, PRICING = 0.15, 0.45, 0.7
"""Shares of the minutes after which presets, screening and pricing end; then come whole plans."""
CHOOSING = 4
"""Plans are chosen by so many prompts; what two or more others say of the chosen one is told."""
ROUNDS = 6
EVEN = 2
"""So many plans on even schedules are measured on all clips, those that are best on the first."""
REPAIRS = 24
"""So many changes of a plan are tried to do without, those that hurt most."""
FRONT = (1.2, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0)
"""Speeds of the predicted points."""


class Search:
    """One search.

    Args:
        trials: runs the pipeline, whose transformers are ready.
        goal: what to reach.
        kept: what is measured.
        unit: of what things cost.
        seconds: how long it may take.
        seen: called with the number of measurements.
        own: passes of the user that may be chosen too.
    """

    def __init__(
        self,
        trials: Trials,
        goal: Goal,
        kept: Progress,
        unit: Unit,
        seconds: float,
        seen: Callable[[int], object] | None,
        own: Sequence[BlockPass] = (),
    ) -> None:
        self.trials, self.goal, self.unit, self.seconds = trials, goal, unit, seconds
        self.own = own
        self.began = perf_counter()
        prompts = len(trials.recorder.prompts)
        self.clips = range(min(prompts, CHOOSING))
        self.checks = range(CHOOSING, prompts) if prompts >= CHOOSING + 2 else self.clips
        self.generation = self._dense()
        self.space = self._space(kept)
        self.measured = Measured(trials, self.space, kept, 0.0, seen)
        self.prices = Prices(self.measured)
        self.notes: list[str] = []
        self.level = 1.0
        self.rounded = self._rounding() if trials.kernels.rounds else 0.0
        self.judge = Judge(goal, self.measured, self.clips, self.rounded)
        self.presets = Contenders(self.judge)

    def _rounding(self) -> float:
        """Squared error of rounded linears alone; said in a note."""
        found = geometric(map(self.trials.rounding, self.clips))
        psnr = psnr_of(found**0.5, self.trials.peak())
        self.notes += rounding_notes(self.trials.kernels, self.unit, psnr, self.space.gained)
        return found

    def _dense(self) -> float:
        """Record every clip; returns the seconds of one generation, capture left out."""
        for clip in self.clips:
            self.trials.dense(clip)
        return self.trials.clips[1].seconds

    def _space(self, kept: Progress) -> Space:
        """The space, its blocks in as many bands as there is time to price."""
        timed = kept.model.setdefault("seconds", {})
        costs = costs_of(self.unit, timed, self.trials.kernels)
        components = components_of(self.trials, self.trials.clips[0], costs, self.own)
        steps, most = self.trials.recorder.steps, most_bands(components)
        left = self.began + (SCREENING - CONTENDING) * self.seconds - perf_counter()
        if left < 2 * self.generation:
            raise OptionError(
                f"minutes={self.seconds / 60:g} do not allow one measurement: a generation takes "
                f"{self.generation:.1f} s and the dense ones took "
                f"{perf_counter() - self.began:.0f} s; give more minutes, fewer prompts or a "
                "smaller video"
            )
        bands = kept.model.get("bands") or most
        while "bands" not in kept.model and bands > 1:
            space = Space(components, steps, bands)
            if screening(space) * self.generation <= left:
                break
            bands -= max(1, bands // 8)
        kept.model["bands"] = bands
        return Space(components, steps, bands)

    def run(self) -> Tuned:
        """Measure presets, screen, price, verify, repair."""
        self.measured.deadline = self.began + CONTENDING * self.seconds
        self.presets.measure()
        self.measured.deadline = self.began + SCREENING * self.seconds
        try:
            self.prices.screen()
        except OutOfTimeError:
            self.notes.append("stopped while screening: some options have no price")
        self.measured.deadline = self.began + PRICING * self.seconds
        plan = self._price()
        last = 2.5 * self.generation * len(self.checks) if self.checks != self.clips else 0.0
        self.measured.deadline = self.began + max(PRICING * self.seconds, self.seconds - last)
        self.presets.measure()
        plan = self.presets.best(*self._verify(plan))
        self.measured.deadline = float("inf")
        told = self._told(plan)
        self.measured.write()
        return told

    def _price(self) -> Plan:
        """Measure what the best plan uses, on one clip after another, until it stays the same."""
        plan = self._solve()
        try:
            for clip in self.clips:
                for _ in range(ROUNDS):
                    if not self.prices.confirm(plan, clip):
                        break
                    plan = self._solve()
        except OutOfTimeError:
            plan = self._solve()
        return plan

    def _solve(
        self, forbidden: frozenset[Any] = frozenset(), runs: Sequence[Reuse] | None = None
    ) -> Plan:
        """The best plan by the prices, whose Programs save what the goal asks for.

        Args:
            forbidden: changes to do without.
            runs: the steps that reuse, if those are not to be chosen.
        """
        prices = {c: p for c, p in self.prices.all().items() if c not in forbidden}
        if runs is not None:  # priced together, not each alone
            together = self.measured.error(Plan({}, tuple(runs)), 0) / len(runs)
            prices |= dict.fromkeys(runs, together)
            self.prices.guessed = {**dict.fromkeys(runs, together), **self.prices.guessed}
        knapsack = Knapsack(self.space, prices, runs)
        if self.goal.bounds_error:
            return knapsack.most_saved(self.judge.bound / self.level) or Plan()
        return knapsack.reaching(1 - 1 / self.judge.speed)

    def _verify(self, plan: Plan) -> tuple[Plan, float]:
        """Measure whole plans; learn what groups add beyond their prices; repair."""
        best, least = plan, float("inf")
        try:
            least = self.judge.error(plan)
            for other in self._on_even_schedules():
                found = self.judge.error(other)
                if self.judge.better(other, found, best, least):
                    best, least = other, found
            if self.judge.short(best):
                return best, least
            for _ in range(ROUNDS):
                self._learn(plan)
                plan = self._solve()
                self.prices.confirm(plan, 0)
                plan = self._solve()
                if named(plan) == named(best):
                    break
                found = self.judge.error(plan)
                if self.judge.better(plan, found, best, least):
                    best, least = plan, found
            best, least = self._repair(best, least)
        except OutOfTimeError:
            self.notes.append("stopped at the time limit")
        return best, least

    def _on_even_schedules(self) -> list[Plan]:
        """The best plans, on the first clip, that compute every so many steps and the last ones.

        For a speed, also those between: the first of each kind that is fast enough by itself.
        """
        found: dict[str, tuple[float, Plan]] = {}
        for schedules in self.space.even_schedules():
            for runs in schedules:
                plan = self._solve(runs=runs)
                if not plan.reuses or self.judge.short(plan):
                    continue
                found[named(plan)] = self.measured.error(plan, 0), plan
                if not plan.options and not self.goal.bounds_error:
                    break  # fast enough by itself: longer runs are further off
        for schedules in () if self.goal.bounds_error else self.space.uneven_schedules():
            enough = (r for r in schedules if not self.judge.short(Plan({}, tuple(r))))
            for runs in itertools.islice(enough, 1):
                plan = self._solve(runs=runs)
                found[named(plan)] = self.measured.error(plan, 0), plan
        ranked = sorted(found.values(), key=lambda one: self.judge.rank(*one))
        return [plan for _, plan in ranked[:EVEN]]

    def _learn(self, plan: Plan) -> None:
        """By group of steps: what its changes together add, over the sum of their prices."""
        prices = self.prices.all()
        for component in self.space.components.values():
            for group in component.groups:
                options = {
                    p: o
                    for p, o in plan.options.items()
                    if (p.component, p.steps) == (component.name, group)
                }
                if len(options) < 2:
                    continue
                part = Plan(options)
                found = self.prices.mean(part, self.clips[:2])
                key = component.name, group
                summed = sum(prices[change] for change in options.items())
                self._correct(key, found / summed)
            runs = tuple(r for r in plan.reuses if r.component == component.name)
            if len(runs) > 1:
                found = self.prices.mean(Plan({}, runs), self.clips[:2])
                self._correct((component.name, ()), found / sum(prices[r] for r in runs))
        total = self.prices.all()
        if plan.changes:
            summed = sum(total[change] for change in plan.changes)
            self.level = self.judge.error(plan) / summed

    def _correct(self, key: tuple[str, tuple[int, ...]], ratio: float) -> None:
        before = self.prices.factors.get(key, 1.0)
        self.prices.factors[key] = before * min(4.0, max(0.25, ratio))

    def _repair(self, best: Plan, least: float) -> tuple[Plan, float]:
        """Do without what hurts most, one change after another, and spend what is left."""
        forbidden: frozenset[Any] = frozenset()
        tried: set[str] = {named(best)}
        prices = self.prices.all()
        worst = sorted(best.changes, key=lambda c: prices.get(c, 0.0), reverse=True)
        for change in worst[:REPAIRS]:
            less = best.without(change)  # the rest as it is, where the speed has room for that
            if not self.judge.goal.bounds_error and not self.judge.short(less):
                plan = less
            else:
                plan = self._solve(forbidden | {change})
            if named(plan) in tried:
                continue
            tried.add(named(plan))
            found = self.judge.error(plan)
            if self.judge.better(plan, found, best, least):
                best, least, forbidden = plan, found, forbidden | {change}
        return best, least

    def _told(self, plan: Plan) -> Tuned:
        """What was found."""
        errors = [self.measured.whole_error(plan, clip) for clip in self.checks]
        peak, prices = self.trials.peak(), self.prices.all()
        speed = self.space.gained * self.judge.speed_of(plan)
        error = geometric(errors) ** 0.5
        psnr = fmean(psnr_of(e**0.5, peak) for e in errors)
        reached = not self.judge.short(plan)
        if self.goal.bounds_error:
            reached = error <= self.goal.most_error(peak)
        self.notes += self.presets.notes(plan)
        knapsack = Knapsack(self.space, prices)
        minutes = (perf_counter() - self.began) / 60
        self.notes += notes_of(self.goal, self.prices, knapsack, minutes, reached=reached)
        front = []
        for s in FRONT:
            point = knapsack.least_error(1 - self.space.gained / s)
            if point is not None:
                front.append((s, round(self._predicted(knapsack, point), 4)))
        said: dict[str, Any] = {"target": str(self.goal), "steps": self.space.steps}
        if self.unit != "flops":
            said["costs"] = self.unit
        figures = {"speed_up": round(speed, 3), "error": round(error, 4), "psnr": round(psnr, 2)}
        passes = self.space.passes(plan)
        tuned = {**said, **figures, "prompts": len(self.checks)}
        recipes = {
            name: Recipe.of(
                self.trials.modules[name].original, passes[name], self.trials.kernels, tuned
            )
            for name in passes
        }
        return Tuned(
            target=str(self.goal),
            reached=reached,
            passes=passes,
            recipes=recipes,
            speed_up=speed,
            costs=self.unit,
            seconds=None if self.unit == "flops" else self.space.cost(plan),
            error=error,
            psnr=psnr,
            predicted=self._predicted(knapsack, plan),
            prices=self.measured.by_name(),
            front=tuple(front),
            choices=tuple(choices_of(self.space, plan, prices, str(self.goal))),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _predicted(self, knapsack: Knapsack, plan: Plan) -> float:
        if plan.preset:  # it has no price; it was measured whole
            return float((self.rounded + self.judge.error(plan)) ** 0.5)
        return float((self.rounded + self.level * knapsack.predicted(plan)) ** 0.5)
