"""A forward call: what runs in it, and what that takes from its branch and leaves there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fisopt.errors import ScheduleError
from fisopt.rewrite.program import Returned
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import Variant, Variants
from fisopt.runtime.branches import Held
from fisopt.runtime.generation import Generation
from fisopt.runtime.measure import numbers
from fisopt.runtime.plans import Plan, Plans
from fisopt.runtime.report import Made
from fisopt.runtime.visit import Visit

State = Mapping[str, torch.Tensor]
Watcher = Callable[[State], None]


@dataclass(frozen=True)
class ForwardCall:
    """One forward call of an optimised module.

    Attributes:
        inputs: its inputs.
        generation: knows its step and its branch.
        plans: know what was made so far.
        plan: what runs for some inputs and a variant.
        variants: say what is to run.
        watchers: are handed every measurement.
    """

    inputs: Inputs
    generation: Generation
    plans: Plans
    plan: Callable[[Inputs, Variant], Plan]
    variants: Variants
    watchers: Sequence[Watcher]

    def run(self) -> tuple[Any, Made, bool]:
        """Run it.

        Returns:
            What the model returns, what ran, and whether that was compiled for it.
        """
        visit = Visit(self.generation, self.plans, self.inputs)
        variant = self._active(visit)
        plan, held = self._plan(variant), Held()
        if self.generation.holds or plan.remembers(bool(self.variants.stepwise)):
            held = visit.held(plan.program)
        if missing := plan.missing(held.state):
            variant, plan = self._afresh(variant, missing, held.state)
        made, compiles = plan.made, not plan.ran
        returned, measured = self._ran(plan, held.state)
        if ended := plan.program.unfinished:
            held.leave({}, measured)
            plan = self._rest(variant, ended, visit)
            made, compiles = plan.made.after(made), compiles or not plan.ran
            returned, more = self._ran(plan, {**held.state, **returned.state})
            measured |= more
        plan.program.write_back(self.inputs, returned)
        left = {name: value.detach() for name, value in returned.state.items()}
        self.generation.keep(held, left, measured)
        return returned.output, made, compiles

    def _active(self, visit: Visit) -> Variant:
        """The variant of the current step; passes that ignore the step need not know it."""
        if not self.variants.stepwise:
            return self.variants.whole
        return self.variants.at(self.generation.step(self.inputs.kwargs()), visit.read)

    def _plan(self, variant: Variant) -> Plan:
        return self.plan(self.inputs, variant)

    def _afresh(self, variant: Variant, missing: set[str], held: State) -> tuple[Variant, Plan]:
        """What runs where state is missing: the passes that load it make it again."""
        for these in (missing, set(variant.names)):
            now = variant.afresh(these)
            plan = self._plan(now)
            if not plan.missing(held):
                place = self.generation.place(self.inputs.kwargs())
                for name in now.differs(variant):
                    self.generation.note(f"{name} ran afresh at {place}")
                return now, plan
        raise ScheduleError(
            f"{', '.join(sorted(plan.missing(held)))}: loads state that no earlier step has "
            "stored; let its `afresh` return a pass that makes it"
        )

    def _rest(self, variant: Variant, ended: str, visit: Visit) -> Plan:
        """What runs the rest of the call, after what its beginning has measured."""
        step = self.generation.current
        assert step is not None
        plan = self._plan(variant.then(ended, step, visit.read))
        for applied in plan.made.applied:
            for note in applied.result.notes if applied.name == ended else ():
                self.generation.decide(f"{ended}: {note}")
        return plan

    def _ran(self, plan: Plan, state: State) -> tuple[Returned, dict[str, float]]:
        """What a plan returns, and the numbers among its measurements."""
        program = plan.program
        program.check(self.inputs)
        taken = (state[name] for name in program.loads)
        returned = program.split(plan.run(*(x for _, x in self.inputs.tensors()), *taken))
        gauges = {name: value.detach() for name, value in returned.gauges.items()}
        measured = numbers(gauges, lambda: self.generation.place(self.inputs.kwargs()))
        for watcher in self.watchers if gauges else ():
            watcher(returned.gauges)
        return returned, measured
