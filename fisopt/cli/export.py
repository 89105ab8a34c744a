"""``fisopt export``: an optimised model as files that run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import nn

import fisopt
from fisopt import models
from fisopt.artefact.export import check_target
from fisopt.artefact.loader import read_manifest
from fisopt.artefact.manifest import Format, Manifest
from fisopt.cli.sources import Source
from fisopt.errors import InputError
from fisopt.models.testbed.model import null_embeddings, with_coordinates
from fisopt.models.testbed.scenes import FRAMES, SIZE
from fisopt.rewrite.pass_base import Pass


@dataclass(frozen=True)
class Settings:
    """What to export and how.

    Attributes:
        source: "testbed", a pipeline, or a published name (text only), and the size of the video.
        component: which transformer of a pipeline.
        passes: the passes, in order.
        recipe: a recipe in their place.
        format: kind of the files.
        portable: whether torch alone runs them.
        steps: denoising steps, for passes that differ between them.
        dynamic: whether sizes stay open.
        strict: whether a pass must apply to every block.
        out: where to write.
        force: whether to replace what is there.
    """

    source: Source
    component: str
    passes: tuple[Pass, ...]
    recipe: Path | None
    format: Format
    portable: bool
    steps: int | None
    dynamic: bool
    strict: bool
    out: Path
    force: bool


def run(settings: Settings, out: Console, err: Console) -> None:
    """Load, optimise, export, and say what was written."""
    check_target(settings.out, settings.format, settings.portable, force=settings.force)
    with err.status(f"loading {settings.source.model}") as status:
        model, inputs = load(settings)
        status.update("capturing and rewriting")
        optimized = fisopt.optimize(
            model,
            settings.passes,
            backend="eager",
            strict=settings.strict,
            recipe=settings.recipe,
        )
        status.update(f"exporting {settings.format}")
        path = fisopt.export(
            optimized,
            settings.out,
            settings.format,
            settings.portable,
            example_inputs=inputs,
            steps=settings.steps,
            dynamic=settings.dynamic,
            force=settings.force,
        )
    out.print(Text(f"wrote {path}"), soft_wrap=True)
    if settings.format != "text":
        for line in summary(read_manifest(path)[0]):
            out.print(Text(line), soft_wrap=True)


def load(settings: Settings) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a name or a folder, and the call to export.

    Raises:
        InputError: it is neither, or its weights are not there for this format.
    """
    source = settings.source
    if source.model.lower() in models.published():
        if settings.format != "text":
            raise InputError(
                f"export: {source.model!r} is known by its shapes alone; of a published name there "
                "are no weights, only --format text"
            )
        size: dict[str, Any] = {**source.size}
        return models.build(source.model), models.example_inputs(source.model, **size)
    model = getattr(pipeline := source.load(), settings.component, None)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{source.model}, a {type(pipeline).__name__}, has no {settings.component}"
        )
    return model, _call(model, source)


def _call(model: nn.Module, source: Source) -> dict[str, Any]:
    """One forward call of a pipeline's model."""
    size: dict[str, Any] = {**source.size}
    if not source.is_testbed:
        return models.example_inputs(model, **size)
    frames = size.pop("num_frames", FRAMES)
    if size:
        raise InputError(f"the testbed draws {SIZE} x {SIZE} pixels; leave {', '.join(size)}")
    weight = next(model.parameters())
    call = {
        "hidden_states": with_coordinates(torch.zeros(1, 3, frames, SIZE, SIZE)),
        "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": null_embeddings(1),
    }
    held = {name: x.to(weight.device, weight.dtype) for name, x in call.items()}
    return {**held, "return_dict": False}


def summary(manifest: Manifest) -> list[str]:
    """What an artefact needs and takes."""
    lines = [f"runs with {' and '.join(manifest.needs)}"]
    if len(manifest.variants) > 1:
        lines.append(f"{len(manifest.variants)} variants over {manifest.steps} steps")
    if manifest.open_sizes:
        lines.append(f"open: {', '.join(manifest.open_sizes)}")
    lines += [f"{name} is fixed: {reason}" for name, reason in manifest.fixed_sizes.items()]
    return lines
