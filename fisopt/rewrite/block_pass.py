"""Passes that work block by block: on which blocks, and at which steps, is said in one way."""

from __future__ import annotations

from dataclasses import dataclass, field

from fisopt.errors import PreconditionError
from fisopt.rewrite.block import Block
from fisopt.rewrite.pass_base import Pass, Step
from fisopt.rewrite.program import Program
from fisopt.rewrite.selection import ALL, Selected, among, outside, selection


@dataclass(frozen=True)
class BlockPass(Pass):
    """A pass that edits some blocks at some steps; the others stay as they are.

    A subclass iterates over `chosen` in its `run`. If it overrides `__post_init__`, `requires` or
    `at`, it must call this class's method there.

    Attributes:
        blocks: the video blocks to edit, counted in execution order from 0: numbers and slices such
            as ":", "1:-2", "::2", "25%:50%" or "0,3,-1", or a list of ints. Negative numbers count
            from the end; percentages are of all blocks, rounded.
        steps: the denoising steps at which the pass is active, in the same notation; other steps
            are dense. A slice may reach past the end of the run.
    """

    blocks: Selected = field(default=ALL, kw_only=True)
    steps: Selected = field(default=ALL, kw_only=True)

    def __post_init__(self) -> None:
        for option in ("blocks", "steps"):
            where = f"{type(self).__name__}: {option}"
            object.__setattr__(self, option, selection(where, getattr(self, option)))

    @property
    def stepwise(self) -> bool:
        """Whether some steps are dense."""
        return self.steps != ALL

    def at(self, step: Step) -> Pass | None:
        """None at dense steps."""
        return self if self.active(step) else None

    def active(self, step: Step) -> bool:
        """Whether a step is one of `steps`.

        Raises:
            ScheduleError: the answer depends on the number of steps, which is unknown.
        """
        return step.among(str(self.steps), self.name)

    def requires(self, program: Program) -> None:
        """Check the blocks against those of the model."""
        self.chosen(program)

    def chosen(self, program: Program) -> list[Block]:
        """The blocks of a Program to edit, in order.

        Raises:
            PreconditionError: one of the blocks does not exist, or there are none.
        """
        every, selected = len(program.block_paths), str(self.blocks)
        chosen = [block for block in program.blocks if among(selected, block.index, every)]
        missing = outside(selected, every)
        if missing is None and (chosen or selected == ALL):
            return chosen
        if missing is not None:
            what = f"{missing} is outside"
        elif any(among(selected, index, every) for index in range(every)):
            what = "the call skips them, as a guider asks; name others too, of"
        else:
            what = "these are none of"
        raise PreconditionError(
            f"blocks={selected!r}: {what} the model's {every} video blocks",
            pass_name=self.name,
        )
