"""A transformer as what may be changed in it: its branches, its steps, and what options save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.pass_manager import PassManager
from fisopt.rewrite.program import Program
from fisopt.tuning.costs import Costs, FlopCosts
from fisopt.tuning.option import Option, Part, options_of
from fisopt.tuning.own import check_counted, own_option
from fisopt.tuning.reuse import cache_of
from fisopt.tuning.trial import Clip, Trials

GROUPS = 8
"""A run of at most so many steps is planned step by step; a longer one in `MANY` groups."""
MANY = 5
LEAST = 0.005
"""An option that saves a smaller share of a block is left out there."""


@dataclass
class Component:
    """A transformer, and what may be changed in it.

    Attributes:
        name: in the pipeline.
        dense: its Program.
        calls: of the transformer, by step of the generation.
        parts: of every block.
        costs: in what unit it is costed.
        own: passes of the user that may be chosen too.
        saved: by option, what each block saves in one call; where it does not apply, 0.
        total: what one call costs.
        unrounded: what it costs with linears in the precision of the model.
        reuse: what one call saves that takes what its blocks add from an earlier one.
    """

    name: str
    dense: Program
    calls: Counter[int]
    costs: Costs = field(default_factory=FlopCosts)
    own: Sequence[BlockPass] = ()
    parts: list[tuple[Part, ...]] = field(init=False)
    saved: dict[Option, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = [_parts(block) for block in self.dense.blocks]
        frames = self.dense.layout.frames
        before = self.costs.blocks(self.dense)
        for part in dict.fromkeys(part for parts in self.parts for part in parts):
            for option in options_of(part, frames):
                program = PassManager([option.everywhere()], strict=False).run(self.dense)
                each = zip(before, self.costs.blocks(program), self.parts, strict=True)
                self.saved[option] = [
                    b - a if part in parts and b - a > LEAST * b else 0.0 for b, a, parts in each
                ]
        for pass_ in self.own:
            program = PassManager([pass_], strict=False).run(self.dense)
            left = [block.path for block in program.blocks]
            check_counted(pass_, len(self.own), len(before) - len(left))
            after = dict(zip(left, self.costs.blocks(program), strict=True))
            paths = [block.path for block in self.dense.blocks]
            pairs = [(b, after.get(path, 0.0)) for path, b in zip(paths, before, strict=True)]
            option = own_option(pass_, self.dense, program)
            self.saved[option] = [b - a if b - a > LEAST * b else 0.0 for b, a in pairs]
        self.total = self.costs.whole(self.dense)
        self.unrounded = self.costs.unrounded.whole(self.dense)
        cached = PassManager([cache_of([1], len(self.calls))], strict=False).run(self.dense)
        self.reuse = max(0.0, self.total - self.costs.whole(cached))

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Its steps, in groups that are planned together."""
        steps = sorted(self.calls)
        return _cut(steps, len(steps) if len(steps) <= GROUPS else MANY)

    def bands(self, count: int) -> list[tuple[int, ...]]:
        """Its blocks in at most so many bands beside the first block."""
        first, *rest = range(len(self.parts))
        return [(first,), *_cut(rest, min(count, len(rest)))]


def components_of(
    trials: Trials, clip: Clip, costs: Costs, own: Sequence[BlockPass] = ()
) -> list[Component]:
    """The transformers that run in a clip, with their calls and what these cost."""
    calls: dict[str, Counter[int]] = {}
    for line in clip.lines:
        calls.setdefault(line.component, Counter())[line.step] += 1
    return [Component(name, trials.program(name), mine, costs, own) for name, mine in calls.items()]


def _parts(block: Any) -> tuple[Part, ...]:
    kinds = dict.fromkeys(branch.kind for branch in block.branches)
    return tuple(kinds) or ("block",)


def _cut(items: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Items in so many runs of about one length."""
    ends = [round(i * len(items) / count) for i in range(count + 1)]
    return [tuple(items[a:b]) for a, b in pairwise(ends) if b > a]
