"""Where a run is in the list of a scheduler, call by call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fisopt.errors import ScheduleError

Rounding = torch.dtype
"""A type that timesteps go through before the model sees them; int64 cuts off what is after the
point, float64 is none."""

ROUNDINGS: tuple[Rounding, ...] = (torch.float64, torch.float16, torch.bfloat16, torch.int64)


@dataclass(frozen=True)
class Time:
    """The timestep of a call, and the roundings that it may have gone through."""

    value: float
    roundings: tuple[Rounding, ...] = ROUNDINGS

    @staticmethod
    def of(value: Any) -> Time | None:
        """The noise level of a call: the largest timestep (a conditioned frame has none)."""
        if isinstance(value, torch.Tensor):
            if not value.numel():
                return None
            known = value.dtype in (torch.float16, torch.bfloat16)
            return Time(float(value.max()), (value.dtype,) if known else ROUNDINGS)
        return Time(float(value)) if isinstance(value, (int, float)) else None


@dataclass(frozen=True, eq=False)
class Timetable:
    """The list of one run of a scheduler, as `set_timesteps` made it.

    Attributes:
        times: its timesteps.
        source: what the scheduler holds; it makes another one for every run.
        counts: whether the scheduler counts its own steps.
    """

    times: tuple[float, ...]
    source: Any
    counts: bool = False
    _rounded: dict[Rounding, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def entries(self, time: Time, rounding: Rounding) -> list[int]:
        """The entries that a timestep may be, if the list was rounded so."""
        if rounding not in self._rounded:
            rounded = torch.tensor(self.times, dtype=torch.float64).to(rounding)
            self._rounded[rounding] = tuple(map(float, rounded))
        known = self._rounded[rounding]
        return [i for i, t in enumerate(known) if abs(t - time.value) <= 1e-6 * max(1.0, abs(t))]

    def nearest(self, time: Time, entry: int) -> bool:
        """Whether no entry is nearer to a timestep than this one."""
        far = [abs(t - time.value) for t in self.times]
        return far[entry] == min(far)


@dataclass(frozen=True)
class Reading:
    """What a scheduler says at one moment.

    Attributes:
        table: its list.
        position: the entry that it is at; None before its first step, or if it does not count.
        begin: the entry that the run begins at, if that was said.
    """

    table: Timetable
    position: int | None = None
    begin: int | None = None

    @staticmethod
    def of(scheduler: Any, known: Timetable | None) -> Reading | None:
        """What a scheduler says now, None if it was never told a number of steps.

        Args:
            scheduler: the scheduler, its timesteps alone, or None.
            known: the list that was seen last; the same list is the same `Timetable`.
        """
        source = getattr(scheduler, "timesteps", scheduler)
        unset = getattr(scheduler, "num_inference_steps", None) is None
        if source is None or (unset and hasattr(scheduler, "set_timesteps")):
            return None
        table = known
        if table is None or not _same(source, table.source):
            times = tuple(map(float, torch.as_tensor(source).tolist()))
            table = Timetable(times, source, hasattr(scheduler, "step_index"))
        position, begin = (getattr(scheduler, n, None) for n in ("step_index", "begin_index"))
        return Reading(table, position, begin)


def _same(source: Any, known: Any) -> bool:
    """Whether it is the same list; plain lists are the same if they are equal."""
    return source is known or (isinstance(source, (list, tuple)) and source == known)


@dataclass
class Run:
    """One way through a list, followed from call to call.

    Attributes:
        table: the list.
        start: the entry that it began at.
        entry: the entry of the newest call.
        time: the timestep of the newest call.
        scaled: the model is given other numbers than those of the list.
        roundings: what the timesteps may go through; those that did not fit are gone.
    """

    table: Timetable
    start: int
    entry: int
    time: Time
    scaled: bool = False
    roundings: Sequence[Rounding] = ROUNDINGS

    @staticmethod
    def begin(reading: Reading, time: Time) -> Run | None:
        """The run that a first call begins, None if it does not belong to this list.

        A run begins at the entry that the scheduler was told, or at the first.  Where a list
        is entered elsewhere, its scheduler does not count or was told nothing; the last entry
        is then left out, because numbers on another scale meet it by chance.
        """
        table, position = reading.table, reading.position
        found = {i for r in time.roundings for i in table.entries(time, r)}
        home = reading.begin or 0
        if position is not None:  # it is under way: the other transformer has run until here
            return Run(table, home, position, time) if position in found else None
        if home in found:
            return Run(table, home, home, time)
        inner = found - {len(table.times) - 1}
        if inner and reading.begin is None:
            entry = min(inner, key=lambda i: abs(table.times[i] - time.value))
            return Run(table, entry, entry, time)
        return Run(table, home, home, time, scaled=True) if table.counts else None

    def follow(self, reading: Reading, time: Time, before: int) -> bool:
        """Go to the entry of the next call; False if the call does not belong to this run.

        Args:
            reading: what the scheduler says.
            time: the timestep of the call.
            before: entry of the branch's call before, -1 if it had none.

        Raises:
            ScheduleError: entries were left out and the scheduler does not say so.
        """
        entry = self._entry(reading, time, before)
        if entry is None:
            return False
        self.entry, self.time = entry, time
        return True

    def _entry(self, reading: Reading, time: Time, before: int) -> int | None:
        position, same = reading.position, time.value == self.time.value
        fits = {r: self.table.entries(time, r) for r in self.roundings if r in time.roundings}
        found = {i for entries in fits.values() for i in entries}
        if position is not None:
            if not self.entry <= position < len(self.table.times):
                return None
            fit = position in found or self.table.nearest(time, position)
            follows = (position > self.entry) != same if self.scaled else fit
            return position if follows else None
        if self.table.counts and same:
            return self.entry
        if self.scaled or not found:
            return None
        self.roundings = [r for r, entries in fits.items() if entries]
        expected = max(before + 1, self.entry)
        entry = min(found, key=lambda i: (abs(i - expected), i))
        if entry > self.entry + 1:
            raise ScheduleError(
                f"timestep {time.value:g} is entry {entry} of the scheduler's list, and the call "
                f"before was entry {self.entry}: either steps were left out or another scheduler "
                "is in use; give the step by cache_context(name, step_index=...) or open "
                "generation(num_steps)"
            )
        return entry if entry >= self.entry else None
