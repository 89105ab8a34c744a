"""Consistency targets: the teacher makes a few small steps, the student itself jumps the rest.

Source: Multistep Consistency Models, arXiv:2403.06807.  From a clip under some noise the teacher
goes a few hops; from there the student, without gradient, goes to the end of the segment.  Its own
velocity is to lead there at once.  At the end of a segment the target is the teacher's own step, so
that it cannot collapse.  Cheap where a walk through whole segments is too dear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fisopt.distill.conditions import Conditions
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.loss import distance


@dataclass(frozen=True)
class Jump:
    """Where a jump starts.

    Attributes:
        border: the segment, as the number of the border that it starts at.
        hop: how many of the segment's hops are behind it.
        lead: hops of the teacher.
    """

    border: int
    hop: int
    lead: int


def jumped(
    student: Denoiser,
    teacher: Denoiser,
    latents: Tensor,
    noise: Tensor,
    conditions: Conditions,
    rows: Tensor,
    hops: int,
    jump: Jump,
) -> Tensor:
    """The loss of one jump.

    Args:
        student: its levels are the borders.
        teacher: of the same levels.
        latents: clips, [clips, ...].
        noise: of the same shape, standard normal.
        conditions: of all prompts.
        rows: the prompt of each clip.
        hops: of a segment.
        jump: where it starts.

    Returns:
        The mean distance of the student's velocity from the target.
    """
    fine, step = student.levels.split(hops), (jump.border, student.levels.steps)
    first, end = jump.border * hops + jump.hop, (jump.border + 1) * hops
    start = fine[first]
    here = (1 - start.sigma) * latents + start.sigma * noise
    own = student.take(conditions, rows)
    with torch.no_grad():
        there, given = here, teacher.take(conditions, rows)
        reached = min(first + jump.lead, end)
        for index in range(first, reached):
            velocity = teacher.velocity(there, fine[index], given, (index, fine.steps))
            there = there - fine.gap(index) * velocity
        if reached < end:
            velocity = student.velocity(there, fine[reached], own, step)
            there = there - (fine[reached].sigma - fine[end].sigma) * velocity
        target = (here - there) / (start.sigma - fine[end].sigma)
    return distance(student.velocity(here, start, own, step), target).mean()
