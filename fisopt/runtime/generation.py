"""Which denoising step, of how many, and which guidance branch a forward call belongs to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fisopt.errors import ScheduleError
from fisopt.rewrite.pass_base import Step
from fisopt.runtime.branches import TIMESTEPS, Branches, Held
from fisopt.runtime.caller import CallersScheduler
from fisopt.runtime.timetable import Reading, Run, Time, Timetable

NOTES = 64
"""So many different lines are counted for the report."""


@dataclass
class _State(threading.local):
    """What one thread knows about the generation it is in.

    Attributes:
        branch: the branch that is open, as the pipeline names it.
        index: its step and the number of steps, where the pipeline says them.
        count: see ``index``.
        told: what is one object while `Generation.generation` is open.
        told_count: the number of steps that it was told.
        table: the scheduler's list that was seen last.
        run: the way through it, None if calls do not belong to it.
        seen: the step that was counted last, -1 before the first.
        time: its timestep.
        rises: how often in a row the timestep rose.
        last: entry of the list that each branch has reached.
        current: the step that was entered last.
        entered: how many steps of the generation were entered before it.
        branches: what the branches hold.
    """

    branch: str = ""
    index: int | None = None
    count: int | None = None
    told: object | None = None
    told_count: int | None = None
    table: Timetable | None = None
    run: Run | None = None
    seen: int = -1
    time: float | None = None
    rises: int = 0
    last: dict[str, int] = field(default_factory=dict)
    current: Step | None = None
    entered: int = 0
    branches: Branches = field(default_factory=Branches)

    def restart(self) -> None:
        """Forget what belongs to the generation before."""
        self.current, self.seen, self.time, self.rises = None, -1, None, 0
        self.last.clear()
        self.branches.clear()


class Generation:
    """Tell the step and the guidance branch of every forward call of one module.

    What the caller says comes first: `generation` with the number of steps, and the step with
    which the pipeline opens ``cache_context(name, step_index=..., num_inference_steps=...)``.
    Else the scheduler of the pipeline tells it, as long as the calls follow its list.  Else steps
    are counted: the timestep falls within a generation and jumps back up when the next one starts.
    Each thread has its own state, so pipelines that share the module may run at once.

    What a step leaves for later ones is held here for each guidance branch.  It is forgotten when
    another generation starts: the scheduler has made another list, the step is neither the one
    before again nor the next, or a branch is called again at its step.

    Args:
        scheduler: returns the scheduler of the pipeline that calls, or its timesteps; None if
            there is none.

    Attributes:
        notes: lines for the report, and how often each applied.
        decisions: what was decided within calls, and how often.
    """

    def __init__(self, scheduler: Callable[[], Any] | None = None) -> None:
        self._state = _State()
        self._lock = threading.Lock()
        self._scheduler = scheduler or (lambda: None)
        self.notes: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()

    @property
    def branch(self) -> str:
        """The guidance branch that is being run, as the pipeline names it."""
        return self._state.branch

    @contextmanager
    def context(self, name: str, **said: Any) -> Iterator[None]:
        """One forward call of a guidance branch, with what the pipeline says of the step."""
        state = self._state
        before = (state.branch, state.index, state.count)
        state.branch = name
        state.index, state.count = said.get("step_index"), said.get("num_inference_steps")
        try:
            yield
        finally:
            state.branch, state.index, state.count = before

    @contextmanager
    def beside(self, branch: str) -> Iterator[None]:
        """Inside, calls are of another guidance branch at the same step."""
        state = self._state
        before, state.branch = state.branch, branch
        try:
            yield
        finally:
            state.branch = before

    @contextmanager
    def generation(self, num_steps: int) -> Iterator[None]:
        """A whole generation of a known number of steps; the step counter starts at zero."""
        if num_steps < 1:
            raise ScheduleError(f"generation: num_steps must be at least 1, got {num_steps}")
        state = self._state
        before = state.told, state.told_count
        state.told, state.told_count = object(), num_steps
        state.restart()
        try:
            yield
            if 0 <= state.seen < num_steps - 1:
                self.note(
                    f"generation(num_steps={num_steps}) was left after {state.seen + 1} steps "
                    "(calls with one timestep are one step)"
                )
        finally:
            state.told, state.told_count = before
            state.restart()

    def clip(self) -> Any:
        """What is one and the same object in all calls of a generation; None if nothing tells."""
        if self._state.told is not None:
            return self._state.told
        caller = self._scheduler
        calling = caller.calling() if isinstance(caller, CallersScheduler) else None
        return getattr(calling, "timesteps", None)

    def step(self, inputs: Mapping[str, Any]) -> Step:
        """Enter the step of the forward call with these inputs.

        Raises:
            ScheduleError: nothing tells the step, or what is told does not agree.
        """
        state = self._state
        reading = Reading.of(self._scheduler(), state.table)
        table = reading.table if reading is not None else None
        if begins := table is not None and table is not state.table:
            state.table, state.run = table, None
            if state.told_count is None:
                state.restart()
        step = self._said() or self._found(inputs, reading, begins)
        before = state.current
        if before is not None and (
            step.count != before.count or step.index - before.index not in (0, 1)
        ):
            state.branches.clear()
            before = None
        state.entered = 0 if before is None else state.entered + (step.index - before.index)
        state.current = step
        return step

    def held(
        self,
        shape: Hashable,
        conditions: Callable[[], Hashable] = tuple,
        model: Hashable = None,
    ) -> Held:
        """What earlier steps of this branch left.

        Args:
            shape: of the inputs; what was left for others does not fit.
            conditions: tells a branch that has no name.
            model: the state of the model; a branch that skips layers has one of its own.

        Raises:
            ScheduleError: no step was entered.
        """
        state = self._state
        if state.current is None:
            raise ScheduleError(
                "a pass keeps state from one denoising step to the next, and no pass depends on "
                "the step; let its `stepwise` return True"
            )
        key = state.branch or conditions(), model
        return state.branches.enter(key, state.current.index, shape)

    def keep(
        self,
        held: Held,
        state: Mapping[str, torch.Tensor],
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Hold what a step has left in the place of what the same passes left before.

        Nothing is held after the last step.
        """
        held.leave(state, measured or {})
        if self.ends:
            held.clear()

    def note(self, line: str) -> None:
        """Count a line for the report; of more than `NOTES` different ones the rest are one."""
        with self._lock:
            known = line in self.notes or len(self.notes) < NOTES
            self.notes[line if known else "more of the same kind at other steps"] += 1

    def decide(self, line: str) -> None:
        """Count a decision for the report."""
        with self._lock:
            self.decisions[line] += 1

    @property
    def holds(self) -> bool:
        """Whether a branch of this generation holds anything."""
        return bool(self._state.branches)

    @property
    def current(self) -> Step | None:
        """The step that was entered last in this generation."""
        return self._state.current

    @property
    def entered(self) -> int:
        """How many steps of this generation were entered before the current one."""
        return self._state.entered

    @property
    def ends(self) -> bool:
        """Whether the step that was entered is known to be the generation's last."""
        current = self.current
        return current is not None and current.index + 1 == current.count

    def place(self, inputs: Mapping[str, Any]) -> str:
        """Where a forward call with these inputs is, in words for an error."""
        state = self._state
        branch = f", branch {state.branch!r}" if state.branch else ""
        known = state.current.index if state.current is not None else state.index
        if known is not None:
            return f"step {known}{branch}"
        time = _timestep(inputs)
        return ("an unknown step" if time is None else f"timestep {time.value:g}") + branch

    def _said(self) -> Step | None:
        """The step that the pipeline says."""
        state = self._state
        if state.index is None:
            return None
        if None not in (state.count, state.told_count) and state.count != state.told_count:
            raise ScheduleError(
                f"generation(num_steps={state.told_count}) and "
                f"cache_context(num_inference_steps={state.count}) disagree; give one number of "
                "steps (a scheduler that calls the model twice a step has one for each call)"
            )
        count = state.told_count or state.count
        if count is not None and not 0 <= state.index < count:
            raise ScheduleError(f"cache_context says step {state.index}; wanted 0 to {count - 1}")
        return Step(state.index, count)

    def _found(self, inputs: Mapping[str, Any], reading: Reading | None, begins: bool) -> Step:
        """The step that the scheduler's list tells, or the next that is counted."""
        state, time = self._state, _timestep(inputs)
        if time is None:
            raise ScheduleError(
                "the denoising step is not known: the call has no `timestep` and no "
                "cache_context(step_index=...) is open; options that depend on the step "
                "(steps=) need one of the two"
            )
        step = self._listed(reading, time, begins) if reading is not None else None
        if step is not None and state.told_count in (None, step.count):
            state.seen, state.time = step.index, time.value
            return step
        return self._counted(time.value)

    def _listed(self, reading: Reading, time: Time, begins: bool) -> Step | None:
        """The step in the scheduler's list, None if the calls do not follow it."""
        state = self._state
        if begins:
            state.run = Run.begin(reading, time)
        elif state.run is not None:
            try:
                follows = state.run.follow(reading, time, state.last.get(state.branch, -1))
            except ScheduleError:
                if state.told_count is None:
                    raise
                follows = False
            if not follows and not state.run.scaled and state.told_count is None:
                state.restart()  # it was followed until here: these are another clip's calls
            state.run = state.run if follows else None
        if (run := state.run) is None:
            return None
        state.last[state.branch] = run.entry
        return Step(run.entry - run.start, len(run.table.times) - run.start, run.start)

    def _counted(self, time: float) -> Step:
        """The step by counting timesteps that differ."""
        state, told = self._state, self._state.told_count
        if state.time is not None and time > state.time and told is None:
            rises = state.rises + 1
            state.restart()
            state.rises = rises
            if rises > 1:
                raise ScheduleError(
                    f"the timestep rises, to {time:g} now, so steps cannot be counted; open "
                    "generation(num_steps) for every clip"
                )
        elif time != state.time:
            state.rises = 0
        if time != state.time:  # told where a generation starts, the timestep may also rise
            state.seen += 1
        state.time = time
        if told is not None and state.seen >= told:
            raise ScheduleError(
                f"generation(num_steps={told}): this is step {state.seen + 1}; open a "
                "new generation() for every clip, with its number of steps"
            )
        return Step(state.seen, told)


def _timestep(inputs: Mapping[str, Any]) -> Time | None:
    return Time.of(next((inputs[n] for n in TIMESTEPS if n in inputs), None))
