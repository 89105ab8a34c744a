"""Which denoising step, of how many, and which guidance branch a forward call belongs to."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fisopt.errors import ScheduleError
from fisopt.rewrite.pass_base import Step


@dataclass(frozen=True)
class _Reached:
    """Where one branch is: the step, which of its calls, and how many the step before had."""

    index: int
    call: int = 0
    calls_before: int | None = None


@dataclass
class _State:
    """What one thread knows about the generation it is in."""

    branch: str = ""
    index: int | None = None
    count: int | None = None
    told_count: int | None = None
    seen: int = -1
    time: float | None = None
    last: dict[str, int] = field(default_factory=dict)
    current: Step | None = None
    reached: dict[str, _Reached] = field(default_factory=dict)
    held: dict[Hashable, dict[str, torch.Tensor]] = field(default_factory=dict)

    def restart(self) -> None:
        """Forget what belongs to the generation before."""
        self.current = None
        self.reached.clear()
        self.held.clear()


UNNAMED_BRANCHES = 4
"""Up to this many calls of one step under one name are guidance branches without names."""


class Generation:
    """Tell the step and the guidance branch of every forward call of one module.

    The step is what the pipeline says when it opens ``cache_context(name, step_index=...,
    num_inference_steps=...)``; where it says only the name, it is counted: the timestep falls
    within a generation and jumps back up when the next one starts.  Each thread has its own
    state, so two pipelines may run at once.

    What a step leaves for later ones is held here for each guidance branch, and forgotten when
    a generation starts: when a step is neither the one before again nor the next.

    Args:
        scheduler_steps: returns the timesteps of the pipeline's scheduler, if there is one.
    """

    def __init__(self, scheduler_steps: Any = None) -> None:
        self._local = threading.local()
        self._scheduler_steps = scheduler_steps

    @property
    def _state(self) -> _State:
        if not hasattr(self._local, "state"):
            self._local.state = _State()
        state: _State = self._local.state
        return state

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
    def generation(self, num_steps: int) -> Iterator[None]:
        """A whole generation of a known number of steps; the step counter starts at zero."""
        if num_steps < 1:
            raise ScheduleError(f"generation: num_steps must be at least 1, got {num_steps}")
        state = self._state
        before = state.told_count
        state.told_count, state.seen, state.time = num_steps, -1, None
        state.last.clear()
        state.restart()
        try:
            yield
        finally:
            state.told_count, state.seen, state.time = before, -1, None
            state.restart()

    def step(self, inputs: Mapping[str, Any]) -> Step:
        """Enter the step of the forward call with these inputs.

        Raises:
            ScheduleError: the pipeline does not tell it and no input tells the timestep.
        """
        state, step = self._state, self._find(inputs)
        branch = state.branch
        if (now := _advance(state.reached.get(branch), step.index, named=bool(branch))) is None:
            state.restart()
            now = _Reached(step.index)
        state.reached[branch], state.current = now, step
        return step

    def held(self, shape: Hashable) -> dict[str, torch.Tensor]:
        """What earlier steps of this branch left, for inputs of one shape."""
        state = self._state
        call = state.reached[state.branch].call
        return state.held.setdefault((state.branch, call, shape), {})

    def keep(self, held: dict[str, torch.Tensor], left: Mapping[str, torch.Tensor]) -> None:
        """Hold what a step has left in the place of what was held; nothing after the last step."""
        if left:
            held.clear()
            held.update(left)
        if self.ends:
            held.clear()

    @property
    def current(self) -> Step | None:
        """The step that was entered last in this generation."""
        return self._state.current

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
        return ("an unknown step" if time is None else f"timestep {time:g}") + branch

    def _find(self, inputs: Mapping[str, Any]) -> Step:
        state = self._state
        if state.index is not None:
            return Step(state.index, state.told_count or state.count)
        time = _timestep(inputs)
        if time is None:
            raise ScheduleError(
                "the denoising step is not known: the call has no `timestep` and no "
                "cache_context(step_index=...) is open; options that depend on the step "
                "(dense_steps) need one of the two"
            )
        if state.time is None or time > state.time:
            state.last.clear()
        times = self._scheduler_times() or []
        expected = state.last.get(state.branch, -1) + 1
        if near := _near(times, time):
            index = min(near, key=lambda i: (abs(i - expected), i))
            state.time, state.last[state.branch] = time, index
            return Step(index, state.told_count or len(times))
        told = state.told_count is not None
        if state.time is None or (time > state.time and not told):
            state.seen = 0
        elif time != state.time:  # told where a generation starts, the timestep may also rise
            state.seen += 1
        state.time = time
        if state.told_count is not None and state.seen >= state.told_count:
            raise ScheduleError(
                f"generation(num_steps={state.told_count}): this is step {state.seen + 1}; open a "
                "new generation() for every clip, with its number of steps"
            )
        return Step(state.seen, state.told_count)

    def _scheduler_times(self) -> list[float] | None:
        if self._scheduler_steps is None:
            return None
        times = self._scheduler_steps()
        return None if times is None else [float(t) for t in times]


def _advance(before: _Reached | None, index: int, *, named: bool) -> _Reached | None:
    """Where a branch is after one more call, None if that call starts another generation.

    A step that is called again is another branch without a name, unless the step before was not.
    A branch with a name is called once a step: called again, it starts over.
    """
    if before is None:
        return _Reached(index)
    if index == before.index + 1:
        return _Reached(index, 0, before.call + 1)
    most = 1 if named else UNNAMED_BRANCHES
    most = most if before.calls_before is None else min(most, before.calls_before)
    if index == before.index and before.call + 1 < most:
        return _Reached(index, before.call + 1, before.calls_before)
    return None


def _timestep(inputs: Mapping[str, Any]) -> float | None:
    """The noise level of a call: the largest timestep (a conditioned frame has none)."""
    value = inputs.get("timestep", inputs.get("timesteps", inputs.get("t")))
    if isinstance(value, torch.Tensor):
        return float(value.max()) if value.numel() else None
    return float(value) if isinstance(value, (int, float)) else None


def _near(times: list[float], time: float) -> list[int]:
    """Positions in the scheduler's list that a timestep may be, rounded to bfloat16 or not."""
    exact = [i for i, known in enumerate(times) if abs(known - time) <= 1e-6 * max(1.0, abs(known))]
    return exact or [
        i for i, known in enumerate(times) if abs(known - time) <= 4e-3 * max(1.0, abs(known))
    ]
