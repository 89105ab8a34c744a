"""``fisopt export``: an optimised model as files that run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.text import Text
from torch import nn

import fisopt
from fisopt import models
from fisopt.artefact.loader import read_manifest
from fisopt.artefact.manifest import Format, Manifest
from fisopt.cli.calibrate import TESTBED
from fisopt.errors import InputError
from fisopt.files import refuse_existing
from fisopt.models import testbed
from fisopt.models.testbed.model import null_embeddings, with_coordinates
from fisopt.models.testbed.scenes import FRAMES, SIZE
from fisopt.rewrite.pass_base import Pass


@dataclass(frozen=True)
class Settings:
    """What to export and how.

    Attributes:
        model: "testbed", the folder of a pipeline, or a published name (text only).
        component: which transformer of a pipeline.
        passes: the passes, in order.
        recipe: a recipe in their place.
        format: kind of the files.
        portable: whether torch alone runs them.
        steps: denoising steps, for passes that differ between them.
        size: pixels of the video by name, where they differ from the published ones.
        dynamic: whether sizes stay open.
        strict: whether a pass must apply to every block.
        out: where to write.
        force: whether to replace what is there.
    """

    model: str
    component: str
    passes: tuple[Pass, ...]
    recipe: Path | None
    format: Format
    portable: bool
    steps: int | None
    size: tuple[tuple[str, int], ...]
    dynamic: bool
    strict: bool
    out: Path
    force: bool


def run(settings: Settings, out: Console, err: Console) -> None:
    """Load, optimise, export, and say what was written."""
    refuse_existing(settings.out, force=settings.force)
    with err.status(f"loading {settings.model}") as status:
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
    size: dict[str, Any] = dict(settings.size)
    if settings.model == TESTBED:
        frames = size.pop("num_frames", FRAMES)
        if size:
            raise InputError(f"the testbed draws {SIZE} x {SIZE} pixels; leave {', '.join(size)}")
        return testbed.load_testbed().transformer, {
            "hidden_states": with_coordinates(torch.zeros(1, 3, frames, SIZE, SIZE)),
            "timestep": torch.full((1,), 500.0),
            "encoder_hidden_states": null_embeddings(1),
            "return_dict": False,
        }
    if (Path(settings.model) / "model_index.json").is_file():
        pipeline: Any = DiffusionPipeline.from_pretrained(settings.model)  # type: ignore[no-untyped-call]
        model = getattr(pipeline, settings.component, None)
        if not isinstance(model, nn.Module):
            raise InputError(f"{settings.model} has no {settings.component}")
        return model, models.example_inputs(model, **size)
    if settings.format != "text":
        raise InputError(
            f"export: {settings.model!r} is neither {TESTBED!r} nor a folder with a "
            "model_index.json; of a published name there are no weights, only --format text"
        )
    return models.build(settings.model), models.example_inputs(settings.model, **size)


def summary(manifest: Manifest) -> list[str]:
    """What an artefact needs and takes."""
    lines = [f"runs with {' and '.join(manifest.needs)}"]
    if len(manifest.variants) > 1:
        lines.append(f"{len(manifest.variants)} variants over {manifest.steps} steps")
    if manifest.open_sizes:
        lines.append(f"open: {', '.join(manifest.open_sizes)}")
    lines += [f"{name} is fixed: {reason}" for name, reason in manifest.fixed_sizes.items()]
    return lines
