"""``fisopt distill train``, which ``fisopt distill`` is short for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fisopt.cli.console import bars, stderr, stdout
from fisopt.cli.options import (
    Component,
    Device,
    Frames,
    Guidance,
    Height,
    Imports,
    Out,
    Passes,
    Pipeline,
    PromptFile,
    Texts,
    Width,
)
from fisopt.cli.stages import stages


def run(
    model: Pipeline,
    passes: Passes = None,
    imports: Imports = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The passes of a recipe.", show_default=False)
    ] = None,
    teacher_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The teacher's steps for a clip, a multiple of --steps: the student learns few "
            "steps without guidance.  Without this option it only learns to run under the "
            "passes.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the student's sampler.")] = 4,
    guidance: Guidance = None,
    texts_: Texts = None,
    prompts: PromptFile = None,
    prepared: Annotated[
        Path | None,
        typer.Option(
            help="Instead of prompts: the folder that `fisopt distill prepare` wrote, for these "
            "--steps and this size; the command writes it if it is missing.",
            show_default=False,
        ),
    ] = None,
    train_steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Clips in a micro-batch.")] = 4,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Micro-batches for each optimiser step.")
    ] = 1,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    lora: Annotated[
        int | None,
        typer.Option(min=1, help="Train adapters of this rank (peft).", show_default=False),
    ] = None,
    through: Annotated[
        bool,
        typer.Option(
            "--through",
            help="Let gradients flow through all sampling steps, all in memory at once: closer to "
            "the teacher's clips.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and prompts.")] = 0,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Compute in float32 or bfloat16 (default: bfloat16 on a GPU, else float32).  The "
            "weights that are trained are of float32; with --lora the others are of this dtype.",
            show_default=False,
        ),
    ] = None,
    component: Component = None,
    out: Out = Path("out"),
) -> None:
    """Train a student of few steps, or one that has learnt to be sparse."""
    import torch

    from fisopt.cli.comparing import texts_of
    from fisopt.cli.expressions import parse_passes
    from fisopt.cli.launch import check_alone
    from fisopt.cli.sources import Source
    from fisopt.distill import Supplied, Trainer, Training, consistency, prepare, sparse
    from fisopt.distill.prepared import FILE
    from fisopt.errors import OptionError
    from fisopt.recipe.recipe import Recipe

    check_alone("fisopt distill")
    if recipe is not None and passes:
        raise OptionError("distill: give --pass or --recipe, not both")
    chosen: Any = parse_passes(passes or [], imports)
    if recipe is not None:
        chosen = Recipe.load(recipe)
    source = Source(model, device, dtype, height, width, frames)
    computed = source.place()[1]
    training = Training(
        steps=train_steps,
        batch=batch,
        accumulate=accumulate,
        rate=rate,
        precision=None if computed == torch.float32 else computed,
        seed=seed,
    )
    if lora is None:
        source = replace(source, dtype="float32")
    texts = texts_of(source, texts_, prompts)
    pipeline = source.load()
    if prepared is not None and not (prepared / FILE).exists():
        with stages("recording the transformer's inputs for the prompts"):
            arguments = source.arguments(guidance)
            prepare(
                pipeline, texts, prepared, steps=steps, arguments=arguments, component=component
            )
    with bars(stderr()) as progress:
        task = progress.add_task("training", total=train_steps)

        def seen(trainer: Trainer) -> None:
            said = f"training, loss {trainer.loss:.4f}"
            progress.update(task, completed=trainer.step, description=said)

        shared: dict[str, Any] = {
            "steps": steps,
            "guidance": guidance,
            "training": training,
            "supplied": Supplied(own=1.0, through=True) if through else Supplied(),
            "arguments": source.size,
            "component": component,
            "lora": lora,
            "folder": out,
            "seen": seen,
        }
        if teacher_steps is not None:
            made = consistency(
                pipeline, prepared or texts, teacher_steps=teacher_steps, passes=chosen, **shared
            )
        else:
            made = sparse(pipeline, prepared or texts, chosen, **shared)
    folder = made.save(out / "student", force=True)
    last = made.curve[-1]
    stdout().print(
        f"loss {made.curve[0]['loss']:.4f} at first, {last['loss']:.4f} after {last['step']} steps",
    )
    stdout().print(f"wrote {folder}")
