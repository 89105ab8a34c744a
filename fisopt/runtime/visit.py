"""A visit: one forward call, and what its guidance branch holds, which is looked up once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fisopt.errors import ScheduleError
from fisopt.rewrite.inputs import Inputs
from fisopt.runtime.branches import Held, conditioning
from fisopt.runtime.generation import Generation

PATIENCE = 2
"""So many steps of a generation may pass before a name that a pass reads must have been made."""


class Visit:
    """A forward call's access to its branch.

    Args:
        generation: knows the step and the branches.
        inputs: those of the call.
        framed: names the inputs that carry frames.
        made: names of the numbers that any Program has measured so far.
    """

    def __init__(
        self,
        generation: Generation,
        inputs: Inputs,
        framed: Callable[[], Collection[str]],
        made: Callable[[], Collection[str]],
    ) -> None:
        self._generation, self._inputs = generation, inputs
        self._framed, self._made = framed, made
        self._held: Held | None = None

    def held(self, framed: Callable[[], Collection[str]] | None = None) -> Held:
        """What earlier steps of the branch left.

        Args:
            framed: names the inputs that carry frames, where that is known for less.

        Raises:
            ScheduleError: no step was entered.
        """
        if self._held is None:
            names = framed or self._framed
            self._held = self._generation.held(
                self._inputs.key(), lambda: conditioning(self._inputs, names())
            )
        return self._held

    def read(self, owner: str, key: str) -> Mapping[str, float]:
        """What the branch measured last, for a pass that looks for a name; see `Measured`.

        Raises:
            ScheduleError: after some steps nothing has made the name yet.
        """
        own, made = f"{owner}/{key}", self._made()
        if key and not {own, key} & set(made) and self._generation.entered >= PATIENCE:
            there = ", ".join(sorted(made)) or "none"
            raise ScheduleError(
                f"{owner} reads measurement {key!r} at "
                f"{self._generation.place(self._inputs.kwargs())}, and no pass makes one of that "
                f"name (made so far: {there}); make it in the first steps with "
                f"rewriter.measure({key!r}, node), node a tensor of one number"
            )
        return self.held().measured
