"""A model as a velocity field: between clip and noise, guidance folded in if it is guided."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fisopt.distill.conditions import LATENTS, TIME, Conditions, first_of
from fisopt.distill.levels import Level, Levels


class Denoiser:
    """The velocity that a model, or a rewritten Program of it, predicts.

    Args:
        module: the model, or what `fisopt.optimize` made of it.
        levels: of its sampler, which say what it predicts.
        guidance: weight of classifier-free guidance; 1 runs the conditional branch alone.
        precision: dtype of autocast, None for the weights' own.

    Attributes:
        beside: what the newest call adds to the loss, None for nothing.
    """

    beside: Tensor | None = None

    def __init__(
        self,
        module: Any,
        levels: Levels,
        guidance: float = 1.0,
        precision: torch.dtype | None = None,
    ) -> None:
        self.module, self.levels = module, levels
        self.guidance, self.precision = guidance, precision

    def take(self, conditions: Conditions, rows: Tensor) -> Conditions:
        """The conditions of some prompts, for the branches that it runs."""
        return conditions.take(rows, self.guidance != 1)

    def at(self, latents: Tensor, step: int, given: Conditions) -> Tensor:
        """The velocity at a step of its sampler; see `velocity`."""
        return self.velocity(latents, self.levels[step], given, (step, self.levels.steps))

    def velocity(
        self,
        latents: Tensor,
        level: Level,
        given: Conditions,
        step: tuple[int, int] | None = None,
    ) -> Tensor:
        """The velocity ``eps - clip``.

        Args:
            latents: between clip and noise, [prompts, ...] in the model's layout, float32.
            level: their noise level.
            given: what `take` returned.
            step: the step and how many there are, where passes depend on it.
        """
        guided = self.guidance != 1
        rows = torch.cat([latents, latents]) if guided else latents
        output = self._run(rows, level, given, step)
        velocity = level.velocity(output.float(), rows, self.levels.prediction)
        if not guided:
            return velocity
        with_prompt, without = velocity.chunk(2)
        return without + self.guidance * (with_prompt - without)

    def _run(
        self, rows: Tensor, level: Level, given: Conditions, step: tuple[int, int] | None
    ) -> Tensor:
        taken = rows * level.scale
        if given.beside is not None:
            taken = torch.cat([taken, given.beside.to(taken.dtype)], given.joined)
        arguments = dict(given.branches[0])
        arguments[LATENTS] = taken.to(self.module.dtype)
        time = given.time * level.time
        whole = not given.time_type.is_floating_point
        arguments[TIME] = (time.round() if whole else time).to(given.time_type)
        arguments["return_dict"] = False
        with ExitStack() as stack:
            if self.precision is not None:
                stack.enter_context(torch.autocast(rows.device.type, self.precision))
            if step is not None and hasattr(self.module, "cache_context"):
                said = {"step_index": step[0], "num_inference_steps": step[1]}
                stack.enter_context(self.module.cache_context("cond", **said))
            output = first_of(self.module(**arguments))
        shape = given.shape
        if tuple(output.shape[1:]) != shape:  # the model also returns a variance
            output = output.narrow(given.joined, 0, shape[given.joined - 1])
        return output
