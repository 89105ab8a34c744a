"""What a student learns from in a step: walks along its teacher's paths, or jumps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fisopt.checked import Checked, count, flag
from fisopt.distill.conditions import Conditions
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.jump import Jump, jumped
from fisopt.distill.path import walk
from fisopt.distill.supply import Supply
from fisopt.distill.trainer import Losses, Training
from fisopt.errors import OptionError, shown


@dataclass(frozen=True)
class Supplied(metaclass=Checked):
    """Where a student's steps start, and how many of the teacher's paths to compute.

    Attributes:
        own: share of clips whose steps continue from the student's own state; the others start each
            step on the teacher's path.
        reuse: optimiser steps between two batches of new paths.
        kept: number of batches of paths to keep.
        through: whether gradients flow through all sampling steps, so that an early step also
            learns how later steps amplify its errors. Steps then start from the student's own state
            (``own=1``), and memory holds all of them at once.
    """

    own: float = 0.8
    reuse: int = 4
    kept: int = 16
    through: bool = False

    def __post_init__(self) -> None:
        flag("Supplied: through", self.through)
        for name in ("reuse", "kept"):
            count(f"Supplied: {name}", getattr(self, name))
        if not isinstance(self.own, (int, float)) or not 0 <= self.own <= 1:
            raise OptionError(f"Supplied: own: got {shown(self.own)}, wanted a number from 0 to 1")


def walks(
    student: Denoiser,
    teacher: Denoiser,
    conditions: Conditions,
    clips: Tensor | None,
    hops: int,
    training: Training,
    supplied: Supplied,
) -> Losses:
    """A student walks along its teacher's paths."""
    supply = Supply(
        teacher,
        conditions,
        hops,
        training.batch,
        reuse=supplied.reuse,
        kept=supplied.kept,
        seed=training.seed,
        latents=clips,
    )
    share = supplied.own if clips is None else 0.0

    def losses(step: int, draws: torch.Generator) -> Iterator[Tensor]:
        path = supply.draw(step, draws)
        own = torch.rand(training.batch, generator=draws, device=draws.device) < share
        yield from walk(student, path, conditions, own, supplied.through)

    return losses


def jumps(
    student: Denoiser,
    teacher: Denoiser,
    conditions: Conditions,
    clips: Tensor,
    hops: int,
    lead: int,
    batch: int,
) -> Losses:
    """A student jumps from clips under noise."""

    def drawn(most: int, draws: torch.Generator) -> int:
        return int(torch.randint(most, (), generator=draws, device=draws.device))

    def losses(step: int, draws: torch.Generator) -> Iterator[Tensor]:
        rows = torch.randint(len(clips), (batch,), generator=draws, device=draws.device)
        noise = torch.randn(batch, *clips.shape[1:], generator=draws, device=draws.device)
        jump = Jump(drawn(student.levels.steps, draws), drawn(hops, draws), lead)
        yield jumped(student, teacher, clips[rows], noise, conditions, rows, hops, jump)

    return losses
