"""What ``fisopt export`` writes, and what ``fisopt verify`` says of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fisopt import models
from fisopt.artefact.loader import Artefact
from fisopt.artefact.manifest import Format, Manifest
from fisopt.cli.sources import Source
from fisopt.counted import counted
from fisopt.errors import InputError
from fisopt.models.testbed.model import null_embeddings, with_coordinates
from fisopt.models.testbed.scenes import FRAMES, SIZE


def load(source: Source, component: str, form: Format) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a name or a folder, and the call to export.

    Args:
        source: "testbed", a pipeline, or a published name (text only), and the size of the video.
        component: which transformer of a pipeline.
        form: kind of the files.

    Raises:
        InputError: it is neither, or its weights are not there for this format.
    """
    if source.is_published:
        if form != "text":
            raise InputError(
                f"export: {source.model!r} is a published name, without weights; use --format "
                "text, or give a pipeline"
            )
        size: dict[str, Any] = {**source.size}
        return models.build(source.model), models.example_inputs(source.model, **size)
    model = getattr(pipeline := source.load(), component, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"{source.model}, a {type(pipeline).__name__}, has no {component}")
    return model, call_of(model, source)


def call_of(model: nn.Module, source: Source) -> dict[str, Any]:
    """The arguments of one forward call of a pipeline's model."""
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
    lines += [f"{share.count} ranks share {share.of}" for share in manifest.mesh]
    if manifest.open_sizes:
        lines.append(f"open: {', '.join(manifest.open_sizes)}")
    lines += dict.fromkeys(v.linears for v in manifest.variants if v.linears)
    lines += [f"{name} is fixed: {reason}" for name, reason in manifest.fixed_sizes.items()]
    return lines


def lines(held: Artefact) -> list[str]:
    """What an artefact is, in words."""
    manifest = held.manifest
    parts = sum(len(v.parts) for v in manifest.variants) + len(manifest.beside)
    passes = ", ".join(str(p["name"]) for p in manifest.recipe["passes"]) or "no passes"
    code = "native code" if manifest.format == "aoti" else "data"
    first = f"{held.path}: {counted(parts, 'part')} of {manifest.format} as written, {code}"
    signed = [] if held.signed is None else [f"signed with the key: {held.signed}"]
    more = [f"{manifest.model['class']}, {passes}", *signed, *summary(manifest)]
    return [first, *(f"  {line}" for line in more)]
