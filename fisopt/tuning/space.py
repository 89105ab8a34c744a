"""The space of plans: per block, branch and group of steps, an option; and what each saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fisopt.passes.frame_interleave import FrameInterleave
from fisopt.passes.interleaving.form import BRANCHES
from fisopt.passes.step_cache import StepCache
from fisopt.passes.tile_attention import TileAttention
from fisopt.passes.token_reduction import TokenReduction
from fisopt.rewrite.cost import graph_cost, program_cost
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program
from fisopt.rewrite.variants import Variant, Variants
from fisopt.tuning.option import Option, Part, options_of

GROUPS = 8
"""A run of at most so many steps is planned step by step; a longer one in `MANY` groups."""
MANY = 5


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


@dataclass(frozen=True)
class Reuse:
    """Steps of a group that take what an earlier step has added, see `StepCache`.

    Attributes:
        component: the transformer.
        group: the steps of the group.
        steps: those that reuse.
    """

    component: str
    group: tuple[int, ...]
    steps: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.component} steps {said_numbers(self.steps)} reuse"


Change = tuple[Place, Option] | Reuse
"""A single change of the dense pipeline."""


@dataclass(frozen=True)
class Plan:
    """A choice of options.

    Attributes:
        options: by place; a place that is not named is dense.
        reuses: groups in which steps reuse.
    """

    options: Mapping[Place, Option] = field(default_factory=dict)
    reuses: tuple[Reuse, ...] = ()

    @staticmethod
    def of(change: Change) -> Plan:
        """The plan of one change alone."""
        return Plan({}, (change,)) if isinstance(change, Reuse) else Plan({change[0]: change[1]})

    @property
    def changes(self) -> list[Change]:
        """What is not dense."""
        return [*self.options.items(), *self.reuses]


@dataclass
class Component:
    """A transformer, and what may be changed in it.

    Attributes:
        name: in the pipeline.
        dense: its Program.
        calls: of the transformer, by step of the generation.
        parts: of every block.
        saved: by option, the FLOPs that each block saves in one call; where it does not apply, 0.
    """

    name: str
    dense: Program
    calls: Counter[int]
    parts: list[tuple[Part, ...]] = field(init=False)
    saved: dict[Option, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = [_parts(block) for block in self.dense.blocks]
        frames = self.dense.layout.frames
        before = [graph_cost(b.body.graph).work for b in self.dense.blocks]
        for part in dict.fromkeys(part for parts in self.parts for part in parts):
            for option in options_of(part, frames):
                program = PassManager([option.everywhere()], strict=False).run(self.dense)
                after = [graph_cost(b.body.graph).work for b in program.blocks]
                saved = [max(0.0, b - a) for b, a in zip(before, after, strict=True)]
                self.saved[option] = [
                    s if part in parts else 0.0 for s, parts in zip(saved, self.parts, strict=True)
                ]
        self.blocks = sum(before)
        self.total = program_cost(self.dense).work

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Its steps, in groups that are planned together."""
        steps = sorted(self.calls)
        return _cut(steps, len(steps) if len(steps) <= GROUPS else MANY)

    def bands(self, count: int) -> list[tuple[int, ...]]:
        """Its blocks in at most so many bands beside the first block."""
        first, *rest = range(len(self.parts))
        return [(first,), *_cut(rest, min(count, len(rest)))]


class Space:
    """Everything that may be chosen for a pipeline.

    Args:
        components: its transformers.
        steps: denoising steps of a generation.
        bands: parts into which the blocks of each are cut, beside the first.
    """

    def __init__(self, components: Sequence[Component], steps: int, bands: int) -> None:
        self.components = {c.name: c for c in components}
        self.steps = steps
        self.total = sum(c.total * sum(c.calls.values()) for c in components)
        self.options: dict[Place, list[Option]] = {}
        self.reuses: list[Reuse] = []
        self._costs: dict[tuple[str, Variant], float] = {}
        for component in components:
            for group in component.groups:
                self.reuses += _reuses(component.name, group)
                for blocks in component.bands(bands):
                    self._offer(component, group, blocks)

    def _offer(self, component: Component, group: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        parts = dict.fromkeys(part for b in blocks for part in component.parts[b])
        for part in parts:
            place = Place(component.name, group, blocks, part)
            found = [o for o in component.saved if o.part == part and self.saves(place, o) > 0]
            if found:
                self.options[place] = found

    def saves(self, place: Place, option: Option) -> float:
        """FLOPs of a generation that an option saves at a place."""
        component = self.components[place.component]
        each = sum(component.saved[option][b] for b in place.blocks)
        return each * sum(component.calls[s] for s in place.steps)

    def reuse_saves(self, reuse: Reuse) -> float:
        """FLOPs of a generation that steps save which reuse."""
        component = self.components[reuse.component]
        return component.blocks * sum(component.calls[s] for s in reuse.steps)

    @property
    def size(self) -> int:
        """How many single changes there are to price."""
        return sum(map(len, self.options.values())) + len(self.reuses)

    def passes(self, plan: Plan) -> dict[str, list[Pass]]:
        """A plan as passes, by transformer; one that stays dense has none."""
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
        for option, blocks in others.items():
            if option.tiles:
                yield TileAttention(option.tiles, blocks=blocks, steps=steps)
            else:
                yield TokenReduction(option.query, option.value, blocks=blocks, steps=steps)

    def _cache(self, name: str, plan: Plan) -> Iterator[Pass]:
        steps = [s for r in plan.reuses if r.component == name for s in r.steps]
        if steps:
            yield StepCache(steps=sorted(steps), blocks=":")

    def cost(self, plan: Plan) -> float:
        """FLOPs of a generation under a plan, counted in its Programs."""
        total = 0.0
        for name, passes in self.passes(plan).items():
            component = self.components[name]
            variants = Variants.of(passes, self.steps)
            for step, calls in component.calls.items():
                key = name, variants.at(Step(step, self.steps))
                if key not in self._costs:
                    program = PassManager.of(key[1], strict=False).run(component.dense)
                    self._costs[key] = program_cost(program).work
                total += self._costs[key] * calls
        return total


def most_bands(components: Sequence[Component]) -> int:
    """So many bands that every block is one."""
    return max(len(c.parts) for c in components)


def screening(space: Space) -> float:
    """How many generations screening takes, see `Prices.screen`."""
    columns = {(p.component, p.steps, o) for p, options in space.options.items() for o in options}
    rows = {(place.component, place.blocks, place.part) for place in space.options}
    early = [1 - steps[0] / space.steps for _, steps, _ in columns]
    return sum(early) + len(rows) * max(early, default=0.0) + len(space.reuses)


def _parts(block: Any) -> tuple[Part, ...]:
    kinds = dict.fromkeys(branch.kind for branch in block.branches)
    return tuple(kinds) or ("block",)


def _reuses(name: str, group: tuple[int, ...]) -> Iterator[Reuse]:
    """Ways to reuse in a group; the first step of all never does."""
    ways = {group, group[1::2], group[1:], tuple(s for i, s in enumerate(group) if i % 3)}
    for steps in sorted(ways, key=len):
        if steps and steps[0] > 0:
            yield Reuse(name, group, steps)


def _cut(items: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Items in so many runs of about one length."""
    ends = [round(i * len(items) / count) for i in range(count + 1)]
    return [tuple(items[a:b]) for a, b in pairwise(ends) if b > a]


def _one(values: Sequence[Any]) -> Any:
    """One value where all are the same."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def said_numbers(numbers: Sequence[int]) -> str:
    """Numbers in short: ``0-3``, or ``0,2``."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and list(numbers) == [*range(first, last + 1)]:
        return f"{first}-{last}"
    return ",".join(map(str, numbers))
