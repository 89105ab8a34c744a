"""A tiny random model of every family and form, with inputs in units of the token grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from torch import nn

from fisopt import models
from fisopt.models import Family
from fisopt.spec import ModelSpec

CONTEXT = {"text": 12, "text_2": 7, "image": 6, "audio": 9}


@dataclass(frozen=True)
class Case:
    """A tiny model, float32, seeded, in evaluation mode.

    Attributes:
        name: Name of the form, such as ``"wan_ti2v"``.
        family: The family's adapter.
        config: What differs from the defaults of the model class.
        frames_key: The config entry that fixes the number of latent frames, if there is one: such
            a model takes one frame count only, and ``model_for`` builds another for another.
    """

    name: str
    family: Family
    config: Mapping[str, Any]
    frames_key: str | None = None

    @cached_property
    def model(self) -> nn.Module:
        return _build(self.family, self.config)

    def model_for(self, frames: int) -> nn.Module:
        """The model that takes this many latent frames; one and the same where all are taken."""
        if self.frames_key is None:
            return self.model
        return _build(self.family, {**self.config, self.frames_key: frames})

    @property
    def least(self) -> int:
        """The fewest latent frames that the model takes."""
        return 1 + self.family.beside

    @property
    def spec(self) -> ModelSpec:
        return models.spec_of(self.model)

    def inputs(
        self, frames: int, height: int, width: int, batch: int = 1, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of one forward call for a token grid of frames x height x width."""
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
def forms() -> dict[str, Case]:
    """Every form of every family by name."""
    fixed = {"latte": "video_length"}
    return {
        name: Case(name, family, config, fixed.get(name))
        for family in models.families().values()
        for name, config in family.tiny.items()
    }


LOOPED = {
    "allegro",
    "cogvideox",
    "hunyuan_video",
    "hunyuan_video15",
    "latte",
    "ltx",
    "mochi",
    "wan",
}
"""Families whose blocks `tests.passes.loop` has words for; every sweep runs over them."""


@cache
def zoo() -> dict[str, Case]:
    """The forms of these families: of every structure that there is."""
    return {name: case for name, case in forms().items() if case.family.name in LOOPED}


@cache
def newer() -> dict[str, Case]:
    """The other forms, which meet each pass once; see `tests/models/test_newer_families.py`."""
    return {name: case for name, case in forms().items() if name not in zoo()}


KINDS = ("wan", "hunyuan_video", "cogvideox_5b", "ltx", "mochi")
"""One of each: text across, text behind in two kinds of blocks, text in front, rotary tables that
are given in other forms, and a model that is exported anew for each size."""


def cases(*names: str) -> pytest.MarkDecorator:
    """A ``case`` of every model; those that are not named, or of a kind of their own, are slow."""
    wanted = names or KINDS
    marks = {name: () if name in wanted else (pytest.mark.slow,) for name in zoo()}
    params = [pytest.param(zoo()[name], id=name, marks=marks[name]) for name in zoo()]
    return pytest.mark.parametrize("case", params)
