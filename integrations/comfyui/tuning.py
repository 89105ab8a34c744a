"""`fisopt.tune` over ComfyUI's own sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sample
from torch import Tensor

import fisopt
from fisopt import OptimizedModule

from .families import spec_of
from .forward import attach, still


@dataclass
class Sampling:
    """What ``KSampler`` is told.

    Attributes:
        positive: conditioning.
        negative: conditioning.
        latent: latents [B, C, F, H, W] to begin with.
        steps: denoising steps.
        cfg: guidance scale.
        sampler: its name.
        scheduler: its name.
        seed: of the first generation.
        switch: the step at which a second model takes over.
    """

    positive: Any
    negative: Any
    latent: Tensor
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    seed: int
    switch: int


class Pipeline:
    """Models of ComfyUI as `fisopt.tune` takes a pipeline: with ``transformer`` and another.

    Args:
        patchers: one ``ModelPatcher``, or the two for high and low noise.
        sampling: how to sample.
    """

    transformer: OptimizedModule
    transformer_2: OptimizedModule

    def __init__(self, patchers: list[Any], sampling: Sampling) -> None:
        self.sampling = sampling
        self.patchers = {
            name: still(patcher)
            for name, patcher in zip(("transformer", "transformer_2"), patchers, strict=False)
        }
        for name, patcher in self.patchers.items():
            model = patcher.get_model_object("diffusion_model")
            setattr(self, name, fisopt.optimize(model, spec=spec_of(model), backend="eager"))

    def generate(self, index: int) -> Tensor:
        """Final latents of the generation of a number."""
        said, seed = self.sampling, self.sampling.seed + index
        latent, noise = said.latent, comfy.sample.prepare_noise(said.latent, seed)
        last = len(self.patchers) - 1
        for number, (name, patcher) in enumerate(self.patchers.items()):
            latent = comfy.sample.sample(
                attach(patcher, getattr(self, name)),
                noise,
                said.steps,
                said.cfg,
                said.sampler,
                said.scheduler,
                said.positive,
                said.negative,
                latent,
                disable_noise=number > 0,
                start_step=said.switch if number else None,
                last_step=said.switch if number < last else None,
                force_full_denoise=number == last,
                disable_pbar=True,
                seed=seed,
            )
            noise = noise * 0
        return latent


def tuned(
    patchers: list[Any], sampling: Sampling, target: str, clips: int, minutes: float
) -> fisopt.Tuned:
    """Choose passes by a target, over a number of seeds."""
    pipeline = Pipeline(patchers, sampling)
    seeds = [f"seed {sampling.seed + i}" for i in range(clips)]
    return fisopt.tune(
        pipeline,
        target,
        seeds,
        steps=sampling.steps,
        minutes=minutes,
        generate=lambda pipe, index: pipe.generate(index),
    )
