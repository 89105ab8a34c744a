"""A visit: one forward call, and what its guidance branch holds, which is looked up once."""

from __future__ import annotations

from collections.abc import Mapping

from fisopt.errors import ScheduleError
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import Variant
from fisopt.runtime.branches import Held, conditioning
from fisopt.runtime.generation import Generation
from fisopt.runtime.plans import Plans

PATIENCE = 2
"""So many steps of a generation may pass before a name that a pass reads must have been made."""


class Visit:
    """A forward call's access to its branch.

    Args:
        generation: knows the step and the branches.
        plans: know which inputs carry frames, and what Programs have measured so far.
        inputs: those of the call.
    """

    def __init__(self, generation: Generation, plans: Plans, inputs: Inputs) -> None:
        self._generation, self._plans, self._inputs = generation, plans, inputs
        self._held: Held | None = None

    def held(self, program: Program | None = None) -> Held:
        """What earlier steps of the branch left.

        Args:
            program: one for these inputs, where it is known already.

        Raises:
            ScheduleError: no step was entered.
        """
        if self._held is None:
            self._held = self._generation.held(
                self._inputs.key(),
                lambda: conditioning(self._inputs, self._framed(program)),
                self._plans.state(asked=program is not None),
            )
        return self._held

    def _framed(self, program: Program | None) -> tuple[str, ...]:
        if program is None or program.unfinished:  # which returns nothing that is written
            program = self._plans.rewritten(self._inputs, Variant())
        return program.framed

    def read(self, owner: str, key: str) -> Mapping[str, float]:
        """What the branch measured last, for a pass that looks for a name; see `Measured`.

        Raises:
            ScheduleError: after some steps nothing has made the name yet.
        """
        own, made = f"{owner}/{key}", self._plans.measured
        if key and not {own, key} & made and self._generation.entered >= PATIENCE:
            there = ", ".join(sorted(made)) or "none"
            raise ScheduleError(
                f"{owner} reads measurement {key!r} at "
                f"{self._generation.place(self._inputs.kwargs())}, and no pass makes one of that "
                f"name (made so far: {there}); make it in the first steps with "
                f"rewriter.measure({key!r}, node), node a tensor of one number"
            )
        return self.held().measured
