"""A supply of the teacher's paths: laid as training goes on, used some times, then dropped.

Which paths a step may draw from depends on its number alone, and each is laid from a seed of its
own, so that a run that goes on draws what one without a break would have drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisopt.distill.conditions import Conditions
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.path import Path, joined, noised, walked
from fisopt.distill.seeds import generator


class Supply:
    """Paths of a teacher for the steps of a training run.

    Args:
        teacher: its levels are the student's borders.
        conditions: of all prompts.
        hops: the teacher's steps between two borders.
        batch: paths that are laid at once, and drawn at once.
        reuse: how many steps pass until the next ones are laid.
        kept: how many batches are held; the oldest goes first.
        seed: of noise and prompts.
        latents: clips to put under noise, one a prompt; None for the teacher's own paths.
    """

    def __init__(
        self,
        teacher: Denoiser,
        conditions: Conditions,
        hops: int,
        batch: int,
        *,
        reuse: int,
        kept: int,
        seed: int,
        latents: Tensor | None = None,
    ) -> None:
        self.teacher, self.conditions, self.hops = teacher, conditions, hops
        self.batch, self.reuse, self.kept, self.seed = batch, reuse, kept, seed
        self.latents = latents
        self.held: dict[int, Path] = {}

    def draw(self, step: int, draws: torch.Generator) -> Path:
        """The paths of a step, drawn from those that it may use."""
        newest = step // self.reuse
        wanted = range(max(0, newest + 1 - self.kept), newest + 1)
        self.held = {n: self.held[n] if n in self.held else self._laid(n) for n in wanted}
        every = joined(list(self.held.values()))
        device = every.rows.device
        chosen = torch.randperm(len(every.rows), generator=draws, device=device)
        return every.take(chosen[: self.batch])

    def _laid(self, number: int) -> Path:
        device = self.conditions.time.device
        draws = generator(device, self.seed, "paths", number)
        shape, prompts = (self.batch, *self.conditions.shape), self.conditions.prompts
        noise = torch.randn(shape, device=device, generator=draws)
        rows = torch.randint(prompts, (self.batch,), device=device, generator=draws)
        if self.latents is None:
            return walked(self.teacher, noise, self.conditions, rows, self.hops)
        clips = self.latents[rows]
        return noised(self.teacher, clips, noise, self.conditions, rows, self.hops)
