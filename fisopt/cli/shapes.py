"""A model by its shapes alone: a published one, or that of a pipeline whose weights stay unread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from fisopt import models
from fisopt.cli.artefacts import call_of
from fisopt.cli.catalog import Size, size_of
from fisopt.cli.sources import TESTBED, Source
from fisopt.errors import InputError, shown
from fisopt.models.testbed.pipeline import WEIGHTS


class Config(ConfigMixin):
    """Reads the config of a model of any class."""

    config_name = "config.json"  # type: ignore[assignment]


@dataclass(frozen=True)
class Shapes:
    """A model on the meta device.

    Attributes:
        title: the model and its video.
        model: without weights.
        inputs: the arguments of one call, on the meta device.
        size: its size.
    """

    title: str
    model: nn.Module
    inputs: dict[str, Any]
    size: Size


def shapes_of(
    source: Source, component: str = "transformer", dtype: torch.dtype = torch.float32
) -> Shapes:
    """Build a model on the meta device.

    Args:
        source: a published name, "testbed", or a pipeline: its folder or its repository; and the
            size of the video.
        component: which transformer of a pipeline.
        dtype: of its weights and inputs.

    Raises:
        InputError: nothing has this name, or no adapter knows the class of the transformer.
    """
    if source.is_published:
        model = models.build(source.model, dtype=dtype)
        inputs = models.example_inputs(
            source.model, dtype=dtype, **cast("dict[str, Any]", source.size)
        )
        family = models.find_family(source.model)
        known = models.published().get(source.model.lower(), family.published[0])
        video = (
            source.height or known.height,
            source.width or known.width,
            source.frames or known.num_frames,
        )
        title = f"{known.title}, {video[2]} frames of {video[0]} x {video[1]} pixels"
        return Shapes(title, model, inputs, size_of(model, inputs))
    model = _of_pipeline(source, component).to(dtype)
    inputs = call_of(model, source)
    size = size_of(model, inputs)
    title = f"{component} of {source.model}, a {type(model).__name__}"
    return Shapes(title, model, inputs, size)


def _of_pipeline(source: Source, component: str) -> nn.Module:
    """The transformer of a pipeline, from its config alone."""
    if not (source.is_testbed or source.is_pipeline):
        models.find_family(source.model)  # raises, with the nearest names
    folder = WEIGHTS if source.model == TESTBED else source.model
    try:
        config = cast("Any", Config).load_config(folder, subfolder=component)
    except OSError as error:
        raise InputError(
            f"{source.model}: the config of its {component} cannot be read: {error}; check the "
            "name, and --component"
        ) from error
    wanted = config.get("_class_name")
    for family in models.families().values():
        if family.transformer.__name__ == wanted:
            with torch.device("meta"):
                model: nn.Module = cast("Any", family.transformer).from_config(config)
            return model.eval().requires_grad_(False)
    raise InputError(
        f"{source.model}: its {component} is a {shown(wanted)}, for which there is no adapter; "
        "use fisopt.optimize in Python, which guesses blocks and grid at the first call"
    )
