"""The newest clip: which of the calls that were noted belong to it, and to which step of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fisopt.runtime.clock import Call


@dataclass(frozen=True)
class Named:
    """A call of one of a pipeline's transformers.

    Attributes:
        name: the transformer.
        call: the call.
        time: its timestep.
    """

    name: str
    call: Call
    time: float | None


@dataclass
class Taken:
    """A denoising step that was taken.

    Attributes:
        index: which it was.
        calls: its calls, one for each guidance branch.
    """

    index: int
    calls: list[Named] = field(default_factory=list)


def newest_clip(calls: Sequence[Named]) -> list[Taken]:
    """The steps of the newest clip, in order.

    A clip ends where the timestep jumps back, or the step that a module was told does not go on.

    Args:
        calls: of all transformers of a pipeline.
    """
    if not calls:
        return []
    ordered = sorted(calls, key=lambda x: x.call.began.seconds)
    thread = ordered[-1].call.thread
    mine = [x for x in ordered if x.call.thread == thread]
    rises = _rises(mine)
    clip: list[Taken] = []
    for each in mine:
        if clip and _goes_on(clip, each, rises):
            if not _same_step(clip[-1], each):
                clip.append(Taken(clip[-1].index + 1))
        else:
            clip = [Taken(0)]
        if each.call.step is not None:
            clip[-1].index = each.call.step.index
        clip[-1].calls.append(each)
    return clip


def _rises(calls: Sequence[Named]) -> bool:
    """Whether timesteps rise within a clip: most of their changes are within one."""
    times = [x.time for x in calls if x.time is not None]
    return sum((b > a) - (b < a) for a, b in pairwise(times)) > 0


def _goes_on(clip: list[Taken], each: Named, rises: bool) -> bool:
    """Whether a call is of the same clip as those before it."""
    last, step = clip[-1].calls[-1], each.call.step
    if step is not None and last.call.step is not None:
        before = last.call.step
        again = step.index == before.index and _is_repeated(clip[-1], each)
        return step.count == before.count and step.index - before.index in (0, 1) and not again
    if each.time is None or last.time is None:
        return True
    if each.time == last.time:  # two calls at one timestep may be two steps, but not the first
        return len(clip) > 1 or not _is_repeated(clip[-1], each)
    return (each.time > last.time) == rises


def _same_step(taken: Taken, each: Named) -> bool:
    last = taken.calls[-1]
    if each.call.step is not None and last.call.step is not None:
        return each.call.step.index == last.call.step.index
    return each.time is not None and each.time == last.time and not _is_repeated(taken, each)


def _is_repeated(taken: Taken, each: Named) -> bool:
    """Whether a branch is called that was called at this step already."""
    branch = each.call.branch
    return bool(branch) and any(x.call.branch == branch for x in taken.calls)
