"""Reuse: runs of steps that take what the last computed step has added, as a choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from fisopt.passes.step_cache import StepCache

FEW = 8
"""Of so many steps at most, the last one's update is taken as it was; of more it is forecast."""
MOST = 6
"""So many steps in a row reuse at most."""
LAST = (1, 2, 3)
"""How many of the last steps an even schedule computes."""
_FLOOR = 1e-12


@dataclass(frozen=True)
class Reuse:
    """Steps in a row that take what an earlier step has added, see `StepCache`.

    Attributes:
        component: the transformer.
        steps: those that reuse; the transformer's step before them is computed.
        then: its step after them, which is computed too; None if there is none.
    """

    component: str
    steps: tuple[int, ...]
    then: int | None = None

    def __str__(self) -> str:
        return f"{self.component} steps {self.steps[0]}-{self.steps[-1]} reuse"


def reuses_of(component: str, steps: Sequence[int]) -> Iterator[Reuse]:
    """The runs of a transformer's steps that may reuse; its first step never does."""
    for start in range(1, len(steps)):
        for end in range(start + 1, min(start + MOST, len(steps)) + 1):
            then = steps[end] if end < len(steps) else None
            yield Reuse(component, tuple(steps[start:end]), then)


def even_runs(
    component: str, steps: Sequence[int], every: int, last: int, wider: int = 0
) -> list[Reuse]:
    """The runs of an even schedule: every so many steps is computed, and the last ones.

    Forecasts from steps that lie equally far apart are closer than the prices of single runs say,
    which are measured between computed steps.

    Args:
        component: the transformer.
        steps: of the generation, at which it runs.
        every: so many steps lie between the beginnings of two runs.
        last: so many of the last steps are computed.
        wider: so many of the first runs are one step longer; negative, of those before the last
            steps.
    """
    end, computed = len(steps) - last, {0, *range(len(steps) - last, len(steps))}
    place, left = (0 if wider >= 0 else end), abs(wider)
    while 0 <= place <= end:
        computed.add(place)
        gap, left = every + (left > 0), left - 1
        place += gap if wider >= 0 else -gap
    found, start = list[Reuse](), 0
    for place in sorted({*computed, len(steps)}):
        if place > start:
            then = steps[place] if place < len(steps) else None
            found.append(Reuse(component, tuple(steps[start:place]), then))
        start = place + 1
    return found


def cache_of(steps: Sequence[int], of: int) -> StepCache:
    """The pass that reuses at some steps.

    Args:
        steps: those that reuse.
        of: how many steps the transformer runs.
    """
    return StepCache(steps=sorted(steps), blocks=":", order=int(of > FEW))


def screened(reuses: Sequence[Reuse]) -> list[Reuse]:
    """Those that the others are guessed from: single steps, and every length at three places."""
    by_length: dict[int, list[Reuse]] = {}
    for reuse in reuses:
        by_length.setdefault(len(reuse.steps), []).append(reuse)
    found = by_length.pop(1, [])
    for same in by_length.values():
        found += dict.fromkeys(same[i] for i in (0, len(same) // 2, len(same) - 1))
    return found


def guessed(reuses: Sequence[Reuse], known: Mapping[Reuse, float]) -> dict[Reuse, float]:
    """Squared errors of runs: the mean of their steps alone, times what runs as long add to it."""
    single = {reuse.steps[0]: error for reuse, error in known.items() if len(reuse.steps) == 1}

    def alone(reuse: Reuse) -> float | None:
        found = [max(single[s], _FLOOR) for s in reuse.steps if s in single]
        return fmean(found) if len(found) == len(reuse.steps) else None

    added: dict[int, list[float]] = {}
    for reuse, error in known.items():
        if (base := alone(reuse)) is not None:
            added.setdefault(len(reuse.steps), []).append(log(max(error, _FLOOR) / base))
    return {
        reuse: base * exp(fmean(added[len(reuse.steps)]))
        for reuse in reuses
        if len(reuse.steps) in added and (base := alone(reuse)) is not None
    }
