"""What a denoiser predicts is what the pipeline computes; a path's targets are the teacher's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fisopt import InputError
from fisopt.distill.conditions import Conditions, record
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.jump import Jump, jumped
from fisopt.distill.levels import Levels
from fisopt.distill.loss import distance
from fisopt.distill.path import joined, noised, sampled, walk, walked
from fisopt.models.testbed import TestbedPipeline
from tests.distill.conftest import GUIDANCE, PROMPTS, SIZE

STEPS = 3


@pytest.fixture(scope="module")
def recorded(pipe: TestbedPipeline) -> tuple[Conditions, Levels]:
    return record(pipe, pipe.transformer, PROMPTS, STEPS, SIZE)


def noise_of(conditions: Conditions) -> Tensor:
    return torch.randn(2, *conditions.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@pytest.mark.parametrize("batch", [1, 2])
def test_sampled_is_what_the_pipeline_makes(
    pipe: TestbedPipeline, guidance: float, batch: int
) -> None:
    found, levels = record(pipe, pipe.transformer, PROMPTS, STEPS, SIZE, batch)
    assert len(found.branches) == 2
    assert found.beside is not None
    assert len(found.beside) == 1  # the coordinates, which are the same for all prompts
    noise = noise_of(found)
    got = sampled(Denoiser(pipe.transformer, levels, guidance), noise, found, torch.arange(2))
    want = pipe(
        PROMPTS,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="latent",
        **SIZE,
    ).frames
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_pipeline_is_as_it_was(pipe: TestbedPipeline) -> None:
    record(pipe, pipe.transformer, PROMPTS[:1], 1, SIZE)
    assert "forward" not in vars(pipe.transformer)


def test_a_path_of_one_hop_is_the_sampler(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    """So a student that is its own teacher has nothing to learn, wherever its steps start."""
    conditions, levels = recorded
    teacher = Denoiser(pipe.transformer, levels, GUIDANCE)
    path = walked(teacher, noise_of(conditions), conditions, torch.arange(2), 1)
    for own in (torch.zeros(2, dtype=bool), torch.ones(2, dtype=bool)):
        losses = list(walk(teacher, path, conditions, own))
        assert len(losses) == STEPS
        assert max(float(loss) for loss in losses) < 1e-3


def test_targets_lead_to_the_teachers_borders(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    """A student that predicts what would reach the border has no loss."""
    conditions, levels = recorded
    teacher = Denoiser(pipe.transformer, levels, GUIDANCE)
    noise, rows = noise_of(conditions), torch.arange(2)
    path = walked(teacher, noise, conditions, rows, 4)
    fine = walked(Denoiser(pipe.transformer, levels.split(4), GUIDANCE), noise, conditions, rows, 1)
    torch.testing.assert_close(path.states, fine.states[::4])

    class Ideal(Denoiser):
        def at(self, latents: Tensor, step: int, given: Conditions) -> Tensor:
            torch.testing.assert_close(latents, path.states[step])
            return (latents - path.states[step + 1]) / self.levels.gap(step)

    ideal = Ideal(pipe.transformer, levels)
    own = torch.tensor([True, False])
    assert sum(float(loss) for loss in walk(ideal, path, conditions, own)) < 1e-5


def test_gradients_through_the_steps_are_those_of_the_sampler(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    """Of its distances from the teacher's states; from the teacher's states none pass."""
    conditions, levels = recorded
    teacher, rows = Denoiser(pipe.transformer, levels, GUIDANCE), torch.arange(2)
    path = walked(teacher, noise_of(conditions), conditions, rows, 1)
    model = copy.deepcopy(pipe.transformer).requires_grad_(True)
    with torch.no_grad():
        model.proj_out.weight.mul_(1.1)
    student, weights = Denoiser(model, levels, GUIDANCE), list(model.parameters())
    own = torch.ones(2, dtype=torch.bool)

    def gradients(*losses: Tensor) -> list[Tensor]:
        held = torch.autograd.grad(sum(losses), weights, allow_unused=True)
        return [g for g in held if g is not None]

    there, given, far = path.states[0], student.take(conditions, rows), []
    for step in range(STEPS):
        there = there - levels.gap(step) * student.at(there, step, given)
        far.append((there - path.states[step + 1]).square().flatten(1).mean(1).sqrt().mean())
    (loss,) = walk(student, path, conditions, own, through=True)
    whole = levels[0].sigma - levels[-1].sigma
    want = float(torch.stack(far).sum().detach()) / whole
    assert float(loss.detach()) == pytest.approx(want, rel=1e-2)
    got = gradients(loss)
    for one, other in zip(got, gradients(*far), strict=True):
        torch.testing.assert_close(
            one * whole, other, rtol=1e-2, atol=1e-2 * float(other.abs().max())
        )
    cut = gradients(*walk(student, path, conditions, own))
    assert float((cut[0] - got[0]).norm()) > 0.05 * float(got[0].norm())
    near = gradients(*walk(student, path, conditions, ~own))
    for one, other in zip(
        near, gradients(*walk(student, path, conditions, ~own, True)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_clips_under_noise_lead_where_the_teacher_does(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    """From pure noise the first segment is that of a path; the others start at the clip."""
    conditions, levels = recorded
    teacher = Denoiser(pipe.transformer, levels, GUIDANCE)
    noise, rows = noise_of(conditions), torch.arange(2)
    clips = noise.flip(0)
    path = noised(teacher, clips, noise, conditions, rows, 2)
    torch.testing.assert_close(path.end(0), walked(teacher, noise, conditions, rows, 2).states[1])
    sigma = levels[1].sigma
    torch.testing.assert_close(path.states[1], (1 - sigma) * clips + sigma * noise)
    torch.testing.assert_close(path.states[-1], clips)
    both = joined([path, path]).take(torch.tensor([3]))
    torch.testing.assert_close(both.end(2), path.end(2)[1:])


class Known(Denoiser):
    """A student that predicts zeros, and keeps where it was asked."""

    def velocity(self, latents: Tensor, level: Any, given: Conditions, step: Any = None) -> Tensor:
        self.asked = getattr(self, "asked", [])
        self.asked.append((latents, level.sigma))
        return torch.zeros_like(latents)


@pytest.mark.parametrize(("hop", "lead"), [(0, 3), (1, 2), (2, 1), (2, 5)])
def test_at_a_border_the_target_of_a_jump_is_the_teachers(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels], hop: int, lead: int
) -> None:
    conditions, levels = recorded
    teacher, student = (kind(pipe.transformer, levels) for kind in (Denoiser, Known))
    noise, rows, fine = noise_of(conditions), torch.arange(2), levels.split(3)
    clips, jump = noise.flip(0), Jump(1, hop, lead)
    got = jumped(student, teacher, clips, noise, conditions, rows, 3, jump)
    assert len(student.asked) == 1  # no jump of its own
    here, sigma = student.asked[0]
    assert sigma == fine[3 + hop].sigma
    there, given = here, teacher.take(conditions, rows)
    with torch.no_grad():
        for index in range(3 + hop, 6):
            there = there - fine.gap(index) * teacher.velocity(there, fine[index], given)
    target = (here - there) / (sigma - levels[2].sigma)
    assert float(got) == pytest.approx(float(distance(torch.zeros_like(target), target).mean()))


def test_inside_a_segment_the_student_jumps_the_rest(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    conditions, levels = recorded
    teacher, student = (kind(pipe.transformer, levels) for kind in (Denoiser, Known))
    noise, rows = noise_of(conditions), torch.arange(2)
    jumped(student, teacher, noise.flip(0), noise, conditions, rows, 3, Jump(0, 0, 1))
    fine = levels.split(3)
    assert [sigma for _, sigma in student.asked] == [fine[1].sigma, fine[0].sigma]


def test_prompts_are_taken_by_row(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    conditions, levels = recorded
    denoiser, noise = Denoiser(pipe.transformer, levels, GUIDANCE), noise_of(conditions)
    both = denoiser.at(noise, 0, denoiser.take(conditions, torch.tensor([1, 0])))
    one = denoiser.at(noise[1:], 0, denoiser.take(conditions, torch.tensor([0])))
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        both[1:], denoiser.at(noise[1:], 0, denoiser.take(conditions, torch.tensor([1])))
    )


def test_guidance_that_was_not_recorded(pipe: TestbedPipeline) -> None:
    found, levels = record(pipe, pipe.transformer, PROMPTS, 1, {**SIZE, "guidance_scale": 1.0})
    with pytest.raises(
        InputError, match="called its transformer once per step; pass the arguments"
    ):
        Denoiser(pipe.transformer, levels, GUIDANCE).take(found, torch.arange(2))


def test_no_prompt(pipe: TestbedPipeline) -> None:
    with pytest.raises(InputError, match="got 0 prompts, wanted 1 or more"):
        record(pipe, pipe.transformer, [], 1)
