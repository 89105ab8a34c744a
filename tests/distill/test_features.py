"""A loss on what blocks return: that of plain torch, on the frames that a block has; it falls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fisopt import FrameInterleave, InputError, OptionError, StepCache, optimize
from fisopt.distill import Supplied, Training, sparse
from fisopt.distill.block_outputs import BlockOutputs
from fisopt.distill.conditions import Conditions, record
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.features import Compared, apart
from fisopt.distill.levels import Levels
from fisopt.models.testbed import TestbedPipeline
from fisopt.rewrite.pass_base import Pass
from tests.distill.conftest import GUIDANCE, PROMPTS, SIZE

STEPS = 2
STRIDED = FrameInterleave(2, blocks=":", rotate="steps")


@pytest.fixture(scope="module")
def recorded(pipe: TestbedPipeline) -> tuple[Conditions, Levels]:
    return record(pipe, pipe.transformer, PROMPTS, STEPS, SIZE)


def compared(
    teacher: nn.Module, student: nn.Module, passes: Sequence[Pass], levels: Levels
) -> Compared:
    made = [
        Denoiser(optimize(model, [*these, BlockOutputs()], backend="eager"), levels, GUIDANCE)
        for model, these in ((student, passes), (teacher, ()))
    ]
    return Compared(*made, weight=0.5)


def noise_of(conditions: Conditions) -> Tensor:
    return torch.randn(2, *conditions.shape, generator=torch.Generator().manual_seed(3))


def other(model: nn.Module) -> Any:
    """A copy with other weights, which can be trained."""
    made = copy.deepcopy(model).requires_grad_(True)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.1)
    return made


def test_the_loss_and_its_gradient_are_those_of_plain_torch(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]
) -> None:
    conditions, levels = recorded
    teacher: Any = pipe.transformer
    student, latents = other(teacher), noise_of(conditions)
    learns = compared(teacher, student, [], levels)
    given = learns.take(conditions, torch.arange(2))
    learns.at(latents, 0, given)

    kept: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    hooks = [
        block.register_forward_hook(lambda *call, name=name: kept[name].append(call[-1]))
        for name, model in (("teacher", teacher), ("student", student))
        for block in model.blocks
    ]
    for model in (teacher, student):
        Denoiser(model, levels, GUIDANCE).at(latents, 0, given)
    for hook in hooks:
        hook.remove()
    pairs = zip(kept["student"], kept["teacher"], strict=True)
    far = [((x - y).square().mean() / y.square().mean()).sqrt() for x, y in pairs]
    want = 0.5 * torch.stack(far).mean()

    assert learns.beside is not None
    torch.testing.assert_close(learns.beside, want)
    assert float(want.detach()) > 0.01
    weights = list(student.blocks.parameters())
    for one, two in zip(
        torch.autograd.grad(learns.beside, weights), torch.autograd.grad(want, weights), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kv", ["anchors", "all"])
def test_blocks_on_some_frames_are_compared_there(
    pipe: TestbedPipeline, recorded: tuple[Conditions, Levels], kv: Any
) -> None:
    """The first block sees what the dense one does, so with all keys it returns the same there."""
    conditions, levels = recorded
    teacher: Any = pipe.transformer
    latents, rows = noise_of(conditions), torch.arange(2)
    passes = [FrameInterleave(2, blocks=":", kv=kv)]
    seen: list[dict[str, Tensor]] = [{}, {}]
    for held, these in zip(seen, (passes, ()), strict=True):
        module = optimize(teacher, [*these, BlockOutputs()], backend="eager")
        denoiser = Denoiser(module, levels)
        with module.watch(held.update), torch.no_grad():
            denoiser.at(latents, 0, denoiser.take(conditions, rows))
    first, kept = (f"BlockOutputs/blocks.0/0{end}" for end in ("", "/kept"))
    frames = torch.arange(5 * 64).view(5, 64)
    assert torch.equal(seen[0][kept], frames[[0, 2, 4]].flatten())
    there = seen[1][first][:, frames[[0, 2, 4]].flatten()]
    want = ((seen[0][first] - there).square().mean() / there.square().mean()).sqrt()
    assert float(apart(*seen)[0]) == pytest.approx(float(want), abs=1e-5)
    near, far = apart(*seen)
    assert (float(near) < 1e-4) == (kv == "all")
    assert float(far) > 1e-2


def test_it_falls(pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]) -> None:
    """Also where a step reuses what the one before it has computed, which has nothing to learn."""
    conditions, levels = recorded
    passes = [STRIDED, StepCache(steps="1")]
    made = sparse(
        pipe,
        PROMPTS,
        passes,
        steps=STEPS,
        training=Training(steps=25, batch=2, rate=5e-4, warmup=2, average=0.5),
        supplied=Supplied(own=1.0, reuse=2, kept=2, through=True),
        arguments=SIZE,
        features=2.0,
    )
    assert made.passes == tuple(passes)
    assert "BlockOutputs" not in repr(made.recipe.passes)

    def far(model: nn.Module) -> float:
        learns = compared(pipe.transformer, model, passes, levels)
        given = learns.take(conditions, torch.arange(2))
        with torch.no_grad():
            learns.at(noise_of(conditions), 0, given)
            assert learns.beside is not None
            first = float(learns.beside)
            learns.at(noise_of(conditions), 1, given)
        assert learns.compared == 3  # at the second step one block is reused
        return first

    assert far(made.model) < 0.9 * far(pipe.transformer)


def test_nothing_to_compare(pipe: TestbedPipeline, recorded: tuple[Conditions, Levels]) -> None:
    conditions, levels = recorded
    plain = Denoiser(optimize(pipe.transformer, [STRIDED], backend="eager"), levels)
    learns = Compared(plain, plain, 1.0)
    latents, given = noise_of(conditions), learns.take(conditions, torch.arange(2))
    with torch.no_grad():
        learns.at(latents, 0, given)
        with pytest.raises(InputError, match="no block of the student returns values of the"):
            learns.at(latents, 1, given)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), "much"])
def test_a_weight_that_is_none(pipe: TestbedPipeline, weight: Any) -> None:
    with pytest.raises(OptionError, match="features: got"):
        sparse(pipe, PROMPTS, [STRIDED], features=weight)
