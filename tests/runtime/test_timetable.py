"""The step in a scheduler's list, through the real schedulers of diffusers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fisopt.errors import ScheduleError
from fisopt.rewrite.pass_base import Step
from fisopt.runtime.generation import Generation

ROUNDED = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


def call(generation: Generation, time: Any, name: str = "") -> Step:
    time = time if isinstance(time, torch.Tensor) else torch.tensor(float(time))
    with generation.context(name):
        return generation.step({"timestep": time.reshape(1)})


def run(
    scheduler: Any, generation: Generation, count: int, first: int = 0, to: Any = None
) -> Iterator[Step]:
    """A pipeline's loop with two calls a step; it says nothing of the step."""
    scheduler.set_timesteps(count)
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    sample = torch.zeros(1, 1, 2, 2)
    for t in scheduler.timesteps[first:]:
        time = t if to is None else to(t)
        yield from (call(generation, time) for _ in range(2))
        if hasattr(scheduler, "step_index"):
            sample = scheduler.step(torch.zeros_like(sample), t, sample, return_dict=False)[0]


def indices(steps: Iterator[Step]) -> list[int]:
    return [step.index for step in steps]


def twice(count: int) -> list[int]:
    return [i for i in range(count) for _ in range(2)]


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 7.0, 11.0, 17.0])
@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_rounded_timesteps_have_their_own_entry(shift: float, dtype: torch.dtype) -> None:
    """Of fifty steps many are one number after rounding: by the scheduler's count, and where
    there is only its list, by the step before; also if the type does not tell of the rounding.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    generation = Generation(lambda: scheduler)
    for _ in range(2):
        assert indices(run(scheduler, generation, 50, to=lambda t: t.to(dtype))) == twice(50)
    for shown in (dtype, torch.float32):
        listed = Generation(lambda: scheduler.timesteps)
        for i, t in enumerate(scheduler.timesteps):
            got = [call(listed, t.to(dtype).to(shown), name) for name in ("cond", "uncond")]
            assert got == [Step(i, 50)] * 2


@pytest.mark.parametrize(
    "to",
    [lambda t: t / 1000, lambda t: 1 - t / 1000, lambda t: 1000 - t, lambda t: t / (t + 1000)],
    ids=["share", "rising share", "rising", "ratio"],
)
@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler])
def test_times_on_another_scale_follow_the_scheduler(scheduler: Any, to: Any) -> None:
    made = scheduler()
    generation = Generation(lambda: made)
    for count in (4, 10):
        assert list(run(made, generation, count, to=to)) == [
            Step(i, len(made.timesteps)) for i in twice(count)
        ]


def test_times_that_meet_the_list_by_chance_are_not_its_entries() -> None:
    """Only a list, no count: nothing says that 1.0 is the first of ten and not the last."""
    times = [1000.0, 500.0, 100.0, 1.0]
    generation = Generation(lambda: times)
    got = [call(generation, t / 1000) for t in times]
    assert got == [Step(i, None) for i in range(4)]
    rising = Generation(lambda: [900.0, 600.0, 300.0, 0.0])
    assert call(rising, 0) == Step(0, None)
    assert call(rising, 300) == Step(0, None)
    with pytest.raises(ScheduleError, match="the timestep rises"):
        call(rising, 600)


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [
        (FlowMatchHeunDiscreteScheduler(shift=3.0), 7),
        (HeunDiscreteScheduler(), 7),
        (UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0), 4),
        (FlowMatchEulerDiscreteScheduler(shift=7.0), 4),
        (EulerAncestralDiscreteScheduler(), 4),
        (CogVideoXDDIMScheduler(), 4),
        (CogVideoXDPMScheduler(), 4),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_evaluation_is_a_step(scheduler: Any, evaluations: int) -> None:
    """A scheduler of two calls has a step for each; a clip after it begins at the first."""
    generation = Generation(lambda: scheduler)
    wanted = [Step(i, evaluations) for i in twice(evaluations)]
    for cut in (1, 2, 5, None):
        assert list(zip(range(cut or 99), run(scheduler, generation, 4), strict=False)) == list(
            enumerate(wanted[:cut])
        )
    with generation.generation(evaluations):
        assert list(run(scheduler, generation, 4)) == wanted


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=7.0),
        UniPCMultistepScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        CogVideoXDDIMScheduler(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_run_that_starts_within_the_list_counts_from_its_start(scheduler: Any) -> None:
    generation = Generation(lambda: scheduler)
    scheduler.set_timesteps(10)
    entries = len(scheduler.timesteps)
    for first in (3, 5):
        left = entries - first
        assert list(run(scheduler, generation, 10, first)) == [
            Step(i, left, first) for i in twice(left)
        ]
    assert Step(2, 7, 3).from_noise == Step(5, 10)


def test_the_second_transformer_goes_on_where_the_first_was() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    first, second = Generation(lambda: scheduler), Generation(lambda: scheduler)
    scheduler.set_timesteps(6)
    sample, got = torch.zeros(1), []
    for t in scheduler.timesteps:
        got.append(call(first if t > 800 else second, t))
        sample = scheduler.step(sample, t, sample, return_dict=False)[0]
    assert got == [Step(i, 6) for i in range(6)]


def test_what_the_caller_says_wins_over_a_scheduler_that_is_not_in_use() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    generation = Generation(lambda: scheduler)
    own = (999, 750, 500, 250)
    for used in (None, 1000, 4, 3):
        if used is not None:
            scheduler.set_timesteps(used)
        for _ in range(2):
            with generation.generation(4):
                assert [call(generation, t) for t in own] == [Step(i, 4) for i in range(4)]
            list(run(scheduler, generation, 5))


def test_an_own_loop_beside_a_scheduler_is_counted() -> None:
    """Never told a number of steps, run to its end, or cut short: it does not tell the count."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    generation = Generation(lambda: scheduler)
    own = (999, 750, 500, 250)
    assert [call(generation, t) for t in own] == [Step(i) for i in range(4)]
    list(run(scheduler, generation, 1000))
    assert [call(generation, t) for t in own] == [Step(i) for i in range(4)]
    next(run(scheduler, generation, 4))
    assert [call(generation, t).index for t in own] == [0, 1, 2, 3]
    with pytest.raises(ScheduleError, match="depends on the number of steps, which is not known"):
        Step(3).among("-1", "FrameInterleave")


def test_entries_that_were_left_out_are_an_error() -> None:
    scheduler = CogVideoXDDIMScheduler()
    scheduler.set_timesteps(4)
    generation = Generation(lambda: scheduler)
    call(generation, scheduler.timesteps[0])
    with pytest.raises(
        ScheduleError, match=r"is entry 2 of the scheduler's list.*before was entry"
    ):
        call(generation, scheduler.timesteps[2])


def test_a_new_list_is_a_new_clip() -> None:
    """Cut after any number of calls, at any step: nothing of the clip before is there."""
    for scheduler in (CogVideoXDDIMScheduler(), FlowMatchEulerDiscreteScheduler(shift=5.0)):
        generation = Generation(lambda scheduler=scheduler: scheduler)
        for cut, first in ((1, 0), (2, 0), (3, 1), (3, 2), (4, 2)):
            for number, _ in enumerate(run(scheduler, generation, 4)):
                generation.held("shape", lambda: "text").state["pass/left"] = torch.ones(1)
                if number + 1 == cut:
                    break
            next(run(scheduler, generation, 4, first))
            assert not generation.holds
            assert not generation.held("shape", lambda: "text")


def test_threads_with_a_scheduler_each_follow_their_own() -> None:
    """Two pipelines that share the module, in turns."""
    wanted: dict[int, list[Step]] = {3: [], 5: []}
    schedulers = threading.local()
    generation = Generation(lambda: schedulers.own)
    barrier = threading.Barrier(2)

    def pipeline(count: int) -> None:
        schedulers.own = FlowMatchEulerDiscreteScheduler(shift=float(count))
        for _ in range(2):
            for step in run(schedulers.own, generation, count):
                wanted[count].append(step)
                if len(wanted[count]) < 6:
                    barrier.wait(timeout=60)

    threads = [threading.Thread(target=pipeline, args=(count,)) for count in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(wanted[n] == [Step(i, n) for i in twice(n)] * 2 for n in wanted)


def test_times_that_the_pipeline_rounds_in_its_own_way_follow_the_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    generation = Generation(lambda: scheduler)
    assert indices(run(scheduler, generation, 30, to=lambda t: t.round() + 0.25)) == twice(30)
