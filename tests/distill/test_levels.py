"""Levels: one step of ours is one step of the scheduler's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from fisopt import InputError
from fisopt.distill.levels import levels_of

SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=4.0),
    "flow, reversed": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "flow, terminal": FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=0.5),
    "epsilon": DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
    "clip": DDIMScheduler(clip_sample=False, prediction_type="sample", timestep_spacing="trailing"),
    "v": CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_is_the_schedulers(name: str) -> None:
    scheduler: Any = SCHEDULERS[name]
    scheduler.set_timesteps(5)
    levels = levels_of(scheduler)
    assert levels.steps == 5
    assert levels[0].sigma > 0.9
    generator = torch.Generator().manual_seed(0)
    given, *outputs = torch.randn(6, 2, 3, 4, generator=generator)
    for step, output in enumerate(outputs):
        here, there = levels[step], levels[step + 1]
        assert here.time == pytest.approx(float(scheduler.timesteps[step]))
        latents = given / here.scale
        after = latents - levels.gap(step) * here.velocity(output, latents, levels.prediction)
        want = scheduler.step(output, scheduler.timesteps[step], given, return_dict=False)[0]
        torch.testing.assert_close(after * there.scale, want, rtol=2e-4, atol=2e-4)
        given = want


@pytest.mark.parametrize("name", SCHEDULERS)
def test_hops_keep_the_borders(name: str) -> None:
    scheduler: Any = SCHEDULERS[name]
    scheduler.set_timesteps(4)
    levels = levels_of(scheduler)
    fine = levels.split(3)
    assert fine.steps == 12
    for kept, border in zip(fine[::3], levels, strict=True):
        assert kept.sigma == pytest.approx(border.sigma, abs=1e-6)
        assert kept.time == pytest.approx(border.time, abs=1e-3)
    sigmas = [level.sigma for level in fine]
    assert sigmas == sorted(sigmas, reverse=True)


def test_more_hops_than_training_steps() -> None:
    scheduler = DDIMScheduler(num_train_timesteps=10)
    scheduler.set_timesteps(5)
    with pytest.raises(
        InputError, match=r"5 segments do not divide into 3 hops.*10 training steps.*trailing"
    ):
        levels_of(scheduler).split(3)


def test_other_schedulers() -> None:
    with pytest.raises(InputError, match="got EulerDiscreteScheduler, wanted FlowMatchEuler"):
        levels_of(EulerDiscreteScheduler())
    noisy = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(InputError, match="stochastic_sampling adds noise"):
        levels_of(noisy)
