"""Which calls belong to the newest clip, and to which of its steps."""

from __future__ import annotations

from typing import Any

import pytest

from fisopt import Step
from fisopt.overview.clip import Named, newest_clip
from fisopt.runtime.clock import Call, Mark

Told = tuple[float | None, str, Step | None]


def steps(*told: Told, threads: list[int] | None = None) -> list[tuple[int, list[str]]]:
    """The steps of calls that follow each other: index, and the branches."""
    made: Any = None
    calls = [
        Named("t", Call(made, branch, step, time, False, Mark(i), Mark(i + 0.5), thread), time)
        for i, ((time, branch, step), thread) in enumerate(
            zip(told, threads or [0] * len(told), strict=True)
        )
    ]
    return [(s.index, [x.call.branch for x in s.calls]) for s in newest_clip(calls)]


def named(*times: float) -> list[Told]:
    return [(time, branch, None) for time in times for branch in ("cond", "uncond")]


BOTH = ["cond", "uncond"]


def test_a_timestep_that_jumps_back_begins_a_clip() -> None:
    falling, rising = (999.0, 700.0, 300.0), (0.0, 300.0, 700.0)
    for times in (falling, rising):
        assert steps(*named(*times, *times)) == [(i, BOTH) for i in range(3)]
        assert steps(*named(*times, *times[:2])) == [(0, BOTH), (1, BOTH)], "one that is under way"


def test_a_scheduler_that_calls_twice_at_one_timestep() -> None:
    heun = named(999, 700, 700, 300, 300)
    assert steps(*heun, *heun) == [(i, BOTH) for i in range(5)]


def test_clips_of_one_step_are_clips() -> None:
    assert steps(*named(999, 999, 999)) == [(0, BOTH)]


def test_branches_without_names_share_a_timestep() -> None:
    calls: list[Told] = [(time, "", None) for time in (999.0, 999.0, 500.0, 500.0)]
    assert steps(*calls) == [(0, ["", ""]), (1, ["", ""])]


def test_without_timesteps_each_call_is_a_step() -> None:
    assert steps((None, "", None), (None, "", None)) == [(0, [""]), (1, [""])]


def test_what_was_told_counts() -> None:
    def at(*indices: int, count: int = 4) -> list[Told]:
        return [(None, branch, Step(i, count)) for i in indices for branch in BOTH]

    assert steps(*at(0, 1), *at(0, 1, 2)) == [(i, BOTH) for i in range(3)], "the first was cut"
    assert steps(*at(0), *at(0)) == [(0, BOTH)]
    assert steps(*at(3), *at(0, count=5)) == [(0, BOTH)]
    assert steps(*at(2, 3)) == [(2, BOTH), (3, BOTH)]


def test_another_module_goes_on_where_the_first_was() -> None:
    known: list[Told] = [(999.0, "cond", Step(0, 4)), (700.0, "cond", Step(1, 4))]
    assert steps(*known, (300.0, "cond", None)) == [(0, ["cond"]), (1, ["cond"]), (2, ["cond"])]


def test_threads_are_told_apart() -> None:
    calls = named(999, 500)
    assert steps(*calls, threads=[0, 1, 0, 1]) == [(0, ["uncond"]), (1, ["uncond"])]
    assert steps() == []


def test_what_compiled_has_no_time() -> None:
    made: Any = None
    ends = Mark(1.0), Mark(1.0025)
    assert Call(made, "", None, None, False, *ends, 0).milliseconds == pytest.approx(2.5)
    assert Call(made, "", None, None, True, *ends, 0).milliseconds is None
