"""A pipeline around a tiny model, for the commands that run one again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.zoo import zoo


class Pipeline:
    """What `fisopt calibrate` and `fisopt search` use of a diffusers pipeline.

    Attributes:
        prompts: those that clips were made of.
        seeds: of their noise.
    """

    def __init__(self) -> None:
        self.transformer = zoo()["wan"].model
        self.prompts: list[str] = []
        self.seeds: list[int] = []

    def set_progress_bar_config(self, *, disable: bool) -> None:
        assert disable

    def __call__(
        self,
        prompt: str,
        output_type: str,
        num_inference_steps: int,
        generator: torch.Generator,
        callback_on_step_end: Callable[..., object] | None = None,
    ) -> None:
        assert output_type == "latent"
        self.prompts.append(prompt)
        self.seeds.append(generator.initial_seed())
        for step in range(num_inference_steps):
            inputs = zoo()["wan"].inputs(5, 3, 4, batch=2, seed=generator.initial_seed() + step)
            with self.transformer.cache_context(
                "cond", step_index=step, num_inference_steps=num_inference_steps
            ):
                self.transformer(**inputs)
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, 0, {})
