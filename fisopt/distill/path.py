"""The teacher's path from noise to a clip, and the losses of a student that walks along it.

The teacher takes many small steps; the student has to reach with each of its few steps the state
at which the teacher is at the next border: ``target = (z - teacher at the border) / gap``.  Where
``z`` is the teacher's own state this is what the teacher averages over the segment.  Where it is
the state that the student itself has reached, the student also learns to come back to the path, so
that its errors do not add up from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fisopt.distill.conditions import Conditions
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.levels import Levels
from fisopt.distill.loss import distance


@dataclass(frozen=True)
class Path:
    """Where a teacher came by on its way from some noises.

    Attributes:
        states: at each border, noise first, [borders, clips, ...].
        rows: the prompt of each clip, as a number.
        ends: where the teacher leads from each state but the last, where that is not the next
            state: states that are clips under noise do not follow each other.
    """

    states: Tensor
    rows: Tensor
    ends: Tensor | None = None

    def take(self, clips: Tensor) -> Path:
        """The paths of some of the clips."""
        ends = None if self.ends is None else self.ends[:, clips]
        return Path(self.states[:, clips], self.rows[clips], ends)

    def end(self, step: int) -> Tensor:
        """Where the teacher leads in a step."""
        return self.states[step + 1] if self.ends is None else self.ends[step]


def joined(paths: list[Path]) -> Path:
    """All the clips of some paths."""
    states = torch.cat([path.states for path in paths], 1)
    ends = [path.ends for path in paths if path.ends is not None]
    rows = torch.cat([path.rows for path in paths])
    return Path(states, rows, torch.cat(ends, 1) if ends else None)


@torch.no_grad()
def walked(
    teacher: Denoiser, noise: Tensor, conditions: Conditions, rows: Tensor, hops: int
) -> Path:
    """Let a teacher walk from noise to clips.

    Args:
        teacher: its levels are the borders.
        noise: [clips, ...], standard normal.
        conditions: of all prompts.
        rows: the prompt of each clip.
        hops: the teacher's steps between two borders.
    """
    given, fine = teacher.take(conditions, rows), teacher.levels.split(hops)
    states = [noise / fine[0].scale]
    for border in range(teacher.levels.steps):
        states.append(_hopped(teacher, states[-1], given, fine, border, hops))
    return Path(torch.stack(states), rows)


@torch.no_grad()
def noised(
    teacher: Denoiser,
    latents: Tensor,
    noise: Tensor,
    conditions: Conditions,
    rows: Tensor,
    hops: int,
) -> Path:
    """Put clips under the noise of each border, and let a teacher walk to the next.

    Args:
        teacher: its levels are the borders.
        latents: clips, [clips, ...].
        noise: of the same shape, standard normal.
        conditions: of all prompts.
        rows: the prompt of each clip.
        hops: the teacher's steps between two borders.
    """
    given, fine = teacher.take(conditions, rows), teacher.levels.split(hops)
    levels = teacher.levels
    states = [(1 - level.sigma) * latents + level.sigma * noise for level in levels]
    ends = [
        _hopped(teacher, states[border], given, fine, border, hops)
        for border in range(levels.steps)
    ]
    return Path(torch.stack(states), rows, torch.stack(ends))


def _hopped(
    teacher: Denoiser, latents: Tensor, given: Conditions, fine: Levels, border: int, hops: int
) -> Tensor:
    """Where a teacher is at the next border, after all the hops."""
    for step in range(border * hops, (border + 1) * hops):
        velocity = teacher.velocity(latents, fine[step], given, (step, fine.steps))
        latents = latents - fine.gap(step) * velocity
    return latents


def walk(
    student: Denoiser, path: Path, conditions: Conditions, own: Tensor, through: bool = False
) -> Iterator[Tensor]:
    """The losses of a student along a path.

    Args:
        student: its levels are the borders.
        path: of its teacher.
        conditions: of all prompts.
        own: for each clip whether the student goes on from where it came itself (bool).
        through: whether gradients pass between steps, so that a step also learns what later ones
            make of its errors; all steps are then held in memory at once.

    Yields:
        The mean distance from the target, and what the student adds, times the share of the way
        that the step goes; step by step, or their sum if gradients pass.
    """
    given, levels = student.take(conditions, path.rows), student.levels
    mine, there = own.view(-1, *[1] * (path.states.ndim - 2)), path.states[0].float()
    whole, held = levels[0].sigma - levels[-1].sigma, []
    for step in range(levels.steps):
        gap = levels.gap(step)
        start = torch.where(mine, there, path.states[step].float())
        velocity = student.at(start, step, given)
        target = (start - path.end(step).float()) / gap
        loss = distance(velocity, target).mean()
        loss = (loss if student.beside is None else loss + student.beside) * (gap / whole)
        there = start - gap * velocity
        if through:
            held.append(loss)
        else:
            yield loss
            there = there.detach()
    if through:
        yield torch.stack(held).sum()


@torch.no_grad()
def sampled(student: Denoiser, noise: Tensor, conditions: Conditions, rows: Tensor) -> Tensor:
    """What a student makes of noise with its own steps, [clips, ...]."""
    return walked(student, noise, conditions, rows, 1).states[-1]
