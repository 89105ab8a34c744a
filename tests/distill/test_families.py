"""A sparse student of every family's tiny model takes a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fisopt import FrameInterleave, PassManager, Program
from fisopt.distill import Trainer, Training
from fisopt.distill.conditions import LATENTS, TIME, conditions_of, first_of
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.levels import levels_of
from fisopt.distill.path import walk, walked
from tests.conftest import GRID
from tests.zoo import Case, cases


class Runs:
    """A Program as a module: what a denoiser asks of one."""

    dtype = torch.float32

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, **inputs: object) -> object:
        inputs.pop("return_dict")
        return self.program(**inputs)


@cases("wan", "wan_i2v", "cogvideox_5b", "hunyuan_video", "ltx", "mochi")
def test_a_student_takes_a_step(case: Case, program: Program) -> None:
    inputs = case.inputs(*GRID, batch=2)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    levels = levels_of(scheduler)
    with torch.no_grad():
        returned = first_of(program(**inputs)).shape[1:]
    given = conditions_of([inputs], returned, inputs[TIME], 500.0)
    assert given.prompts == len(inputs[LATENTS]) == 2
    fast = Runs(PassManager([FrameInterleave(2, blocks=":")]).run(program))
    student, teacher = Denoiser(fast, levels), Denoiser(Runs(program), levels)
    noise = torch.randn(2, *given.shape, generator=torch.Generator().manual_seed(0))
    path = walked(teacher, noise, given, torch.arange(2), 1)

    def losses(step: int, generator: torch.Generator) -> Iterator[Tensor]:
        yield from walk(student, path, given, torch.tensor([True, False]))

    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    trainer = Trainer(dict(case.model.named_parameters()), losses, Training(steps=1, rate=1e-3))
    try:
        trainer.advance()
        moved = [n for n, p in case.model.named_parameters() if not torch.equal(p, before[n])]
        assert len(moved) > 0.8 * len(before)
        assert trainer.loss > 0
    finally:
        case.model.load_state_dict(before, strict=False)
        case.model.requires_grad_(False)
