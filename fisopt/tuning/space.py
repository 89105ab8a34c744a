"""The space of plans: per block, branch and group of steps, an option; and what each saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.passes.interleaving.form import BRANCHES
from fisopt.passes.presets import PRESETS
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.variants import Variant, Variants
from fisopt.tuning.component import Component
from fisopt.tuning.option import Option, Part
from fisopt.tuning.reuse import (
    FEW,
    LAST,
    MOST,
    Reuse,
    cache_of,
    even_runs,
    reuses_of,
    screened,
)


@dataclass(frozen=True)
class Place:
    """Where one option is chosen.

    Attributes:
        component: the transformer.
        steps: the steps of the group.
        blocks: numbers of the video blocks.
        part: of each of them.
    """

    component: str
    steps: tuple[int, ...]
    blocks: tuple[int, ...]
    part: Part

    def __str__(self) -> str:
        steps, blocks = said_numbers(self.steps), said_numbers(self.blocks)
        return f"{self.component} steps {steps} blocks {blocks} {self.part}"


Change = tuple[Place, Option] | Reuse
"""A single change of the dense pipeline."""


@dataclass(frozen=True)
class Plan:
    """A choice of options.

    Attributes:
        options: by place; a place that is not named is dense.
        reuses: runs of steps that reuse.
        preset: a preset that runs instead in every transformer; then the others are empty.
    """

    options: Mapping[Place, Option] = field(default_factory=dict)
    reuses: tuple[Reuse, ...] = ()
    preset: str = ""

    @staticmethod
    def of(change: Change) -> Plan:
        """The plan of one change alone."""
        return Plan({}, (change,)) if isinstance(change, Reuse) else Plan({change[0]: change[1]})

    @property
    def changes(self) -> list[Change]:
        """What is not dense, of that which was chosen one by one."""
        return [*self.options.items(), *self.reuses]

    def without(self, change: Change) -> Plan:
        """The plan that does without a change."""
        options = {p: o for p, o in self.options.items() if (p, o) != change}
        return Plan(options, tuple(r for r in self.reuses if r != change))

    @property
    def dense(self) -> bool:
        """Whether nothing is changed."""
        return not self.changes and not self.preset


class Space:
    """Everything that may be chosen for a pipeline.

    Args:
        components: its transformers.
        steps: denoising steps of a generation.
        bands: parts into which the blocks of each are cut, beside the first.

    Attributes:
        total: what a dense generation costs with the kernels of the plan.
        unrounded: what it costs with linears in the precision of the model.
    """

    def __init__(self, components: Sequence[Component], steps: int, bands: int) -> None:
        self.components = {c.name: c for c in components}
        self.steps = steps
        self.total = sum(c.total * sum(c.calls.values()) for c in components)
        self.unrounded = sum(c.unrounded * sum(c.calls.values()) for c in components)
        self.options: dict[Place, list[Option]] = {}
        self.reuses: list[Reuse] = []
        self._costs: dict[tuple[str, Variant], float] = {}
        for component in components:
            if component.reuse:
                self.reuses += reuses_of(component.name, sorted(component.calls))
            for group in component.groups:
                for blocks in component.bands(bands):
                    self._offer(component, group, blocks)

    @property
    def gained(self) -> float:
        """The speed-up that the plan's kernels bring without any pass."""
        return self.unrounded / self.total

    def _offer(self, component: Component, group: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        branches = (part for b in blocks for part in component.parts[b])
        parts = dict.fromkeys([*branches, *(o.part for o in component.saved if o.own)])
        for part in parts:
            place = Place(component.name, group, blocks, part)
            found = [o for o in component.saved if o.part == part and self._offered(place, o)]
            if found:
                self.options[place] = found

    def _offered(self, place: Place, option: Option) -> bool:
        """Whether an option saves something, and may run at every step of the place."""
        steps = (Step(step, self.steps) for step in place.steps)
        allowed = option.own is None or all(map(option.own.active, steps))
        return allowed and self.saves(place, option) > 0

    def saves(self, place: Place, option: Option) -> float:
        """What of a generation an option saves at a place."""
        component = self.components[place.component]
        each = sum(component.saved[option][b] for b in place.blocks)
        return each * sum(component.calls[s] for s in place.steps)

    def reuse_saves(self, reuse: Reuse) -> float:
        """What of a generation steps save which reuse."""
        component = self.components[reuse.component]
        return component.reuse * sum(component.calls[s] for s in reuse.steps)

    def left_out(self) -> list[Option]:
        """Passes of the user that are offered nowhere."""
        offered = {o for options in self.options.values() for o in options}
        every = dict.fromkeys(o for c in self.components.values() for o in c.saved if o.own)
        return [option for option in every if option not in offered]

    @property
    def size(self) -> int:
        """How many single changes there are to price."""
        return sum(map(len, self.options.values())) + len(self.reuses)

    def passes(self, plan: Plan) -> dict[str, list[Pass]]:
        """A plan as passes, by transformer; one that stays dense has none."""
        if plan.preset:
            return {name: [*PRESETS[plan.preset][1]] for name in self.components}
        return {
            name: [
                *(p for group in c.groups for p in self._of_group(c, group, plan)),
                *self._cache(name, plan),
            ]
            for name, c in self.components.items()
        }

    def _of_group(self, component: Component, group: tuple[int, ...], plan: Plan) -> Iterator[Pass]:
        chosen: dict[int, list[Option]] = {}
        for place, option in plan.options.items():
            if (place.component, place.steps) == (component.name, group):
                for b in place.blocks:
                    if component.saved[option][b]:
                        chosen.setdefault(b, []).append(option)
        steps, each = list(group), range(len(component.parts))
        strides: dict[str, list[int]] = {branch: [1 for _ in each] for branch in BRANCHES}
        kv: list[Any] = ["all" for _ in each]
        others: dict[Option, list[int]] = {}
        for b, options in chosen.items():
            for option in options:
                if not option.strided:
                    others.setdefault(option, []).append(b)
                    continue
                for branch in BRANCHES if option.part == "block" else (option.part,):
                    strides[branch][b] = option.stride
                if option.part in ("self_attention", "block"):
                    kv[b] = option.kv
        if any(n > 1 for row in strides.values() for n in row):
            rows: dict[str, Any] = {n: _one(row) for n, row in strides.items()}
            yield FrameInterleave(
                stride=1, kv=_one(kv), blocks=":", steps=steps, rotate="steps", **rows
            )
        for option, blocks in sorted(others.items(), key=lambda item: item[0].own is not None):
            if option.own:
                yield replace(option.own, blocks=blocks, steps=steps)
            elif option.tiles:
                yield TileAttention(option.tiles, blocks=blocks, steps=steps)
            else:
                yield TokenReduction(option.query, option.value, blocks=blocks, steps=steps)

    def even_schedules(self) -> Iterator[list[list[Reuse]]]:
        """Runs by which every so many steps is computed, by how many of the last ones are.

        Those of one list have ever fewer computed steps.  Few steps have none.
        """
        many = [c for c in self.components.values() if c.reuse and len(c.calls) > FEW]
        for last in LAST if many else ():
            yield [
                [r for c in many for r in even_runs(c.name, sorted(c.calls), every, last)]
                for every in range(2, MOST + 2)
            ]

    def uneven_schedules(self) -> Iterator[list[list[Reuse]]]:
        """The same with two lengths of runs that differ by a step, the longer ones first or last.

        Their numbers of computed steps lie between those of even schedules.
        """
        many = [c for c in self.components.values() if c.reuse and len(c.calls) > FEW]
        most = max((len(c.calls) for c in many), default=0)
        for last, sign in product(LAST, (1, -1)) if many else ():
            ways = [(every, sign * k) for every in range(1, MOST + 1) for k in range(1, most)]
            found = [
                [r for c in many for r in even_runs(c.name, sorted(c.calls), every, last, wider)]
                for every, wider in ways
            ]
            yield sorted(found, key=lambda runs: sum(len(r.steps) for r in runs))

    def reused(self, name: str, plan: Plan) -> set[int]:
        """The steps of a transformer that reuse."""
        return {s for r in plan.reuses if r.component == name for s in r.steps}

    def _cache(self, name: str, plan: Plan) -> Iterator[Pass]:
        if steps := self.reused(name, plan):
            yield cache_of(sorted(steps), len(self.components[name].calls))

    def cost(self, plan: Plan) -> float:
        """What a generation costs under a plan: its Programs, or dense less what is saved.

        Raises:
            FisoptError: the plan is a preset that does not run here.
        """
        if not plan.preset and not all(c.costs.exact for c in self.components.values()):
            return self.total - self._saved(plan)
        total = 0.0
        for name, passes in self.passes(plan).items():
            component = self.components[name]
            variants = Variants.of(passes, self.steps)
            for step, calls in component.calls.items():
                variant = variants.at(Step(step, self.steps))
                if plan.preset and step == min(component.calls):
                    variant = variant.afresh()  # no earlier step of this transformer left anything
                key = name, variant
                if key not in self._costs:
                    manager = PassManager.of(variant, strict=bool(plan.preset))
                    self._costs[key] = component.costs.whole(manager.run(component.dense))
                total += self._costs[key] * calls
        return total

    def _saved(self, plan: Plan) -> float:
        found = sum(map(self.reuse_saves, plan.reuses))
        reused = {name: self.reused(name, plan) for name in self.components}
        for place, option in plan.options.items():
            computed = len({*place.steps} - reused[place.component]) / len(place.steps)
            found += computed * self.saves(place, option)
        return found


def most_bands(components: Sequence[Component]) -> int:
    """So many bands that every block is one."""
    return max(len(c.parts) for c in components)


def screening(space: Space) -> float:
    """How many generations screening takes, see `Prices.screen`."""
    columns = {(p.component, p.steps, o) for p, options in space.options.items() for o in options}
    rows = {(place.component, place.blocks, place.part) for place in space.options}
    early = [1 - steps[0] / space.steps for _, steps, _ in columns]
    late = [1 - reuse.steps[0] / space.steps for reuse in screened(space.reuses)]
    return sum(early) + len(rows) * max(early, default=0.0) + sum(late)


def _one(values: Sequence[Any]) -> Any:
    """One value where all are the same."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def said_numbers(numbers: Sequence[int]) -> str:
    """Numbers in short: ``0-3``, or ``0,2``."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and list(numbers) == [*range(first, last + 1)]:
        return f"{first}-{last}"
    return ",".join(map(str, numbers))
