"""Which step and which generation a call belongs to, from what a pipeline or a loop says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fisopt
from fisopt import FrameInterleave, ScheduleError
from fisopt.runtime.generation import Generation
from tests.zoo import zoo


def at(time: float) -> dict[str, Any]:
    return {"timestep": torch.tensor([time])}


def steps(generation: Generation, times: list[float]) -> list[int]:
    return [generation.step(at(t)).index for t in times]


def test_a_falling_timestep_counts_and_a_rise_starts_over() -> None:
    assert steps(Generation(), [900, 600, 300, 900, 600]) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("times", [[900, 600, 300], [0.0, 0.4, 0.8]])
def test_told_the_number_of_steps_either_direction_counts(times: list[float]) -> None:
    generation = Generation()
    for _ in range(2):
        with generation.generation(3):
            both_branches = [t for t in times for _ in range(2)]
            assert steps(generation, both_branches) == [0, 0, 1, 1, 2, 2]
            with pytest.raises(ScheduleError, match="this is step 4"):
                generation.step(at(1.2 if times[-1] < 1 else 1.0))


def test_a_named_branch_that_calls_a_step_again_starts_over() -> None:
    """A clip that was cut short at its first step leaves nothing to the next one."""
    generation = Generation()

    def call(index: int) -> dict[str, torch.Tensor]:
        with generation.context("cond", step_index=index, num_inference_steps=4):
            generation.step(at(900 - index))
            return generation.held("shape")

    call(0)["match"] = torch.zeros(1)
    assert not call(0)
    call(0)["match"] = torch.ones(1)
    assert call(1)["match"] == 1


def test_unnamed_branches_of_one_step_hold_their_own() -> None:
    generation = Generation()
    for step, time in enumerate((900, 600)):
        for branch in range(2):
            generation.step(at(time))
            held = generation.held("shape")
            if step == 0:
                held["match"] = torch.tensor(branch)
            assert held["match"] == branch


class Pipe:
    """All that `optimize` asks of a pipeline."""

    def __init__(self) -> None:
        self.transformer = zoo()["wan"].model


def test_example_inputs_of_a_pipeline_are_captured_before_it_changes() -> None:
    pipe, inputs = Pipe(), zoo()["wan"].inputs(5, 3, 4)
    with pytest.raises(fisopt.PreconditionError, match="first_block=9 is outside"):
        fisopt.optimize(pipe, [FrameInterleave(first_block=9)], inputs, backend="eager")
    assert pipe.transformer is zoo()["wan"].model
    fisopt.optimize(pipe, [FrameInterleave()], inputs, backend="eager")
    assert len(pipe.transformer.report.variants) == 1
