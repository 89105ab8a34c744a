"""A tiny random model of every family and form, with inputs in units of the token grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn

from fisopt import models
from fisopt.api import capture
from fisopt.models import Family
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.block_paths import blocks_of
from fisopt.spec import ModelSpec

CONTEXT = {"text": 12, "text_2": 7, "image": 6, "audio": 9}
"""Number of tokens of the inputs other than the video."""


@dataclass(frozen=True)
class Case:
    """A tiny model, float32, seeded, in evaluation mode.

    Attributes:
        name: Name of the variant, such as ``"wan_ti2v"``.
        family: The family's adapter.
        config: Entries that differ from the defaults of the model class.
        frames_key: The config entry that fixes the number of latent frames, if there is one. Such a
            model takes one frame count only, so `model_for` builds one for each count.
    """

    name: str
    family: Family
    config: Mapping[str, Any]
    frames_key: str | None = None

    @cached_property
    def model(self) -> nn.Module:
        """The model; the same object every time, so change a copy."""
        return _build(self.family, self.config)

    def model_for(self, frames: int) -> nn.Module:
        """The model for this many latent frames; the same object if it takes any number."""
        if self.frames_key is None or self.config.get(self.frames_key) == frames:
            return self.model
        return _build(self.family, {**self.config, self.frames_key: frames})

    @property
    def least(self) -> int:
        """The fewest latent frames that the model takes."""
        return 1 + self.family.beside

    @property
    def spec(self) -> ModelSpec:
        """Its blocks and its token grid."""
        return models.spec_of(self.model)

    def blocks_of(self, model: nn.Module) -> list[nn.Module]:
        """The video blocks of the model, or of a copy of it, in the model's order."""
        return list(blocks_of(model, self.spec.blocks).values())

    def inputs(
        self, frames: int, height: int, width: int, batch: int = 1, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of one forward call for a token grid of frames x height x width.

        Args:
            frames: latent frames.
            height: rows of tokens.
            width: columns of tokens.
            batch: clips.
            seed: seed of all random numbers.
        """
        overrides = dict(self.config)
        if self.frames_key is not None:
            overrides[self.frames_key] = frames
        config = self.family.config(overrides)
        num_frames, rows, columns = self.family.pixel_size(config, (frames, height, width))
        inputs = self.family.example_inputs(
            config,
            height=rows,
            width=columns,
            num_frames=num_frames,
            batch=batch,
            seed=seed,
            context=CONTEXT,
        )
        timestep = inputs["timestep"]
        if timestep.ndim > 1:  # a value per token or frame, so that taking the wrong one shows
            generator = torch.Generator().manual_seed(seed)
            inputs["timestep"] = torch.rand(timestep.shape, generator=generator) * 1000
        return inputs

    def captured(self, frames: int, height: int, width: int, batch: int = 1) -> Program:
        """The Program for these inputs, captured once in a process."""
        return _captured(self.name, (frames, height, width), batch)


@cache
def _captured(name: str, grid: tuple[int, int, int], batch: int) -> Program:
    case = zoo()[name]
    return capture(case.model_for(grid[0]), case.inputs(*grid, batch=batch))


def _build(family: Family, config: Mapping[str, Any]) -> nn.Module:
    """A model with no parameter left at zero, and sizes at which every block matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family.transformer(**config)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
    return model.eval().requires_grad_(False)


@cache
def zoo() -> dict[str, Case]:
    """Tiny models of every variant of every family with an adapter, by name; built on first use."""
    fixed = {"latte": "video_length"}
    return {
        name: Case(name, family, config, fixed.get(name))
        for family in models.families().values()
        for name, config in family.tiny.items()
    }


KINDS = ("wan", "hunyuan_video", "cogvideox_5b", "ltx", "mochi")
"""One of each kind: cross-attention to text, text after the video in two kinds of blocks, text
before the video, other forms of rotary tables, and a model that capture exports anew for each size.
"""
