"""Pricing: the error of the final latents for single changes, measured where a plan would use them.

A price is the squared relative error of a clip's final latents with one change in all steps of its
group, everything else dense, from the same noise.  Few are measured at first: every option in all
blocks at once, by group of steps, and every block alone under one option of each part, in the steps
that matter most.  The others are taken to be products of these.  Then what the best plan would use
is measured, until it uses nothing else.  Clips differ in how much any change moves them, so that
prices are in units of the first clip's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from time import perf_counter
from typing import Any, get_args

from fisopt.passes.presets import PRESETS
from fisopt.rewrite.pass_base import Pass
from fisopt.tuning.option import Option, Part
from fisopt.tuning.progress import Progress
from fisopt.tuning.reuse import Reuse, guessed, screened
from fisopt.tuning.space import Change, Place, Plan, Space
from fisopt.tuning.trial import Trials

Steps = tuple[int, ...]
Column = tuple[str, Steps, Option]
"""An option in all blocks but the first, in one group of steps."""
Row = tuple[str, tuple[int, ...], Part]
"""A band of blocks, under the first option of a part."""
PARTS: tuple[Part, ...] = get_args(Part)
ROUNDED = "linears in FP8"
"""Part of the names of what is measured against the model in its own precision."""
SAVED_EVERY = 5.0
"""Seconds between two writes of what is measured."""


class OutOfTimeError(Exception):
    """The minutes are over."""


def named(plan: Plan) -> str:
    """A name of a plan that is the same in every run."""
    if plan.preset:
        return f"preset {plan.preset}: {PRESETS[plan.preset][1]}"
    said = sorted([*(f"{p}: {o}" for p, o in plan.options.items()), *map(str, plan.reuses)])
    if len(said) == 1:
        return said[0]
    return "plan " + hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


@dataclass
class Measured:
    """Errors of plans, measured once for each clip, in a file if there is one.

    Attributes:
        trials: runs the pipeline.
        space: what may be chosen.
        kept: what is measured.
        deadline: when to stop, on the clock of ``perf_counter``.
        seen: called with the number of measurements.
    """

    trials: Trials
    space: Space
    kept: Progress
    deadline: float
    seen: Any = None
    count: int = 0
    longest: float = 0.0
    _written: float = field(default_factory=perf_counter)

    def error(self, plan: Plan, clip: int) -> float:
        """Squared relative error of a plan on a clip.

        Raises:
            OutOfTimeError: it is not known and there is no time for it.
        """
        if plan.dense:
            return 0.0
        return self._found(named(plan), plan, clip, self.trials.error)

    def whole_error(self, plan: Plan, clip: int) -> float:
        """The same of a plan whose linears round, against the model in its own precision.

        Raises:
            OutOfTimeError: see `error`.
        """
        if not self.trials.kernels.rounds:
            return self.error(plan, clip)
        return self._found(f"{named(plan)} and {ROUNDED}", plan, clip, self.trials.whole_error)

    def _found(
        self,
        name: str,
        plan: Plan,
        clip: int,
        measure: Callable[[int, Mapping[str, Sequence[Pass]]], float],
    ) -> float:
        known: dict[str, float] = self.kept.prompts.setdefault(str(clip), {})
        if name not in known:
            began = perf_counter()
            if began + self.longest > self.deadline:
                raise OutOfTimeError
            known[name] = measure(clip, self.space.passes(plan))
            now = perf_counter()
            self.longest = max(0.7 * self.longest, now - began)
            self.count += 1
            if self.seen is not None:
                self.seen(self.count)
            if now - self._written > SAVED_EVERY:
                self.write(clip)
        return known[name]

    def known(self, plan: Plan) -> list[int]:
        """The clips that a plan is measured on."""
        name = named(plan)
        return [int(c) for c, found in self.kept.prompts.items() if name in found]

    def by_name(self) -> dict[str, dict[str, float]]:
        """What is measured: errors of each plan by clip."""
        found: dict[str, dict[str, float]] = {}
        for clip, known in self.kept.prompts.items():
            for name, error in known.items():
                found.setdefault(name, {})[clip] = error
        return found

    def write(self, clip: int = 0) -> None:
        """Write what is measured."""
        self.kept.keep(clip, self.kept.prompts.get(str(clip), {}))
        self._written = perf_counter()


class Prices:
    """The prices of single changes.

    Args:
        measured: measures.
    """

    def __init__(self, measured: Measured) -> None:
        self.measured, self.space = measured, measured.space
        self.guessed: dict[Change, float] = {}
        self.factors: dict[tuple[str, Steps], float] = {}

    def screen(self) -> None:
        """Measure what all prices are guessed from, on the first clip.

        Raises:
            OutOfTimeError: there was no time for all of it; what is known is used.
        """
        columns: dict[Column, float] = {}
        rows: dict[Row, float] = {}
        try:
            for reuse in screened(self.space.reuses):
                self.measured.error(Plan.of(reuse), 0)
            for rank, column in self._columns():
                if rank and not rows:
                    self._screen_rows(columns, rows)
                columns[column] = self._column(*column)
            if not rows:
                self._screen_rows(columns, rows)
        finally:
            self._guess(columns, rows)

    def _screen_rows(self, columns: Mapping[Column, float], rows: dict[Row, float]) -> None:
        """Measure every band of blocks alone, in the steps that matter most."""
        worst: dict[tuple[str, Part], tuple[float, Steps]] = {}
        for (name, steps, option), error in columns.items():
            key = name, option.part
            worst[key] = max(worst.get(key, (0.0, steps)), (error, steps))
        places = [p for p in self.space.options if p.steps == worst[p.component, p.part][1]]
        for place in sorted(places, key=lambda p: PARTS.index(p.part)):
            option = self.space.options[place][0]
            found = self.measured.error(Plan.of((place, option)), 0)
            rows[place.component, place.blocks, place.part] = found

    def _columns(self) -> Iterator[tuple[int, Column]]:
        """Every option in every group, the most promising first, with its rank."""
        every: dict[tuple[int, Column], None] = {}
        for place, options in self.space.options.items():
            for rank, option in enumerate(options):
                every[rank, (place.component, place.steps, option)] = None
        yield from sorted(every, key=lambda key: key[0])

    def _column(self, name: str, steps: Steps, option: Option) -> float:
        plan = Plan(dict.fromkeys(self._places(name, steps, option), option))
        return self.measured.error(plan, 0)

    def _places(self, name: str, steps: Steps, option: Option) -> list[Place]:
        """The places of a group that take an option; not the first block where there are more."""
        found = [
            p
            for p, options in self.space.options.items()
            if (p.component, p.steps) == (name, steps) and option in options
        ]
        return [p for p in found if 0 not in p.blocks] or found

    def _guess(self, columns: Mapping[Column, float], rows: Mapping[Row, float]) -> None:
        """Prices of what was not measured: a column, shared out as the rows are."""

        def share(place: Place) -> float | None:
            parts = (place.part, *PARTS)  # where there was no time, as its other parts
            keys = ((place.component, place.blocks, part) for part in parts)
            return next((rows[key] for key in keys if key in rows), None)

        for place, options in self.space.options.items():
            for option in options:
                column = columns.get((place.component, place.steps, option))
                mine = share(place)
                if column is None or mine is None:
                    continue
                shares = [share(p) for p in self._places(place.component, place.steps, option)]
                total = sum(s for s in shares if s is not None)
                if total > 0:
                    self.guessed[place, option] = column * mine / total
        for component in self.space.components:
            runs = [r for r in self.space.reuses if r.component == component]
            known = {r: self.measured.error(Plan.of(r), 0) for r in runs if self._is_known(r)}
            self.guessed.update(guessed(runs, known).items())

    def _is_known(self, change: Change) -> bool:
        return 0 in self.measured.known(Plan.of(change))

    def all(self) -> dict[Change, float]:
        """Every price that is known or guessed, times what its group was found to add."""
        prices: dict[Change, float] = dict(self.guessed)
        for place, options in self.space.options.items():
            for option in options:
                if self.measured.known(Plan.of((place, option))):
                    prices[place, option] = self._known(Plan.of((place, option)))
        for reuse in self.space.reuses:
            if self.measured.known(Plan.of(reuse)):
                prices[reuse] = self._known(Plan.of(reuse))
        return {change: price * self._factor(change) for change, price in prices.items()}

    def _factor(self, change: Change) -> float:
        if isinstance(change, Reuse):
            return self.factors.get((change.component, ()), 1.0)
        return self.factors.get((change[0].component, change[0].steps), 1.0)

    def mean(self, plan: Plan, clips: Iterable[int]) -> float:
        """Squared error of a plan on some clips, in units of the first clip's."""
        return fmean(self.measured.error(plan, clip) / self.scale(clip) for clip in clips)

    def scale(self, clip: int) -> float:
        """How much more a clip moves than the first one, by the changes that both were run with."""
        first, own = (self.measured.kept.prompts.get(str(c), {}) for c in (0, clip))
        both = [name for name in own if name in first]
        total = sum(first[name] for name in both)
        return sum(own[name] for name in both) / total if total > 0 else 1.0

    def _known(self, plan: Plan) -> float:
        return self.mean(plan, self.measured.known(plan))

    def confirm(self, plan: Plan, clip: int) -> int:
        """Measure every change of a plan alone on a clip; returns how many were not known."""
        new = [c for c in plan.changes if clip not in self.measured.known(Plan.of(c))]
        for change in sorted(new, key=self._urgency, reverse=True):
            self.measured.error(Plan.of(change), clip)
        return len(new)

    def _urgency(self, change: Change) -> float:
        return self.guessed.get(change, 1.0)

    def not_tried(self) -> tuple[int, int]:
        """How many changes were not measured alone, and how many of them have no price at all."""
        every: list[Change] = [(p, o) for p, options in self.space.options.items() for o in options]
        every += self.space.reuses
        alone = [c for c in every if not self.measured.known(Plan.of(c))]
        return len(alone), sum(c not in self.guessed for c in alone)
