"""A pipeline that denoises with tiny transformers, for searches that run whole generations."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.zoo import zoo

GRID = (5, 3, 4)


class Denoiser:
    """Euler steps from seeded noise, two guidance branches a step.

    Args:
        second: whether another transformer runs from the second step on.
        noisy: whether each step adds noise that no generator is told of.

    Attributes:
        calls: how often a transformer ran, by step.
    """

    def __init__(self, *, second: bool = False, noisy: bool = False) -> None:
        self.transformer: Any = zoo()["wan"].model
        if second:
            self.transformer_2: Any = zoo()["wan"].model
        self.noisy = noisy
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)  # type: ignore[no-untyped-call]
        self.prompts: list[str] = []

    def __call__(
        self,
        prompt: str,
        output_type: str = "latent",
        num_inference_steps: int = 3,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        assert output_type == "latent"
        self.prompts.append(prompt)
        inputs = zoo()["wan"].inputs(*GRID, batch=2, seed=len(prompt))
        z = torch.randn(inputs["hidden_states"].shape[1:], generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for step, time in enumerate(self.scheduler.timesteps):
            late = step > 0 and hasattr(self, "transformer_2")
            model = self.transformer_2 if late else self.transformer
            given = {**inputs, "hidden_states": z.expand(2, *z.shape), "timestep": time.expand(2)}
            with model.cache_context("both"):
                velocity = model(**given)[0]
            velocity = velocity.mean(0) / velocity.std()
            z = self.scheduler.step(velocity, time, z, return_dict=False)[0]
            if self.noisy:
                z = z + torch.rand(z.shape)
        return [z]
