"""``fisopt distill prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fisopt.cli.console import bars, stderr, stdout
from fisopt.cli.options import (
    Component,
    Device,
    Dtype,
    Frames,
    Guidance,
    Height,
    Out,
    Pipeline,
    PromptFile,
    Texts,
    Width,
)


def run(
    model: Pipeline,
    texts_: Texts = None,
    prompts: PromptFile = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the student's sampler.")] = 4,
    guidance: Guidance = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Prompts in one call, for a pipeline that takes lists.")
    ] = 1,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    component: Component = None,
    out: Out = Path("prepared"),
) -> None:
    """Record what a pipeline tells its transformer, so that training needs no text encoder."""
    from fisopt.cli.comparing import texts_of
    from fisopt.cli.launch import check_alone
    from fisopt.cli.sources import Source
    from fisopt.counted import counted
    from fisopt.distill import prepare

    check_alone("fisopt distill prepare")
    source = Source(model, device, dtype, height, width, frames)
    texts = texts_of(source, texts_, prompts)
    pipeline = source.load()
    with bars(stderr(), "prompts") as progress:
        task = progress.add_task("recording", total=len(texts))
        folder = prepare(
            pipeline,
            texts,
            out,
            steps=steps,
            arguments=source.arguments(guidance),
            component=component,
            batch=batch,
            seen=lambda done: progress.update(task, completed=done),
        )
    stdout().print(f"wrote {folder}, {counted(len(texts), 'prompt')}")
